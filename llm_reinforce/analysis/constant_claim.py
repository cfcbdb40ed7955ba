"""Gradient variance after a constant is added to every reward.

This is the first claim of the article "The Beauty of Reinforcement Learning (1) – Intro of Policy Based
Methods": adding a constant to every reward does not change which policy is better, but it adds variance to
the gradient.

Let g_t be the return from action t on, v = Σ_t g_t ∇log π and s = Σ_t ∇log π. If the discount is 1 and a
constant c is added to the terminal reward, the gradient of an episode changes from v to v + c s. The
expectation of s is 0, so the expected gradient does not change. The variance of plain REINFORCE is

    V(c) = V(0) + 2 c E⟨v, s⟩ + c² E‖s‖²

A baseline that is estimated from the rewards also increases by c. Subtracting such a baseline removes c.
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
        predicted: variance predicted by the formula in the module's docstring, from episodes that are not
            used for `measured`. None for baselines other than "none", because the formula is valid only for
            plain REINFORCE.
        measured: variance tr Cov(ĝ) of one episode, estimated from the measured episodes.
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
    """Measure the gradient variance with each baseline, after a constant is added to every reward.

    The variance is measured for several constants, on one half of the problems. For plain REINFORCE, the
    variance is also predicted from the other half of the problems. The policy is trained only by the recipe's
    warm start, if there is one.

    Args:
        recipe: the name of a built-in recipe, a recipe file, the directory of a run, or a Config.
        policy: directory of a run, directory of a model, or model name. The gradients are measured with the
            weights of this policy. The default is the recipe's policy before the first policy-gradient
            update.
        num_problems: number of problems, which are drawn with replacement. A value above the recipe's
            `problems_per_update` is rounded up to a multiple of `problems_per_update`.
        seed: random seed of the problems, the episodes, the random projection and the intervals.
        overrides: changes of the recipe's settings, each of the form `section.key=value`.
        output_dir: directory for `constant.json` and, if matplotlib is installed, the plot; None: write no
            files.
        show_progress: if True, show progress bars. By default, they are shown on a terminal and in a
            notebook.

    Raises:
        InputError: if the recipe can't be measured, or if `output_dir` can't be written to or already
            contains files of this measurement.
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
        with suppress(ModuleNotFoundError):  # matplotlib is an optional dependency
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

    A group consists of the episodes of one problem. The variance is measured on one half of the groups. For
    plain REINFORCE, the variance is also predicted from the other half.

    Args:
        sketch_size: number of components to which each gradient is shortened by random projection; see
            `measure_variance`.
        progress: function that is called with the number of completed episodes.

    Raises:
        InputError: if the discount is not 1. The prediction is valid only for a discount of 1.
    """
    if settings.discount != 1.0:
        raise InputError(
            f"reinforce.discount: should be 1 for this claim, not {settings.discount}, because the "
            "theoretical prediction assumes a discount of 1; override this setting with reinforce.discount=1"
        )
    plain = settings.model_copy(update={"standardize": False, "denominator": "episodes"})
    estimators = [Estimator(name, plain.model_copy(update={"baseline": name})) for name in COMPARED]
    shifted = [with_constant(collected, constant) for constant in constants]
    weights = [action_weights(estimator, each) for each in shifted for estimator in estimators]
    at_zero = action_weights(estimators[0], collected)
    # The weights for a constant of 1, minus the weights for a constant of 0, are the weights of s.
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
    """Return a copy of the episodes in which a constant is added to every return and every learned baseline.

    The constant is added to the terminal reward of each episode, to the moving average of the returns, and to
    the values that the value head predicted.
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
    """Return a function that predicts V(c), the variance of plain REINFORCE if c is added to every reward.

    The prediction needs two gradients of each episode: v, with the actual returns, and s, with all returns
    equal to 1.

    Args:
        gradients: for each episode, the gradients of all estimators. The gradients s and v are among them.
        groups: group of each episode.
        is_used: for each group, True if its episodes are used for the prediction.
        of_ones: index of the estimator whose gradient is s. The gradient of the next estimator is v.
        group_size: number of episodes per group.
    """
    gram = gradients.gram(of_ones + 1, of_ones + 1, groups)[np.ix_(is_used, is_used)]
    at_zero = group_size * float(total_variance(gram, np.ones(len(gram))))
    of_used = torch.tensor(is_used)[torch.tensor(groups)]
    # multiplied by group_size**2, because the weights of an episode are divided by the size of its group
    products, squares = (
        group_size**2 * float(gradients.of_episodes(index, of_ones, len(groups))[of_used].mean())
        for index in (of_ones + 1, of_ones)
    )
    # V(c) = V(0) + 2 c E⟨v, s⟩ + c² E‖s‖²
    return lambda constant: at_zero + 2 * constant * products + constant**2 * squares
