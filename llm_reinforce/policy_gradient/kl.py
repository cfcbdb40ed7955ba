"""Estimates of the KL divergence between the policy π and a reference policy π_ref, from sampled actions.

    k1 = log π(a_t | s_t) - log π_ref(a_t | s_t)
    k3 = x - 1 - log x        x = π_ref(a_t | s_t) / π(a_t | s_t)

The expectation of k1 and of k3 under π is KL(π(·|s_t) ‖ π_ref(·|s_t)). k3 is never negative. The gradients of
k1 and k3 differ:

- If each action gets the additional reward -k1, the policy gradient contains the negative gradient of
  KL(π‖π_ref) for whole episodes.
- If k3 is a term of the loss, the gradient of this term is ∇k3 = (1 - x) ∇log π(a_t | s_t). The expectation
  of ∇k3 under π is the gradient of KL(π_ref(·|s_t) ‖ π(·|s_t)), with the visited states held fixed.

tests/policy_gradient/test_batches.py checks both gradients on a policy so small that all of its episodes can
be enumerated.

Source: Schulman 2020, "Approximating KL Divergence".
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def kl_rewards(
    log_probs: Float[Tensor, "episode token"],
    reference_log_probs: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
    coefficient: float,
) -> Float[Tensor, "episode token"]:
    """Return the KL penalty of each action as an additional reward; zero in padding.

    -coefficient · k1 = -coefficient · (log π(a_t | s_t) - log π_ref(a_t | s_t))
    """
    return (coefficient * (reference_log_probs - log_probs)).masked_fill(~mask, 0.0).detach()


def k3(
    log_probs: Float[Tensor, "episode token"],
    reference_log_probs: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
) -> Float[Tensor, "episode token"]:
    """Return the estimate k3 for each action; zero in padding. The gradient flows through `log_probs`.

    k3 = x - 1 - log x        log x = log π_ref(a_t | s_t) - log π(a_t | s_t)
    """
    logs = (reference_log_probs - log_probs).masked_fill(~mask, 0.0)
    return torch.expm1(logs) - logs
