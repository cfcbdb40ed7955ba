"""Rewards per action, and the return of every action.

In every `[episode, token]` tensor, the entry [b, t] belongs to action a_t of episode b. For example,
`rewards[b, t]` is r_{t+1}, the reward that follows action a_t. Episodes are padded on the right. Padding is
recognized by the lengths of the episodes, never by the values of tokens.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def action_mask(lengths: Int[Tensor, " episode"], num_tokens: int) -> Bool[Tensor, "episode token"]:
    """Return a mask that is True for actions and False for padding. The end token is an action."""
    return torch.arange(num_tokens, device=lengths.device) < lengths[:, None]


def place_rewards(
    terminal_rewards: Float[Tensor, " episode"],
    lengths: Int[Tensor, " episode"],
    num_tokens: int,
    step_rewards: Float[Tensor, "episode token"] | None = None,
) -> Float[Tensor, "episode token"]:
    """Return the reward of each action: its step reward, plus the terminal reward for the last action.

        rewards[b, t] = step_rewards[b, t] + (terminal_rewards[b] if t = T_b - 1 else 0)

    Padding has zero reward. An episode without actions (T_b = 0) gets no reward.

    Args:
        terminal_rewards: terminal reward r_T of each episode.
        lengths: number of actions T_b of each episode.
        num_tokens: number of columns of the result.
        step_rewards: step reward of each action. Values in padding are ignored. None: there are no step
            rewards.

    Raises:
        ValueError: if a length is below 0 or above `num_tokens`.
    """
    if lengths.numel() and (int(lengths.min()) < 0 or int(lengths.max()) > num_tokens):
        raise ValueError(f"lengths must be between 0 and {num_tokens}, not {lengths.tolist()}")
    positions = torch.arange(num_tokens, device=lengths.device)
    is_last = positions == lengths[:, None] - 1
    rewards = torch.where(is_last, terminal_rewards[:, None], torch.zeros_like(terminal_rewards)[:, None])
    if step_rewards is not None:
        rewards = rewards + step_rewards.masked_fill(~action_mask(lengths, num_tokens), 0.0)
    return rewards


def reward_to_go(
    rewards: Float[Tensor, "episode token"], discount: float = 1.0
) -> Float[Tensor, "episode token"]:
    """Return the return of every action: the discounted sum of the rewards that follow the action.

        g_t = r_{t+1} + γ r_{t+2} + … + γ^{T-1-t} r_T = r_{t+1} + γ g_{t+1}

    Source: "The Beauty of Reinforcement Learning (1)" (for γ = 1); Sutton & Barto 2018, equation 3.9.

    Args:
        rewards: r_{t+1} of each action; zero in padding, as returned by `place_rewards`.
        discount: γ.
    """
    returns = torch.zeros_like(rewards)
    following = rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        # g_t = r_{t+1} + γ g_{t+1}
        following = rewards[:, t] + discount * following
        returns[:, t] = following
    return returns


def episode_returns(returns: Float[Tensor, "episode token"]) -> Float[Tensor, " episode"]:
    """Return g_0 of each episode: the return of its first action, or 0 for an episode without actions."""
    if returns.shape[1] == 0:
        return returns.new_zeros(returns.shape[0])
    return returns[:, 0]
