"""Variance, length, agreement and bias of gradients, from nothing but their inner products.

A group is the episodes of one problem. Its vector h is what they give to the update's gradient, scaled so
that the gradient is the mean of the groups' vectors; problems are drawn independently, so these are too. All
that is asked of them - lengths, distances, angles - is in their Gram matrix H[k, l] = ⟨h_k, h_l⟩, so that
gradients of a million numbers, or sketches of them, come down to a small matrix.
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
"""How often each group is in a sample: once each, or as a bootstrap has drawn them."""
Figures = Float[np.ndarray, "*sample"]
Statistic = Callable[[Weights], Figures]

LEVEL = 0.95
NUM_RESAMPLES = 999
ROUNDING = 1e-12  # of a squared length: what is left of it when its vectors are taken away


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float


def mean_inner_product(gram: Gram, weights: Weights) -> Figures:
    """⟨E h, E h'⟩ without bias: the mean inner product of two different groups' vectors.

        U = Σ_{k≠l} ⟨h_k, h'_l⟩ / (K (K - 1))

    With h' = h it is ‖E h‖², which may come out below 0. A group that a bootstrap has drawn twice isn't set
    against itself.
    """
    pairs = ((weights @ gram) * weights).sum(axis=-1) - weights**2 @ np.diagonal(gram)
    counts = weights.sum(axis=-1) ** 2 - (weights**2).sum(axis=-1)
    return np.asarray(pairs / counts)


def total_variance(gram: Gram, weights: Weights) -> Figures:
    """tr Cov(h) = E‖h‖² - ‖E h‖², without bias."""
    mean_square = weights @ np.diagonal(gram) / weights.sum(axis=-1)
    return np.asarray(mean_square - mean_inner_product(gram, weights))


def variance_error(gram: Gram, weights: Weights) -> Figures:
    """The standard error of `total_variance`, from how ‖h - E h‖² differs from group to group."""
    num_drawn = weights.sum(axis=-1, keepdims=True)
    inner = weights @ gram / num_drawn  # ⟨mean, h_k⟩
    squares = np.diagonal(gram) - 2 * inner + (inner * weights).sum(axis=-1, keepdims=True) / num_drawn
    deviations = squares - (squares * weights).sum(axis=-1, keepdims=True) / num_drawn
    return np.asarray(np.sqrt((weights * deviations**2).sum(axis=-1)) / num_drawn[..., 0])


def mean_cosine(
    gram: Gram, halves: Float[np.ndarray, "split group"]
) -> tuple[float, Float[np.ndarray, " group"]]:
    """The cosine between the mean vectors of two halves of the groups, averaged over ways to halve them.

    A half whose vectors are all zero agrees with nothing: its cosine is 0.

    Args:
        halves: 1 for the groups of one half, -1 for those of the other, 0 for one that is left over.

    Returns:
        that of all groups, and those that are left when one group is taken out, for each of them.
    """
    one, other = ((halves == side).astype(float) for side in (1, -1))
    in_one, in_other = one @ gram, other @ gram
    product = (in_one * other).sum(axis=-1, keepdims=True)
    squares = [_squares(gram, *pair) for pair in ((one, in_one), (other, in_other))]
    # ⟨a - h_k, b⟩ = ⟨a, b⟩ - ⟨h_k, b⟩ where h_k is in a: no sum over the others is taken anew
    products = product - one * in_other - other * in_one
    of_all, without_one = (
        ratio(above, np.sqrt(first * second)).mean(axis=0)
        for above, (first, second) in zip((product, products), zip(*squares, strict=True), strict=True)
    )
    return float(of_all[0]), without_one


def _squares(
    gram: Gram, half: Float[np.ndarray, "split group"], inner: Float[np.ndarray, "split group"]
) -> tuple[Float[np.ndarray, "split 1"], Float[np.ndarray, "split group"]]:
    """‖Σ h_k over the half‖², whole and without each of the groups; `inner` is ⟨that sum, h_k⟩."""
    whole = (inner * half).sum(axis=-1, keepdims=True)
    # ‖a - h_k‖² = ‖a‖² - 2⟨a, h_k⟩ + ‖h_k‖²
    without_one = whole - half * (2 * inner - np.diagonal(gram))
    return whole, np.where(without_one > ROUNDING * whole, without_one, 0.0)


def random_halves(num_groups: int, num_splits: int, seed: int) -> Float[np.ndarray, "split group"]:
    """Ways to halve the groups, for `mean_cosine`."""
    half = num_groups // 2
    sides = np.repeat([1.0, -1.0, 0.0], [half, half, num_groups - 2 * half])
    return np.random.default_rng(seed).permuted(np.tile(sides, (num_splits, 1)), axis=1)


def bootstrapped(
    statistic: Statistic, num_groups: int, seed: int, method: Literal["BCa", "percentile"] = "BCa"
) -> Measured:
    """The statistic of all groups, and its interval when whole groups are drawn anew.

    Source: Efron & Tibshirani 1993, chapters 13 and 14. Measured on toys, BCa holds variances and ratios
    best, the percentiles what may lie around zero, as squared lengths do. Where BCa has none, since all
    resamples are equal or lie to one side of the value, the percentiles stand in.
    """

    def of_indices(indices: Int[np.ndarray, "*sample group"], axis: int = -1) -> Figures:
        return statistic(_counts(np.moveaxis(indices, axis, -1), num_groups))

    value = float(statistic(np.ones(num_groups)))
    with warnings.catch_warnings():  # the figures tell it
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
        return bootstrapped(statistic, num_groups, seed, "percentile")
    return Measured(value, float(found.low), float(found.high))


def studentized(statistic: Statistic, error: Statistic, num_groups: int, seed: int) -> Measured:
    """A statistic above 0, and its bootstrap-t interval, taken on the scale of logarithms.

        t* = (log s* - log s) / (e* / s*),   from s exp(-t*_97.5% e/s) to s exp(-t*_2.5% e/s)

    Source: Efron & Tibshirani 1993, section 12.5. For variances: where a few long vectors make up most of
    them, an interval that doesn't know its own error is too short, and BCa is as well (measured on toys).
    Where no resample has an error to divide by, as when all vectors are zero, it is that one number.

    Args:
        error: the statistic's standard error.
    """
    once = np.ones(num_groups)
    value, own_error = float(statistic(once)), float(error(once))
    drawn = np.random.default_rng(seed).integers(num_groups, size=(NUM_RESAMPLES, num_groups))
    weights = _counts(drawn, num_groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(weights)
        t = np.log(values / value) / (error(weights) / values)
    t = t[np.isfinite(t)]  # a resample of equal vectors alone has no error to divide by
    if len(t) == 0:
        return Measured(value, value, value)
    quantiles = np.quantile(t, [(1 + LEVEL) / 2, (1 - LEVEL) / 2])
    low, high = value * np.exp(-quantiles * own_error / value)
    return Measured(value, float(low), float(high))


def measured_variance(gram: Gram, scale: float, seed: int) -> Measured:
    """`scale` times the total variance, and its interval."""
    found = studentized(
        lambda weights: total_variance(gram, weights),
        lambda weights: variance_error(gram, weights),
        len(gram),
        seed,
    )
    return Measured(scale * found.value, scale * found.low, scale * found.high)


def jackknifed(cosine: float, without_one: Float[np.ndarray, " group"]) -> Measured:
    """A cosine of all groups, and its t interval from what it is without each of them, on Fisher's scale.

        z = artanh cos,   from tanh(z - t e) to tanh(z + t e)

    A bootstrap draws groups twice, which makes the halves' means noisier than they are and the angle between
    them wider (Efron & Tibshirani 1993, chapter 11, has the jackknife).
    """
    num_groups = len(without_one)
    z, z_without = (np.arctanh(np.clip(each, ROUNDING - 1, 1 - ROUNDING)) for each in (cosine, without_one))
    squares = ((z_without - z_without.mean()) ** 2).sum()
    error = float(np.sqrt((num_groups - 1) / num_groups * squares))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, num_groups - 1)) * error
    return Measured(cosine, float(np.tanh(z - reach)), float(np.tanh(z + reach)))


def ratio(above: Figures, below: Figures) -> Figures:
    """Their quotient; 0 where there is nothing to divide by."""
    return np.asarray(np.divide(above, below, out=np.zeros_like(above), where=below != 0))


def _counts(indices: Int[np.ndarray, "*sample index"], num_groups: int) -> Weights:
    """How often each group stands in each row of indices."""
    rows = indices.reshape(-1, indices.shape[-1])
    offsets = num_groups * np.arange(len(rows))[:, None]
    counted = np.bincount((rows + offsets).ravel(), minlength=num_groups * len(rows))
    return counted.reshape(*indices.shape[:-1], num_groups).astype(float)
