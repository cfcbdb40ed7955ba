"""Importance weights of episodes that were sampled by a policy other than the trained policy.

The episodes are sampled from the behavior policy μ, and the trained policy is π. The ratio of an action is
ρ_t = π(a_t | s_t) / μ(a_t | s_t), and ρ_{0:t} = ρ_0 ρ_1 … ρ_t is the product of the ratios up to action t. An
advantage A_t as returned by `advantages` or `generalized_advantages` is replaced by

| level | advantage | expected gradient |
|---|---|---|
| `sequence` | ρ_{0:T-1} A_t | ∇J |
| `per_decision` | Σ_{k≥t} λ^{k-t} ρ_{0:k} (A_k - λ A_{k+1}) | ∇J |
| `token` | ρ_t A_t | biased |

Here T is the number of actions of the episode, and A_T = 0. λ is the parameter of generalized advantage
estimation with the baseline `value`, and 1 for all other baselines. The table assumes that the weights have
no limit. It also assumes that the advantages A_t give the expected gradient ∇J for episodes sampled from π.
No gradient flows through the weights.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Level = Literal["sequence", "per_decision", "token"]


def log_ratios(
    log_probs: Float[Tensor, "episode token"],
    behavior_log_probs: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
) -> Float[Tensor, "episode token"]:
    """Return log ρ_t = log π(a_t | s_t) - log μ(a_t | s_t) of each action; 0 where the mask is False.

    Args:
        log_probs: log π(a_t | s_t). The gradient flows through them.
        behavior_log_probs: log μ(a_t | s_t), recorded when the actions were sampled.
        mask: True for the actions of scored episodes.
    """
    return (log_probs - behavior_log_probs.detach()).masked_fill(~mask, 0.0)


def importance_weights(
    level: Level, log_ratios: Float[Tensor, "episode token"]
) -> Float[Tensor, "episode token"]:
    """Return the importance weight of each action, without gradient.

        sequence:      w_t = ρ_{0:T-1}
        per_decision:  w_t = ρ_{0:t}
        token:         w_t = ρ_t

    Source: Precup, Sutton & Singh 2000 (sequence and per_decision).

    Args:
        level: sequence, per_decision or token.
        log_ratios: log ρ_t of each action; 0 in padding, as returned by `log_ratios`.
    """
    logs = log_ratios.detach()
    match level:
        case "sequence":
            return logs.sum(dim=1, keepdim=True).exp().expand_as(logs)
        case "per_decision":
            return logs.cumsum(dim=1).exp()
        case "token":
            return logs.exp()


def limit_weights(
    weights: Float[Tensor, "episode token"],
    limit: float | None,
    beyond_limit: Literal["truncate", "mask"] = "truncate",
) -> Float[Tensor, "episode token"]:
    """Return weights that are at most `limit`. Larger weights become `limit` (truncate) or 0 (mask).

        truncate:  min(w, limit)          mask:  w if w ≤ limit else 0

    A limit bounds the variance and makes the gradient biased. With `limit=None`, the weights are returned
    unchanged.

    Source: Ionides 2008 (truncate).
    """
    if limit is None:
        return weights
    if beyond_limit == "truncate":
        return weights.clamp(max=limit)
    return weights.masked_fill(weights > limit, 0.0)


def weighted_advantages(
    level: Level,
    advantages: Float[Tensor, "episode token"],
    weights: Float[Tensor, "episode token"],
    gae_lambda: float = 1.0,
) -> Float[Tensor, "episode token"]:
    """Return the advantages, corrected by importance weights.

        sequence, token:  w_t A_t
        per_decision:     Σ_{k≥t} λ^{k-t} w_k (A_k - λ A_{k+1}),   A_T = 0

    In the formula of `per_decision`, A_k - λ A_{k+1} = γ^k (r_{k+1} + γ b(s_{k+1}) - b(s_k)), where the
    baseline b is 0 after the last action. Each reward is therefore weighted by the ratios up to the action
    that earned it. The baseline b(s_t) has the weight ρ_{0:t}. With λ = 1, the baseline of each later state
    occurs in a term γ^k b(s_k) (ρ_{0:k-1} - ρ_{0:k}), where k > t. These terms reduce the variance. The
    expectation of each term is zero, because the expectation of ρ_k is 1 in every state. If the only reward
    is terminal, γ = 1 and the baseline is constant, the result is the same as for `sequence`.

    Source: Precup, Sutton & Singh 2000; Jiang & Li 2016 (the terms of the baseline, called doubly robust).

    Args:
        level: level of the weights.
        advantages: A_t; zero in padding.
        weights: w_t, as returned by `importance_weights` and `limit_weights`.
        gae_lambda: λ with which the advantages were computed.
    """
    if level != "per_decision":
        return _weighted(advantages, weights)
    following = torch.cat([advantages[:, 1:], torch.zeros_like(advantages[:, :1])], dim=1)
    differences = _weighted(advantages - gae_lambda * following, weights)
    weighted = torch.zeros_like(advantages)
    running = advantages.new_zeros(len(advantages))
    for t in reversed(range(advantages.shape[1])):
        running = differences[:, t] + gae_lambda * running
        weighted[:, t] = running
    return weighted


def _weighted(
    values: Float[Tensor, "episode token"], weights: Float[Tensor, "episode token"]
) -> Float[Tensor, "episode token"]:
    # a weight without a limit may be infinite, and 0 · inf is NaN
    return (weights * values).masked_fill(values == 0, 0.0)
