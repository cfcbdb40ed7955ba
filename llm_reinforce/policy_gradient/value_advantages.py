"""Advantages with the baseline `value`, which is a learned value V(s_t) of every state."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def generalized_advantages(
    rewards: Float[Tensor, "episode token"],
    values: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
    discount: float = 1.0,
    gae_lambda: float = 1.0,
) -> Float[Tensor, "episode token"]:
    """Return the generalized advantage estimate (GAE) of each action, multiplied by γ^t as in `advantages`.

        δ_t = r_{t+1} + γ V(s_{t+1}) - V(s_t)
        A_t = γ^t Σ_l (γλ)^l δ_{t+l}

    Source: Schulman et al. 2016, equation 16.

    With λ = 1, A_t = γ^t (g_t - V(s_t)), and the expected gradient is ∇J for every V that does not depend on
    a_t and later actions. With λ < 1, values predicted by V partly replace the later rewards. The variance is
    then lower, but the gradient is biased unless V is the true value function of the policy. V(s_T), the
    value after the last action, is 0. This is also the case for a truncated episode, because its whole
    terminal reward follows its last action.

    Args:
        rewards: r_{t+1} of each action; values in padding are ignored.
        values: V(s_t) of the state in which each action is taken; values in padding are ignored.
        mask: True for the actions of scored episodes. All other advantages are zero.
        discount: γ.
        gae_lambda: λ, from 0 to 1.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.to(rewards.dtype).masked_fill(~mask, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    # δ_t = r_{t+1} + γ V(s_{t+1}) - V(s_t)
    deltas = rewards + discount * following - values
    advantages = torch.zeros_like(deltas)
    running = deltas.new_zeros(len(deltas))
    for t in reversed(range(deltas.shape[1])):
        # Σ_l (γλ)^l δ_{t+l} = δ_t + γλ Σ_l (γλ)^l δ_{t+1+l}
        running = deltas[:, t] + discount * gae_lambda * running
        advantages[:, t] = discount**t * running
    return advantages.masked_fill(~mask, 0.0)
