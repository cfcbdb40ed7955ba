"""The uncertainty of what was measured: intervals, paired tests, and what several samples allow.

What is drawn at random are the problems: every function here takes one value a problem, which is the mean
of that problem's samples where it has several. Samples of one problem are alike, and so they never count as
independent ones.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

Interval = tuple[float, float]

NUM_DRAWS = 4_000  # of a bootstrap: chance moves its ends by about a hundredth of its width
NUM_FLIPS = 9_999
CONFIDENCE = 0.95


def share_interval(shares: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """An interval for the mean of shares in 0..1, one a problem.

    Where every share is 0 or 1, as with one sample a problem, it is Wilson's (1927), as scipy has it:

        p̃ = (p + z²/2n) / (1 + z²/n),   half width = z/(1 + z²/n) sqrt(p(1-p)/n + z²/4n²)

    Otherwise it is a bootstrap clustered by problem, in Rubin's form (1981): the problems' weights are drawn
    from a Dirichlet distribution in which each problem counts 1, and half a problem with share 0 and half a
    one with share 1 are added, as in Jeffreys' prior. Without these two halves an interval from few or
    lopsided problems is far too short; tests/benchmarks/interval_coverage.py shows how often each holds.

    Raises:
        ValueError: there are no shares.
    """
    if not shares:
        raise ValueError("an interval needs at least one problem")
    mean = math.fsum(shares) / len(shares)
    if all(share in (0, 1) for share in shares):
        test = stats.binomtest(round(math.fsum(shares)), len(shares))
        wilson = test.proportion_ci(confidence, method="wilson")
        low, high = float(wilson.low), float(wilson.high)
    else:
        low, high = _bootstrap(shares, 0.0, 1.0, confidence)
    # exactly, where rounding would leave a trace
    return (0.0 if mean == 0 else min(low, mean)), (1.0 if mean == 1 else max(high, mean))


def difference_interval(differences: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """A paired interval for the mean of differences in -1..1, one a problem.

    Where every difference is -1, 0 or 1, as with one sample a problem, it is Tango's (1998) score interval:
    all differences δ that a test of the gained and lost problems does not refuse. It leaves 0 out where
    McNemar's statistic (gained - lost)² / (gained + lost) exceeds z²; the exact test beside it is stricter.
    Otherwise it is the bootstrap of `share_interval`, between -1 and 1.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design"; tests/benchmarks/interval_coverage.py shows how often each holds.

    Raises:
        ValueError: there are no differences.
    """
    if not differences:
        raise ValueError("an interval needs at least one problem")
    mean = math.fsum(differences) / len(differences)
    if all(difference in (-1, 0, 1) for difference in differences):
        gained = sum(difference > 0 for difference in differences)
        lost = sum(difference < 0 for difference in differences)
        low = _least_difference(gained, lost, len(differences), confidence)
        high = -_least_difference(lost, gained, len(differences), confidence)
    else:
        low, high = _bootstrap(differences, -1.0, 1.0, confidence)
    return min(low, mean), max(high, mean)


def _least_difference(gained: int, lost: int, total: int, confidence: float) -> float:
    """The lower end of Tango's interval: the root below d = (gained - lost) / total of

        total (d - δ)² = z² (2 q + δ (1 - δ))

    where q is the likeliest chance of a loss if the chance of a gain is q + δ: the larger root of

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

    # the variance may vanish at d itself, as where nothing changed, and d would be taken for the root
    return float(optimize.brentq(excess, -1.0, observed - 1e-9))


def _bootstrap(values: Sequence[float], least: float, most: float, confidence: float) -> Interval:
    """The mean of the values and of half a problem at either end, their weights drawn at random."""
    # equal values share one weight: a sum of n exponential numbers is one of a gamma distribution
    levels, counts = np.unique([*values, least, most], return_counts=True)
    weights = counts.astype(float)
    weights[[0, -1]] -= 0.5
    draws = stats.dirichlet(weights).rvs(NUM_DRAWS, random_state=np.random.default_rng(0))
    low, high = np.quantile(draws @ levels, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def mean_interval(
    values: Sequence[float], least: float, most: float, confidence: float = CONFIDENCE
) -> Interval:
    """An interval for the mean of numbers that lie in least..most, one a problem: a length, say.

    scipy's BCa bootstrap (Efron 1987). Of one problem nothing can be said: the limits themselves.

    Raises:
        ValueError: there are no values.
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
        batch=200,  # a batch of resamples is held in memory at once
        confidence_level=confidence,
        method="BCa",
        random_state=np.random.default_rng(0),
    )
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    # BCa has no answer where resamples hardly differ; a row of numbers that is no JSON would end a run
    return (least, most) if math.isnan(low + high) else (low, high)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The probability that k samples of a problem hold a right one, estimated without bias from n ≥ k.

        pass@k = 1 - C(n - c, k) / C(n, k)

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise ValueError(f"pass@{k} of {num_correct} right among {num_samples} is not defined")
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def mcnemar(num_gained: int, num_lost: int) -> float:
    """The exact p-value that as many problems are gained as lost by chance (McNemar 1947), two-sided.

    The problems on which both agree say nothing; of the others, each is a fair coin if there is no
    difference: scipy's binomial test.
    """
    num_changed = num_gained + num_lost
    if num_changed == 0:
        return 1.0
    return float(stats.binomtest(num_gained, num_changed, 0.5).pvalue)


def sign_flip(differences: Sequence[float]) -> float:
    """McNemar's test where a problem has several samples, and its difference is a fraction; two-sided.

    If there is no difference, each problem's could as well have the other sign (Fisher 1935): scipy's
    permutation test, exact for up to 13 problems that differ, else of 9,999 drawings.
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
    """Of the mean of one value a problem, as lm-evaluation-harness reports it; 0 for a single one."""
    return float(stats.sem(values)) if len(values) > 1 else 0.0
