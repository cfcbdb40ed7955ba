"""Compute log-probabilities of actions, and entropies of the distributions of actions, from logits."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_reinforce.policy_gradient import entropy


class ActionLogProbs(NamedTuple):
    """Log-probabilities of given actions and, optionally, the entropies of their distributions, in nats."""

    log_probs: Float[Tensor, "*action"]
    entropies: Float[Tensor, "*action"] | None


def log_probs_of_logits(
    logits: Float[Tensor, "*action vocabulary"],
    actions: Int[Tensor, "*action"],
    *,
    temperature: float,
    with_entropies: bool,
) -> ActionLogProbs:
    """Return log π(a|s) and the entropy of π(·|s) for each action, given the logits of its state s."""
    # compute in float32 or float64, because half precision is too coarse for a softmax over a vocabulary
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_distribution = (logits / temperature).log_softmax(dim=-1)
    log_probs = log_distribution.gather(-1, actions[..., None]).squeeze(-1)
    return ActionLogProbs(log_probs, entropy(log_distribution) if with_entropies else None)
