"""Log-probabilities of given actions; the causal shift of the plain path is here."""

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

MAX_FEATURE_TOKENS = 16384  # of which hidden states are computed at once


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

    The temperature divides the logits, as it does in sampling. Repeated prompts, as in groups, are computed
    once. Shared prefixes of a prompt's completions are computed once by a Llama-like model, equal
    completions by any other model.

    Args:
        prompts: the states s_0, one per row, none empty.
        completions: the actions, the end token included; rows may differ in length.
        with_entropies: also compute the entropy of each action's distribution, with gradient.
        activations: the forward pass that was kept while they were sampled with the same weights.

    Returns:
        tensors `[episode, longest completion]`, float32, or float64 for a float64 model; values in padding
        are arbitrary.
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
    """Return the last hidden states of each action's state s_t, which the head reads, without gradient.

    `head(features)[b, t]` are the logits that action a_t of episode b is drawn from, before division by the
    temperature and before whatever a model does to its logits afterwards.

    Args:
        prompts, completions: as in `token_log_probs`.
        max_tokens: tokens that are computed at once, padding included; at least one row.

    Returns:
        in the type that the model computes in; zero where an episode is padded.

    Raises:
        InputError: the model's forward pass doesn't call its output embedding.
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
    """Yield runs of rows, each of at most `max_tokens` tokens when padded to its longest."""
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
    """Return the inputs of the output embedding, of all columns or the last ones."""
    seen: list[Tensor] = []

    def look(head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.extend(inputs[:1])
        return (
            (inputs[0][:, :1], *inputs[1:]) if inputs else inputs
        )  # one column of logits is enough, they are not used

    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if head is not None:
        handle = head.register_forward_pre_hook(look)
        try:
            _outputs_row_by_row(model, prompts, completions, pad_token_id)
        finally:
            handle.remove()
    if not seen:
        raise InputError(
            f"the hidden states of a {type(inner).__name__} can't be read, since its forward pass calls no "
            "output embedding; reinforce.baseline: value needs them, choose another baseline"
        )
    return seen[0]


def keeps_keys_and_values(model: nn.Module) -> bool:
    """Return True if the model caches keys and values only, which completions of a prompt can share.

    A recurrent state (as of linear attention) is written in place, and no gradient survives that.
    """
    layer_types = getattr(getattr(model, "config", None), "layer_types", None) or ["full_attention"]
    return "past_key_values" in accepted_arguments(model, ["past_key_values"]) and set(layer_types) <= {
        "full_attention",
        "sliding_attention",
    }


def _logits_row_by_row(
    model: nn.Module, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], pad_token_id: int
) -> Float[Tensor, "episode token vocabulary"]:
    """The logits that each action was drawn from, prompt and completion of every row in one sequence."""
    return _of_actions(_outputs_row_by_row(model, prompts, completions, pad_token_id), prompts, completions)


def _outputs_row_by_row(
    model: nn.Module, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], pad_token_id: int
) -> Float[Tensor, "episode column vocabulary"]:
    """The logits of all columns, or of the last ones, the first action's among them.

    Rows are right-padded: a causal model can't see what is right of a token, so no mask is needed.
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
    """What stands where each action was drawn, in the outputs of all columns or of the last ones."""
    # column c predicts token c + 1; action t of row b is its token len(prompt) + t
    num_left_out = max(map(len, _read(prompts, completions))) - outputs.shape[1]
    first = integers([len(prompt) - 1 - num_left_out for prompt in prompts], outputs.device)
    num_tokens = max(len(completion) for completion in completions)
    columns = first[:, None] + torch.arange(num_tokens, device=outputs.device)
    columns = columns.clamp(max=outputs.shape[1] - 1)[:, :, None].expand(-1, -1, outputs.shape[2])
    return outputs.gather(1, columns)


def _read(prompts: Sequence[TokenIds], completions: Sequence[TokenIds]) -> list[TokenIds]:
    """The tokens of each row that a model reads: the last one predicts nothing that was sampled."""
    return [
        (*prompt, *completion)[:-1] or prompt for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _logits_sharing_prompts(
    model: nn.Module, prompts: Sequence[TokenIds], actions: Int[Tensor, "episode token"], pad_token_id: int
) -> Float[Tensor, "episode token vocabulary"]:
    """The same logits, each distinct prompt's keys and values computed once, with gradient.

    The prompts' last logits are those of the first actions; the others follow from the actions before.
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
