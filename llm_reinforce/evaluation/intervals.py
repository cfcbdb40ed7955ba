"""Confidence intervals, paired tests and pass@k for accuracies.

The problems are treated as a random sample. Every interval and every test takes one value per problem. If a
problem has several completions, this value is the mean over the completions. The completions of one problem
are correlated, so they are never treated as independent.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

Interval = tuple[float, float]

NUM_DRAWS = 4_000  # number of bootstrap draws; other draws change the limits by about 1% of the width
NUM_FLIPS = 9_999  # number of random sign flips of a permutation test
CONFIDENCE = 0.95


def share_interval(shares: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return a confidence interval for the mean of `shares`, such as the accuracy.

    `shares` has one number between 0 and 1 per problem, such as the share of the problem's completions that
    are correct. If every share is 0 or 1, as with one completion per problem, the result is the Wilson
    interval (1927), computed by scipy:

        p̃ = (p + z²/2n) / (1 + z²/n),   half width = z/(1 + z²/n) sqrt(p(1-p)/n + z²/4n²)

    where p is the mean, n is the number of problems, and z is the normal quantile (1.96 for 95% confidence).

    Otherwise the interval is computed by a Bayesian bootstrap over problems (Rubin 1981). The weights of the
    problems are drawn from a Dirichlet distribution with parameter 1 for each problem. As in Jeffreys' prior,
    two shares, 0 and 1, are added, each with parameter 1/2. Without these additions, the interval is far too
    short if there are few problems, or if the shares are close to 0 or 1.
    tests/benchmarks/interval_coverage.py measures the coverage of the Wilson interval and of the bootstrap
    interval.

    Raises:
        ValueError: if there are no shares.
    """
    if not shares:
        raise ValueError("an interval needs at least one problem")
    mean = math.fsum(shares) / len(shares)
    if all(share in (0, 1) for share in shares):
        low, high = _wilson_interval(round(math.fsum(shares)), len(shares), confidence)
    else:
        low, high = _bootstrap(shares, 0.0, 1.0, confidence)
    # the interval must contain the mean, and limits of exactly 0 and 1 must not have rounding errors
    return (0.0 if mean == 0 else min(low, mean)), (1.0 if mean == 1 else max(high, mean))


