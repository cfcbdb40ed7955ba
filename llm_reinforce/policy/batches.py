"""What a batch of sequences remembers while they are written, a row for all that are alike so far.

`SlotBatch` is for Llama-like models: a cache that is laid out beforehand, in whose rows new sequences can
take the place of those that have ended. `WholeBatch` is for every other causal model of transformers.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from llm_reinforce.policy.language_policy import TokenIds, accepted_arguments, integers, pad_left


@runtime_checkable
class Batch(Protocol):
    """Rows of sequences on their way."""

    takes_more: bool
    """Whether rows can be filled again while others are on their way."""

    def fill(
        self, rows: Sequence[int], prompts: Sequence[TokenIds], of_prompt: Sequence[int]
    ) -> Float[Tensor, "filled vocabulary"]:
        """Begin new sequences in these rows, each with the prompt of that number; their first logits."""

    def step(
        self, actions: Int[Tensor, " row"], shortest: int, longest: int
    ) -> Float[Tensor, "row vocabulary"]:
        """Append an action to every row; the logits of the next.

        `shortest` and `longest` are lengths of rows with the action, prompt and all, of those that are read.
        """

    def copy(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Let the rows `new`, which may be behind all others, go on as the rows `old` do."""

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop all other rows."""


class WholeBatch:
    """The sequences of any causal model, all begun together, on the cache that the model makes itself."""

    takes_more = False

    def __init__(self, model: nn.Module, pad_token_id: int) -> None:
        self.model, self.pad_token_id = model, pad_token_id
        self.accepted = accepted_arguments(model, ["position_ids", "logits_to_keep"])
        self.cache: Any = None
        self.is_padded = False
        self.attention_mask = self.lengths = torch.empty(0)

    def fill(
        self, rows: Sequence[int], prompts: Sequence[TokenIds], of_prompt: Sequence[int]
    ) -> Float[Tensor, "filled vocabulary"]:
        """See `Batch`."""
        device = next(self.model.parameters()).device
        states, selected = pad_left(prompts, self.pad_token_id, device), integers(of_prompt, device)
        self.is_padded, self.cache = bool((states.mask == 0).any()), None
        self.attention_mask, self.lengths = states.mask, states.mask.sum(dim=1)
        logits = self._forward(states.token_ids, states.positions)
        self.keep(selected)
        return logits[selected]

    def step(
        self, actions: Int[Tensor, " row"], shortest: int, longest: int
    ) -> Float[Tensor, "row vocabulary"]:
        """See `Batch`."""
        self.attention_mask = pad(self.attention_mask, (0, 1), value=1)
        self.lengths = self.lengths + 1
        return self._forward(actions[:, None], (self.lengths - 1)[:, None])

    def copy(self, old: Sequence[int], new: Sequence[int]) -> None:
        """See `Batch`."""
        kept = [*range(max(len(self.lengths), max(new) + 1))]
        for one, other in zip(old, new, strict=True):
            kept[other] = one
        self.keep(integers(kept, self.lengths.device))

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """See `Batch`."""
        self.cache.batch_select_indices(rows)
        self.attention_mask, self.lengths = self.attention_mask[rows], self.lengths[rows]

    def _forward(
        self, input_ids: Int[Tensor, "row column"], positions: Int[Tensor, "row column"]
    ) -> Float[Tensor, "row vocabulary"]:
        arguments: dict[str, Any] = {}
        if "logits_to_keep" in self.accepted:
            arguments["logits_to_keep"] = 1
        if self.is_padded:
            arguments["attention_mask"] = self.attention_mask
        if self.is_padded and "position_ids" in self.accepted:
            arguments["position_ids"] = positions
        output = self.model(input_ids=input_ids, past_key_values=self.cache, use_cache=True, **arguments)
        self.cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits
