"""Gradient variance of every estimator at fixed policy weights, measured on the same episodes.

The article "The Beauty of Reinforcement Learning (1)" says that plain REINFORCE has a high variance. This
module measures this variance and the effect of each baseline on it. For the gradient ĝ of an update of N
episodes, it computes:

    variance     V = N tr Cov(ĝ)              variance per episode; an update has the variance V / N
    SNR            = ‖E ĝ‖² / tr Cov(ĝ)        signal-to-noise ratio, for updates of the recipe's size
    noise scale  B = V / ‖E ĝ‖²                number of episodes for an SNR of 1
    cosine         = cos(ĝ, ĝ')                between independent halves of the episodes
    bias           = ‖E ĝ - ∇J‖ / ‖∇J‖         relative distance from the exact gradient ∇J

B is the gradient noise scale of McCandlish et al. 2018, who recommend B as batch size. If N is far below B,
doubling the number of episodes per update halves the number of updates that training needs. If N is far above
B, additional episodes hardly reduce the number of updates.

A group consists of the episodes of one problem. Problems are drawn independently, with replacement, so groups
are independent. With the baseline `batch_mean`, with `standardize`, or with the number of tokens as
denominator, the gradient of a group also depends on the other groups of its update. Gradients with these
settings are computed as in training, but the statistics of the gradients assume that groups are independent.
This assumption causes a relative error of the variance of at most about 2/M, where M is the number of groups
per update.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from llm_reinforce.analysis.episode_gradients import episode_gradients, spanned
from llm_reinforce.analysis.estimators import Estimator, action_weights, estimators_for, with_exact_norms
from llm_reinforce.analysis.gradient_statistics import (
    ROUNDING,
    Gram,
    IntervalEstimate,
    Values,
    Weights,
    bootstrap_interval,
    jackknife_interval,
    mean_cosine,
    mean_inner_product,
    random_halves,
    ratio,
    total_variance,
    variance_with_interval,
)
from llm_reinforce.analysis.measured_episodes import MeasuredEpisodes
from llm_reinforce.analysis.measured_recipe import collect_from_recipe, config_to_measure
from llm_reinforce.analysis.measurement_files import check_output, write_json
from llm_reinforce.analysis.recipe_source import RecipeSource
from llm_reinforce.analysis.sketch import Sketch
from llm_reinforce.analysis.variance_plots import plot_variance
from llm_reinforce.console.messages import is_interactive
from llm_reinforce.console.progress import progress
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy

REFERENCE = "leave_one_out"  # used as the estimate of ∇J, because it is unbiased and has a low variance
MIN_WITH_GRADIENT = 4  # minimum number of problems with a nonzero reference gradient, for usable intervals
NUM_SPLITS = 50  # number of random splits of the groups into halves
MAX_WHOLE = 1 << 29  # maximum number of components of all gradients without a sketch: 2 GiB in float32
SKETCH_SIZE = 1 << 14


@dataclass(frozen=True, slots=True)
class EstimatorVariance:
    """Measurements of one estimator.

    Attributes:
        name: name of the estimator.
        is_unbiased: True if the expected gradient is ∇J.
        variance, snr, noise_scale, cosine: see the docstring of the module.
        along: component of the expected gradient along ∇J, ⟨E ĝ, ∇J⟩ / ‖∇J‖²; None for an unbiased estimator,
            because its component is exactly 1.
        bias: relative distance of the expected gradient from ∇J, ‖E ĝ - ∇J‖ / ‖∇J‖; None for an unbiased
            estimator, because its distance is exactly 0.
    """

    name: str
    is_unbiased: bool
    variance: IntervalEstimate
    snr: IntervalEstimate
    noise_scale: IntervalEstimate
    cosine: IntervalEstimate
    along: IntervalEstimate | None
    bias: IntervalEstimate | None


@dataclass(frozen=True, slots=True)
class GradientVariance:
    """Measurements of all estimators, and properties of the episodes.

    Attributes:
        estimators: the measurements of each estimator.
        squared_norm: squared norm of the exact gradient, ‖∇J‖².
        num_problems: number of problems, which were drawn with replacement.
        num_with_gradient: number of problems whose episodes have different returns. If this number is below
            32, the intervals are too short. If the number is below 16, the intervals are much too short.
            tests/benchmarks/variance_coverage.py measures the coverage of the intervals.
        episodes_per_problem: number of episodes per problem.
        episodes_per_update: number of episodes per update of the recipe.
        mean_return: mean total reward of the scored episodes.
        accuracy: share of correct episodes. None if the problems have no reference answers.
        num_unscored: number of episodes without a reward.
        num_parameters: number of trained parameters, which equals the number of components of a gradient.
        sketch_error: upper bound on the relative standard deviation that the random projection of the
            gradients adds to a squared norm; 0 if the gradients are not projected.
    """

    estimators: tuple[EstimatorVariance, ...]
    squared_norm: IntervalEstimate
    num_problems: int
    num_with_gradient: int
    episodes_per_problem: int
    episodes_per_update: int
    mean_return: float
    accuracy: float | None
    num_unscored: int
    num_parameters: int
    sketch_error: float


def measure_variance(
    recipe: RecipeSource,
    *,
    policy: str | PathLike[str] | None = None,
    num_problems: int = 256,
    sketch_size: int | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    output_dir: str | PathLike[str] | None = None,
    show_progress: bool | None = None,
) -> GradientVariance:
    """Measure the gradient variance with every baseline, for the policy and the problems of a recipe.

        measured = measure_variance("price", policy="runs/price")
        {each.name: each.variance.value for each in measured.estimators}

    The policy is trained only by the recipe's warm start, if there is one.

    Args:
        recipe: the name of a built-in recipe, a recipe file, the directory of a run, or a Config.
        policy: directory of a run, directory of a model, or model name. The gradients are measured with the
            weights of this policy. The default is the recipe's policy before the first policy-gradient
            update.
        num_problems: number of problems, which are drawn with replacement. A value above the recipe's
            `problems_per_update` is rounded up to a multiple of `problems_per_update`.
        sketch_size: number of components to which each gradient is shortened by random projection. 0: do not
            shorten. None: shorten to 16,384 components if all gradients together would need more than 2 GiB
            of memory.
        seed: random seed of the problems, the episodes, the random projection and the intervals.
        overrides: changes of the recipe's settings, each of the form `section.key=value`.
        output_dir: directory for `variance.json` and, if matplotlib is installed, the plot; None: write no
            files.
        show_progress: if True, show progress bars. By default, they are shown on a terminal and in a
            notebook.

    Raises:
        InputError: if the recipe can't be measured, if fewer than four problems have episodes with different
            returns, or if `output_dir` can't be written to or already contains files of this measurement.
    """
    output = check_output(output_dir, "variance")
    config = config_to_measure(recipe, overrides, policy)
    is_shown = is_interactive() if show_progress is None else show_progress
    own_policy, episodes = collect_from_recipe(
        config, num_problems=num_problems, seed=seed, show_progress=is_shown
    )
    with progress("gradients", len(episodes.batch), what="episodes", is_shown=is_shown) as show:
        measured = measure_estimators(
            own_policy,
            episodes,
            estimators_for(config.reinforce),
            temperature=config.sampling.temperature,
            sketch_size=sketch_size,
            seed=seed,
            progress=show,
        )
    if output is not None:
        write_json(output, "variance", measured)
        with suppress(ModuleNotFoundError):  # matplotlib is an optional dependency
            plot_variance(measured, output)
    return measured


def measure_estimators(
    policy: LanguagePolicy,
    collected: MeasuredEpisodes,
    estimators: Sequence[Estimator],
    *,
    temperature: float = 1.0,
    sketch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> GradientVariance:
    """Compute the gradients of all estimators from the same episodes, and return statistics of the gradients.

    The weights of the policy are not changed.

    Args:
        policy: the policy.
        collected: episodes of the policy.
        estimators: the estimators, one of which must be named `leave_one_out`.
        temperature: temperature with which the episodes were sampled.
        sketch_size: number of components to which each gradient is shortened by random projection; see
            `measure_variance`.
        seed: random seed of the random projection and of the intervals.
        progress: function that is called with the number of completed episodes.

    Raises:
        InputError: if fewer than four problems have episodes with different returns, or a gradient is not
            finite.
    """
    batch = collected.batch
    weights = torch.stack([action_weights(estimator, collected) for estimator in estimators])
    sketch = sketch_for(policy, weights, sketch_size, seed)
    gradients = episode_gradients(
        policy, batch.episodes, weights, temperature=temperature, sketch=sketch, progress=progress
    )
    groups = batch.groups.tolist()
    gradients = with_exact_norms(gradients, estimators, groups)
    settings = estimators[0].settings
    measured, squared_norm, num_with_gradient = estimator_statistics(
        lambda one, other: gradients.gram(one, other, groups), estimators, seed=seed
    )
    totals = [total for episode in batch.episodes if (total := episode.total_reward) is not None]
    verdicts = [episode.verdict for episode in batch.episodes if episode.verdict is not None]
    return GradientVariance(
        estimators=measured,
        squared_norm=squared_norm,
        num_problems=len(set(groups)),
        num_with_gradient=num_with_gradient,
        episodes_per_problem=settings.episodes_per_problem,
        episodes_per_update=settings.problems_of_update * settings.episodes_per_problem,
        mean_return=sum(totals) / max(1, len(totals)),
        accuracy=sum(verdict.correct for verdict in verdicts) / len(verdicts) if verdicts else None,
        num_unscored=len(batch) - len(totals),
        num_parameters=num_trained_parameters(policy),
        sketch_error=sketch.relative_error if sketch else 0.0,
    )


def num_trained_parameters(policy: LanguagePolicy) -> int:
    """Return the number of trained parameters, which equals the number of components of a gradient."""
    return sum(parameter.numel() for parameter in policy.model.parameters() if parameter.requires_grad)


def sketch_for(
    policy: LanguagePolicy, weights: Float[Tensor, "estimator episode token"], size: int | None, seed: int
) -> Sketch | None:
    """Return a random projection that shortens gradients, or None if complete gradients should be used.

    Gradients are shortened to `size` components, or not at all if `size` is 0. If `size` is None, gradients
    are shortened to `SKETCH_SIZE` components if complete gradients would need more than 2 GiB of memory.
    """
    num_parameters = num_trained_parameters(policy)
    if size is None:
        num_rows = sum(len(spanned(of_episode.double())) for of_episode in weights.unbind(dim=1))
        size = SKETCH_SIZE if num_rows * num_parameters > MAX_WHOLE else 0
    return Sketch.random(num_parameters, size, seed) if size else None


def estimator_statistics(
    gram: Callable[[int, int], Gram], estimators: Sequence[Estimator], *, seed: int = 0
) -> tuple[tuple[EstimatorVariance, ...], IntervalEstimate, int]:
    """Return the measurements of every estimator, ‖∇J‖², and the number of problems with a nonzero gradient.

    Args:
        gram: function that takes the indices of two estimators, and returns the inner products ⟨h_k, h'_l⟩
            between the groups' gradients by these estimators. A group consists of the episodes of one
            problem.
        estimators: the estimators, one of which must be named `leave_one_out`.
        seed: random seed of the intervals.

    Raises:
        InputError: if fewer than four problems have a nonzero gradient.
    """
    names = [estimator.name for estimator in estimators]
    reference_index = names.index(REFERENCE)
    grams = [gram(index, index) for index in range(len(estimators))]
    reference = grams[reference_index]
    # if all returns of a problem are equal, the reference gradient of the problem is 0 up to rounding errors
    longest = np.max([np.diagonal(own) for own in grams], axis=0)
    num_with_gradient = int((np.diagonal(reference) > ROUNDING * longest).sum())
    if num_with_gradient < MIN_WITH_GRADIENT:
        found = f"only {num_with_gradient}" if num_with_gradient else "none"
        raise InputError(
            f"{found} of the {len(reference)} problems have a nonzero gradient, but at least "
            f"{MIN_WITH_GRADIENT} are needed. The gradient is zero if all episodes of a problem have the "
            "same return. Measure a `policy` whose answers are sometimes correct and sometimes wrong "
            "(--policy on the command line), or increase `num_problems` (--problems) or "
            "reinforce.episodes_per_problem (--set)"
        )
    rows = tuple(
        _statistics(estimator, own, gram(index, reference_index), reference, seed)
        for index, (estimator, own) in enumerate(zip(estimators, grams, strict=True))
    )
    squared_norm = bootstrap_interval(
        lambda weights: mean_inner_product(reference, weights), len(reference), seed, "percentile"
    )
    return rows, squared_norm, num_with_gradient


def _statistics(
    estimator: Estimator, own: Gram, cross: Gram, reference: Gram, seed: int
) -> EstimatorVariance:
    num_groups, size = len(own), estimator.settings.episodes_per_problem
    # the expected gradient of an unbiased estimator is ∇J, and the reference estimator estimates ∇J best
    expected = reference if estimator.is_unbiased else own

    def variance(weights: Weights) -> Values:
        return np.asarray(size * total_variance(own, weights))

    def inverse_scale(weights: Weights) -> Values:
        return ratio(mean_inner_product(expected, weights), variance(weights))

    halves = random_halves(num_groups, NUM_SPLITS, seed)
    inverse = bootstrap_interval(inverse_scale, num_groups, seed)
    per_update = estimator.settings.problems_of_update * size
    along = bias = None
    if not estimator.is_unbiased:
        along, bias = _bias(own, cross, reference, seed)
    return EstimatorVariance(
        name=estimator.name,
        is_unbiased=estimator.is_unbiased,
        variance=variance_with_interval(own, size, seed),
        snr=IntervalEstimate(*(per_update * value for value in (inverse.value, inverse.low, inverse.high))),
        noise_scale=IntervalEstimate(
            *(_inverse(value) for value in (inverse.value, inverse.high, inverse.low))
        ),
        cosine=jackknife_interval(*mean_cosine(own, halves)),
        along=along,
        bias=bias,
    )


def _bias(own: Gram, cross: Gram, reference: Gram, seed: int) -> tuple[IntervalEstimate, IntervalEstimate]:
    """Return ⟨E ĝ, ∇J⟩ / ‖∇J‖² and ‖E ĝ - ∇J‖ / ‖∇J‖ of an estimator, each with its interval.

    Let h be the groups' gradients by the estimator, and h' the groups' gradients by the reference estimator,
    whose expectation is ∇J. The results are computed from the differences h - h', in which much of the noise
    cancels, because both estimators use the same episodes.

    Args:
        own: inner products between the gradients h.
        cross: inner products between the gradients h and h'.
        reference: inner products between the gradients h'.
        seed: random seed of the intervals.
    """
    num_groups = len(own)

    def along(weights: Weights) -> Values:
        # 1 + ⟨E(h - h'), E h'⟩ / ‖E h'‖²
        difference = mean_inner_product(cross - reference, weights)
        return np.asarray(1.0 + ratio(difference, mean_inner_product(reference, weights)))

    def squared_bias(weights: Weights) -> Values:
        # ‖E(h - h')‖² / ‖E h'‖²
        difference = mean_inner_product(own - cross - cross.T + reference, weights)
        return ratio(difference, mean_inner_product(reference, weights))

    square = bootstrap_interval(squared_bias, num_groups, seed, "percentile")
    roots = (math.sqrt(max(0.0, value)) for value in (square.value, square.low, square.high))
    return bootstrap_interval(along, num_groups, seed, "percentile"), IntervalEstimate(*roots)


def _inverse(value: float) -> float:
    """Return 1 / value, or infinity if the value is not positive."""
    return 1.0 / value if value > 0 else math.inf
