"""Store for activations that are computed during sampling and reused for the gradient step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_reinforce.policy.action_head import ActionLogProbs
from llm_reinforce.policy.fast_path.completion_tree import CompletionTree
from llm_reinforce.policy.fast_path.packed_forward import pad_to_multiple
from llm_reinforce.policy.fast_path.packing import PackedPrompts
from llm_reinforce.policy.fast_path.products import is_computed_by_product, layer_product
from llm_reinforce.policy.language_policy import TokenIds, integers


class _KeptCompletion(NamedTuple):
    """Values that were recorded for a sampled completion.

    Attributes:
        indices: for each token of the completion except the last, its index in the kept activations.
        log_probs: log-probability of each action.
        entropies: entropy of each action's distribution.
    """

    indices: Sequence[int]
    log_probs: Sequence[float]
    entropies: Sequence[float]


@dataclass(frozen=True, slots=True)
class KeptProducts:
    """Stored outputs of linear layers for the tokens of some episodes, and log-probabilities of the actions.

    Attributes:
        indices: for each token, its index in the kept activations. The tensor is padded by `pad_to_multiple`.
        log_probs: log-probabilities and entropies of the actions, concatenated over the completions.
    """

    indices: Int[Tensor, " token"]
    log_probs: ActionLogProbs
    _products: Mapping[nn.Module, list[Tensor]]

    def multiply(
        self, layer: nn.Module, inputs: Float[Tensor, "token inner"], tokens: Int[Tensor, " token"] | None
    ) -> Float[Tensor, "token _"]:
        """Return the outputs of a layer, and reuse kept outputs. See `Multiply` for the arguments."""
        if layer not in self._products:
            return layer_product(layer, inputs)
        indices = self.indices if tokens is None else self.indices.index_select(0, tokens)
        return layer_product(layer, inputs, torch.cat(self._products[layer]).index_select(0, indices))


class Activations:
    """Store for the matrix products and log-probabilities that a Llama-like model computes during sampling.

    Matrix products take nearly all the time of a forward pass. `token_log_probs` reuses the products. It
    recomputes norms, rotary embeddings and attention, because the gradient needs their intermediate results.
    The kept activations are valid only for the weights with which they were computed, so call `clear` before
    the weights change.

    Tokens are numbered in the order in which they are computed. Only the outputs of unquantized `nn.Linear`
    layers in float32 or float64 on a CPU are kept. Other layers, such as adapters, are recomputed.

    Args:
        max_tokens: maximum number of tokens whose products are kept. If more tokens are computed, the
            products of all tokens are removed.

    Attributes:
        is_reused: True if log-probabilities of kept completions have been returned.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.clear()

    @property
    def num_bytes(self) -> int:
        """Size of the kept products, in bytes."""
        return sum(product.nbytes for products in self._products.values() for product in products)

    def clear(self) -> None:
        """Remove all activations."""
        self.num_tokens = self._num_in_pass = 0
        self._sampled_by: tuple[nn.Module, float] | None = None
        self._products: dict[nn.Module, list[Tensor]] = {}
        self._prompts: dict[TokenIds, Sequence[int]] = {}
        self._completions: dict[tuple[TokenIds, TokenIds], _KeptCompletion] = {}
        self.is_reused = False

    def begin(self, model: nn.Module, temperature: float) -> None:
        """Remove all activations and record the model and the temperature with which sampling starts."""
        self.clear()
        self._sampled_by = (model, temperature)

    def multiply(
        self, layer: nn.Module, inputs: Float[Tensor, "token inner"], tokens: Int[Tensor, " token"] | None
    ) -> Float[Tensor, "token _"]:
        """Compute the outputs of a layer and keep them. See `Multiply` for the arguments."""
        result = layer_product(layer, inputs)
        if tokens is None:
            self._num_in_pass = len(inputs)
        is_within_limit = self.num_tokens + self._num_in_pass <= self.max_tokens
        if is_within_limit and is_computed_by_product(layer, inputs):
            kept = result
            if tokens is not None:  # the rows of other tokens are never read
                kept = result.new_empty(self._num_in_pass, result.shape[1])
                kept.index_copy_(0, tokens, result)
            self._products.setdefault(layer, []).append(kept)
        return result

    def end_pass(self) -> None:
        """Add the tokens of a completed forward pass to `num_tokens`, and apply the limit `max_tokens`."""
        self.num_tokens += self._num_in_pass
        if self.num_tokens > self.max_tokens:
            self._products.clear()

    def record_prompt(self, prompt: TokenIds, indices: Sequence[int]) -> None:
        """For each token of a prompt, record its index in the kept activations."""
        self._prompts[prompt] = indices

    def record_completion(
        self,
        prompt: TokenIds,
        completion: TokenIds,
        indices: Sequence[int],
        log_probs: Sequence[float],
        entropies: Sequence[float],
    ) -> None:
        """Record the indices, log-probabilities and entropies of the actions of a completion.

        Args:
            prompt: tokens of the prompt.
            completion: tokens of the completion.
            indices: for each action except the last, its index in the kept activations.
            log_probs: log-probability of each action.
            entropies: entropy of each action's distribution.
        """
        self._completions[prompt, completion] = _KeptCompletion(
            indices[: len(completion) - 1], log_probs, entropies
        )

    def lookup(
        self,
        model: nn.Module,
        temperature: float,
        episodes: Sequence[tuple[TokenIds, TokenIds]],
        prompts: PackedPrompts,
        tree: CompletionTree,
    ) -> KeptProducts | None:
        """Return the kept activations of prompts and completions, or None if they cannot be used.

        Args:
            model: model that computes the log-probabilities.
            temperature: divisor of the logits.
            episodes: prompt and completion of each episode.
            prompts: layout of the prompts.
            tree: layout of the completions. The tokens of the tree follow those of the prompts.

        Returns:
            the kept activations, or None if a completion was not recorded, if the completions were sampled
            with another model or temperature, or if sampling computed more than `self.max_tokens` tokens.
        """
        is_same = self._sampled_by == (model, temperature)
        if not self._products or not is_same or any(one not in self._completions for one in episodes):
            return None
        # if a layer is called twice in a pass (tied layers), the indices do not apply to its outputs
        if any(sum(map(len, pieces)) != self.num_tokens for pieces in self._products.values()):
            return None
        self.is_reused = True
        device, num_prompt_tokens = tree.states.device, len(prompts.token_ids)
        completions = [self._completions[one] for one in episodes]
        indices = integers([0] * (num_prompt_tokens + len(tree.token_ids)), device)
        distinct = dict.fromkeys(prompt for prompt, _ in episodes)  # in the order of `prompts`
        width = prompts.slots.shape[1]
        # the last token of a prompt is repeated up to the width, as in `prompts.slots`
        of_prompts = [
            [*own, *[own[-1]] * (width - len(own))] for own in (self._prompts[prompt] for prompt in distinct)
        ]
        indices[prompts.slots[: prompts.num_prompts]] = integers(of_prompts, device)
        # the state of every action except the first ends with the action before it, which is a tree token
        is_token = tree.states >= prompts.num_prompts
        places = tree.states[is_token] + (num_prompt_tokens - prompts.num_prompts)
        indices[places] = integers([*chain.from_iterable(one.indices for one in completions)], device)
        dtype = torch.promote_types(next(iter(self._products.values()))[0].dtype, torch.float32)
        of_numpy = np.float64 if dtype == torch.float64 else np.float32
        log_probs, entropies = (
            torch.from_numpy(np.fromiter(chain.from_iterable(values), of_numpy)).to(device)
            for values in ((one.log_probs for one in completions), (one.entropies for one in completions))
        )
        return KeptProducts(pad_to_multiple(indices), ActionLogProbs(log_probs, entropies), self._products)
