"""What sampling has computed, kept for the gradient: the update needs no forward pass of its own."""

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
from llm_reinforce.policy.fast_path.packed_forward import rounded
from llm_reinforce.policy.fast_path.packing import PackedPrompts
from llm_reinforce.policy.fast_path.products import goes_by_product, layer_products
from llm_reinforce.policy.language_policy import TokenIds, integers


class _Written(NamedTuple):
    """A completion: the numbers of its tokens but the last, and each action's scores."""

    numbers: Sequence[int]
    log_probs: Sequence[float]
    entropies: Sequence[float]


@dataclass(frozen=True, slots=True)
class KeptProducts:
    """What need not be computed again of some prompts and their completions.

    Attributes:
        numbers: of their tokens, as `rounded` has them.
        scores: of the actions, one completion's after the other's.
    """

    numbers: Int[Tensor, " token"]
    log_probs: ActionLogProbs
    _products: Mapping[nn.Module, list[Tensor]]

    def multiply(
        self,
        layers: Sequence[nn.Module],
        inputs: Float[Tensor, "token inner"],
        norm: nn.Module | None,
        tokens: Int[Tensor, " token"] | None,
    ) -> tuple[Float[Tensor, "token _"], ...]:
        """Return the products of these layers: kept ones with their gradient, others recomputed."""
        numbers = self.numbers if tokens is None else self.numbers.index_select(0, tokens)
        known = [
            torch.cat(self._products[layer]).index_select(0, numbers) if layer in self._products else None
            for layer in layers
        ]
        return layer_products(layers, inputs, norm=norm, known=known)


class Activations:
    """What a Llama-like model computes of each token as completions are sampled: products, and scores.

    They are nearly all that a forward pass costs: `token_log_probs` takes them as they are, and computes
    norms, rotations and attention alone, for their gradient. They are those of the weights that sampled:
    whoever changes a weight has to `clear` them first.

    Tokens are numbered in the order in which they were computed. Of a layer that is more than a product in
    full precision on a CPU, an adapter's say, nothing is kept.

    Args:
        max_tokens: there is room for so many; once there are more, nothing is kept at all.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.num_tokens = self._num_in_pass = 0
        self._sampled_by: tuple[nn.Module, float] | None = None
        self._products: dict[nn.Module, list[Tensor]] = {}
        self._prompts: dict[TokenIds, Sequence[int]] = {}
        self._completions: dict[tuple[TokenIds, TokenIds], _Written] = {}

    def begin(self, model: nn.Module, temperature: float) -> None:
        """Forget everything, and note what samples from now on."""
        self.clear()
        self._sampled_by = (model, temperature)

    def multiply(
        self,
        layers: Sequence[nn.Module],
        inputs: Float[Tensor, "token inner"],
        norm: nn.Module | None,
        tokens: Int[Tensor, " token"] | None,
    ) -> tuple[Float[Tensor, "token _"], ...]:
        """Products as `decode` asks for them; they are kept."""
        results = layer_products(layers, inputs, norm=norm)
        if tokens is None:
            self._num_in_pass = len(inputs)
        if self.num_tokens + self._num_in_pass <= self.max_tokens:
            for layer, result in zip(layers, results, strict=True):
                if goes_by_product(layer, inputs):
                    kept = result
                    if tokens is not None:  # of the others nobody will ask
                        kept = result.new_empty(self._num_in_pass, result.shape[1])
                        kept.index_copy_(0, tokens, result)
                    self._products.setdefault(layer, []).append(kept)
        return results

    def end_pass(self) -> None:
        """Number the tokens of a forward pass that is over."""
        self.num_tokens += self._num_in_pass
        if self.num_tokens > self.max_tokens:
            self._products.clear()

    def note_prompt(self, prompt: TokenIds, numbers: Sequence[int]) -> None:
        """The number of each token of a prompt."""
        self._prompts[prompt] = numbers

    def note_completion(
        self,
        prompt: TokenIds,
        completion: TokenIds,
        numbers: Sequence[int],
        log_probs: Sequence[float],
        entropies: Sequence[float],
    ) -> None:
        """The numbers of the actions, needed of all but the last, and their scores."""
        self._completions[prompt, completion] = _Written(numbers[: len(completion) - 1], log_probs, entropies)

    def kept(
        self,
        model: nn.Module,
        temperature: float,
        episodes: Sequence[tuple[TokenIds, TokenIds]],
        prompts: PackedPrompts,
        tree: CompletionTree,
    ) -> KeptProducts | None:
        """What need not be computed of these prompts and completions.

        Args:
            episodes: prompt and completion of each.
            prompts, tree: how their tokens are laid out, one behind the other; `Known` has them so.

        Returns:
            None where all of it has to be computed: one completion wasn't sampled here, or by another model
            or at another temperature, or it was too much to be kept.
        """
        is_same = self._sampled_by == (model, temperature)
        if not self._products or not is_same or any(one not in self._completions for one in episodes):
            return None
        # a layer that serves twice in a pass has other numbers
        if any(sum(map(len, pieces)) != self.num_tokens for pieces in self._products.values()):
            return None
        device, num_prompt_tokens = tree.states.device, len(prompts.token_ids)
        written = [self._completions[one] for one in episodes]
        numbers = integers([0] * (num_prompt_tokens + len(tree.token_ids)), device)
        distinct = dict.fromkeys(prompt for prompt, _ in episodes)  # in the order of their layout
        width = prompts.slots.shape[1]
        # past a prompt's end its last token again, as in its slots
        of_prompts = [
            [*own, *[own[-1]] * (width - len(own))] for own in (self._prompts[prompt] for prompt in distinct)
        ]
        numbers[prompts.slots[: prompts.num_prompts]] = integers(of_prompts, device)
        # each action but the last of a completion is the state that the next one is drawn in
        is_token = tree.states >= prompts.num_prompts
        places = tree.states[is_token] + (num_prompt_tokens - prompts.num_prompts)
        numbers[places] = integers([*chain.from_iterable(one.numbers for one in written)], device)
        dtype = torch.promote_types(next(iter(self._products.values()))[0].dtype, torch.float32)
        log_probs, entropies = (
            torch.from_numpy(np.fromiter(chain.from_iterable(values), np.float64)).to(device, dtype)
            for values in ((one.log_probs for one in written), (one.entropies for one in written))
        )
        return KeptProducts(rounded(numbers), ActionLogProbs(log_probs, entropies), self._products)
