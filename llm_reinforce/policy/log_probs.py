"""Log-probabilities of given actions, and the hidden states from which a model predicts these actions."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from llm_reinforce.errors import InputError
from llm_reinforce.policy.action_head import ActionLogProbs
from llm_reinforce.policy.embedding import check_token_ids, valid_pad_token
from llm_reinforce.policy.fast_path.activations import Activations
from llm_reinforce.policy.fast_path.packed_log_probs import pack, packed_log_probs, packed_states
from llm_reinforce.policy.language_policy import TokenIds, integers
from llm_reinforce.policy.parity_check import fast_model
from llm_reinforce.policy.plain_path import (
    Batching,
    of_actions,
    outputs_row_by_row,
    plain_log_probs,
    restored_order,
    rows_together,
)
from llm_reinforce.policy.row_trial import scoring_batching
from llm_reinforce.policy_gradient import action_mask

MAX_FEATURE_TOKENS = 16384  # number of tokens whose hidden states are computed at once


def token_log_probs(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    *,
    pad_token_id: int,
    temperature: float = 1.0,
    with_entropies: bool = False,
    activations: Activations | None = None,
    gradient_checkpointing: bool = False,
) -> ActionLogProbs:
    """Return the log-probability of each action: `log_probs[b, t]` = log π(a_t | prompt_b, a_0 … a_{t-1}; θ).

    For a Llama-like model, a prompt is computed once for all its completions, and a prefix that several of
    these completions share is also computed once. For any other model, identical completions of a prompt are
    computed once, and the prompt is computed once if the model allows it (see `Batching`).

    Args:
        model: the model of a policy.
        prompts: token ids of the initial state s_0 of each episode. None of them may be empty.
        completions: token ids of the actions of each episode, including the end token. The lengths of the
            completions may differ.
        pad_token_id: token id with which shorter sequences of a batch are padded.
        temperature: divisor of the logits, as in sampling.
        with_entropies: also compute the entropy of each action's distribution, with gradient.
        activations: activations stored by `sample_completions`, which must have used the same weights. None:
            no activations are reused.
        gradient_checkpointing: keep only the inputs of each layer, and recompute the other activations in the
            backward pass. This saves memory and takes more time, but does not change the gradient. For models
            without a fast path, a prompt is then computed again for each of its completions.

    Returns:
        log-probabilities and entropies of shape `[episode, longest completion]`, in float64 for a float64
        model and otherwise in float32. Values in padding are arbitrary.
    """
    check_token_ids(model, [*prompts, *completions])
    packable = fast_model(model)
    if packable is not None and all(completions):
        return packed_log_probs(
            packable,
            prompts,
            completions,
            temperature,
            with_entropies,
            activations,
            gradient_checkpointing=gradient_checkpointing,
        )
    return own_log_probs(
        model,
        prompts,
        completions,
        pad_token_id=pad_token_id,
        temperature=temperature,
        with_entropies=with_entropies,
        gradient_checkpointing=gradient_checkpointing,
    )


def own_log_probs(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    *,
    pad_token_id: int,
    temperature: float = 1.0,
    with_entropies: bool = False,
    gradient_checkpointing: bool = False,
) -> ActionLogProbs:
    """Return the log-probability of each action, computed by the forward pass of the model itself.

    The fast path for Llama-like models is not used. See `token_log_probs` for the arguments and the result.
    """
    # models with a fast path need no trial: they are causal, and positions do not depend on other episodes
    is_packable = fast_model(model) is not None
    batching: Batching = "padded rows"
    if not is_packable:  # gradient checkpointing cannot recompute the cache of a shared prompt
        batching = scoring_batching(model, prompts, completions, shares_prompts=not gradient_checkpointing)
    episodes = list(zip(prompts, completions, strict=True))
    distinct = list(dict.fromkeys(episodes))
    found = plain_log_probs(
        model,
        [prompt for prompt, _ in distinct],
        [completion for _, completion in distinct],
        pad_token_id=pad_token_id,
        batching=batching,
        temperature=temperature,
        with_entropies=with_entropies,
        gradient_checkpointing=gradient_checkpointing,
    )
    number = {episode: index for index, episode in enumerate(distinct)}
    rows = integers([number[episode] for episode in episodes], found.log_probs.device)
    return ActionLogProbs(
        found.log_probs.index_select(0, rows),
        None if found.entropies is None else found.entropies.index_select(0, rows),
    )


def find_batching(model: nn.Module) -> Batching:
    """Return the fastest kind of batch that gives correct results without the fast path; see `Batching`.

    The kind "shared prompts" is left out.
    """
    if fast_model(model) is not None:
        return "padded rows"
    return scoring_batching(model, (), (), shares_prompts=False)


def rows_of_passes(
    model: nn.Module, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]
) -> list[list[int]]:
    """Divide the episodes among the forward passes of a sharded model, and return the rows of each pass."""
    return rows_together(prompts, completions, scoring_batching(model, prompts, completions))


@torch.no_grad()
def action_features(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    *,
    pad_token_id: int,
    max_tokens: int = MAX_FEATURE_TOKENS,
) -> Float[Tensor, "episode token hidden"]:
    """Return the model's last hidden state at the state s_t of each action, without gradient.

    The last hidden state is the input of the model's output layer (the head). `head(features)[b, t]` are the
    logits that predict action a_t of episode b. They are not yet divided by the temperature. Operations that
    the model applies to its logits, such as soft-capping, are not included.

    Args:
        model: the model of a policy.
        prompts: token ids of the initial state s_0 of each episode. None of them may be empty.
        completions: token ids of the actions of each episode, including the end token.
        pad_token_id: token id with which shorter sequences of a batch are padded.
        max_tokens: maximum number of tokens computed at once, including padding. A single episode may be
            longer.

    Returns:
        hidden states in the data type in which the model computes; zero in padding.

    Raises:
        InputError: if the forward pass of the model does not call its output embedding.
    """
    check_token_ids(model, [*prompts, *completions])
    width, parts = max(map(len, completions), default=0), []
    packable = fast_model(model)
    batching = scoring_batching(model, prompts, completions) if packable is None else "padded rows"
    together = list(_rows_at_once(prompts, completions, batching, max_tokens))
    for rows in together:
        of_rows = [prompts[row] for row in rows], [completions[row] for row in rows]
        if packable is not None and all(of_rows[1]):
            of_prompts, tree = pack(packable, *of_rows)
            hidden = packed_states(packable, of_prompts, tree)
            features = hidden.new_zeros(*tree.is_action.shape, hidden.shape[1])
            features[tree.is_action] = hidden[tree.states]
        else:
            features = of_actions(_inputs_of_head(model, *of_rows, pad_token_id), *of_rows)
            lengths = integers([len(completion) for completion in of_rows[1]], features.device)
            is_action = action_mask(lengths, features.shape[1])
            features = features.masked_fill(~is_action[:, :, None], 0.0)
        parts.append(pad(features, (0, 0, 0, width - features.shape[1])))
    return torch.cat(parts)[restored_order(together)]


def _rows_at_once(
    prompts: Sequence[TokenIds], completions: Sequence[TokenIds], batching: Batching, max_tokens: int
) -> Iterator[list[int]]:
    """Yield parts of the rows. A part has at most `max_tokens` tokens, with padding, or is a single row."""
    for together in rows_together(prompts, completions, batching):
        part: list[int] = []
        longest = 0
        for row in together:
            length = len(prompts[row]) + len(completions[row])
            longest = max(longest, length)
            if part and (len(part) + 1) * longest > max_tokens:
                yield part
                part, longest = [], length
            part.append(row)
        yield part


def _inputs_of_head(
    model: nn.Module, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], pad_token_id: int
) -> Float[Tensor, "episode column hidden"]:
    """Return the inputs of the model's head (its output embedding).

    The result may omit the first columns, but contains all columns that predict an action.
    """
    seen: list[Tensor] = []

    def record(head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.extend(inputs[:1])
        # the logits are not used, so the head has to compute only one column
        return (inputs[0][:, :1], *inputs[1:]) if inputs else inputs

    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if head is not None:
        handle = head.register_forward_pre_hook(record)
        try:
            outputs_row_by_row(model, prompts, completions, valid_pad_token(model, pad_token_id))
        finally:
            handle.remove()
    if not seen:
        raise InputError(
            "reinforce.baseline: the baseline `value` needs the hidden states of the policy, but the hidden "
            f"states of a {type(inner).__name__} cannot be read, because its forward pass does not call an "
            "output embedding; choose another baseline"
        )
    return seen[-1]  # the last call; `restart_positions` may have called the head earlier
