"""From hidden states to log-probabilities of actions, without ever holding all logits."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llm_reinforce.policy.fast_path.products import is_plain, outer_products, product
from llm_reinforce.policy_gradient import entropy

MAX_LOGITS = 1 << 23  # held at once: 32 MiB in float32, about a cache


class ActionLogProbs(NamedTuple):
    """What a policy says of given actions, in nats."""

    log_probs: Float[Tensor, "*action"]
    entropies: Float[Tensor, "*action"] | None


def action_log_probs(
    head: nn.Module,
    hidden: Float[Tensor, "state hidden"],
    states: Int[Tensor, " action"],
    actions: Int[Tensor, " action"],
    *,
    temperature: float,
    with_entropies: bool,
    known: ActionLogProbs | None = None,
) -> ActionLogProbs:
    """log π(a|s) of each action and the entropy of what it is drawn from, with gradients.

        log π(a|s) = z_a - log Σ_b exp z_b,   z = W h / temperature

    Where the head is a plain product, logits are computed a few rows at a time, and once more for the
    gradient, so that an update's `[state, vocabulary]` never exists.

    Args:
        hidden: what the head makes the logits of a state from.
        states: which of them each action was drawn in.
        known: what the scores are, where nothing but their gradient need be computed.
    """
    if not is_plain(head) or head.bias is not None:
        logits = head(hidden).index_select(0, states)
        return log_probs_of_logits(logits, actions, temperature=temperature, with_entropies=with_entropies)
    weight = head.weight
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    log_probs, entropies = _ChunkedHead.apply(
        hidden, weight, states, actions, temperature, with_entropies, known
    )
    return ActionLogProbs(log_probs, entropies.index_select(0, states) if with_entropies else None)


def log_probs_of_logits(
    logits: Float[Tensor, "*action vocabulary"],
    actions: Int[Tensor, "*action"],
    *,
    temperature: float,
    with_entropies: bool,
) -> ActionLogProbs:
    """The same of logits that are at hand."""
    # half precision is too coarse for a softmax over a vocabulary; float64 stays
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_distribution = (logits / temperature).log_softmax(dim=-1)
    log_probs = log_distribution.gather(-1, actions[..., None]).squeeze(-1)
    return ActionLogProbs(log_probs, entropy(log_distribution) if with_entropies else None)


class _ChunkedHead(torch.autograd.Function):
    """The equations of `action_log_probs` and their derivatives, some rows of logits at a time.

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
        known: ActionLogProbs | None,
    ) -> tuple[Tensor, Tensor]:
        if known is None:
            of_actions, log_totals, entropies = _scores(
                hidden, weight, states, actions, temperature, with_entropies
            )
            log_probs = of_actions - log_totals.index_select(0, states)
        else:
            log_probs = known.log_probs
            of_actions = torch.linalg.vecdot(hidden.index_select(0, states), weight.index_select(0, actions))
            # of a state that no action is drawn in there is no gradient either
            no_total, no_entropy = log_probs.new_tensor([[torch.inf], [0.0]]).expand(2, len(hidden))
            log_totals = _of_states(of_actions / temperature - log_probs, states, no_total)
            entropies = no_entropy
            if known.entropies is not None:
                entropies = _of_states(known.entropies, states, no_entropy)
        ctx.save_for_backward(hidden, weight, states, actions, log_totals, entropies)
        ctx.temperature, ctx.with_entropies = temperature, with_entropies
        return log_probs, entropies

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, states, actions, log_totals, entropies = ctx.saved_tensors
        of_actions, of_entropies = gradients[0], gradients[1][:, None]
        # a state's: the sum over the actions that were drawn in it
        of_log_probs = torch.zeros_like(log_totals).index_add_(0, states, of_actions)[:, None]
        of_hidden = torch.zeros_like(hidden, dtype=log_totals.dtype)
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        # here by columns: each part of the weight's gradient is then written once
        for columns in _chunks(len(weight), len(hidden)):
            part = weight[columns]
            log_distribution = _logits(hidden, part, ctx.temperature).sub_(log_totals[:, None])
            if ctx.with_entropies:
                probabilities = log_distribution.exp()
                # an action of probability 0 (log -inf) has no part in it
                of_logits = log_distribution.clamp_(min=torch.finfo(log_distribution.dtype).min / 2)
                of_logits.add_(entropies[:, None]).mul_(of_entropies).add_(of_log_probs)
                of_logits.mul_(probabilities).neg_()
            else:
                of_logits = log_distribution.exp_().mul_(-of_log_probs)
            is_here = (actions >= columns.start) & (actions < columns.stop)
            places = states * len(part) + (actions - columns.start).clamp(0, len(part) - 1)
            of_logits.view(-1).index_add_(0, places, of_actions.masked_fill(~is_here, 0.0))
            if ctx.temperature != 1.0:
                of_logits.div_(ctx.temperature)
            of_logits = of_logits.to(weight.dtype)
            of_hidden += product(of_logits, part.t())
            if of_weight is not None:
                (of_weight[columns],) = outer_products([of_logits], hidden)
        return (of_hidden.to(hidden.dtype), of_weight, *[None] * 5)


def _scores(
    hidden: Float[Tensor, "state hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    states: Int[Tensor, " action"],
    actions: Int[Tensor, " action"],
    temperature: float,
    with_entropies: bool,
) -> tuple[Float[Tensor, " action"], Float[Tensor, " state"], Float[Tensor, " state"]]:
    """z_a of each action; log Σ_b exp z_b and, if asked for, the entropy in each state."""
    exact = torch.promote_types(hidden.dtype, torch.float32)
    log_totals, entropies = torch.zeros(2, len(hidden), dtype=exact, device=hidden.device)
    of_actions = torch.zeros(len(actions), dtype=exact, device=hidden.device)
    for rows in _chunks(len(hidden), len(weight)):
        logits = _logits(hidden[rows], weight, temperature)
        log_totals[rows] = logits.logsumexp(dim=1)
        is_here = (states >= rows.start) & (states < rows.stop)
        own = (states - rows.start).clamp(0, len(logits) - 1)
        of_actions = torch.where(is_here, logits[own, actions], of_actions)
        if with_entropies:
            entropies[rows] = entropy(logits.sub_(log_totals[rows, None]))
    return of_actions, log_totals, entropies


def _of_states(
    values: Float[Tensor, " action"], states: Int[Tensor, " action"], others: Float[Tensor, " state"]
) -> Float[Tensor, " state"]:
    """The value of each state, which all actions drawn in it have in common; `others` where there is none."""
    # of values that differ by rounding the largest: the same bits in whichever order
    return others.scatter_reduce(0, states, values, "amax", include_self=False)


def _logits(
    hidden: Float[Tensor, "state hidden"], weight: Float[Tensor, "vocabulary hidden"], temperature: float
) -> Float[Tensor, "state vocabulary"]:
    logits = product(hidden, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits.div_(temperature)


def _chunks(length: int, width: int) -> list[slice]:
    size = max(1, MAX_LOGITS // width)
    return [slice(start, start + size) for start in range(0, length, size)]
