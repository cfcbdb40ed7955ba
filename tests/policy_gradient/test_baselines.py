"""Baselines and advantages, compared with hand-computed values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_reinforce.policy_gradient import (
    BASELINES,
    CONSTANT_BASELINES,
    UNBIASED,
    MovingAverage,
    WeightedReturns,
    advantages,
    baseline_values,
    standardize,
    weighted_returns,
)

NO_PAST = MovingAverage()
NAN = float("nan")

# the episodes of groups 5 and 9 are not adjacent, and group 7 has a single episode
RETURNS = torch.tensor([1.0, 4.0, 3.0, 8.0, 5.0, 6.0])
GROUPS = torch.tensor([5, 9, 5, 9, 5, 7])
ALL_SCORED = torch.ones(6, dtype=torch.bool)
# the fourth (group 9) and the fifth (group 5) are not scored
TWO_UNSCORED = torch.tensor([True, True, True, False, False, True])


WEIGHTS = torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0, 4.0, 1.0, 1.0])  # the last two are for longer batches
GREEDY = torch.tensor([2.0, 7.0, 2.0, 7.0, 2.0, NAN, 0.0, 0.0])  # not scored for group 7


def values(
    name,
    returns=RETURNS,
    groups=GROUPS,
    scored=ALL_SCORED,
    moving_average=NO_PAST,
    weights=WEIGHTS,
    greedy_returns=GREEDY,
):
    """Return the values of a baseline, called with the arguments of all baselines."""
    number = len(returns)
    return baseline_values(
        name,
        returns,
        groups,
        scored,
        moving_average,
        weighted=WeightedReturns(weights[:number].to(returns.dtype), returns),
        greedy_returns=greedy_returns[:number].to(returns.dtype),
    )


def test_none_is_zero():
    assert values("none").tolist() == [0.0] * 6


def test_batch_mean_averages_every_episode():
    # (1 + 4 + 3 + 8 + 5 + 6) / 6 = 27 / 6 = 4.5
    assert values("batch_mean").tolist() == [4.5] * 6


def test_batch_mean_excludes_unscored_episodes():
    # (1 + 4 + 3 + 6) / 4 = 3.5
    assert values("batch_mean", scored=TWO_UNSCORED).tolist() == [3.5] * 6


def test_moving_average_does_not_depend_on_the_batch():
    assert values("moving_average", moving_average=MovingAverage(total=0.3, weight=0.5)).tolist() == (
        pytest.approx([0.6] * 6)
    )
    assert values("moving_average").tolist() == [0.0] * 6  # before the first update


def test_group_mean_averages_each_group_in_any_order():
    # group 5: (1 + 3 + 5) / 3 = 3;  group 9: (4 + 8) / 2 = 6;  group 7: 6
    assert values("group_mean").tolist() == [3.0, 6.0, 3.0, 6.0, 3.0, 6.0]


def test_group_mean_excludes_unscored_episodes():
    # group 5: (1 + 3) / 2 = 2;  group 9: 4;  group 7: 6
    assert values("group_mean", scored=TWO_UNSCORED)[TWO_UNSCORED].tolist() == [2.0, 4.0, 2.0, 6.0]


def test_leave_one_out_averages_the_other_episodes_of_the_group():
    # group 5: (3+5)/2, (1+5)/2, (1+3)/2 = 4, 3, 2;  group 9: 8 and 4;  group 7: its own return, 6
    assert values("leave_one_out").tolist() == [4.0, 8.0, 3.0, 4.0, 2.0, 6.0]


def test_leave_one_out_excludes_unscored_episodes():
    # group 5 has 1 and 3, each compared with the other;  4 and 6 are alone in groups 9 and 7
    assert values("leave_one_out", scored=TWO_UNSCORED)[TWO_UNSCORED].tolist() == [3.0, 4.0, 1.0, 6.0]


def test_single_episode_of_a_group_has_zero_advantage():
    alone = {"returns": torch.tensor([6.0]), "groups": torch.tensor([7]), "scored": torch.tensor([True])}
    returns = torch.tensor([[6.0, 6.0]])  # one terminal reward, γ = 1
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert advantages(returns, values("leave_one_out", **alone), mask).tolist() == [[0.0, 0.0]]


def test_optimal_is_the_weighted_mean_of_the_other_episodes():
    # group 5 has 1, 3, 5 with weights 1, 0, 3: 3·5/3, (1·1 + 3·5)/4, 1·1/1 = 5, 4, 1
    # group 9 has 4 and 8, each compared with the other;  group 7: its own return
    assert values("optimal").tolist() == [5.0, 8.0, 4.0, 4.0, 1.0, 6.0]


def test_optimal_excludes_unscored_episodes():
    # group 5 has 1 and 3 with weights 1 and 0: the first is compared with weight 0, so the plain mean 3 is
    # used
    assert values("optimal", scored=TWO_UNSCORED)[TWO_UNSCORED].tolist() == [3.0, 4.0, 1.0, 6.0]


def test_optimal_with_equal_or_zero_weights_equals_leave_one_out():
    for weights in (torch.full((6,), 0.3), torch.zeros(6)):
        assert values("optimal", weights=weights).tolist() == pytest.approx(values("leave_one_out").tolist())


def test_own_weight_does_not_affect_the_optimal_baseline():
    # 1e30 and 1e-8: subtracting the own weight from the sum would lose the other weights
    heavy = torch.tensor([1e30, 2.0, 1e-8, 0.5, 3e-8, 4.0])
    expected = (1e-8 * 3 + 3e-8 * 5) / 4e-8
    assert values("optimal", weights=heavy)[0].item() == pytest.approx(expected)


def test_weighted_returns():
    returns = torch.tensor([[6.0, 5.0, 3.0], [1.0, NAN, NAN], [2.0, 2.0, 0.0]])
    norms = torch.tensor([[0.5, 1.0, 2.0], [0.0, NAN, NAN], [1.0, 3.0, NAN]])
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    # γ = 1: w = 3.5, (3 + 5 + 6) / 3.5 = 4;  w = 0;  w = 4, a single return of 2
    weights, means = weighted_returns(returns, norms, mask)
    assert weights.tolist() == [3.5, 0.0, 4.0]
    assert means.tolist() == [4.0, 0.0, 2.0]
    # γ = 1/2, γ^{2t} = 1, 1/4, 1/16: w = 0.5 + 0.25 + 0.125 = 0.875, (3 + 1.25 + 0.375) / 0.875
    weights, means = weighted_returns(returns, norms, mask, 0.5)
    assert weights.tolist() == [0.875, 0.0, 1.75]
    assert means.tolist() == pytest.approx([4.625 / 0.875, 0.0, 2.0])


def test_greedy_is_the_return_of_the_greedy_completion():
    # the greedy completion of group 7 is not scored, so the episode's own return is used
    assert values("greedy").tolist() == [2.0, 7.0, 2.0, 7.0, 2.0, 6.0]


@pytest.mark.parametrize("name", ["optimal", "greedy"])
def test_missing_argument_of_a_baseline_is_reported(name):
    with pytest.raises(ValueError, match=f"'{name}' needs"):
        baseline_values(name, RETURNS, GROUPS, ALL_SCORED, NO_PAST)


@pytest.mark.parametrize("name", CONSTANT_BASELINES)
def test_nan_in_an_unscored_episode_does_not_affect_other_episodes(name):
    poisoned = RETURNS.where(TWO_UNSCORED, torch.tensor(NAN))
    clean, dirty = values(name, scored=TWO_UNSCORED), values(name, poisoned, scored=TWO_UNSCORED)
    assert dirty[TWO_UNSCORED].tolist() == clean[TWO_UNSCORED].tolist()


@pytest.mark.parametrize("name", CONSTANT_BASELINES)
def test_baselines_are_zero_if_no_episode_is_scored(name):
    nothing = {"scored": ~ALL_SCORED, "weights": torch.zeros(6), "greedy_returns": torch.full((6,), NAN)}
    assert values(name, torch.zeros(6), **nothing).tolist() == [0.0] * 6


@pytest.mark.parametrize("name", CONSTANT_BASELINES)
def test_empty_batch_gives_empty_baselines(name):
    empty = torch.zeros(0)
    assert values(name, empty, empty.long(), empty.bool()).shape == (0,)


def test_error_for_unknown_baseline_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'median'.*leave_one_out"):
        values("median")
    with pytest.raises(ValueError, match="'value'"):  # not constant within an episode
        values("value")


def test_unbiased_baselines_are_a_subset_of_all_baselines():
    assert set(BASELINES) > UNBIASED
    assert set(BASELINES) == {*CONSTANT_BASELINES, "value"}


def test_moving_average_is_corrected_for_its_initial_bias():
    average = MovingAverage().updated(2.0, decay=0.9)
    # total = 0.9·0 + 0.1·2 = 0.2, weight = 0.1: the average of a single 2 is 2, not 0.2
    assert (average.total, average.weight) == pytest.approx((0.2, 0.1))
    assert average.value == pytest.approx(2.0)
    average = average.updated(5.0, decay=0.9)
    # total = 0.9·0.2 + 0.1·5 = 0.68, weight = 0.9·0.1 + 0.1 = 0.19;  0.68 / 0.19 = 3.5789…
    assert average.value == pytest.approx(0.68 / 0.19)


def test_moving_average_of_equal_returns_is_that_return():
    average = MovingAverage()
    for _ in range(7):
        average = average.updated(0.3, decay=0.95)
        assert average.value == pytest.approx(0.3)
    assert average.weight == pytest.approx(1 - 0.95**7)


def test_decay_zero_keeps_the_last_update_only():
    assert MovingAverage().updated(4.0, decay=0.0).updated(1.0, decay=0.0).value == 1.0


def test_advantages_subtract_the_baseline_and_are_masked():
    returns = torch.tensor([[6.0, 5.0, 3.0], [1.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert advantages(returns, torch.tensor([4.0, 2.0]), mask).tolist() == [
        [2.0, 1.0, -1.0],
        [-1.0, 0.0, 0.0],
    ]


def test_advantages_include_the_discount_of_their_position():
    returns = torch.tensor([[3.0, 4.0, 4.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    # A_0 = 1·(3-2) = 1;  A_1 = ½·(4-2) = 1;  A_2 = ¼·(4-2) = ½
    assert advantages(returns, torch.tensor([2.0]), mask, 0.5).tolist() == [[1.0, 1.0, 0.5]]


def test_masked_advantages_are_zero_even_for_nan():
    mask = torch.tensor([[False, True]])
    assert advantages(torch.tensor([[NAN, 2.0]]), torch.tensor([1.0]), mask).tolist() == [[0.0, 1.0]]
    unscored = advantages(torch.ones(1, 2), torch.tensor([NAN]), torch.zeros(1, 2, dtype=torch.bool))
    assert unscored.tolist() == [[0.0, 0.0]]


def test_standardize_divides_by_the_root_mean_square_around_the_baseline():
    returns, baseline = torch.tensor([7.0, 1.0, 100.0]), torch.tensor([4.0, 5.0, 0.0])
    scored = torch.tensor([True, True, False])
    # sqrt((3² + 4²) / 2) = sqrt(12.5) = 3.5355…; the unscored 100 is ignored
    divided = standardize(torch.tensor([[3.0], [-4.0], [0.0]]), returns, baseline, scored, epsilon=0.0)
    assert divided.flatten().tolist() == pytest.approx([3 / 12.5**0.5, -4 / 12.5**0.5, 0.0])


def test_standardized_advantages_do_not_depend_on_the_scale_of_rewards():
    baseline, scored = torch.zeros(2), torch.tensor([True, True])
    small = standardize(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 2.0]), baseline, scored, 0.0)
    large = standardize(torch.tensor([[10.0], [20.0]]), torch.tensor([10.0, 20.0]), baseline, scored, 0.0)
    torch.testing.assert_close(small, large)


def test_standardize_keeps_zeros_if_all_returns_equal_their_baseline():
    returns, scored = torch.tensor([1.0, 1.0]), torch.tensor([True, True])
    assert standardize(torch.zeros(2, 3), returns, returns, scored).tolist() == [[0.0] * 3] * 2
    assert standardize(torch.zeros(2, 3), returns, returns, ~scored).tolist() == [[0.0] * 3] * 2


def test_standardize_each_group_by_its_own_spread():
    # spreads 2 and 10; the third group has none, up to rounding, and an episode that is unscored
    returns = torch.tensor([1.0, 5.0, 30.0, 10.0, 0.1 + 1e-8, 0.1, 9.0])
    baseline = torch.tensor([3.0, 3.0, 20.0, 20.0, 0.1, 0.1, 0.1])
    groups = torch.tensor([7, 7, 2, 2, 5, 5, 5])
    scored = torch.tensor([True] * 6 + [False])
    values = torch.arange(1.0, 8.0)[:, None]
    divided = standardize(values, returns, baseline, scored, groups=groups)
    torch.testing.assert_close(divided, torch.tensor([[0.5], [1.0], [0.3], [0.4], [0.0], [0.0], [0.0]]))


@pytest.mark.parametrize("baseline", ["batch_mean", "group_mean", "leave_one_out", "optimal"])
def test_standardize_gives_zero_if_all_returns_are_equal(baseline):
    # Ten correct answers of three actions each, γ = 0.9. Every g_0 is 0.81, but g_1 - b = 0.09, which must
    # not be divided by 1e-6 or by a rounding error: 10 · 0.81 / 10 is not exactly 0.81 in float32.
    returns = torch.tensor([[0.81, 0.9, 1.0]] * 10)
    g0, scored, mask = returns[:, 0], torch.ones(10, dtype=torch.bool), torch.ones(10, 3, dtype=torch.bool)
    groups, weights = torch.zeros(10, dtype=torch.long), torch.linspace(0.1, 1.0, 10)
    b = values(baseline, g0, groups, scored, weights=weights, greedy_returns=torch.zeros(10))
    standardized = standardize(advantages(returns, b, mask, 0.9), g0, b, scored)
    assert standardized.abs().max().item() == 0.0


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_leave_one_out_advantage_is_a_multiple_of_the_group_mean_advantage(numbers):
    # g_i - b_i = n/(n-1) (g_i - mean of the group)
    returns, n = torch.tensor(numbers, dtype=torch.float64), len(numbers)
    arguments = (returns, torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool))
    stretched = n / (n - 1) * (returns - values("group_mean", *arguments))
    torch.testing.assert_close(returns - values("leave_one_out", *arguments), stretched, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    st.lists(
        st.tuples(st.floats(-5, 5), st.integers(0, 2), st.booleans(), st.floats(0, 2), st.floats(-5, 5)),
        min_size=1,
        max_size=8,
    ),
    st.randoms(use_true_random=False),
    st.sampled_from(CONSTANT_BASELINES),
)
def test_baseline_does_not_depend_on_the_order_of_the_batch(rows, random, name):
    order = list(range(len(rows)))
    random.shuffle(order)

    def of(rows):
        numbers, groups, scored, weights, greedy_returns = zip(*rows, strict=True)
        return values(
            name,
            torch.tensor(numbers, dtype=torch.float64),
            torch.tensor(groups),
            torch.tensor(scored),
            MovingAverage(0.3, 0.5),
            torch.tensor(weights, dtype=torch.float64),
            torch.tensor(greedy_returns, dtype=torch.float64),
        )

    shuffled = of([rows[index] for index in order])
    torch.testing.assert_close(shuffled, of(rows)[order], rtol=1e-9, atol=1e-9)