@lru_cache(maxsize=10_000)  # scipy is slow, and many measures of a run have equal counts
def _wilson_interval(num_ones: int, total: int, confidence: float) -> Interval:
    interval = stats.binomtest(num_ones, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def difference_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return a paired confidence interval for the mean of per-problem differences, each between -1 and 1.

    If every difference is -1, 0 or 1, as with one completion per problem, the result is Tango's score
    interval (1998). It contains all values δ of the mean difference that a score test does not reject. The
    test uses the numbers of gained problems (difference 1) and lost problems (difference -1). The interval
    excludes 0 if McNemar's statistic (gained - lost)² / (gained + lost) exceeds z², where z is the normal
    quantile (1.96 for 95% confidence). The exact test `mcnemar` is more conservative.

    Otherwise the interval is computed by the bootstrap of `share_interval`, with the limits -1 and 1 instead
    of 0 and 1.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design". tests/benchmarks/interval_coverage.py measures the coverage of Tango's interval and
    of the bootstrap interval.

    Raises:
        ValueError: if there are no differences.
    """
    if not differences:
        raise ValueError("an interval needs at least one problem")
    mean = math.fsum(differences) / len(differences)
    if all(difference in (-1, 0, 1) for difference in differences):
        gained = sum(difference > 0 for difference in differences)
        lost = sum(difference < 0 for difference in differences)
        low = _lower_limit(gained, lost, len(differences), confidence)
        high = -_lower_limit(lost, gained, len(differences), confidence)
    else:
        low, high = _bootstrap(differences, -1.0, 1.0, confidence)
    return min(low, mean), max(high, mean)


def _lower_limit(gained: int, lost: int, total: int, confidence: float) -> float:
    """Return the lower limit of Tango's interval.

    Let d = (gained - lost) / total be the observed mean difference. The limit is the solution δ < d of

        total (d - δ)² = z² (2 q + δ (1 - δ))

    where q is the maximum likelihood estimate of the probability of a loss, given that the probability of a
    gain is q + δ. This estimate is the larger solution q of

        2 total q² - (gained + lost - δ (2 total - gained + lost)) q - lost δ (1 - δ) = 0
    """
    if lost == total:
        return -1.0
    z = float(stats.norm.ppf((1 + confidence) / 2))
    observed = (gained - lost) / total

    def excess(difference: float) -> float:
        linear = gained + lost - difference * (2 * total - gained + lost)
        product = 8 * total * lost * difference * (1 - difference)
        chance = (linear + math.sqrt(max(0.0, linear * linear + product))) / (4 * total)
        variance = 2 * chance + difference * (1 - difference)
        return total * (observed - difference) ** 2 - z * z * variance

    # The search ends below d. At d, the variance can be 0, and brentq would then return d.
    return float(optimize.brentq(excess, -1.0, observed - 1e-9))


def _bootstrap(values: Sequence[float], least: float, most: float, confidence: float) -> Interval:
    """Return a Bayesian bootstrap interval of the mean.

    Two values, `least` and `most`, are added to `values`, each with half the weight of a problem.

    Args:
        least, most: smallest and largest possible value.
    """
    # equal values are merged, and the Dirichlet parameter of the merged value is the sum of their parameters
    levels, counts = np.unique([*values, least, most], return_counts=True)
    weights = counts.astype(float)
    weights[[0, -1]] -= 0.5
    draws = stats.dirichlet(weights).rvs(NUM_DRAWS, random_state=np.random.default_rng(0))
    low, high = np.quantile(draws @ levels, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mean_interval(
    values: Sequence[float], least: float, most: float, confidence: float = CONFIDENCE
) -> Interval:
    """Return a confidence interval for the mean of bounded per-problem values, such as mean lengths.

    The interval is computed by scipy's BCa bootstrap (Efron 1987). For a single problem, the interval is
    (least, most). If several problems all have the same value, both limits are equal to this value.

    Args:
        least, most: smallest and largest possible value.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("an interval needs at least one problem")
    if len(values) == 1:
        return least, most
    if min(values) == max(values):
        return values[0], values[0]
    result = stats.bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=2_000,
        batch=200,  # number of resamples in memory at the same time
        confidence_level=confidence,
        method="BCa",
        random_state=np.random.default_rng(0),
    )
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    # the limits are NaN if the resamples hardly differ; they are replaced, because NaN is not valid JSON
    return (least, most) if math.isnan(low + high) else (low, high)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return an unbiased estimate of the probability that at least one of k samples is correct.

        pass@k = 1 - C(n - c, k) / C(n, k)   with c correct samples among n ≥ k samples

    Raises:
        ValueError: if c is not in 0..n, or k is not in 1..n.

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise ValueError(
            f"pass@{k} is not defined for {num_correct} correct of {num_samples} samples; k should be from "
            "1 to the number of samples"
        )
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def mcnemar(num_gained: int, num_lost: int) -> float:
    """Return the two-sided p-value of the exact McNemar test (1947).

    Only problems that exactly one of the two policies solves are counted. Under the null hypothesis that the
    policies do not differ, each of these problems is gained or lost with probability 1/2. The p-value is
    therefore computed by scipy's binomial test.
    """
    num_changed = num_gained + num_lost
    if num_changed == 0:
        return 1.0
    return float(stats.binomtest(num_gained, num_changed, 0.5).pvalue)


def sign_flip(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the sign-flip test, which generalizes McNemar's test.

    This test is used if problems have several completions, because the differences are then fractions. Under
    the null hypothesis that the policies do not differ, the difference of each problem is positive or
    negative with equal probability (Fisher 1935). The p-value is computed by scipy's permutation test. It is
    exact for up to 13 nonzero differences. For more differences, it is estimated from 9,999 random sign
    flips.

    Args:
        differences: for each problem, the share of correct completions of one policy minus the share of the
            other policy.
    """
    changed = np.array([difference for difference in differences if difference])
    if len(changed) < 2:
        return 1.0
    test = stats.permutation_test(
        (changed,),
        np.mean,
        permutation_type="samples",
        n_resamples=NUM_FLIPS,
        batch=500,
        random_state=np.random.default_rng(0),
    )
    return min(1.0, float(test.pvalue))


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean, as reported by lm-evaluation-harness; 0 for a single value."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
