"""The forward pass of transformers over padded batches, for models without a fast path.

The causal shift of the plain path (the output at one token predicts the next token) is made in this module.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_reinforce.policy.language_policy import TokenIds, accepted_arguments, integers, pad_left, pad_right


def keeps_keys_and_values(model: nn.Module) -> bool:
    """Return True if the cache of the model consists only of keys and values.

    Several completions can share the keys and values of a prompt. They cannot share a recurrent state (of
    linear attention, for example), because it is updated in place, which loses the gradient.
    """
    layer_types = getattr(getattr(model, "config", None), "layer_types", None) or ["full_attention"]
    return "past_key_values" in accepted_arguments(model, ["past_key_values"]) and set(layer_types) <= {
        "full_attention",
        "sliding_attention",
    }


def logits_row_by_row(
    model: nn.Module, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], pad_token_id: int
) -> Float[Tensor, "episode token vocabulary"]:
    """Return the logits of each action, from one sequence per episode: the prompt and the completion."""
    return of_actions(outputs_row_by_row(model, prompts, completions, pad_token_id), prompts, completions)


def outputs_row_by_row(
    model: nn.Module, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], pad_token_id: int
) -> Float[Tensor, "episode column vocabulary"]:
    """Return the logits of all columns, or of the last ones, which include all that predict an action.

    Sequences are padded on the right. A causal model does not attend to later tokens, so no mask is needed.
    """
    input_ids = pad_right(_read(prompts, completions), pad_token_id, next(model.parameters()).device)
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
    """Select the outputs that predict actions, from the outputs of all columns or of the last ones."""
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


def logits_sharing_prompts(
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
