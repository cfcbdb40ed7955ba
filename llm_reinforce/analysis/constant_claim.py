"""The article's first claim: returns have no unified baseline, so a constant offset of returns adds variance.

The article is "The Beauty of Reinforcement Learning (1) – Intro of Policy Based Methods".

Adding a constant c to every reward does not change the ranking of policies. The gradient of an episode
changes from v to v + c s, with v = Σ_t g_t ∇log π and s = Σ_t ∇log π. The expectation of s is 0, so the
expected gradient does not change. For γ = 1 and terminal rewards, the variance of plain REINFORCE is

    V(c) = V(0) + 2 c E⟨v, s⟩ + c² E‖s‖²

A baseline that is estimated from the rewards also contains c, so subtracting the baseline removes c.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike

import numpy as np
import torch

from llm_reinforce.analysis.episode_gradients import EpisodeGradients, episode_gradients
from llm_reinforce.analysis.estimators import Estimator, action_weights
from llm_reinforce.analysis.gradient_statistics import (
    IntervalEstimate,
    total_variance,
    variance_with_interval,
)
from llm_reinforce.analysis.gradient_variance import sketch_for
from llm_reinforce.analysis.measured_episodes import MeasuredEpisodes
from llm_reinforce.analysis.measured_recipe import collect_from_recipe, config_to_measure
from llm_reinforce.analysis.measurement_files import check_output, write_json
from llm_reinforce.analysis.recipe_source import RecipeSource
from llm_reinforce.analysis.variance_plots import plot_constant_claim
from llm_reinforce.config import ReinforceConfig
from llm_reinforce.console.messages import is_interactive
from llm_reinforce.console.progress import progress
from llm_reinforce.episodes import Episode, EpisodeBatch
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.policy_gradient import MovingAverage

CONSTANTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
COMPARED = ("none", "batch_mean", "moving_average", "group_mean", "leave_one_out")


@dataclass(frozen=True, slots=True)
class ConstantVariance:
    """Gradient variance with one baseline and one constant.

    Attributes:
        constant: the constant added to every reward.
        baseline: name of the baseline.
        predicted: variance from the formula above, computed from other episodes; None unless `baseline` is
            `none`.
        measured: tr Cov(ĝ) of one episode, estimated from the measured episodes.
    """

    constant: float
    baseline: str
    predicted: float | None
    measured: IntervalEstimate


def measure_constant_claim(
    recipe: RecipeSource,
    *,
    policy: str | PathLike[str] | None = None,
    num_problems: int = 512,
    seed: int = 0,
    overrides: Sequence[str] = (),
    output_dir: str | PathLike[str] | None = None,
    show_progress: bool | None = None,
) -> tuple[ConstantVariance, ...]:
    """Measure the gradient variance with a constant added to every reward, for each baseline.

    The prediction is computed from one half of the problems, the measurement from the other half. There is no
    training except the recipe's warm start.

    Args:
        recipe: the name of a built-in recipe, a recipe file, the directory of a run, or a Config.
        policy: a run, a model directory or a model name whose weights are measured; by default, the weights
            with which the recipe starts its first update.
        num_problems: number of problems, drawn with replacement; rounded up to whole updates.
        seed: random seed of problems, episodes, sketch and intervals.
        overrides: changes of the recipe's settings, each `section.key=value`.
        output_dir: directory for `constant.json` and, if matplotlib is installed, the plot; None: write no
            files.
        show_progress: show progress bars; by default only on a terminal and in a notebook.

    Raises:
        InputError: if the recipe can't be measured, or the directory can't be written to.
    """
    output = check_output(output_dir, "constant")
    config = config_to_measure(recipe, overrides, policy)
    is_shown = is_interactive() if show_progress is None else show_progress
    own_policy, episodes = collect_from_recipe(
        config, num_problems=num_problems, seed=seed, show_progress=is_shown
    )
    with progress("gradients", len(episodes.batch), what="episodes", is_shown=is_shown) as show:
        rows = constant_variances(
            own_policy,
            episodes,
            config.reinforce,
            temperature=config.sampling.temperature,
            seed=seed,
            progress=show,
        )
    if output is not None:
        write_json(output, "constant", rows)
        with suppress(ModuleNotFoundError):  # matplotlib is an extra
            plot_constant_claim(rows, output)
    return rows


def constant_variances(
    policy: LanguagePolicy,
    collected: MeasuredEpisodes,
    settings: ReinforceConfig,
    *,
    temperature: float = 1.0,
    constants: Sequence[float] = CONSTANTS,
    sketch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[ConstantVariance, ...]:
    """Return the gradient variance with each baseline and each constant.

    The prediction is computed from one half of the groups (a group is the episodes of one problem), the
    measurement from the other half.

    Args:
        sketch_size: as for `measure_estimators`.
        progress: called with the number of completed episodes.

    Raises:
        InputError: if the discount is not 1, which the formula assumes.
    """
    if settings.discount != 1.0:
        raise InputError(
            f"reinforce.discount: {settings.discount}, but the prediction is valid only for 1; override it "
            "with reinforce.discount=1"
        )
    plain = settings.model_copy(update={"standardize": False, "denominator": "episodes"})
    estimators = [Estimator(name, plain.model_copy(update={"baseline": name})) for name in COMPARED]
    shifted = [with_constant(collected, constant) for constant in constants]
    weights = [action_weights(estimator, each) for each in shifted for estimator in estimators]
    at_zero = action_weights(estimators[0], collected)
    # a constant of 1 increases the weight of each ∇log π by 1; these increases are the weights of s
    of_ones = action_weights(estimators[0], with_constant(collected, 1.0)) - at_zero
    batch = collected.batch
    stacked = torch.stack([*weights, of_ones, at_zero])
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
    rows = []
    for index in range(len(weights)):
        constant, name = constants[index // len(COMPARED)], COMPARED[index % len(COMPARED)]
        gram = gradients.gram(index, index, groups)[np.ix_(is_measured, is_measured)]
        rows.append(
            ConstantVariance(
                constant=constant,
                baseline=name,
                predicted=predicted(constant) if name == "none" else None,
                measured=variance_with_interval(gram, settings.episodes_per_problem, seed),
            )
        )
    return tuple(rows)


def with_constant(collected: MeasuredEpisodes, constant: float) -> MeasuredEpisodes:
    """Return a copy in which every return is higher by a constant, and every baseline accordingly.

    The constant is added to the terminal rewards, to the moving average, and to the predicted values.
    """

    def shifted(episodes: Sequence[Episode]) -> tuple[Episode, ...]:
        return tuple(
            episode if episode.reward is None else replace(episode, reward=episode.reward + constant)
            for episode in episodes
        )

    updates = tuple(
        EpisodeBatch.of(shifted(update.episodes), update.logged, shifted(update.greedy))
        for update in collected.updates
    )
    return MeasuredEpisodes(
        updates,
        MovingAverage(collected.moving_average.value + constant, 1.0),
        tuple(values + constant for values in collected.values),
    )


def _predictor(
    gradients: EpisodeGradients,
    groups: Sequence[int],
    is_used: np.ndarray,
    of_ones: int,
    group_size: int,
) -> Callable[[float], float]:
    """Return the predicted variance V(c) without a baseline, as a function of c, from the used groups.

    Args:
        gradients: the gradients v and s of every episode, among those of other estimators.
        groups: group of each episode.
        is_used: True for the groups from which the prediction is computed.
        of_ones: index of the estimator in `gradients` whose gradient is s; the estimator with the gradient v
            is the next one.
        group_size: number of episodes per group.
    """
    gram = gradients.gram(of_ones + 1, of_ones + 1, groups)[np.ix_(is_used, is_used)]
    at_zero = group_size * float(total_variance(gram, np.ones(len(gram))))
    of_used = torch.tensor(is_used)[torch.tensor(groups)]
    # the weights of an episode are divided by the size of its group
    products, squares = (
        group_size**2 * float(gradients.of_episodes(index, of_ones, len(groups))[of_used].mean())
        for index in (of_ones + 1, of_ones)
    )
    # V(c) = V(0) + 2 c E⟨v, s⟩ + c² E‖s‖²
    return lambda constant: at_zero + 2 * constant * products + constant**2 * squares
