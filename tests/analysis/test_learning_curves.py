"""Measures of learning curves by hand, and statistical tests compared with scipy's."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llm_reinforce.analysis.learning_curves import (
    LearningCurve,
    area_under,
    compare_curves,
    difference_of,
    final_accuracy,
    heights,
    learning_curve,
    mean_curve,
    mean_interval,
    tokens_to,
)

# accuracy 0.5 after 100 tokens, and 0.8 after 250, which is beyond a budget of 200
CURVE = LearningCurve((0, 100, 250), (0.0, 0.5, 0.8))


def test_curve_is_linear_between_evaluations() -> None:
    assert heights(CURVE, [0, 50, 100, 200, 250, 900]).tolist() == pytest.approx(
        [0.0, 0.25, 0.5, 0.7, 0.8, 0.8]
    )


def test_area_by_hand() -> None:
    # a triangle of 100 x 0.5, then 100 tokens from 0.5 to 0.7: (25 + 60) / 200
    assert area_under(CURVE, 200) == pytest.approx(85 / 200)
    # budget at an evaluation: (25 + 97.5) / 250; budget at half of the triangle: 6.25 / 50
    assert area_under(CURVE, 250) == pytest.approx(122.5 / 250)
    assert area_under(CURVE, 50) == pytest.approx(6.25 / 50)
    # constant after the last evaluation: 122.5 + 50 * 0.8
    assert area_under(CURVE, 300) == pytest.approx(162.5 / 300)


def test_final_accuracy_is_the_last_one() -> None:
    assert final_accuracy(CURVE) == 0.8


@pytest.mark.parametrize(
    ("target", "budget", "expected"),
    [
        (0.25, 200, 50.0),
        (0.5, 200, 100.0),
        (0.6, 200, 150.0),
        (0.7, 200, 200.0),  # exactly at the budget
        (0.71, 200, None),  # beyond the budget
        (0.9, 900, None),  # never
        (0.0, 200, 0.0),  # from the start
    ],
)
def test_tokens_to_a_target(target: float, budget: int, expected: float | None) -> None:
    found = tokens_to(CURVE, target, budget)
    assert found == (None if expected is None else pytest.approx(expected))


def test_tokens_to_a_target_count_to_the_first_time() -> None:
    falls_back = LearningCurve((0, 10, 20, 30), (0.1, 0.9, 0.3, 0.9))
    assert tokens_to(falls_back, 0.5, 30) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("num_tokens", "accuracy"),
    [((), ()), ((5, 10), (0.0, 0.1)), ((0, 10), (0.0,)), ((0, 10, 10), (0.0, 0.1, 0.2))],
)
def test_invalid_curves_are_errors(num_tokens: tuple[int, ...], accuracy: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"learning curve"):
        LearningCurve(num_tokens, accuracy)


curves = st.lists(st.integers(1, 500), min_size=1, max_size=8, unique=True).flatmap(
    lambda tokens: st.lists(st.floats(0, 1), min_size=len(tokens) + 1, max_size=len(tokens) + 1).map(
        lambda accuracy: LearningCurve((0, *sorted(tokens)), tuple(accuracy))
    )
)


@given(curves, st.integers(1, 600))
def test_area_is_between_the_lowest_and_the_highest_accuracy(curve: LearningCurve, budget: int) -> None:
    area = area_under(curve, budget)
    assert min(curve.accuracy) - 1e-9 <= area <= max(curve.accuracy) + 1e-9


@given(curves, st.floats(0.01, 1), st.integers(1, 600))
def test_curve_has_the_target_accuracy_after_tokens_to(
    curve: LearningCurve, target: float, budget: int
) -> None:
    tokens = tokens_to(curve, target, budget)
    if tokens is None:
        assert all(
            accuracy < target
            for number, accuracy in zip(curve.num_tokens, curve.accuracy, strict=True)
            if number <= budget
        )
    elif tokens > 0:
        assert tokens <= budget
        assert float(heights(curve, [tokens])[0]) == pytest.approx(target)


def test_curve_from_the_logs_of_a_run() -> None:
    metrics = [{"update": number, "num_tokens": 40 * number} for number in (1, 2, 3)]
    rows = [
        {"update": 0, "decoding": "greedy", "accuracy": 0.1},
        {"update": 0, "decoding": "sampled", "accuracy": 0.0},
        {"update": 2, "decoding": "greedy", "accuracy": 0.2},
        {"update": 3, "decoding": "greedy", "accuracy": 0.4},
        {"update": 3, "decoding": "sampled", "accuracy": 0.3},
    ]
    assert learning_curve(rows, metrics, "greedy") == LearningCurve((0, 80, 120), (0.1, 0.2, 0.4))
    assert learning_curve(rows, metrics, "sampled") == LearningCurve((0, 120), (0.0, 0.3))
    timed = [{**row, "step_time": seconds} for row, seconds in zip(metrics, (2.0, 3.0, 5.0), strict=True)]
    assert learning_curve(rows, timed, "greedy").seconds == (0.0, 5.0, 10.0)
    assert learning_curve(rows, timed, "sampled").seconds == (0.0, 10.0)
    with pytest.raises(ValueError, match="no line for update 3"):
        learning_curve(rows, metrics[:2], "greedy")
    with pytest.raises(ValueError, match="no greedy evaluation before the first update"):
        learning_curve(rows[1:], metrics, "greedy")


def test_interval_over_seeds_by_hand() -> None:
    # mean 0.5, s = 0.1, t(0.975, 2) = 4.3027: half width 4.3027 * 0.1 / sqrt(3)
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert mean_interval([0.4, 0.5, 0.6], 0, 1) == pytest.approx((0.5 - half, 0.5 + half))
    assert mean_interval([0.4, 0.5, 0.6], 0.3, 0.7) == (0.3, 0.7)
    assert mean_interval([0.9, 0.9], 0, 1) == (0.9, 0.9)
    assert mean_interval([0.9], 0, 1) is None


def test_mean_curve_and_band() -> None:
    others = [LearningCurve((0, 100), (0.0, 1.0)), LearningCurve((0, 50, 100), (0.2, 0.2, 0.4))]
    at, mean, low, high = mean_curve(others, 100)
    assert (at[0], at[-1]) == (0, 100)
    middle = len(at) // 2
    assert mean[[0, middle, -1]].tolist() == pytest.approx([0.1, 0.35, 0.7])
    assert low is not None
    assert high is not None
    assert (low[middle], high[middle]) == pytest.approx(mean_interval([0.5, 0.2], 0, 1))
    assert mean_curve(others[:1], 100)[2:] == (None, None)


def test_difference_equals_scipys_paired_test() -> None:
    values, others = [0.9, 0.8, 0.95, 0.7, 0.85], [0.8, 0.75, 0.7, 0.72, 0.6]
    difference = difference_of(values, others)
    test = stats.ttest_rel(values, others)
    interval = test.confidence_interval(0.95)
    assert difference.mean == pytest.approx(0.126)
    assert difference.interval == pytest.approx((interval.low, interval.high))
    assert difference.t_p_value == pytest.approx(test.pvalue)


def test_all_sign_flips_are_counted() -> None:
    values = [0.9, 0.8, 0.95, 0.7, 0.85]
    others = [0.8, 0.75, 0.7, 0.72, 0.6]
    own = np.subtract(values, others)
    flipped = [abs(float(np.mean(own * signs))) for signs in itertools.product((1, -1), repeat=5)]
    as_far = sum(mean >= abs(own.mean()) - 1e-12 for mean in flipped) / 32
    assert difference_of(values, others).flip_p_value == pytest.approx(as_far)
    # all differences have the same sign: 2 of the 32 ways are as far from 0
    assert difference_of([1, 2, 3, 4, 5], [0, 0, 0, 0, 0]).flip_p_value == pytest.approx(2 / 32)


def test_equal_differences_and_one_seed() -> None:
    none = difference_of([0.5, 0.6], [0.5, 0.6])
    assert (none.mean, none.interval, none.t_p_value, none.flip_p_value) == (0.0, (0.0, 0.0), None, 1.0)
    level = difference_of([0.3, 0.8, 0.1], [0.2, 0.7, 0.0])
    assert level.mean == pytest.approx(0.1)
    assert (level.t_p_value, level.flip_p_value) == (None, pytest.approx(2 / 8))
    one = difference_of([0.5], [0.2])
    assert (one.mean, one.interval, one.t_p_value, one.flip_p_value) == (pytest.approx(0.3), None, None, None)
    with pytest.raises(ValueError, match="zip"):
        difference_of([0.1, 0.2], [0.1])


def test_variants_are_compared_with_the_first() -> None:
    variants = {
        "first": [LearningCurve((0, 100), (0.0, 0.8)), LearningCurve((0, 110), (0.0, 1.0))],
        "second": [LearningCurve((0, 100), (0.0, 0.4)), LearningCurve((0, 100), (0.2, 0.6))],
    }
    first, second = compare_curves(variants, 100, 0.5)
    assert first.differences == {}
    assert first.measures["final"].values == (0.8, 1.0)
    assert first.measures["tokens"].values == pytest.approx((62.5, 55.0))
    assert (first.num_reached, second.num_reached) == (2, 1)
    assert second.measures["tokens"].values == pytest.approx((100.0, 75.0))  # the first is censored at 100
    assert second.measures["area"].values == pytest.approx((0.2, 0.4))
    assert second.differences["final"].mean == pytest.approx(-0.4)
    assert second.differences["tokens"].mean == pytest.approx((37.5 + 20.0) / 2)
    assert (first.num_sampled, second.num_sampled) == ((100, 110), (100, 100))
    assert "timed" not in first.measures  # the logs of these runs have no durations
    with pytest.raises(ValueError, match="the same number of learning curves"):
        compare_curves({**variants, "third": variants["first"][:1]}, 100, 0.5)
    with pytest.raises(ValueError, match="needs at least one variant"):
        compare_curves({}, 100, 0.5)


def test_variants_are_compared_after_the_time_of_the_fastest_variant() -> None:
    def curve(accuracy: float, seconds: float) -> LearningCurve:
        return LearningCurve((0, 50, 100), (0.0, accuracy / 2, accuracy), (0.0, seconds / 2, seconds))

    fast, slow = [curve(0.4, 10.0), curve(0.6, 30.0)], [curve(0.8, 40.0), curve(0.8, 20.0)]
    first, second = compare_curves({"fast": fast, "slow": slow}, 100, 0.5)
    assert first.measures["timed"].values == pytest.approx((0.4, 0.4))  # after 10 and 20 seconds
    assert second.measures["timed"].values == pytest.approx((0.2, 0.8))
    assert second.differences["timed"].mean == pytest.approx(0.1)
    (alone,) = compare_curves({"fast": fast}, 100, 0.5)
    assert "timed" not in alone.measures
