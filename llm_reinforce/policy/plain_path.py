"""The forward pass of transformers over padded batches, for models without a fast path.

The output at a token predicts the next token. This module therefore selects, for each action, the output at
the token before the action.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from llm_reinforce.errors import InputError
from llm_reinforce.policy.action_head import ActionLogProbs, log_probs_of_logits
from llm_reinforce.policy.embedding import valid_pad_token
from llm_reinforce.policy.language_policy import TokenIds, accepted_arguments, integers, pad_left, pad_right

Batching = Literal["shared prompts", "padded rows", "equal lengths", "single rows"]
"""How sequences are divided into batches. The kinds are listed from the fastest to the slowest.

- shared prompts: a batch has all rows. Each distinct prompt is computed once, padded on the left.
- padded rows: a batch has all rows. The rows are padded on the right when the log-probabilities of given
  actions are computed, and on the left when actions are sampled.
- equal lengths: a batch has rows of one length, without padding.
- single rows: a batch has one row.
"""


def plain_log_probs(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    *,
    pad_token_id: int,
    batching: Batching,
    temperature: float = 1.0,
    with_entropies: bool = False,
    gradient_checkpointing: bool = False,
) -> ActionLogProbs:
    """Return the log-probability of each action, computed in batches of the kind `batching`.

    See `token_log_probs` for the other arguments and the result.
    """
    pad_token_id = valid_pad_token(model, pad_token_id)
    device, width = next(model.parameters()).device, max(map(len, completions))
    parts = rows_together(prompts, completions, batching)
    found = []
    for rows in parts:
        of_rows = [prompts[row] for row in rows], [completions[row] for row in rows]
        actions = pad_right(of_rows[1], pad_token_id, device)
        if batching == "shared prompts" and len(set(of_rows[0])) < len(rows):
            logits = _logits_sharing_prompts(model, of_rows[0], actions, pad_token_id)
        else:
            with recomputed_layers(model) if gradient_checkpointing else nullcontext():
                outputs = outputs_row_by_row(model, *of_rows, pad_token_id)
            logits = of_actions(outputs, *of_rows)
        part = log_probs_of_logits(logits, actions, temperature=temperature, with_entropies=with_entropies)
        entropies = None if part.entropies is None else _widened(part.entropies, width)
        found.append(ActionLogProbs(_widened(part.log_probs, width), entropies))
    if len(parts) == 1:
        return found[0]
    order = integers(restored_order(parts), device)
    all_entropies = [part.entropies for part in found if part.entropies is not None]
    return ActionLogProbs(
        torch.cat([part.log_probs for part in found])[order],
        torch.cat(all_entropies)[order] if all_entropies else None,
    )


@contextmanager
def recomputed_layers(model: nn.Module) -> Iterator[None]:
    """Apply gradient checkpointing to the layers of a model of transformers within the context.

    The gradient checkpointing of transformers has no effect in evaluation mode, and a policy is always in
    evaluation mode. Therefore, the `forward` method of each layer is replaced within the context.
    """
    layers = checkpointable_layers(model)
    own = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def checkpointable_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model of transformers that support gradient checkpointing.

    Raises:
        InputError: if the model has no such layers.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        raise InputError(
            f"training.gradient_checkpointing: the layers of a {type(inner).__name__} cannot be recomputed; "
            "remove this setting, or use another model"
        )
    return layers


def _widened(values: Float[Tensor, "row token"], width: int) -> Float[Tensor, "row width"]:
    return pad(values, (0, width - values.shape[1])) if values.shape[1] < width else values


def rows_together(
    prompts: Sequence[TokenIds], completions: Sequence[TokenIds], batching: Batching
) -> list[list[int]]:
    """Divide the episodes into batches of the kind `batching`, and return the rows of each batch."""
    parts: dict[int, list[int]] = {}
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        keys = {"equal lengths": len(prompt) + len(completion), "single rows": row}
        parts.setdefault(keys.get(batching, 0), []).append(row)
    return list(parts.values())


def restored_order(parts: Sequence[Sequence[int]]) -> list[int]:
    """Return, for each row, its position in the concatenation of the parts."""
    position = {row: index for index, row in enumerate(chain.from_iterable(parts))}
    return [position[row] for row in range(len(position))]


def length_with_constant_positions(model: nn.Module) -> int | None:
    """Return the length up to which the rotary frequencies of the model are constant. None: no limit.

    With the scaling `dynamic` or `longrope`, the frequencies of a batch with longer sequences depend on the
    longest sequence.
    """
    types = (getattr(module, "rope_type", None) for module in model.modules())
    names = {name for each in types for name in (each.values() if isinstance(each, dict) else [each])}
    if not any(isinstance(name, str) and ("dynamic" in name or name == "longrope") for name in names):
        return None
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    scaling = getattr(config, "rope_parameters", None) or {}
    settings = [scaling, *(each for each in scaling.values() if isinstance(each, dict))]
    limits = [each.get("original_max_position_embeddings") for each in settings]
    limits.append(getattr(config, "max_position_embeddings", None))
    return min((limit for limit in limits if isinstance(limit, int)), default=None)


@torch.no_grad()
def restart_positions(model: nn.Module, input_ids: Int[Tensor, "row column"]) -> None:
    """Restore the initial rotary frequencies of a model whose frequencies depend on the sequence length.

    Without this call, a model with the scaling `dynamic` would keep the frequencies of the longest sequence
    so far, until it processes a short sequence.
    """
    model(input_ids=input_ids[:1, :1], use_cache=False)


def outputs_row_by_row(
    model: nn.Module, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], pad_token_id: int
) -> Float[Tensor, "episode column vocabulary"]:
    """Return the logits of all columns that predict an action, and possibly of other columns.

    Sequences are padded on the right. A causal model does not attend to later tokens, so no mask is needed.
    """
    input_ids = pad_right(_read(prompts, completions), pad_token_id, next(model.parameters()).device)
    if length_with_constant_positions(model) is not None:
        restart_positions(model, input_ids)
    arguments: dict[str, Any] = {}
    if accepted_arguments(model, ["logits_to_keep"]):
        arguments["logits_to_keep"] = input_ids.shape[1] + 1 - min(len(prompt) for prompt in prompts)
    logits: Tensor = model(input_ids=input_ids, use_cache=False, **arguments).logits
    return logits


def of_actions(
    outputs: Float[Tensor, "episode column channel"],
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
) -> Float[Tensor, "episode token channel"]:
    """Return the output that predicts each action. The argument `outputs` may lack the first columns."""
    # the causal shift: column c predicts token c + 1, and action t is token len(prompt) + t
    num_omitted = max(map(len, _read(prompts, completions))) - outputs.shape[1]
    first = integers([len(prompt) - 1 - num_omitted for prompt in prompts], outputs.device)
    num_tokens = max(len(completion) for completion in completions)
    columns = first[:, None] + torch.arange(num_tokens, device=outputs.device)
    columns = columns.clamp(max=outputs.shape[1] - 1)[:, :, None].expand(-1, -1, outputs.shape[2])
    return outputs.gather(1, columns)


def _read(prompts: Sequence[TokenIds], completions: Sequence[TokenIds]) -> list[TokenIds]:
    """Return the input tokens of each episode: prompt and completion without the last action.

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
