"""Generalized advantage estimation, compared with hand-computed values and with its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_reinforce.policy_gradient import advantages, generalized_advantages, reward_to_go

NAN = float("nan")
REWARDS = torch.tensor([[1.0, 0.0, 2.0], [4.0, 0.0, 0.0]])
VALUES = torch.tensor([[2.0, 1.0, 3.0], [1.0, NAN, NAN]])  # padding must not be used
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_lambda_1_gives_the_return_minus_the_value():
    # g = 3, 2, 2 and 4, minus 2, 1, 3 and 1
    assert generalized_advantages(REWARDS, VALUES, MASK).tolist() == [[1.0, 1.0, -1.0], [3.0, 0.0, 0.0]]


def test_lambda_0_gives_the_one_step_difference():
    # δ = 1 + 1 - 2, 0 + 3 - 1, 2 + 0 - 3; V is 0 after the last action
    expected = [[0.0, 2.0, -1.0], [3.0, 0.0, 0.0]]
    assert generalized_advantages(REWARDS, VALUES, MASK, gae_lambda=0.0).tolist() == expected


def test_lambda_between_0_and_1():
    # δ = 0, 2, -1 as above; λ = 1/2:  A_2 = -1,  A_1 = 2 - 1/2,  A_0 = 0 + 3/2 · 1/2
    expected = [[0.75, 1.5, -1.0], [3.0, 0.0, 0.0]]
    assert generalized_advantages(REWARDS, VALUES, MASK, gae_lambda=0.5).tolist() == expected


def test_discount():
    # γ = 1/2: δ = 1 + 1/2 - 2, 0 + 3/2 - 1, 2 - 3 = -1/2, 1/2, -1;  γλ = 1/4
    # sums: -1, 1/2 - 1/4 = 1/4, -1/2 + 1/16 = -7/16;  times γ^t: -7/16, 1/8, -1/4
    expected = [[-7 / 16, 1 / 8, -1 / 4], [3.0, 0.0, 0.0]]
    assert generalized_advantages(REWARDS, VALUES, MASK, 0.5, 0.5).tolist() == expected


def test_unscored_episode_has_zero_advantage_even_with_nan_values():
    values, mask = VALUES.clone(), MASK.clone()
    values[1], mask[1] = NAN, False
    rewards = REWARDS.clone()
    rewards[1] = NAN
    assert generalized_advantages(rewards, values, mask, 0.9, 0.9)[1].tolist() == [0.0] * 3


def test_episode_without_actions():
    nothing = torch.zeros(2, 0)
    assert generalized_advantages(nothing, nothing, nothing.bool()).shape == (2, 0)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=6),
    st.floats(0.1, 1.0),
    st.floats(0.0, 1.0),
)
def test_recursion_equals_both_definitions(actions, discount, gae_lambda):
    # λ = 1 is compared with g - V, any λ with the definition: a sum over all later differences
    numbers = torch.tensor(actions, dtype=torch.float64)
    rewards, values = numbers[None, :, 0], numbers[None, :, 1]
    mask = torch.ones_like(rewards, dtype=torch.bool)
    zero = torch.zeros(1, dtype=torch.float64)
    plain = advantages(reward_to_go(rewards, discount) - values, zero, mask, discount)
    torch.testing.assert_close(generalized_advantages(rewards, values, mask, discount), plain)
    length = len(actions)
    v = [*values[0].tolist(), 0.0]
    deltas = [rewards[0, t].item() + discount * v[t + 1] - v[t] for t in range(length)]
    expected = [
        discount**t * sum((discount * gae_lambda) ** k * deltas[t + k] for k in range(length - t))
        for t in range(length)
    ]
    found = generalized_advantages(rewards, values, mask, discount, gae_lambda)[0].tolist()
    assert found == pytest.approx(expected, abs=1e-9)
