"""Statistics of gradients, computed from inner products: variance, norm, cosine and bias.

A group consists of the episodes of one problem. The vector h_k of group k is the contribution of the group's
episodes to the gradient of the update. It is scaled so that the gradient of the update is the mean of the
vectors. Problems are drawn independently, so the vectors are independent.

The vectors have millions of components, but all statistics are computed from the small Gram matrix
H[k, l] = ⟨h_k, h_l⟩. The inner products can also be computed from sketches (random projections) of the
vectors.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

Gram = Float[np.ndarray, "group group"]
Weights = Float[np.ndarray, "*sample group"]
"""Number of times that each group occurs in a sample: 1, or as often as a bootstrap drew the group."""
Values = Float[np.ndarray, "*sample"]
"""Value of a statistic for each sample."""
Statistic = Callable[[Weights], Values]

LEVEL = 0.95
NUM_RESAMPLES = 999
ROUNDING = 1e-12  # relative size below which a squared norm is treated as a rounding error


@dataclass(frozen=True, slots=True)
class IntervalEstimate:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


def mean_inner_product(gram: Gram, weights: Weights) -> Values:
    """Return an unbiased estimate of ⟨E h, E h'⟩: the mean inner product over all pairs of different groups.

        U = Σ_{k≠l} ⟨h_k, h'_l⟩ / (K (K - 1))

    K is the number of groups, and h and h' are two kinds of vectors of the groups. For h' = h, the result is
    an estimate of ‖E h‖², and can be negative. If a bootstrap has drawn a group twice, the two copies of the
    group are not paired with each other.
    """
    pairs = ((weights @ gram) * weights).sum(axis=-1) - weights**2 @ np.diagonal(gram)
    counts = weights.sum(axis=-1) ** 2 - (weights**2).sum(axis=-1)
    return np.asarray(pairs / counts)


def total_variance(gram: Gram, weights: Weights) -> Values:
    """Return an unbiased estimate of tr Cov(h) = E‖h‖² - ‖E h‖² for the groups' vectors h."""
    mean_square = weights @ np.diagonal(gram) / weights.sum(axis=-1)
    return np.asarray(mean_square - mean_inner_product(gram, weights))


def variance_error(gram: Gram, weights: Weights) -> Values:
    """Return the standard error of `total_variance`, computed from the variance of ‖h - E h‖² over groups."""
    num_drawn = weights.sum(axis=-1, keepdims=True)
    inner = weights @ gram / num_drawn  # ⟨mean, h_k⟩ for each group k
    squares = np.diagonal(gram) - 2 * inner + (inner * weights).sum(axis=-1, keepdims=True) / num_drawn
    deviations = squares - (squares * weights).sum(axis=-1, keepdims=True) / num_drawn
    return np.asarray(np.sqrt((weights * deviations**2).sum(axis=-1)) / num_drawn[..., 0])


def mean_cosine(
    gram: Gram, halves: Float[np.ndarray, "split group"]
) -> tuple[float, Float[np.ndarray, " group"]]:
    """Return the cosine between the mean vectors of two halves of the groups, averaged over random splits.

    If all vectors of a half are zero, the cosine is 0.

    Args:
        halves: for each split, 1 for the groups of one half, -1 for the groups of the other half, and 0 for a
            group in neither half.

    Returns:
        the cosine computed with all groups and, for each group, the cosine computed without this group.
    """
    one, other = ((halves == side).astype(float) for side in (1, -1))
    in_one, in_other = one @ gram, other @ gram
    product = (in_one * other).sum(axis=-1, keepdims=True)
    squares = [_squares(gram, *pair) for pair in ((one, in_one), (other, in_other))]
    # with the sums a and b of the halves, ⟨a - h_k, b⟩ = ⟨a, b⟩ - ⟨h_k, b⟩ for a group k of the first half
    products = product - one * in_other - other * in_one
    of_all, without_one = (
        ratio(above, np.sqrt(first * second)).mean(axis=0)
        for above, (first, second) in zip((product, products), zip(*squares, strict=True), strict=True)
    )
    return float(of_all[0]), without_one


def _squares(
    gram: Gram, half: Float[np.ndarray, "split group"], inner: Float[np.ndarray, "split group"]
) -> tuple[Float[np.ndarray, "split 1"], Float[np.ndarray, "split group"]]:
    """Return ‖a‖² for the sum a of the vectors of one half and, for each group, ‖a‖² without this group.

    Args:
        gram: Gram matrix of the groups' vectors.
        half: for each split, 1 for the groups of the half and 0 for the other groups.
        inner: for each split and group, the inner product ⟨a, h_k⟩.
    """
    whole = (inner * half).sum(axis=-1, keepdims=True)
    # ‖a - h_k‖² = ‖a‖² - 2⟨a, h_k⟩ + ‖h_k‖²
    without_one = whole - half * (2 * inner - np.diagonal(gram))
    return whole, np.where(without_one > ROUNDING * whole, without_one, 0.0)


def random_halves(num_groups: int, num_splits: int, seed: int) -> Float[np.ndarray, "split group"]:
    """Return random splits of the groups into two halves of equal size, as `mean_cosine` expects them."""
    half = num_groups // 2
    sides = np.repeat([1.0, -1.0, 0.0], [half, half, num_groups - 2 * half])
    return np.random.default_rng(seed).permuted(np.tile(sides, (num_splits, 1)), axis=1)


