"""The memory that a policy needs per token, measured in a short forward pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_reinforce.policy.action_head import ActionLogProbs
from llm_reinforce.policy.embedding import input_embedding
from llm_reinforce.policy.fast_path.activations import Activations
from llm_reinforce.policy.fast_path.chunked_head import MAX_LOGITS
from llm_reinforce.policy.language_policy import LanguagePolicy, TokenIds, integers
from llm_reinforce.policy.log_probs import own_log_probs, token_log_probs
from llm_reinforce.policy.parity_check import fast_model
from llm_reinforce.policy.quantization import num_elements
from llm_reinforce.policy.sampling import sample_completions

MAX_PROBED = 1024  # maximum total number of tokens of the completions in the trial forward pass
TEMPORARY = 3  # number of tensors with logits that exist at once, besides those kept for the backward pass


@dataclass(frozen=True, slots=True)
class MemoryPerToken:
    """Memory that a policy needs per token, and sizes of its temporary tensors, in bytes.

    Attributes:
        cached: keys and values in the cache of the sampler, per token of a row.
        kept: activations that the sampler keeps for the update, per token that the sampler has computed. A
            token of a prompt is computed once for all completions of the prompt.
        saved: tensors that the forward pass saves for the backward pass, per token of a micro-batch.
        num_layers: number of layers of the model.
        layer_input: input of a layer, per token.
        logits: logits of one action.
        max_logits: maximum number of bytes of logits that are computed at once in an update. None: all logits
            are computed at once.
        dequantized: largest weight matrix that is dequantized for a product; 0 without quantization.
    """

    cached: float
    kept: float
    saved: float
    num_layers: int
    layer_input: int
    logits: int
    max_logits: int | None
    dequantized: int

    @property
    def of_layer(self) -> float:
        """Memory that the activations of one layer need per token, in bytes."""
        return self.saved / self.num_layers

    def of_backward(self, num_tokens: int, *, gradient_checkpointing: bool) -> float:
        """Return the memory of a micro-batch's activations and of temporary tensors, in bytes."""
        logits = TEMPORARY * min(num_tokens * self.logits, self.max_logits or num_tokens * self.logits)
        saved = self.saved
        if gradient_checkpointing:
            saved = self.num_layers * self.layer_input + self.of_layer
        return num_tokens * (saved + self.of_layer) + logits + self.dequantized


def memory_per_token(
    policy: LanguagePolicy,
    prompt: TokenIds,
    *,
    num_completions: int,
    max_new_tokens: int,
    with_entropies: bool = False,
    is_sharded: bool = False,
) -> MemoryPerToken:
    """Measure the memory that a policy needs per token, in a forward pass over some completions.

    Args:
        policy: the policy.
        prompt: prompt of typical length.
        num_completions: number of completions of a prompt. The trial uses fewer completions if they are long.
        max_new_tokens: number of tokens of a completion.
        with_entropies: compute entropies with gradient, as for an entropy bonus.
        is_sharded: True if updates are computed by a sharded copy of the model. A sharded copy has no fast
            path, so it computes the tokens of a prompt again for each completion.
    """
    length = min(max_new_tokens, MAX_PROBED)
    embedding: Tensor = input_embedding(policy.model).weight
    num_completions = max(1, min(num_completions, MAX_PROBED // length))
    # completions start with different tokens, so that none of their tokens is shared
    completions = [
        (number % embedding.shape[0], *prompt[:1] * (length - 1)) for number in range(num_completions)
    ]
    score = own_log_probs if is_sharded else token_log_probs
    saved = _saved_bytes(score, policy, prompt, completions, with_entropies=with_entropies)
    num_prompts = len(completions) if is_sharded else 1
    activations = Activations(1 << 40)
    sample_completions(policy, [prompt], max_new_tokens=2, activations=activations)
    kept = activations.num_bytes / max(1, activations.num_tokens)
    config: Any = getattr(policy.model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    item = torch.promote_types(embedding.dtype, torch.float32).itemsize
    quantized = [each for each in policy.model.parameters() if hasattr(each, "quant_state")]
    return MemoryPerToken(
        cached=_cached_bytes(policy.model, prompt),
        kept=kept,
        saved=saved / (num_prompts * len(prompt) + length * len(completions)),
        num_layers=getattr(config, "num_hidden_layers", 1),
        layer_input=embedding.shape[1] * embedding.dtype.itemsize,
        logits=embedding.shape[0] * item,
        max_logits=None if is_sharded or fast_model(policy.model) is None else MAX_LOGITS * item,
        dequantized=max(map(num_elements, quantized), default=0) * 2 * item,
    )


def _saved_bytes(
    score: Callable[..., ActionLogProbs],
    policy: LanguagePolicy,
    prompt: TokenIds,
    completions: list[TokenIds],
    *,
    with_entropies: bool,
) -> int:
    """Return how many bytes are saved for the backward pass of `score`. Weights are not counted."""
    own = {
        each.untyped_storage().data_ptr() for each in (*policy.model.parameters(), *policy.model.buffers())
    }
    sizes: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        score(
            policy.model,
            [prompt] * len(completions),
            completions,
            pad_token_id=policy.pad_token_id,
            with_entropies=with_entropies,
        )
        return sum(sizes.values())


@torch.no_grad()
def _cached_bytes(model: nn.Module, prompt: TokenIds) -> float:
    """Return the size of the keys and values of one token in all layers, in bytes."""
    cache: Any = model(input_ids=integers([prompt], next(model.parameters()).device), use_cache=True)
    cache = getattr(cache.past_key_values, "self_attention_cache", cache.past_key_values)
    sizes = (each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))
    return float(sum(sizes)) / len(prompt)
