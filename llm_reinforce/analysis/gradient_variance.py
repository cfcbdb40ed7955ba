"""The gradient's variance at fixed weights, for every estimator, from one collection of episodes.

The article says that plain REINFORCE has a high variance. This measures it, and the effect of each baseline.
For the gradient ĝ of an update of N episodes:

    variance     V = N tr Cov(ĝ)              per episode: an update of N has V / N
    SNR            = ‖E ĝ‖² / tr Cov(ĝ)        of an update of the recipe's size
    noise scale  B = V / ‖E ĝ‖²                number of episodes at which the SNR is 1
    cosine         = cos(ĝ, ĝ')                of two independent halves of the episodes
    bias           = ‖E ĝ - ∇J‖ / ‖∇J‖

B is the gradient noise scale of McCandlish et al. 2018, and the batch size that they recommend: far below it,
twice as many episodes per update halve the number of updates; far above it, more episodes are wasted.

Problems are drawn independently, with replacement, so groups are independent. `batch_mean`, `standardize`
and a denominator of tokens couple the groups of an update. Their gradients are formed as in training, but
measured as if groups were independent, which leaves out a share of about 2/B of their variance.
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

REFERENCE = "leave_one_out"  # unbiased and of low variance: ∇J is measured by it
MIN_WITH_GRADIENT = 4  # problems whose reference gradient isn't zero: with fewer no interval makes sense
NUM_SPLITS = 50  # random splits of the groups into halves
MAX_WHOLE = 1 << 29  # numbers of all gradients together, 2 GiB in float32; beyond that they are sketched
SKETCH_SIZE = 1 << 14


@dataclass(frozen=True, slots=True)
class EstimatorVariance:
    """The measurements of one estimator, as defined in the module's docstring.

    Attributes:
        along: ⟨E ĝ, ∇J⟩ / ‖∇J‖², 1 for an unbiased estimator; None if the estimator is unbiased.
        bias: None if the estimator is unbiased.
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
    """The measurements of all estimators, and the episodes that they were made on.

    Attributes:
        squared_norm: ‖∇J‖².
        num_with_gradient: number of problems whose episodes differ in their returns. With fewer than 32, and
            more so with fewer than 16, the intervals are too short (tests/benchmarks/variance_coverage.py).
        num_parameters: the length of a gradient.
        sketch_error: upper bound of a squared length's relative standard deviation due to the sketch; 0 if
            the gradients are whole.
    """

    estimators: tuple[EstimatorVariance, ...]
    squared_norm: IntervalEstimate
    num_problems: int
    num_with_gradient: int
    episodes_per_problem: int
    episodes_per_update: int
    mean_return: float
    accuracy: float
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
    """Measure the gradient's variance of every baseline on a recipe's policy and problems.

        measured = measure_variance("price", policy="runs/price")
        {each.name: each.variance.value for each in measured.estimators}

    Nothing is trained but the recipe's warm start.

    Args:
        recipe: a built-in name, a file, a run's directory, or a Config.
        policy: measure at the weights of this run, directory or named model; by default those of the first
            update of the recipe.
        num_problems: number of problems, drawn with replacement; rounded up to whole updates.
        sketch_size: shorten each gradient to this many numbers; 0: never; None: if all gradients together
            would take more than 2 GiB.
        seed: seed of problems, episodes, sketch and intervals.
        overrides: changes of the recipe's settings, `section.key=value`.
        output_dir: directory for `variance.json` and, with matplotlib, the plot; None: nothing is written.
        show_progress: by default on a terminal and in a notebook.

    Raises:
        InputError: the recipe can't be measured, nearly every problem has episodes of equal return, or the
            directory can't be written to.
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
        with suppress(ModuleNotFoundError):  # matplotlib is an extra
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
    """Form every estimator's gradient from the same episodes, and measure it; weights are not changed.

    Args:
        estimators: `leave_one_out` must be one of them.
        sketch_size: as for `measure_variance`.
        progress: called with the number of episodes completed.

    Raises:
        InputError: nearly every problem has episodes of equal return, or a gradient is not finite.
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
    return GradientVariance(
        estimators=measured,
        squared_norm=squared_norm,
        num_problems=len(set(groups)),
        num_with_gradient=num_with_gradient,
        episodes_per_problem=settings.episodes_per_problem,
        episodes_per_update=settings.problems_per_update * settings.episodes_per_problem,
        mean_return=sum(totals) / max(1, len(totals)),
        accuracy=sum(episode.verdict.correct for episode in batch.episodes) / len(batch),
        num_unscored=len(batch) - len(totals),
        num_parameters=num_trained_parameters(policy),
        sketch_error=sketch.relative_error if sketch else 0.0,
    )


def num_trained_parameters(policy: LanguagePolicy) -> int:
    """Return the length of a gradient."""
    return sum(parameter.numel() for parameter in policy.model.parameters() if parameter.requires_grad)


def sketch_for(
    policy: LanguagePolicy, weights: Float[Tensor, "estimator episode token"], size: int | None, seed: int
) -> Sketch | None:
    """Return a sketch of this size; for None, of the default size if whole gradients would exceed 2 GiB."""
    num_parameters = num_trained_parameters(policy)
    if size is None:
        num_rows = sum(len(spanned(of_episode.double())) for of_episode in weights.unbind(dim=1))
        size = SKETCH_SIZE if num_rows * num_parameters > MAX_WHOLE else 0
    return Sketch.random(num_parameters, size, seed) if size else None


def estimator_statistics(
    gram: Callable[[int, int], Gram], estimators: Sequence[Estimator], *, seed: int = 0
) -> tuple[tuple[EstimatorVariance, ...], IntervalEstimate, int]:
    """Return every estimator's measurements, ‖∇J‖², and the number of problems with a gradient.

    Args:
        gram: ⟨h_k of one estimator, h_l of another⟩, given the indices of the two.

    Raises:
        InputError: fewer than four problems have a gradient.
    """
    names = [estimator.name for estimator in estimators]
    reference_index = names.index(REFERENCE)
    grams = [gram(index, index) for index in range(len(estimators))]
    reference = grams[reference_index]
    # where all returns are 0.9, rounding leaves something of 0.9 - 0.9
    longest = np.max([np.diagonal(own) for own in grams], axis=0)
    num_with_gradient = int((np.diagonal(reference) > ROUNDING * longest).sum())
    if num_with_gradient < MIN_WITH_GRADIENT:
        raise InputError(
            f"there is no gradient to measure in all but {num_with_gradient} of {len(reference)} problems: "
            "all episodes of each have the same return. Measure a policy that is sometimes right and "
            "sometimes wrong (--policy), or use more problems (--problems), or more episodes of each "
            "(--set reinforce.episodes_per_problem)"
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
    # an unbiased estimator's expectation is ∇J, which the reference measures best
    expected = reference if estimator.is_unbiased else own

    def variance(weights: Weights) -> Values:
        return np.asarray(size * total_variance(own, weights))

    def inverse_scale(weights: Weights) -> Values:
        return ratio(mean_inner_product(expected, weights), variance(weights))

    halves = random_halves(num_groups, NUM_SPLITS, seed)
    inverse = bootstrap_interval(inverse_scale, num_groups, seed)
    per_update = estimator.settings.problems_per_update * size
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
    """Return ⟨E ĝ, ∇J⟩ / ‖∇J‖² and ‖E ĝ - ∇J‖ / ‖∇J‖, from the groups' differences to the reference."""
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
    """Return 1 / value; infinity if there is no signal above the noise."""
    return 1.0 / value if value > 0 else math.inf
