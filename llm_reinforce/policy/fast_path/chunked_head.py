"""Compute log-probabilities of actions from hidden states, a few logits at a time to save memory."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llm_reinforce.policy.action_head import ActionLogProbs, log_probs_of_logits
from llm_reinforce.policy.fast_path.products import is_linear, outer_product, product
from llm_reinforce.policy_gradient import entropy

MAX_LOGITS = 1 << 23  # number of logits stored at once; 32 MiB in float32, about the size of a CPU cache


def action_log_probs(
    head: nn.Module,
    hidden: Float[Tensor, "state hidden"],
    states: Int[Tensor, " action"],
    actions: Int[Tensor, " action"],
    *,
    temperature: float,
    with_entropies: bool,
    cached: ActionLogProbs | None = None,
) -> ActionLogProbs:
    """Return log π(a|s) and the entropy of π(·|s) for each action, with gradients.

        log π(a|s) = z_a - log Σ_b exp z_b,   z = W h / temperature

    Here W is the weight matrix of the head, and h is the hidden vector of the state s.

    If the head is an `nn.Linear` without bias, the logits are computed for a few states at a time, and are
    recomputed in the backward pass. The `[state, vocabulary]` logits of an update are never stored as a
    whole.

    Args:
        head: output layer of the model, which computes logits from hidden states.
        hidden: hidden vector of each state s of the policy. The head computes the logits of the state from
            this vector.
        states: for each action, the row of `hidden` that belongs to its state.
        actions: token id of each action.
        temperature: divisor of the logits.
        with_entropies: also compute entropies.
        cached: log-probabilities and entropies that are already known, so that only their gradients have to
            be computed. None: compute the log-probabilities and entropies.
    """
    if not is_linear(head) or head.bias is not None:
        logits = head(hidden).index_select(0, states)
        return log_probs_of_logits(logits, actions, temperature=temperature, with_entropies=with_entropies)
    weight = head.weight
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    log_probs, entropies = _ChunkedHead.apply(
        hidden, weight, states, actions, temperature, with_entropies, cached
    )
    return ActionLogProbs(log_probs, entropies.index_select(0, states) if with_entropies else None)


class _ChunkedHead(torch.autograd.Function):
    """Compute log π(a|s) and the entropy H of π(·|s), for a part of the logits z at a time.

    The derivatives are:

    ∂ log π(a|s) / ∂z_b = 1[a = b] - π_b
    ∂ H / ∂z_b = -π_b (log π_b + H)
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        states: Tensor,
        actions: Tensor,
        temperature: float,
        with_entropies: bool,
        cached: ActionLogProbs | None,
    ) -> tuple[Tensor, Tensor]:
        if cached is None:
            action_logits, log_totals, entropies = _logits_and_entropies(
                hidden, weight, states, actions, temperature, with_entropies
            )
            log_probs = action_logits - log_totals.index_select(0, states)
        else:
            log_probs = cached.log_probs
            action_logits = torch.linalg.vecdot(
                hidden.index_select(0, states), weight.index_select(0, actions)
            )
            # an infinite log Σ_b exp z_b makes the gradient of a state without actions zero
            no_total, no_entropy = log_probs.new_tensor([[torch.inf], [0.0]]).expand(2, len(hidden))
            log_totals = _per_state(action_logits / temperature - log_probs, states, no_total)
            entropies = no_entropy
            if cached.entropies is not None:
                entropies = _per_state(cached.entropies, states, no_entropy)
        ctx.save_for_backward(hidden, weight, states, actions, log_totals, entropies)
        ctx.temperature, ctx.with_entropies = temperature, with_entropies
        return log_probs, entropies

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, states, actions, log_totals, entropies = ctx.saved_tensors
        grad_actions, grad_entropies = gradients[0], gradients[1][:, None]
        # for each state, the sum over its actions
        grad_log_probs = torch.zeros_like(log_totals).index_add_(0, states, grad_actions)[:, None]
        grad_hidden = torch.zeros_like(hidden, dtype=log_totals.dtype)
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        # one chunk of columns at a time, so that each part of the weight gradient is written once
        for columns in _chunks(len(weight), len(hidden)):
            part = weight[columns]
            log_distribution = _logits(hidden, part, ctx.temperature).sub_(log_totals[:, None])
            if ctx.with_entropies:
                probabilities = log_distribution.exp()
                # avoid 0 · -inf = NaN for actions with probability 0
                grad_logits = log_distribution.clamp_(min=torch.finfo(log_distribution.dtype).min / 2)
                grad_logits.add_(entropies[:, None]).mul_(grad_entropies).add_(grad_log_probs)
                grad_logits.mul_(probabilities).neg_()
            else:
                grad_logits = log_distribution.exp_().mul_(-grad_log_probs)
            is_in_part = (actions >= columns.start) & (actions < columns.stop)
            places = states * len(part) + (actions - columns.start).clamp(0, len(part) - 1)
            grad_logits.view(-1).index_add_(0, places, grad_actions.masked_fill(~is_in_part, 0.0))
            if ctx.temperature != 1.0:
                grad_logits.div_(ctx.temperature)
            grad_logits = grad_logits.to(weight.dtype)
            grad_hidden += product(grad_logits, part.t())
            if grad_weight is not None:
                grad_weight[columns] = outer_product(grad_logits, hidden)
        return (grad_hidden.to(hidden.dtype), grad_weight, *[None] * 5)


def _logits_and_entropies(
    hidden: Float[Tensor, "state hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    states: Int[Tensor, " action"],
    actions: Int[Tensor, " action"],
    temperature: float,
    with_entropies: bool,
) -> tuple[Float[Tensor, " action"], Float[Tensor, " state"], Float[Tensor, " state"]]:
    """Return z_a of each action, log Σ_b exp z_b of each state, and the entropy of π(·|s) of each state.

    The entropies are zero if `with_entropies` is False.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    log_totals, entropies = torch.zeros(2, len(hidden), dtype=dtype, device=hidden.device)
    action_logits = torch.zeros(len(actions), dtype=dtype, device=hidden.device)
    for rows in _chunks(len(hidden), len(weight)):
        logits = _logits(hidden[rows], weight, temperature)
        log_totals[rows] = logits.logsumexp(dim=1)
        is_in_rows = (states >= rows.start) & (states < rows.stop)
        row = (states - rows.start).clamp(0, len(logits) - 1)
        action_logits = torch.where(is_in_rows, logits[row, actions], action_logits)
        if with_entropies:
            entropies[rows] = entropy(logits.sub_(log_totals[rows, None]))
    return action_logits, log_totals, entropies


def _per_state(
    values: Float[Tensor, " action"], states: Int[Tensor, " action"], default: Float[Tensor, " state"]
) -> Float[Tensor, " state"]:
    """Return one value per state. The caller must pass equal values for all actions of a state.

    A state without actions gets the value in `default`.
    """
    # rounding may make the values of a state differ slightly; the maximum does not depend on their order
    return default.scatter_reduce(0, states, values, "amax", include_self=False)


def _logits(
    hidden: Float[Tensor, "state hidden"], weight: Float[Tensor, "vocabulary hidden"], temperature: float
) -> Float[Tensor, "state vocabulary"]:
    logits = product(hidden, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits.div_(temperature)


def _chunks(length: int, width: int) -> list[slice]:
    size = max(1, MAX_LOGITS // width)
    return [slice(start, start + size) for start in range(0, length, size)]
