"""Statistics of gradients from inner products: by hand, against the vectors, and mathematical properties."""

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_reinforce.analysis.gradient_statistics import (
    bootstrap_interval,
    jackknife_interval,
    mean_cosine,
    mean_inner_product,
    random_halves,
    ratio,
    studentized_interval,
    total_variance,
    variance_error,
    variance_with_interval,
)

# three groups' vectors: (1, 0), (0, 2), (2, 2)
BY_HAND = np.array([[1.0, 0.0, 2.0], [0.0, 4.0, 4.0], [2.0, 4.0, 8.0]])
ONCE = np.ones(3)


def some_vectors(num_groups: int, seed: int, mean: float = 0.5) -> np.ndarray:
    """Return random vectors, [group, number]."""
    return np.random.default_rng(seed).normal(mean, 1.0, size=(num_groups, 4))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / math.sqrt((one @ one) * (other @ other)))


# ------------------------------------------------------------------------------------ by hand


def test_squared_norm_by_hand() -> None:
    # the products of different vectors are 0, 2 and 4, with mean 2; the squared norm of the mean is 25/9
    assert mean_inner_product(BY_HAND, ONCE) == pytest.approx(2.0)


def test_total_variance_by_hand() -> None:
    # E‖h‖² - 2 = 13/3 - 2; the variances of the two coordinates are 1 and 4/3
    assert total_variance(BY_HAND, ONCE) == pytest.approx(7 / 3)


def test_group_drawn_twice_is_not_paired_with_itself() -> None:
    # (1, 0), (1, 0), (0, 2): products of different groups are 0; with the first pair, the mean would be 1/3
    assert mean_inner_product(BY_HAND, np.array([2.0, 1.0, 0.0])) == pytest.approx(0.0)
    # the first group twice and the last once: 2
    assert mean_inner_product(BY_HAND, np.array([2.0, 0.0, 1.0])) == pytest.approx(2.0)


def test_variance_error_by_hand() -> None:
    # mean (1, 4/3): squared distances 16/9, 1 + 4/9 = 13/9 and 1 + 4/9 = 13/9, with standard deviation √2/9
    squares = np.array([16 / 9, 13 / 9, 13 / 9])
    assert variance_error(BY_HAND, ONCE) == pytest.approx(squares.std() / math.sqrt(3))
    assert squares.std() == pytest.approx(math.sqrt(2) / 9)


def test_cosine_by_hand() -> None:
    # (1, 0) and (0, 2): 0; (1, 0) and (2, 2): 1/√2; without one group, its half is empty: 0
    halves = np.array([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]])
    value, without_one = mean_cosine(BY_HAND, halves)
    assert value == pytest.approx(math.sqrt(0.5) / 2)
    assert without_one == pytest.approx([0.0, math.sqrt(0.5) / 2, 0.0])


def test_jackknife_by_hand() -> None:
    # the jackknife error of a mean is its standard error: 1, 2, 3, 6 have mean 3 and deviation √(14/3)
    values = np.array([1.0, 2.0, 3.0, 6.0]) / 10
    found = jackknife_interval(math.tanh(0.3), np.tanh((1.2 - values) / 3))
    reach = 3.182446 * math.sqrt(0.14 / 3) / 2  # t with 3 degrees of freedom
    assert found.value == math.tanh(0.3)
    assert (math.atanh(found.low), math.atanh(found.high)) == pytest.approx((0.3 - reach, 0.3 + reach))


def test_equal_vectors_have_a_cosine_of_one_without_uncertainty() -> None:
    found = jackknife_interval(1.0, np.ones(5))
    assert (found.low, found.value, found.high) == pytest.approx((1.0, 1.0, 1.0))


def test_ratio_is_zero_if_the_denominator_is_zero() -> None:
    assert ratio(np.array([1.0, 0.0, 3.0]), np.array([2.0, 0.0, 0.0])).tolist() == [0.5, 0.0, 0.0]
    assert float(ratio(np.array(1.0), np.array(4.0))) == 0.25


# ------------------------------------------------------------------------------ against the vectors


