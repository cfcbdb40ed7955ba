"""Log-probabilities of given actions, and the hidden states from which the model predicts the actions.

The causal shift (the output at one token predicts the next token) is made in this module for all models that
do not use the fast path.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from llm_reinforce.errors import InputError
from llm_reinforce.policy.action_head import ActionLogProbs, log_probs_of_logits
from llm_reinforce.policy.fast_path.activations import Activations
from llm_reinforce.policy.fast_path.packed_forward import packable_model
from llm_reinforce.policy.fast_path.packed_log_probs import pack, packed_log_probs, packed_states
from llm_reinforce.policy.language_policy import TokenIds, accepted_arguments, integers, pad_left, pad_right
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
) -> ActionLogProbs:
    """Return the log-probability of each action: `log_probs[b, t]` = log π(a_t | prompt_b, a_0 … a_{t-1}; θ).

    A prompt is computed once for all its completions. For a Llama-like model, prefixes that several
    completions of a prompt share are also computed once. For any other model, identical completions of a
    prompt are computed once.

    Args:
        model: the model of a policy.
        prompts: token ids of the initial state s_0 of each episode. None of them may be empty.
        completions: token ids of the actions of each episode, including the end token. The lengths of the
            completions may differ.
        pad_token_id: token id that fills ragged batches.
        temperature: divisor of the logits, as in sampling.
        with_entropies: also compute the entropy of each action's distribution, with gradient.
        activations: activations stored by `sample_completions`, which must have used the same weights. None:
            compute everything.

    Returns:
        log-probabilities and entropies of shape `[episode, longest completion]`, in float64 for a float64
        model and otherwise in float32. Values in padding are arbitrary.
    """
    packable = packable_model(model)
    if packable is not None and all(completions):
        return packed_log_probs(packable, prompts, completions, temperature, with_entropies, activations)
    episodes = list(zip(prompts, completions, strict=True))
    distinct = list(dict.fromkeys(episodes))
    prompts, completions = [prompt for prompt, _ in distinct], [completion for _, completion in distinct]
    actions = pad_right(completions, pad_token_id, next(model.parameters()).device)
    if len(set(prompts)) < len(prompts) and keeps_keys_and_values(model):
        logits = _logits_sharing_prompts(model, prompts, actions, pad_token_id)
    else:
        logits = _logits_row_by_row(model, prompts, completions, pad_token_id)
    found = log_probs_of_logits(logits, actions, temperature=temperature, with_entropies=with_entropies)
    number = {episode: index for index, episode in enumerate(distinct)}
    rows = integers([number[episode] for episode in episodes], logits.device)
    return ActionLogProbs(
        found.log_probs.index_select(0, rows),
        None if found.entropies is None else found.entropies.index_select(0, rows),
    )


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
    logits of action a_t of episode b, before they are divided by the temperature, and before any operation
    that the model applies to its logits, such as soft-capping.

    Args:
        model: the model of a policy.
        prompts: token ids of the initial state s_0 of each episode. None of them may be empty.
        completions: token ids of the actions of each episode, including the end token.
        pad_token_id: token id that fills ragged batches.
        max_tokens: maximum number of tokens computed at once, including padding. A single episode may be
            longer.

    Returns:
        hidden states in the data type of the model's computation; zero in padding.

    Raises:
        InputError: if the forward pass of the model does not call its output embedding.
    """
    width = max((len(completion) for completion in completions), default=0)
    parts = []
    packable = packable_model(model)
    for rows in _rows_at_once(prompts, completions, max_tokens):
        of_rows = prompts[rows], completions[rows]
        if packable is not None and all(of_rows[1]):
            of_prompts, tree = pack(packable, *of_rows)
            hidden = packed_states(packable, of_prompts, tree)
            features = hidden.new_zeros(*tree.is_action.shape, hidden.shape[1])
            features[tree.is_action] = hidden[tree.states]
        else:
            features = _of_actions(_inputs_of_head(model, *of_rows, pad_token_id), *of_rows)
            lengths = integers([len(completion) for completion in of_rows[1]], features.device)
            is_action = action_mask(lengths, features.shape[1])
            features = features.masked_fill(~is_action[:, :, None], 0.0)
        parts.append(pad(features, (0, 0, 0, width - features.shape[1])))
    return torch.cat(parts)


def _rows_at_once(
    prompts: Sequence[TokenIds], completions: Sequence[TokenIds], max_tokens: int
) -> Iterator[slice]:
    """Divide the episodes into slices that are computed at once.

    A slice has at most `max_tokens` tokens including padding, or consists of a single episode.
    """
    start, longest = 0, 0
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        longest = max(longest, len(prompt) + len(completion))
        if row > start and (row + 1 - start) * longest > max_tokens:
            yield slice(start, row)
            start, longest = row, len(prompt) + len(completion)
    yield slice(start, len(prompts))


