"""The article's first point: returns have no unified baseline, and plain REINFORCE pays for where they begin.

A constant c added to every reward changes no policy's order. An episode's gradient becomes v + c s, with
v = Σ_t g_t ∇log π and the score s = Σ_t ∇log π, whose expectation is 0: the expected gradient stays, and

    V(c) = V(0) + 2 c E⟨v, s⟩ + c² E‖s‖²        γ = 1, terminal rewards

which is plain REINFORCE's. A baseline that moves with the rewards takes c away before it is weighed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from llm_reinforce.analysis.measured_episodes import Collected
from llm_reinforce.analysis.episode_gradients import EpisodeGradients, episode_gradients
from llm_reinforce.analysis.gradient_statistics import Measured, measured_variance, total_variance
from llm_reinforce.analysis.gradient_variance import Estimator, action_weights, sketch_for
from llm_reinforce.config import ReinforceConfig
from llm_reinforce.episodes import Episode, EpisodeBatch
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.policy_gradient import MovingAverage

CONSTANTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
COMPARED = ("none", "batch_mean", "moving_average", "group_mean", "leave_one_out")


@dataclass(frozen=True, slots=True)
class ConstantFigures:
    """One baseline with one constant.

    Attributes:
        predicted: of `none`, by the formula above, from other episodes; None for the others.
        measured: tr Cov(ĝ) of an episode.
    """

    constant: float
    baseline: str
    predicted: float | None
    measured: Measured


def measure_constants(
    policy: LanguagePolicy,
    collected: Collected,
    settings: ReinforceConfig,
    *,
    temperature: float = 1.0,
    constants: Sequence[float] = CONSTANTS,
    sketch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[ConstantFigures, ...]:
    """Each baseline's variance with each constant; half of the groups predict, the other half are measured.

    Raises:
        InputError: the formula isn't that of this recipe, which discounts.
    """
    if settings.discount != 1.0:
        raise InputError(f"reinforce.discount: this measures γ = 1, and it is {settings.discount}")
    plain = settings.model_copy(update={"standardize": False, "denominator": "episodes"})
    estimators = [Estimator(name, plain.model_copy(update={"baseline": name})) for name in COMPARED]
    shifted = [with_constant(collected, constant) for constant in constants]
    weights = [action_weights(estimator, each) for each in shifted for estimator in estimators]
    at_zero = action_weights(estimators[0], collected)
    score = action_weights(estimators[0], with_constant(collected, 1.0)) - at_zero
    batch = collected.batch
    stacked = torch.stack([*weights, score, at_zero])
    gradients = episode_gradients(
        policy,
        batch.episodes,
        stacked,
        temperature=temperature,
        sketch=sketch_for(policy, stacked, sketch_size, seed),
        progress=progress,
    )
    groups = batch.groups.tolist()
    is_measured = np.arange(max(groups) + 1) % 2 == 1
    predicted = _predictor(gradients, groups, ~is_measured, len(weights), settings.episodes_per_problem)
    found = []
    for index in range(len(weights)):
        constant, name = constants[index // len(COMPARED)], COMPARED[index % len(COMPARED)]
        gram = gradients.gram(index, index, groups)[np.ix_(is_measured, is_measured)]
        found.append(
            ConstantFigures(
                constant=constant,
                baseline=name,
                predicted=predicted(constant) if name == "none" else None,
                measured=measured_variance(gram, settings.episodes_per_problem, seed),
            )
        )
    return tuple(found)


def with_constant(collected: Collected, constant: float) -> Collected:
    """The same episodes, each terminal reward that much higher, and those before them too."""

    def higher(episodes: Sequence[Episode]) -> tuple[Episode, ...]:
        return tuple(
            episode if episode.reward is None else replace(episode, reward=episode.reward + constant)
            for episode in episodes
        )

    updates = tuple(
        EpisodeBatch.of(higher(update.episodes), update.logged, higher(update.greedy))
        for update in collected.updates
    )
    return Collected(
        updates,
        MovingAverage(collected.before.value + constant, 1.0),
        tuple(values + constant for values in collected.values),
    )


def _predictor(
    gradients: EpisodeGradients,
    groups: Sequence[int],
    is_used: np.ndarray,
    score: int,
    group_size: int,
) -> Callable[[float], float]:
    """V(c) of `none`, from the episodes of these groups: c = 0 stands behind the score in `gradients`."""
    gram = gradients.gram(score + 1, score + 1, groups)[np.ix_(is_used, is_used)]
    at_zero = group_size * float(total_variance(gram, np.ones(len(gram))))
    of_used = torch.tensor(is_used)[torch.tensor(groups)]
    # the weights are those of an episode divided by the group's size
    products, squares = (
        group_size**2 * float(gradients.of_episodes(index, score, len(groups))[of_used].mean())
        for index in (score + 1, score)
    )
    # V(c) = V(0) + 2 c E⟨v, s⟩ + c² E‖s‖²
    return lambda constant: at_zero + 2 * constant * products + constant**2 * squares
