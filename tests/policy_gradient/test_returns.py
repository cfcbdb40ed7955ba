"""Rewards per action and returns, compared with hand-computed values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_reinforce.policy_gradient import action_mask, episode_returns, place_rewards, reward_to_go

DISCOUNTS = st.floats(0.1, 1.0)


@st.composite
def reward_tensors(draw: st.DrawFn, count: int = 1) -> list[Tensor]:
    """Draw `count` float64 tensors of the same shape [episode, token]."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 5)))
    numbers = st.lists(st.floats(-3, 3), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    return [torch.tensor(draw(numbers), dtype=torch.float64).reshape(shape) for _ in range(count)]


def test_action_mask_includes_the_end_token_and_excludes_padding():
    assert action_mask(torch.tensor([2, 0, 3]), 3).tolist() == [
        [True, True, False],
        [False, False, False],
        [True, True, True],
    ]


def test_terminal_reward_is_assigned_to_the_last_action():
    placed = place_rewards(torch.tensor([1.0, 0.5, -2.0]), torch.tensor([2, 3, 1]), 4)
    assert placed.tolist() == [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0], [-2.0, 0.0, 0.0, 0.0]]


def test_episode_without_actions_gets_no_reward():
    # T = 0: index -1 of the last action must not select the last column
    placed = place_rewards(torch.tensor([1.0, 1.0]), torch.tensor([0, 2]), 2)
    assert placed.tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_step_rewards_are_added_to_the_terminal_reward():
    step_rewards = torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.0, 0.0]], dtype=torch.float64)
    terminal_rewards = torch.tensor([1.0, 1.0], dtype=torch.float64)
    placed = place_rewards(terminal_rewards, torch.tensor([2, 3]), 3, step_rewards)
    # the first episode ends with token 1: 0.2 + 1; the second with token 2: 0 + 1
    assert placed.tolist() == [[0.1, 1.2, 0.0], [0.3, 0.0, 1.0]]


def test_step_rewards_in_padding_are_ignored():
    step_rewards = torch.tensor([[0.0, 7.0, float("nan")]])
    placed = place_rewards(torch.tensor([1.0]), torch.tensor([1]), 3, step_rewards)
    assert placed.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("length", [-1, 4])
def test_lengths_outside_the_tensor_are_rejected(length):
    with pytest.raises(ValueError, match="between 0 and 3"):
        place_rewards(torch.tensor([1.0]), torch.tensor([length]), 3)


def test_reward_to_go_without_discount_sums_later_rewards():
    # g_2 = 3;  g_1 = 2 + 3 = 5;  g_0 = 1 + 5 = 6
    assert reward_to_go(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[6.0, 5.0, 3.0]]


def test_reward_to_go_with_discount_one_half():
    # g_2 = 4;  g_1 = 2 + 4/2 = 4;  g_0 = 1 + 4/2 = 3
    assert reward_to_go(torch.tensor([[1.0, 2.0, 4.0]]), 0.5).tolist() == [[3.0, 4.0, 4.0]]


def test_terminal_reward_is_the_return_of_every_action_but_not_of_padding():
    rewards = place_rewards(torch.tensor([1.0, 1.0]), torch.tensor([3, 1]), 3)
    assert reward_to_go(rewards).tolist() == [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    assert reward_to_go(rewards, 0.5).tolist() == [[0.25, 0.5, 1.0], [1.0, 0.0, 0.0]]


def test_reward_is_not_credited_to_later_actions():
    assert reward_to_go(torch.tensor([[0.0, 1.0, 0.0, 0.0]])).tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_episode_return_is_the_return_of_the_first_action():
    assert episode_returns(torch.tensor([[6.0, 5.0, 3.0], [0.0, 0.0, 0.0]])).tolist() == [6.0, 0.0]


def test_return_of_episodes_without_tokens_is_zero():
    assert episode_returns(reward_to_go(torch.zeros(2, 0))).tolist() == [0.0, 0.0]


@settings(deadline=None, max_examples=50, derandomize=True)
@given(reward_tensors(), DISCOUNTS)
def test_recursion_equals_the_explicit_sum(tensors, discount):
    (rewards,) = tensors
    num_tokens = rewards.shape[1]
    expected = torch.zeros_like(rewards)
    for t in range(num_tokens):
        for k in range(t, num_tokens):
            expected[:, t] += discount ** (k - t) * rewards[:, k]  # g_t = Σ_k γ^{k-t} r_{k+1}
    torch.testing.assert_close(reward_to_go(rewards, discount), expected, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(reward_tensors(count=2), DISCOUNTS, st.floats(-2, 2))
def test_reward_to_go_is_linear(tensors, discount, factor):
    one, other = tensors
    torch.testing.assert_close(
        reward_to_go(one + factor * other, discount),
        reward_to_go(one, discount) + factor * reward_to_go(other, discount),
        rtol=1e-12,
        atol=1e-12,
    )


@settings(deadline=None, max_examples=30, derandomize=True)
@given(reward_tensors(), DISCOUNTS)
def test_rewards_are_recovered_from_reward_to_go(tensors, discount):
    (rewards,) = tensors
    returns = reward_to_go(rewards, discount)
    following = torch.nn.functional.pad(returns[:, 1:], (0, 1))
    # r_{t+1} = g_t - γ g_{t+1}
    torch.testing.assert_close(returns - discount * following, rewards, rtol=1e-12, atol=1e-12)
