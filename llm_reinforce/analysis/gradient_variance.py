"""The gradient's variance at fixed weights: episodes are collected once, every estimator is formed of them.

The article holds plain REINFORCE's variance to be high; here it is a number, beside what each baseline makes
of it. For the gradient ĝ of an update of N episodes:

    variance     V = N tr Cov(ĝ)              per episode: an update of N has V / N
    SNR            = ‖E ĝ‖² / tr Cov(ĝ)        of an update as the recipe has it
    noise scale  B = V / ‖E ĝ‖²                episodes of an update whose noise is as long as its signal
    cosine         = cos(ĝ, ĝ')                of two independent halves of what was collected
    bias           = ‖E ĝ - ∇J‖ / ‖∇J‖

B is the gradient noise scale of McCandlish et al. 2018, and the batch that it recommends: far below it twice
the episodes halve the updates that are needed, far above it they are wasted.

Problems are drawn independently, with replacement, so groups are independent. `batch_mean`, `standardize`
and a denominator of tokens tie the groups of an update together: that is formed as in training, but measured
as if the groups were independent still, which leaves out a share of their variance of about 2/B.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from llm_reinforce.analysis.measured_episodes import Collected
from llm_reinforce.analysis.episode_gradients import NEGLIGIBLE, EpisodeGradients, episode_gradients, spanned
from llm_reinforce.analysis.gradient_statistics import (
    ROUNDING,
    Figures,
    Gram,
    Measured,
    Weights,
    bootstrapped,
    jackknifed,
    mean_cosine,
    mean_inner_product,
    measured_variance,
    random_halves,
    ratio,
    total_variance,
)
from llm_reinforce.analysis.sketch import Sketch
from llm_reinforce.config import ReinforceConfig, ValueConfig
from llm_reinforce.episodes import estimate_advantages
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.policy_gradient import BASELINES, UNBIASED, advantages, episode_returns

EXACT = "optimal, exact"
REFERENCE = "leave_one_out"  # unbiased, and of low variance: what ∇J is measured by
MIN_WITH_GRADIENT = 4  # problems whose reference gradient isn't zero: with fewer no interval makes sense
NUM_SPLITS = 50  # ways to halve the groups
MAX_WHOLE = 1 << 29  # numbers of all gradients together, 2 GiB in float32; beyond that they are sketched
SKETCH_SIZE = 1 << 14


@dataclass(frozen=True, slots=True)
class Estimator:
    """A way from episodes to a gradient.

    Attributes:
        settings: as training would have them.
        credit: what an action is weighted by: what follows it; the return of its whole episode; or what
            follows it, less the optimal constant baseline by the norms of the gradients themselves.
    """

    name: str
    settings: ReinforceConfig
    credit: Literal["reward_to_go", "whole_return", "exact_norms"] = "reward_to_go"


@dataclass(frozen=True, slots=True)
class EstimatorFigures:
    """What was measured of one estimator; the module's text says what each figure is.

    Attributes:
        along: ⟨E ĝ, ∇J⟩ / ‖∇J‖², 1 for an unbiased estimator; None where no bias can be.
        bias: None as well.
    """

    name: str
    is_unbiased: bool
    variance: Measured
    snr: Measured
    noise_scale: Measured
    cosine: Measured
    along: Measured | None
    bias: Measured | None


@dataclass(frozen=True, slots=True)
class VarianceFigures:
    """All estimators, and what they were formed of.

    Attributes:
        squared_norm: ‖∇J‖².
        num_with_gradient: problems whose episodes differ in their returns: with less than 32 of them, and
            more so with less than 16, the intervals are too short (tests/benchmarks/variance_coverage.py).
        num_parameters: the length of a gradient.
        sketch_error: the most that a squared length is off by the sketch, as a relative standard deviation;
            0 where the gradients are whole.
    """

    estimators: tuple[EstimatorFigures, ...]
    squared_norm: Measured
    num_problems: int
    num_with_gradient: int
    episodes_per_problem: int
    episodes_per_update: int
    mean_return: float
    accuracy: float
    num_unscored: int
    num_parameters: int
    sketch_error: float


def estimators_beside(settings: ReinforceConfig) -> tuple[Estimator, ...]:
    """Each baseline in its plain form, and the recipe's own way where that is another.

    Beside them: without a baseline, weighted by the whole episode's return; `value` with λ = 0.9; and
    `optimal` by the true norms of the episodes' scores, which training doesn't know.
    """
    plain = settings.model_copy(update={"standardize": False, "denominator": "episodes"})
    found = [Estimator(name, _with(plain, name)) for name in BASELINES]
    found.insert(0, Estimator("whole return", _with(plain, "none"), credit="whole_return"))
    found.append(Estimator("value, λ 0.9", _with(plain, "value", ValueConfig(gae_lambda=0.9))))
    found.append(Estimator(EXACT, _with(plain, "optimal"), credit="exact_norms"))
    if settings.standardize or settings.denominator != "episodes":
        found.append(Estimator("this recipe", settings))
    return tuple(found)


def _with(settings: ReinforceConfig, baseline: str, value: ValueConfig | None = None) -> ReinforceConfig:
    return settings.model_copy(update={"baseline": baseline, "value": value or ValueConfig()})


def action_weights(estimator: Estimator, collected: Collected) -> Float[Tensor, "episode token"]:
    """What the estimator multiplies each ∇log π(a_t|s_t) with, for all episodes.

    Each update is formed as training forms it, times its number of groups: so the mean of the groups' sums
    is the mean of the updates' gradients. Of exact norms, these are the weights of a baseline of -1: the
    baseline is known when the gradients are.
    """
    parts = []
    for number, update in enumerate(collected.updates):
        learned = collected.values[number] if collected.values else None
        estimate = estimate_advantages(update, estimator.settings, collected.before, values=learned)
        weights = estimate.advantages
        if estimator.credit == "whole_return":
            whole = episode_returns(estimate.returns) - estimate.baselines
            weights = whole[:, None].expand_as(weights).masked_fill(~estimate.mask, 0.0)
        if estimator.credit == "exact_norms":
            minus_one, nothing = -torch.ones_like(estimate.baselines), torch.zeros_like(weights)
            weights = advantages(nothing, minus_one, estimate.mask, estimator.settings.discount)
        num_groups = len(set(update.groups.tolist()))
        parts.append(weights * (num_groups / (estimate.denominator or 1.0)))
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])


def with_exact_norms(
    gradients: EpisodeGradients, estimators: Sequence[Estimator], groups: Sequence[int]
) -> EpisodeGradients:
    """The same, the estimator of exact norms given its baseline, from the other episodes of the group.

        b_i = Σ_{j≠i} ⟨v_j, s_j⟩ / Σ_{j≠i} ‖s_j‖²,   v = Σ_t γ^t g_t ∇log π,   s = Σ_t γ^t ∇log π

    Source: Greensmith, Bartlett & Baxter 2004. An episode that is alone is left out.
    """
    credits, names = [each.credit for each in estimators], [each.name for each in estimators]
    if "exact_norms" not in credits:
        return gradients
    score, plain = credits.index("exact_norms"), names.index("none")
    group_of = torch.tensor(groups)
    products, squares = (gradients.of_episodes(index, score, len(groups)) for index in (plain, score))
    of_groups = [
        torch.zeros(max(groups) + 1).double().index_add_(0, group_of, each) for each in (products, squares)
    ]
    above, below = of_groups[0][group_of] - products, of_groups[1][group_of] - squares
    is_alone = below <= NEGLIGIBLE * squares
    baselines = torch.where(is_alone, 0.0, above / torch.where(is_alone, 1.0, below))[gradients.episode_of]
    coefficients = gradients.coefficients.clone()
    combined = coefficients[plain] - baselines * coefficients[score]
    coefficients[score] = combined.masked_fill(is_alone[gradients.episode_of], 0.0)
    return EpisodeGradients(gradients.rows, coefficients, gradients.episode_of)


def num_trained(policy: LanguagePolicy) -> int:
    """The length of a gradient."""
    return sum(parameter.numel() for parameter in policy.model.parameters() if parameter.requires_grad)


def sketch_for(
    policy: LanguagePolicy, weights: Float[Tensor, "estimator episode token"], size: int | None, seed: int
) -> Sketch | None:
    """A sketch of that size, or of the usual one where all gradients would take over 2 GiB if kept whole."""
    num_parameters = num_trained(policy)
    if size is None:
        num_rows = sum(len(spanned(of_episode.double())) for of_episode in weights.unbind(dim=1))
        size = SKETCH_SIZE if num_rows * num_parameters > MAX_WHOLE else 0
    return Sketch.random(num_parameters, size, seed) if size else None


def measure_variance(
    policy: LanguagePolicy,
    collected: Collected,
    estimators: Sequence[Estimator],
    *,
    temperature: float = 1.0,
    sketch_size: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> VarianceFigures:
    """Form every estimator's gradient from the same episodes, and measure it; the weights stay as they are.

    Args:
        estimators: `leave_one_out` must be one of them.
        sketch_size: numbers that each gradient is folded up to; 0 keeps it whole; None: whole where all of
            them take up to 2 GiB.
        progress: is told how many episodes are done.

    Raises:
        InputError: all episodes of nearly every problem have one return, or a gradient isn't finite.
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
    figures, squared_norm, num_with_gradient = measure_estimators(
        lambda one, other: gradients.gram(one, other, groups), estimators, seed=seed
    )
    totals = [total for episode in batch.episodes if (total := episode.total_reward) is not None]
    return VarianceFigures(
        estimators=figures,
        squared_norm=squared_norm,
        num_problems=len(set(groups)),
        num_with_gradient=num_with_gradient,
        episodes_per_problem=settings.episodes_per_problem,
        episodes_per_update=settings.problems_per_update * settings.episodes_per_problem,
        mean_return=sum(totals) / max(1, len(totals)),
        accuracy=sum(episode.verdict.correct for episode in batch.episodes) / len(batch),
        num_unscored=len(batch) - len(totals),
        num_parameters=num_trained(policy),
        sketch_error=sketch.relative_error if sketch else 0.0,
    )


