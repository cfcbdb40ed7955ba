"""Intervals, paired tests and pass@k: by hand, against independent formulas, and by simulation."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_reinforce.evaluation import (
    difference_interval,
    mcnemar,
    mean_interval,
    pass_at_k,
    share_interval,
    sign_flip,
)

# ------------------------------------------------------------------------------------------- Wilson


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval, computed without scipy."""
    z, p, n = NormalDist().inv_cdf(0.5 + confidence / 2), correct / total, total
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return center - half, center + half


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(
    ("correct", "total"), [(0, 1), (1, 1), (0, 10), (10, 10), (3, 10), (50, 100), (143, 200), (1, 5000)]
)
def test_one_sample_per_problem_gives_wilsons_interval(correct: int, total: int, confidence: float) -> None:
    shares = [1.0] * correct + [0.0] * (total - correct)
    assert share_interval(shares, confidence) == pytest.approx(wilson(correct, total, confidence), abs=1e-12)


def test_wilsons_interval_by_hand() -> None:
    # n = 10, p = 0.3, z = 1.96: p̃ = (0.3 + 0.19208)/(1.38416) = 0.355508,
    # half width = 1.96/1.38416 sqrt(0.021 + 0.009604) = 0.247716
    low, high = share_interval([1] * 3 + [0] * 7)
    assert low == pytest.approx(0.107792, abs=2e-5)
    assert high == pytest.approx(0.603224, abs=2e-5)


def test_none_or_all_correct() -> None:
    z_squared = 1.959964**2
    low, high = share_interval([0.0] * 20)
    assert low == 0.0
    assert high == pytest.approx(z_squared / (20 + z_squared), abs=1e-6)
    low, high = share_interval([1.0] * 20)
    assert low == pytest.approx(20 / (20 + z_squared), abs=1e-6)
    assert high == 1.0


# ---------------------------------------------------------------------- the bootstrap over problems


def test_equal_samples_of_a_problem_count_once() -> None:
    assert share_interval([1.0] * 12 + [0.0] * 28) == pytest.approx(wilson(12, 40), abs=1e-12)


def test_interval_of_many_problems_is_normal() -> None:
    shares = np.random.default_rng(0).binomial(8, 0.4, size=2000) / 8
    mean, half = shares.mean(), 1.96 * shares.std(ddof=1) / math.sqrt(2000)
    assert share_interval(shares.tolist()) == pytest.approx((mean - half, mean + half), abs=0.05 * half)


def test_interval_has_the_width_of_jeffreys_interval() -> None:
    # all shares are 1/4 or 3/4; without the added half problems, all draws of the mean would be in between
    low, high = share_interval([0.25] * 30 + [0.75] * 30)
    jeffreys = NormalDist(0.5, math.sqrt(0.25 * 0.25 / 61))  # approximately, for a variance of (1/4)²
    assert low == pytest.approx(jeffreys.inv_cdf(0.025), abs=0.012)
    assert high == pytest.approx(jeffreys.inv_cdf(0.975), abs=0.012)


def test_interval_of_one_problem_is_wide() -> None:
    low, high = share_interval([0.5])
    assert low < 0.15
    assert high > 0.85


def test_order_of_the_values_does_not_matter() -> None:
    assert share_interval([0.25, 0.5, 1]) == share_interval([1, 0.25, 0.5])