def _inputs_of_head(
    model: nn.Module, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], pad_token_id: int
) -> Float[Tensor, "episode column hidden"]:
    """Return the inputs of the model's head, which is its output embedding.

    The result has all columns, or only the last columns. It always has the columns that predict an action.
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
            _outputs_row_by_row(model, prompts, completions, pad_token_id)
        finally:
            handle.remove()
    if not seen:
        raise InputError(
            f"reinforce.baseline: value needs the hidden states of the policy, but the hidden states of a "
            f"{type(inner).__name__} cannot be read, because its forward pass does not call an output "
            "embedding; choose another baseline"
        )
    return seen[0]


def keeps_keys_and_values(model: nn.Module) -> bool:
    """Return True if the cache of the model consists only of keys and values.

    Several completions can share the keys and values of a prompt. They cannot share a recurrent state (of
    linear attention, for example), because a recurrent state is updated in place, and the gradient would be
    lost.
    """
    layer_types = getattr(getattr(model, "config", None), "layer_types", None) or ["full_attention"]
    return "past_key_values" in accepted_arguments(model, ["past_key_values"]) and set(layer_types) <= {
        "full_attention",
        "sliding_attention",
    }


def _logits_row_by_row(
    model: nn.Module, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], pad_token_id: int
) -> Float[Tensor, "episode token vocabulary"]:
    """Return the logits of each action. Each row has one episode: its prompt, then its completion."""
    return _of_actions(_outputs_row_by_row(model, prompts, completions, pad_token_id), prompts, completions)


def _outputs_row_by_row(
    model: nn.Module, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], pad_token_id: int
) -> Float[Tensor, "episode column vocabulary"]:
    """Return the logits of all columns, or of only the last columns.

    The columns that predict an action are always included.

    Sequences are padded on the right. A causal model does not attend to later tokens, so no mask is needed.
    """
    input_ids = pad_right(_read(prompts, completions), pad_token_id, next(model.parameters()).device)
    arguments: dict[str, Any] = {}
    if accepted_arguments(model, ["logits_to_keep"]):
        arguments["logits_to_keep"] = input_ids.shape[1] + 1 - min(len(prompt) for prompt in prompts)
    logits: Tensor = model(input_ids=input_ids, use_cache=False, **arguments).logits
    return logits


def _of_actions(
    outputs: Float[Tensor, "episode column channel"],
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
) -> Float[Tensor, "episode token channel"]:
    """Select the outputs that predict actions, from the outputs of all columns or of the last columns."""
    # the causal shift: column c predicts token c + 1, and action t is token len(prompt) + t
    num_omitted = max(map(len, _read(prompts, completions))) - outputs.shape[1]
    first = integers([len(prompt) - 1 - num_omitted for prompt in prompts], outputs.device)
    num_tokens = max(len(completion) for completion in completions)
    columns = first[:, None] + torch.arange(num_tokens, device=outputs.device)
    columns = columns.clamp(max=outputs.shape[1] - 1)[:, :, None].expand(-1, -1, outputs.shape[2])
    return outputs.gather(1, columns)


def _read(prompts: Sequence[TokenIds], completions: Sequence[TokenIds]) -> list[TokenIds]:
    """Return the input tokens of each episode: its prompt, and its completion without the last action.

    The last action is not needed, because no action follows it.
    """
    return [
        (*prompt, *completion)[:-1] or prompt for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _logits_sharing_prompts(
    model: nn.Module, prompts: Sequence[TokenIds], actions: Int[Tensor, "episode token"], pad_token_id: int
) -> Float[Tensor, "episode token vocabulary"]:
    """Return the logits of each action. The keys and values of each distinct prompt are computed only once.

    The output at the last token of a prompt predicts the first action, and the output at each action predicts
    the next action.
    """
    distinct = list(dict.fromkeys(prompts))
    row = {prompt: index for index, prompt in enumerate(distinct)}
    of_episode = integers([row[prompt] for prompt in prompts], actions.device)
    states = pad_left(distinct, pad_token_id, actions.device)
    accepted = accepted_arguments(model, ["position_ids", "logits_to_keep"])
    arguments: dict[str, Any] = {"position_ids": states.positions} if "position_ids" in accepted else {}
    last = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    output = model(
        input_ids=states.token_ids, attention_mask=states.mask, use_cache=True, **arguments, **last
    )
    first: Tensor = output.logits[:, -1:][of_episode]
    if actions.shape[1] == 1:
        return first
    cache = output.past_key_values
    cache.batch_select_indices(of_episode)
    mask = torch.cat([states.mask[of_episode], torch.ones_like(actions[:, :-1])], dim=1)
    if arguments:
        lengths = states.mask.sum(dim=1)[of_episode]
        arguments["position_ids"] = lengths[:, None] + torch.arange(actions.shape[1] - 1, device=mask.device)
    rest = model(
        input_ids=actions[:, :-1], past_key_values=cache, attention_mask=mask, use_cache=True, **arguments
    ).logits
    return torch.cat([first, rest], dim=1)