def measure_estimators(
    gram: Callable[[int, int], Gram], estimators: Sequence[Estimator], *, seed: int = 0
) -> tuple[tuple[EstimatorFigures, ...], Measured, int]:
    """Every estimator's figures, ‖∇J‖², and the number of problems with a gradient.

    Args:
        gram: ⟨h_k of one estimator, h_l of another⟩, given their numbers.

    Raises:
        InputError: as `measure_variance` does.
    """
    names = [estimator.name for estimator in estimators]
    number = names.index(REFERENCE)
    owns = [gram(index, index) for index in range(len(estimators))]
    reference = owns[number]
    # where all returns are 0.9, rounding leaves something of 0.9 - 0.9
    longest = np.max([np.diagonal(own) for own in owns], axis=0)
    num_with_gradient = int((np.diagonal(reference) > ROUNDING * longest).sum())
    if num_with_gradient < MIN_WITH_GRADIENT:
        raise InputError(
            f"there is no gradient to measure in all but {num_with_gradient} of {len(reference)} problems: "
            "all episodes of each have one return. Measure a policy that is sometimes right and sometimes "
            "wrong (--policy), or ask more problems (--problems), or more episodes of each "
            "(--set reinforce.episodes_per_problem)"
        )
    figures = tuple(
        _figures(estimator, own, gram(index, number), reference, seed)
        for index, (estimator, own) in enumerate(zip(estimators, owns, strict=True))
    )
    squared_norm = bootstrapped(
        lambda weights: mean_inner_product(reference, weights), len(reference), seed, "percentile"
    )
    return figures, squared_norm, num_with_gradient


