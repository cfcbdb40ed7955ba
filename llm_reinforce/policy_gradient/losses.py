"""The loss of REINFORCE, its clipped forms for episodes of an earlier policy, and the entropy bonus."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def reinforce_loss(
    log_probs: Float[Tensor, "episode token"],
    advantages: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
    denominator: float,
) -> Float[Tensor, ""]:
    """Return the loss whose gradient is the negative REINFORCE gradient.

        L = - (1/D) Σ_b Σ_t A_t log π(a_t | s_t; θ)

    With A_t = g_t this is the loss of the article "The Beauty of Reinforcement Learning (1)", in which an
    episode of T actions is T labeled examples, each weighted by its return. All micro-batches of an
    update use the same denominator D, for example the number of episodes in the update. The losses of the
    micro-batches therefore add up to the loss of the update, and this sum does not depend on the size, order
    or padding of the micro-batches.

    Source: Williams 1992; Sutton & Barto 2018, equation 13.8.

    Args:
        log_probs: log π(a_t | s_t; θ) of the sampled actions, in nats. The gradient flows through them.
        advantages: weights A_t. No gradient flows through them.
        mask: True for the actions that contribute to the loss.
        denominator: the denominator D, which must be above 0.

    Raises:
        ValueError: if the denominator is not above 0.
    """
    if not denominator > 0:
        raise ValueError(f"the denominator must be above 0, not {denominator}")
    # masked_fill instead of a product with the mask, because 0 · -inf is NaN
    weighted = (advantages.detach() * log_probs).masked_fill(~mask, 0.0)
    # L = - (1/D) Σ_b Σ_t A_t log π(a_t | s_t)
    return -weighted.sum() / denominator


def clipped_loss(
    log_ratios: Float[Tensor, "episode token"],
    advantages: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
    denominator: float,
    low: float,
    high: float,
) -> Float[Tensor, ""]:
    """Return the clipped loss of PPO, with one bound below and one bound above 1.

        L = - (1/D) Σ_b Σ_t min(ρ_t A_t, clip(ρ_t, 1 - low, 1 + high) A_t)

    An action has no gradient if its ratio ρ_t has moved beyond the bound in the direction that increases
    ρ_t A_t. If all ratios are 1, the gradient is that of `reinforce_loss`.

    Source: Schulman et al. 2017, equation 7; Yu et al. 2025 (DAPO) for low < high.

    Args:
        log_ratios: log ρ_t, as returned by `log_ratios`. The gradient flows through them.
        advantages: A_t. No gradient flows through them.
        mask: True for the actions that contribute to the loss.
        denominator: the denominator D, which must be above 0.
        low: distance of the lower bound from 1.
        high: distance of the upper bound from 1.

    Raises:
        ValueError: if the denominator is not above 0.
    """
    if not denominator > 0:
        raise ValueError(f"the denominator must be above 0, not {denominator}")
    ratios, weights = log_ratios.exp(), advantages.detach()
    smaller = torch.minimum(ratios * weights, ratios.clamp(1.0 - low, 1.0 + high) * weights)
    # L = - (1/D) Σ_b Σ_t min(ρ_t A_t, clip(ρ_t, 1 - low, 1 + high) A_t)
    return -smaller.masked_fill(~mask, 0.0).sum() / denominator


def clipped_weights(
    log_ratios: Float[Tensor, "episode token"], low: float, high: float
) -> Float[Tensor, "episode token"]:
    """Return the clipped ratios by which CISPO multiplies advantages, without gradient.

        w_t = clip(ρ_t, 1 - low, 1 + high)

    With `reinforce_loss`, every action keeps its gradient w_t A_t ∇log π(a_t | s_t), even if its ratio is
    beyond a bound.

    Source: MiniMax 2025 (CISPO), equations 4 and 5.
    """
    return log_ratios.detach().exp().clamp(1.0 - low, 1.0 + high)


def entropy(log_distribution: Float[Tensor, "*batch vocabulary"]) -> Float[Tensor, "*batch"]:
    """Return the entropy of each next-token distribution, in nats, from its log-probabilities.

        H = - Σ_a π(a|s) log π(a|s)

    A token with probability zero, whose log-probability is -inf, contributes nothing.
    """
    probabilities = log_distribution.exp()
    # the factor is masked instead of the product, because 0 · -inf would still make the gradient NaN
    finite = log_distribution.masked_fill(probabilities == 0, 0.0)
    # H = - Σ_a π log π
    return -(probabilities * finite).sum(dim=-1)


def entropy_bonus(
    entropies: Float[Tensor, "episode token"], mask: Bool[Tensor, "episode token"], denominator: float
) -> Float[Tensor, ""]:
    """Return the entropy bonus: the sum of H(π(·|s_t)) over all visited states, divided by `denominator`.

        (1/D) Σ_b Σ_t H(π(·|s_t))

    The bonus is multiplied by a coefficient and subtracted from the loss, so that the policy keeps exploring.
    As in A3C (Mnih et al. 2016), the gradient of the bonus treats the visited states as fixed, although they
    depend on the policy.
    """
    return entropies.masked_fill(~mask, 0.0).sum() / denominator
