"""Log-probabilities of given actions, computed with the packed forward pass.

The output at a token predicts the next token. This module therefore selects, for each action, the output at
the token before the action.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llm_reinforce.policy.action_head import ActionLogProbs
from llm_reinforce.policy.fast_path.activations import Activations
from llm_reinforce.policy.fast_path.attention import Attention
from llm_reinforce.policy.fast_path.chunked_head import action_log_probs
from llm_reinforce.policy.fast_path.completion_tree import CompletionTree, pack_completions
from llm_reinforce.policy.fast_path.packed_forward import Multiply, forward_packed, recompute_product
from llm_reinforce.policy.fast_path.packing import PackedPrompts, pack_prompts
from llm_reinforce.policy.language_policy import TokenIds, integers


def packed_log_probs(
    model: Any,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    temperature: float,
    with_entropies: bool,
    activations: Activations | None,
    *,
    gradient_checkpointing: bool = False,
) -> ActionLogProbs:
    """Return the log-probability of each action; see `token_log_probs`.

    The model must be one that `packable_model` returned.
    """
    of_prompts, tree = pack(model, prompts, completions)
    kept = None
    if activations is not None:
        episodes = [*zip(prompts, completions, strict=True)]
        kept = activations.lookup(model, temperature, episodes, of_prompts, tree)
    hidden = packed_states(
        model,
        of_prompts,
        tree,
        kept.multiply if kept else recompute_product,
        gradient_checkpointing=gradient_checkpointing,
    )
    found = action_log_probs(
        model.lm_head,
        hidden,
        tree.states,
        integers([action for completion in completions for action in completion], hidden.device),
        temperature=temperature,
        with_entropies=with_entropies,
        cached=kept.log_probs if kept else None,
    )
    return ActionLogProbs(
        _lay_out(found.log_probs, tree.is_action),
        None if found.entropies is None else _lay_out(found.entropies, tree.is_action),
    )


def pack(
    model: Any, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]
) -> tuple[PackedPrompts, CompletionTree]:
    """Pack the distinct prompts into one sequence, and the completions into a tree."""
    device = next(model.parameters()).device
    distinct = list(dict.fromkeys(prompts))
    number = {prompt: index for index, prompt in enumerate(distinct)}
    tree = pack_completions(
        completions, [number[prompt] for prompt in prompts], [len(prompt) for prompt in distinct], device
    )
    return pack_prompts(distinct, device), tree


def packed_states(
    model: Any,
    of_prompts: PackedPrompts,
    tree: CompletionTree,
    multiply: Multiply = recompute_product,
    *,
    gradient_checkpointing: bool = False,
) -> Float[Tensor, "state hidden"]:
    """Return the hidden vector of each distinct state. The head computes the logits from these vectors.

    Args:
        model: a model returned by `packable_model`.
        of_prompts: layout of the prompts.
        tree: layout of the completions.
        multiply: function that computes the outputs of a linear layer; see `Multiply`.
        gradient_checkpointing: keep only the inputs of each layer, and recompute the other activations in the
            backward pass.
    """
    num_prompt_tokens, device = len(of_prompts.token_ids), of_prompts.token_ids.device
    rows = [of_prompts.rows]
    if tree.bundles is not None:  # None if every completion has only one action
        rows.append(tree.bundles.rows(of_prompts))
    attention = Attention(rows, model.config.num_attention_heads, model.config.num_key_value_heads)

    def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attention(queries, keys, values)

    # the causal shift: the last token of a prompt predicts the first action, and each action the next action
    read = torch.cat(
        [
            of_prompts.last,
            torch.arange(num_prompt_tokens, num_prompt_tokens + len(tree.token_ids), device=device),
        ]
    )
    hidden = forward_packed(
        model,
        torch.cat([of_prompts.token_ids, tree.token_ids]),
        torch.cat([of_prompts.positions, tree.positions]),
        attend,
        read,
        multiply,
        gradient_checkpointing=gradient_checkpointing,
    )
    states: Tensor = model.model.norm(hidden)
    return states


def _lay_out(values: Float[Tensor, " action"], is_action: Tensor) -> Float[Tensor, "episode token"]:
    return values.new_zeros(is_action.shape).masked_scatter(is_action, values)
