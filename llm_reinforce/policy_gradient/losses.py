"""Surrogate losses whose gradients are policy gradients."""

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

    With A_t = g_t this is the loss of the article: an episode of T actions is T labeled examples, each
    weighted by its return. The denominator D counts over the whole update (in the article: its episodes). The
    losses of the micro-batches therefore add up to the loss of the update, regardless of their size, order
    and padding.

    Source: Williams 1992; Sutton & Barto 2018, equation 13.8.

    Args:
        log_probs: log π(a_t | s_t; θ) of the sampled actions, in nats, with gradient.
        advantages: the weights A_t; no gradient flows into them.
        mask: True for the actions that contribute to the loss.
        denominator: D > 0.

    Raises:
        ValueError: if the denominator is not above 0.
    """
    if not denominator > 0:
        raise ValueError(f"the denominator must be above 0, not {denominator}")
    # masked_fill instead of a product with the mask, because 0 · -inf is NaN
    weighted = (advantages.detach() * log_probs).masked_fill(~mask, 0.0)
    # L = - (1/D) Σ_b Σ_t A_t log π(a_t | s_t)
    return -weighted.sum() / denominator


def entropy(log_distribution: Float[Tensor, "*batch vocabulary"]) -> Float[Tensor, "*batch"]:
    """Return the entropy of each next-token distribution, in nats, from its log-probabilities.

        H = - Σ_a π(a|s) log π(a|s)

    A token of probability zero (log-probability -inf) contributes nothing.
    """
    probabilities = log_distribution.exp()
    # masked before the product; masking the product would leave NaN from 0 · -inf in the gradient
    finite = log_distribution.masked_fill(probabilities == 0, 0.0)
    # H = - Σ_a π log π
    return -(probabilities * finite).sum(dim=-1)


def entropy_bonus(
    entropies: Float[Tensor, "episode token"], mask: Bool[Tensor, "episode token"], denominator: float
) -> Float[Tensor, ""]:
    """Return the entropy bonus: the summed entropy of the visited states, divided like the loss.

        (1/D) Σ_b Σ_t H(π(·|s_t))

    The bonus, multiplied by a coefficient, is subtracted from the loss to keep the policy exploring. Its
    gradient treats the visited states as fixed and ignores that the policy determines which states are
    visited, as in A3C (Mnih et al. 2016).
    """
    return entropies.masked_fill(~mask, 0.0).sum() / denominator