def bootstrap_interval(
    statistic: Statistic, num_groups: int, seed: int, method: Literal["BCa", "percentile"] = "BCa"
) -> IntervalEstimate:
    """Return the statistic of all groups, with a bootstrap interval computed by resampling whole groups.

    On toy policies, the method `BCa` had the best coverage for variances and ratios, and the method
    `percentile` had the best coverage for values near zero, such as squared norms. `BCa` is undefined if all
    resamples have the same value, or if their values are all above or all below the value of the original
    groups. In these cases, `percentile` is used instead.

    Source: Efron & Tibshirani 1993, chapters 13 and 14.
    """

    def of_indices(indices: Int[np.ndarray, "*sample group"], axis: int = -1) -> Values:
        return statistic(_counts(np.moveaxis(indices, axis, -1), num_groups))

    value = float(statistic(np.ones(num_groups)))
    with warnings.catch_warnings():  # undefined intervals are handled below
        warnings.simplefilter("ignore", (RuntimeWarning, stats.DegenerateDataWarning))
        found = stats.bootstrap(
            (np.arange(num_groups),),
            of_indices,
            vectorized=True,
            n_resamples=NUM_RESAMPLES,
            confidence_level=LEVEL,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    if method == "BCa" and not np.isfinite([found.low, found.high]).all():
        return bootstrap_interval(statistic, num_groups, seed, "percentile")
    return IntervalEstimate(value, float(found.low), float(found.high))


def studentized_interval(
    statistic: Statistic, error: Statistic, num_groups: int, seed: int
) -> IntervalEstimate:
    """Return a positive statistic with its bootstrap-t interval on a logarithmic scale.

        t* = (log s* - log s) / (e* / s*),   from s exp(-t*_97.5% e/s) to s exp(-t*_2.5% e/s)

    Here s is the statistic and e is its standard error. s* and e* are their values in a resample. The limits
    are computed from quantiles of t* over all resamples.

    This interval is suitable for variances. On toy policies, intervals that ignore the standard error of each
    resample, such as BCa, are too short if a few vectors of large norm dominate. If the standard error of
    every resample is 0, for example because all vectors are zero, both limits are equal to the statistic.

    Source: Efron & Tibshirani 1993, section 12.5.

    Args:
        statistic: function that computes the statistic.
        error: function that computes the standard error of the statistic.
        num_groups: number of groups.
        seed: random seed of the resamples.
    """
    once = np.ones(num_groups)
    value, own_error = float(statistic(once)), float(error(once))
    drawn = np.random.default_rng(seed).integers(num_groups, size=(NUM_RESAMPLES, num_groups))
    weights = _counts(drawn, num_groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(weights)
        t = np.log(values / value) / (error(weights) / values)
    t = t[np.isfinite(t)]  # t is not finite if all vectors of a resample are equal
    if len(t) == 0:
        return IntervalEstimate(value, value, value)
    quantiles = np.quantile(t, [(1 + LEVEL) / 2, (1 - LEVEL) / 2])
    low, high = value * np.exp(-quantiles * own_error / value)
    return IntervalEstimate(value, float(low), float(high))


def variance_with_interval(gram: Gram, scale: float, seed: int) -> IntervalEstimate:
    """Return `scale` times the total variance of the groups' vectors, with its 95% interval."""
    estimate = studentized_interval(
        lambda weights: total_variance(gram, weights),
        lambda weights: variance_error(gram, weights),
        len(gram),
        seed,
    )
    return IntervalEstimate(scale * estimate.value, scale * estimate.low, scale * estimate.high)


def jackknife_interval(cosine: float, without_one: Float[np.ndarray, " group"]) -> IntervalEstimate:
    """Return the cosine of `mean_cosine` with its jackknife t interval on Fisher's scale.

        z = artanh cos,   from tanh(z - t e) to tanh(z + t e)

    Here e is the jackknife estimate of the standard error of z, and t is the quantile of Student's
    distribution. A bootstrap is not suitable, because it draws some groups several times. The two mean
    vectors whose cosine is computed then become noisier, and the angle between them becomes larger.

    Source of the jackknife: Efron & Tibshirani 1993, chapter 11.

    Args:
        cosine: cosine computed with all groups.
        without_one: for each group, the cosine computed without this group.
    """
    num_groups = len(without_one)
    z, z_without = (np.arctanh(np.clip(each, ROUNDING - 1, 1 - ROUNDING)) for each in (cosine, without_one))
    squares = ((z_without - z_without.mean()) ** 2).sum()
    error = float(np.sqrt((num_groups - 1) / num_groups * squares))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, num_groups - 1)) * error
    return IntervalEstimate(cosine, float(np.tanh(z - reach)), float(np.tanh(z + reach)))


def ratio(above: Values, below: Values) -> Values:
    """Return `above / below`, with 0 where `below` is 0."""
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below != 0))


def _counts(indices: Int[np.ndarray, "*sample index"], num_groups: int) -> Weights:
    """Return, for each row of `indices`, how often each group occurs in the row."""
    rows = indices.reshape(-1, indices.shape[-1])
    offsets = num_groups * np.arange(len(rows))[:, None]
    counted = np.bincount((rows + offsets).ravel(), minlength=num_groups * len(rows))
    return counted.reshape(*indices.shape[:-1], num_groups).astype(float)