@given(st.lists(st.sampled_from([0, 0.125, 0.5, 0.75, 1]), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_interval_contains_the_mean_and_lies_in_0_to_1(shares: list[float]) -> None:
    low, high = share_interval(shares)
    assert 0 <= low <= sum(shares) / len(shares) <= high <= 1
    swapped = share_interval([1 - share for share in shares])
    assert swapped == pytest.approx((1 - high, 1 - low), abs=0.04)  # random error of the bootstrap


@given(st.lists(st.sampled_from([-1, -0.25, 0, 0.5, 1]), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_interval_contains_the_mean_difference(differences: list[float]) -> None:
    low, high = difference_interval(differences)
    assert -1 <= low <= sum(differences) / len(differences) <= high <= 1


def test_no_values_are_an_error() -> None:
    for interval in (share_interval, difference_interval, lambda values: mean_interval(values, 0, 1)):
        with pytest.raises(ValueError, match="at least one problem"):
            interval([])


def test_interval_of_lengths() -> None:
    random = np.random.default_rng(3)
    values = random.normal(20, 4, size=400)
    half = 1.96 * values.std(ddof=1) / 20
    low, high = mean_interval(values.tolist(), 1, 99)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert mean_interval([3.0], 1, 8) == (1, 8)
    assert mean_interval([3.0, 3.0], 1, 8) == (3, 3)


# -------------------------------------------------------------- Tango's interval of paired differences


def paired(gained: int, lost: int, total: int) -> tuple[float, float]:
    return difference_interval([1.0] * gained + [-1.0] * lost + [0.0] * (total - gained - lost))


def test_published_interval() -> None:
    # Fagerland, Lydersen and Laake 2017, data of Cavo et al.: 161 patients, of whom 6 gain and 16 lose
    assert paired(6, 16, 161) == pytest.approx((-0.1240, -0.0054), abs=5e-5)


def test_no_or_all_problems_changed_by_hand() -> None:
    # 20 δ² = z² |δ| (1 - |δ|), and 20 (1 - δ)² = z² (1 - δ²), with z² = 3.841459
    assert paired(0, 0, 20) == pytest.approx((-3.841459 / 23.841459, 3.841459 / 23.841459), abs=1e-6)
    assert paired(20, 0, 20) == pytest.approx((16.158541 / 23.841459, 1), abs=1e-6)


@given(st.integers(1, 60), st.data())
@settings(max_examples=100, deadline=None)
def test_limits_are_roots_of_tangos_quartic(total: int, data: st.DataObject) -> None:
    # Yang, Sun and Hardin 2013: substituting q and squaring twice turns the equation into a polynomial in δ
    gained = data.draw(st.integers(0, total))
    lost = data.draw(st.integers(0, total - gained))
    d, s, g = gained - lost, gained + lost, NormalDist().inv_cdf(0.975) ** 2
    quartic = [
        total**2 * (total / g + 1) ** 2,
        -total * d * (total / g + 1) * (4 * total / g + 1),
        2 * total * d**2 * (3 * total / g + 2) / g - total**2 * (s / g + 1),
        total * d * (2 * s / g + 1) - d**3 * (4 * total / g + 1) / g,
        d**2 * (d**2 / g - s) / g,
    ]
    for end in paired(gained, lost, total):
        terms = [coefficient * end ** (4 - place) for place, coefficient in enumerate(quartic)]
        assert abs(sum(terms)) <= 1e-7 * sum(map(abs, terms)) + 1e-9
    low, high = paired(gained, lost, total)
    assert paired(lost, gained, total) == pytest.approx((-high, -low))
    if s:
        assert (low > 0 or high < 0) == (d**2 / s > g)  # McNemar's statistic


# ----------------------------------------------------------------------------------------- coverage
#
# These tests are a reduced version of tests/benchmarks/interval_coverage.py, which has many more cases.


def coverage(rows: np.ndarray, truth: float, paired: bool = False) -> float:
    """Return the share of rows whose 95% interval contains the true value."""
    interval = difference_interval if paired else share_interval
    covered = [low <= truth <= high for low, high in (interval(row.tolist()) for row in rows)]
    return sum(covered) / len(covered)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.4, 0.5, 0.77, 0.9])
@pytest.mark.parametrize("num_problems", [50, 100])
def test_coverage_of_single_samples_exactly(rate: float, num_problems: int) -> None:
    covered = 0.0
    for correct in range(num_problems + 1):
        low, high = share_interval([1.0] * correct + [0.0] * (num_problems - correct))
        chance = math.comb(num_problems, correct) * rate**correct * (1 - rate) ** (num_problems - correct)
        covered += chance * (low <= rate <= high)
    assert 0.93 <= covered <= 0.971  # 50 problems at 0.9: 0.9703


@pytest.mark.parametrize(
    ("a", "b", "num_problems"),
    [
        (0.1, 1.9, 20),  # most problems are never solved, a few are always solved: accuracy 0.05
        (0.5, 0.5, 50),  # most problems are nearly always or nearly never solved
        (20.0, 20.0, 20),  # all problems are similar: nearly independent samples
    ],
)
def test_coverage_of_clustered_samples(a: float, b: float, num_problems: int) -> None:
    random = np.random.default_rng(2)
    rows = random.binomial(8, random.beta(a, b, size=(250, num_problems))) / 8
    assert 0.91 <= coverage(rows, a / (a + b)) <= 0.99  # 93-97%, plus random error


@pytest.mark.parametrize(
    ("gained", "lost", "num_problems"),
    [
        *((0.3, 0.3, 20), (0.5, 0.02, 20), (0.3, 0.05, 20), (0.2, 0.1, 20), (0.8, 0.1, 20), (0.9, 0.0, 20)),
        *((0.3, 0.3, 50), (0.9, 0.0, 50)),
    ],
)
def test_coverage_of_paired_differences_exactly(gained: float, lost: float, num_problems: int) -> None:
    covered = 0.0
    rest = 1 - gained - lost
    for a in range(num_problems + 1):
        for b in range(num_problems - a + 1):
            c = num_problems - a - b
            chance = (
                math.comb(num_problems, a) * math.comb(num_problems - a, b) * gained**a * lost**b * rest**c
            )
            if chance > 1e-6:
                low, high = difference_interval([1.0] * a + [-1.0] * b + [0.0] * c)
                covered += chance * (low <= gained - lost <= high)
    assert 0.93 <= covered <= 0.976  # 50 problems, 0.9 gained and none lost: 0.975


@pytest.mark.parametrize("num_problems", [20, 50])
@pytest.mark.parametrize(("gained", "lost"), [(0.05, 0.0), (0.02, 0.02)])
def test_interval_is_conservative_if_few_problems_change(
    gained: float, lost: float, num_problems: int
) -> None:
    random = np.random.default_rng(5)
    rows = random.choice([1.0, -1.0, 0.0], p=[gained, lost, 1 - gained - lost], size=(250, num_problems))
    assert coverage(rows, gained - lost, paired=True) >= 0.97


@pytest.mark.parametrize(
    ("before", "share", "num_problems"),
    [
        ((0.3, 1.2), 0.1, 50),  # accuracy 0.2; a tenth of the problems is learned
        ((0.1, 1.9), 0.5, 20),  # accuracy 0.05; half of the problems is learned
        ((20.0, 20.0), 0.5, 50),  # similar problems; half of the problems is learned
    ],
)
def test_coverage_of_clustered_differences(
    before: tuple[float, float], share: float, num_problems: int
) -> None:
    random, shape = np.random.default_rng(4), (250, num_problems)
    early = random.beta(*before, size=shape)
    late = np.where(random.random(shape) < share, random.beta(9, 1, size=shape), early)
    rows = (random.binomial(4, late) - random.binomial(4, early)) / 4
    truth = share * (0.9 - before[0] / sum(before))
    assert 0.91 <= coverage(rows, truth, paired=True) <= 0.99  # 93-97%, plus random error


# ---------------------------------------------------------------------------------- pass@k and tests


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 1, 2) == 0.5  # 3 of the 6 pairs of 4 samples contain the correct one
    assert pass_at_k(5, 2, 3) == pytest.approx(0.9)  # C(3,3)/C(5,3) = 1/10
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(8, 0, 8) == 0
    assert pass_at_k(8, 1, 8) == 1
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)  # no overflow, no rounding
    for arguments in ((4, 5, 1), (4, 1, 5), (4, 1, 0)):
        with pytest.raises(ValueError, match="not defined"):
            pass_at_k(*arguments)