@given(st.integers(2, 9), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_statistics_equal_those_of_the_vectors(num_groups: int, seed: int) -> None:
    vectors, others = some_vectors(num_groups, seed), some_vectors(num_groups, seed + 1000)
    once = np.ones(num_groups)
    pairs = [vectors[k] @ others[j] for k, j in itertools.permutations(range(num_groups), 2)]
    assert mean_inner_product(vectors @ others.T, once) == pytest.approx(np.mean(pairs))
    assert total_variance(vectors @ vectors.T, once) == pytest.approx(vectors.var(axis=0, ddof=1).sum())


@given(st.integers(2, 9), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_weights_count_repeated_vectors(num_groups: int, seed: int) -> None:
    vectors = some_vectors(num_groups, seed)
    drawn = np.random.default_rng(seed).integers(num_groups, size=num_groups)
    weights = np.bincount(drawn, minlength=num_groups).astype(float)
    gram, again = vectors @ vectors.T, vectors[drawn]
    squares = ((again - again.mean(axis=0)) ** 2).sum(axis=1)
    assert variance_error(gram, weights) == pytest.approx(squares.std() / math.sqrt(num_groups))
    pairs = [
        again[k] @ again[j] for k in range(num_groups) for j in range(num_groups) if drawn[k] != drawn[j]
    ]
    if pairs:
        assert mean_inner_product(gram, weights) == pytest.approx(np.mean(pairs))
        many = np.stack([weights, np.ones(num_groups)])  # several samples at once
        assert mean_inner_product(gram, many)[0] == pytest.approx(np.mean(pairs))


@given(st.integers(4, 11), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_cosines_equal_those_of_the_vectors(num_groups: int, seed: int) -> None:
    vectors, halves = some_vectors(num_groups, seed), random_halves(num_groups, 5, seed)

    def of(kept: np.ndarray, sides: np.ndarray) -> float:
        return float(np.mean([cosine(kept[row == 1].sum(0), kept[row == -1].sum(0)) for row in sides]))

    value, without_one = mean_cosine(vectors @ vectors.T, halves)
    assert value == pytest.approx(of(vectors, halves))
    for k in range(num_groups):
        left = of(np.delete(vectors, k, axis=0), np.delete(halves, k, axis=1))
        assert without_one[k] == pytest.approx(left)


def test_cosine_with_a_zero_half_is_zero() -> None:
    vectors = np.zeros((8, 3))
    vectors[3] = [1.0, 2.0, 3.0]
    value, without_one = mean_cosine(vectors @ vectors.T, random_halves(8, 20, 0))
    assert value == 0.0
    assert without_one.tolist() == [0.0] * 8


def test_rounding_errors_of_a_half_count_as_zero() -> None:
    vectors = np.full((4, 3), 1e-17)
    vectors[0], vectors[1] = [0.1, 0.2, 0.3], [0.3, 0.1, 0.7]
    _, without_one = mean_cosine(vectors @ vectors.T, np.array([[1.0, -1.0, 1.0, -1.0]]))
    assert without_one[0] == without_one[1] == 0.0


@given(st.integers(2, 20), st.integers(1, 6), st.integers(0, 99))
def test_halves_have_equal_size(num_groups: int, num_splits: int, seed: int) -> None:
    halves = random_halves(num_groups, num_splits, seed)
    assert halves.shape == (num_splits, num_groups)
    assert ((halves == 1).sum(axis=1) == num_groups // 2).all()
    assert ((halves == -1).sum(axis=1) == num_groups // 2).all()


# --------------------------------------------------------------------------------- properties


def test_squared_norm_and_variance_are_unbiased() -> None:
    # all 64 samples of three from four equally likely vectors
    vectors = np.array([[1.0, 0.0], [-2.0, 1.0], [0.5, 3.0], [0.0, -1.0]])
    samples = [vectors[list(drawn)] for drawn in itertools.product(range(4), repeat=3)]
    mean = vectors.mean(axis=0)
    norms = [mean_inner_product(sample @ sample.T, ONCE) for sample in samples]
    variances = [total_variance(sample @ sample.T, ONCE) for sample in samples]
    assert np.mean(norms) == pytest.approx(mean @ mean)
    assert np.mean(variances) == pytest.approx(((vectors - mean) ** 2).sum(axis=1).mean())


def test_bootstrap_is_centered_on_the_measured_value() -> None:
    # if a group were paired with itself, the squared norm would be too high by about V/K
    vectors = some_vectors(20, 5, mean=0.0)
    gram = vectors @ vectors.T
    weights = np.random.default_rng(0).multinomial(20, np.full(20, 0.05), 20_000).astype(float)
    for statistic in (mean_inner_product, total_variance):
        found = statistic(gram, weights)
        assert abs(found.mean() - statistic(gram, np.ones(20))) < 4 * found.std() / math.sqrt(20_000) + 0.005


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_intervals_scale_with_the_statistic(factor: float) -> None:
    vectors = some_vectors(30, 7)
    gram = vectors @ vectors.T
    one, other = (
        studentized_interval(
            lambda w, g=g: total_variance(g, w), lambda w, g=g: variance_error(g, w), 30, seed=1
        )
        for g in (gram, factor * gram)
    )
    assert (other.low, other.value, other.high) == pytest.approx(
        tuple(factor * number for number in (one.low, one.value, one.high)), rel=1e-9
    )
    assert 0 < one.low < one.value < one.high


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_equal_seeds_give_equal_intervals(method: str) -> None:
    vectors = some_vectors(30, 9)
    gram = vectors @ vectors.T
    one, two, three = (
        bootstrap_interval(lambda w: mean_inner_product(gram, w), 30, seed, method) for seed in (1, 1, 2)
    )
    assert one == two
    assert one != three
    assert one.low < one.value < one.high


def test_interval_of_a_constant_is_that_value() -> None:
    zero = variance_with_interval(np.zeros((20, 20)), 2.0, seed=0)
    assert (zero.value, zero.low, zero.high) == (0.0, 0.0, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        level = bootstrap_interval(lambda weights: np.asarray(0 * weights.sum(axis=-1) + 3.0), 20, seed=0)
    assert (level.value, level.low, level.high) == (3.0, 3.0, 3.0)
