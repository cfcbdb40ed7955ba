"""What sampling has computed, kept for the gradient: the update needs no forward pass of its own."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_reinforce.policy.completion_tree import CompletionTree
from llm_reinforce.policy.decoder import Multiply, rounded
from llm_reinforce.policy.language_policy import TokenIds, integers
from llm_reinforce.policy.packing import PackedPrompts
from llm_reinforce.policy.products import goes_by_product, linear


class Activations:
    """The products that a Llama-like model has computed of each token while completions were sampled.

    They are nearly all that a forward pass costs. As long as the weights stay what they are, scoring the
    completions takes them as they are: it computes norms, rotations and attention alone, for their gradient.

    Tokens are numbered in the order in which they were computed. Of layers that `goes_by_product` leaves to
    themselves, an adapter's say, nothing is kept.

    Args:
        max_tokens: there is room for so many; once there are more, nothing is kept at all.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.num_tokens = 0
        self._model: nn.Module | None = None
        self._version = 0
        self._is_full = False
        self._products: dict[nn.Module, list[Tensor]] = {}
        self._of_prompts: dict[TokenIds, Sequence[int]] = {}
        self._of_completions: dict[tuple[TokenIds, TokenIds], Sequence[int]] = {}

    # While completions are sampled:

    def begin(self, model: nn.Module) -> None:
        """Forget everything, and note whose products come now."""
        self.clear()
        self._model, self._version = model, _version(model)

    def multiply(
        self, layer: nn.Module, inputs: Float[Tensor, "token inner"], tokens: Tensor | None
    ) -> Float[Tensor, "token column"]:
        """A product of a pass over all tokens at hand, as `decode` asks for it; it is kept."""
        outputs = linear(layer, inputs)
        if goes_by_product(layer, inputs) and tokens is None and not self._is_full:
            self._products.setdefault(layer, []).append(outputs)
        return outputs

    def end_pass(self, num_tokens: int) -> None:
        """Number the tokens of a forward pass that is over."""
        self.num_tokens += num_tokens
        if self.num_tokens > self.max_tokens:
            self._is_full, self._products = True, {}

    def note_prompt(self, prompt: TokenIds, numbers: Sequence[int]) -> None:
        """The number of each of the prompt's tokens."""
        self._of_prompts[prompt] = numbers

    def note_completion(self, prompt: TokenIds, completion: TokenIds, numbers: Sequence[int]) -> None:
        """The number of each action; of the last one, behind which nothing was computed, none is needed."""
        self._of_completions[prompt, completion] = numbers[: len(completion) - 1]

    # While they are scored:

    def known(
        self,
        model: nn.Module,
        prompts: Sequence[TokenIds],
        packed: PackedPrompts,
        episodes: Sequence[tuple[TokenIds, TokenIds]],
        tree: CompletionTree,
    ) -> Multiply | None:
        """How `decode` has the products of these prompts and completions, laid out so, without computing any.

        None where they have to be computed: one wasn't sampled here, or the weights have changed since.
        """
        if not self._products or model is not self._model or _version(model) != self._version:
            return None
        if any(episode not in self._of_completions for episode in episodes):
            return None
        device, width = packed.slots.device, packed.slots.shape[1]
        numbers = integers([0] * (len(packed.token_ids) + len(tree.token_ids)), device)
        of_prompts = [self._of_prompts[prompt] for prompt in prompts]
        # past a prompt's end its last token again, as in `slots`
        laid_out = [[*own, *[own[-1]] * (width - len(own))] for own in of_prompts]
        numbers[packed.slots[: len(prompts)].flatten()] = integers(laid_out, device).flatten()
        of_states = [(self._of_prompts[one[0]][-1], *self._of_completions[one]) for one in episodes]
        behind = tree.states >= len(prompts)
        places = tree.states[behind] + (len(packed.token_ids) - len(prompts))
        numbers[places] = integers([*chain.from_iterable(of_states)], device)[behind]
        return _Known(self._products, rounded(numbers)).multiply


class _Known:
    """Products that need not be computed, of the tokens of these numbers."""

    def __init__(self, products: dict[nn.Module, list[Tensor]], numbers: Int[Tensor, " token"]) -> None:
        self.products, self.numbers = products, numbers

    def multiply(
        self, layer: nn.Module, inputs: Float[Tensor, "token inner"], tokens: Tensor | None
    ) -> Float[Tensor, "token column"]:
        """As `decode` asks for it."""
        pieces = self.products.get(layer)
        if pieces is None:
            return linear(layer, inputs)
        numbers = self.numbers if tokens is None else self.numbers.index_select(0, tokens)
        return linear(layer, inputs, torch.cat(pieces).index_select(0, numbers))


def _version(model: Any) -> int:
    """A number that grows whenever a weight changes in place."""
    return sum(parameter._version for parameter in model.parameters())