def _figures(estimator: Estimator, own: Gram, cross: Gram, reference: Gram, seed: int) -> EstimatorFigures:
    settings = estimator.settings
    num_groups, size = len(own), settings.episodes_per_problem
    is_plain = not settings.standardize and settings.denominator == "episodes"
    has_no_bias = settings.baseline in UNBIASED and (
        settings.baseline != "value" or settings.value.gae_lambda == 1.0
    )
    is_unbiased = is_plain and has_no_bias
    # an unbiased estimator's expectation is ∇J, which the reference measures best
    expected = reference if is_unbiased else own

    def variance(weights: Weights) -> Figures:
        return np.asarray(size * total_variance(own, weights))

    def inverse_scale(weights: Weights) -> Figures:
        return ratio(mean_inner_product(expected, weights), variance(weights))

    halves = random_halves(num_groups, NUM_SPLITS, seed)
    inverse = bootstrapped(inverse_scale, num_groups, seed)
    per_update = settings.problems_per_update * size
    along = bias = None
    if not is_unbiased:
        along, bias = _bias(own, cross, reference, seed)
    return EstimatorFigures(
        name=estimator.name,
        is_unbiased=is_unbiased,
        variance=measured_variance(own, size, seed),
        snr=Measured(*(per_update * value for value in (inverse.value, inverse.low, inverse.high))),
        noise_scale=Measured(*(_inverse(value) for value in (inverse.value, inverse.high, inverse.low))),
        cosine=jackknifed(*mean_cosine(own, halves)),
        along=along,
        bias=bias,
    )


def _bias(own: Gram, cross: Gram, reference: Gram, seed: int) -> tuple[Measured, Measured]:
    """⟨E ĝ, ∇J⟩ / ‖∇J‖² and ‖E ĝ - ∇J‖ / ‖∇J‖, from the differences to the reference group by group."""
    num_groups = len(own)

    def along(weights: Weights) -> Figures:
        # 1 + ⟨E(h - h'), E h'⟩ / ‖E h'‖²
        difference = mean_inner_product(cross - reference, weights)
        return np.asarray(1.0 + ratio(difference, mean_inner_product(reference, weights)))

    def squared_bias(weights: Weights) -> Figures:
        # ‖E(h - h')‖² / ‖E h'‖²
        difference = mean_inner_product(own - cross - cross.T + reference, weights)
        return ratio(difference, mean_inner_product(reference, weights))

    square = bootstrapped(squared_bias, num_groups, seed, "percentile")
    roots = (math.sqrt(max(0.0, value)) for value in (square.value, square.low, square.high))
    return bootstrapped(along, num_groups, seed, "percentile"), Measured(*roots)


def _inverse(value: float) -> float:
    """1 / value; infinite where the signal is lost in the noise."""
    return 1.0 / value if value > 0 else math.inf