@given(st.integers(1, 8), st.data())
@settings(deadline=None)
def test_pass_at_k_is_the_share_of_subsets(num_samples: int, data: st.DataObject) -> None:
    num_correct = data.draw(st.integers(0, num_samples))
    k = data.draw(st.integers(1, num_samples))
    subsets = list(itertools.combinations(range(num_samples), k))
    share = sum(min(subset) < num_correct for subset in subsets) / len(subsets)  # the first ones are correct
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(share)


def test_pass_at_k_is_unbiased() -> None:
    random, rate = np.random.default_rng(0), 0.2
    estimates = [pass_at_k(10, int(correct), 4) for correct in random.binomial(10, rate, size=20_000)]
    assert np.mean(estimates) == pytest.approx(1 - (1 - rate) ** 4, abs=0.01)


def binomial_p(gained: int, lost: int) -> float:
    """Return the two-sided p-value: the sum over all outcomes that are not more likely than this one."""
    total = gained + lost
    chances = [math.comb(total, k) / 2**total for k in range(total + 1)]
    return sum(chance for chance in chances if chance <= chances[gained] * (1 + 1e-9))


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(9, 1) == pytest.approx(22 / 1024)  # 2 (C(10,0) + C(10,1)) / 2^10
    assert mcnemar(1, 9) == mcnemar(9, 1)


@given(st.integers(0, 40), st.integers(0, 40))
@settings(deadline=None)
def test_mcnemar_is_a_binomial_test(gained: int, lost: int) -> None:
    assert mcnemar(gained, lost) == pytest.approx(binomial_p(gained, lost))


@given(st.integers(0, 7), st.integers(0, 5))
@settings(deadline=None)
def test_sign_flips_of_single_samples_equal_mcnemar(gained: int, lost: int) -> None:
    differences = [1.0] * gained + [-1.0] * lost + [0.0] * 9
    assert sign_flip(differences) == pytest.approx(mcnemar(gained, lost))


def test_sign_flips_by_hand() -> None:
    # of the 8 ways to sign 0.5, 0.25 and 0.25, two give a sum as far from 0 as the observed sum
    assert sign_flip([0.5, 0.25, 0.25, 0.0]) == pytest.approx(2 / 8)
    assert sign_flip([]) == 1
    many = np.random.default_rng(0).choice([0.25, 0.5, -0.25], size=200).tolist()
    assert sign_flip(many) == sign_flip(many) < 0.01
