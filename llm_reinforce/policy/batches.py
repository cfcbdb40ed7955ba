"""Batches of sequences that are being sampled, with the model's cache of keys and values.

`SlotBatch` is for Llama-like models. Its cache is allocated in advance, and rows of ended sequences are
reused for new sequences. `WholeBatch` is for all other causal models of transformers.
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
    """Sequences that are being sampled, with their cache of keys and values.

    Each row contains one sequence. The caller may use one row for several completions, as long as their
    tokens are equal.
    """

    can_refill: bool
    """True if rows can be filled with new sequences while other rows are in progress."""

    def fill(
        self, rows: Sequence[int], prompts: Sequence[TokenIds], of_prompt: Sequence[int]
    ) -> Float[Tensor, "filled vocabulary"]:
        """Start new sequences and return the logits of their first actions.

        Args:
            rows: rows of the new sequences.
            prompts: token ids of the prompts.
            of_prompt: for each entry of `rows`, the index of its prompt in `prompts`.
        """

    def step(
        self, actions: Int[Tensor, " row"], shortest: int, longest: int
    ) -> Float[Tensor, "row vocabulary"]:
        """Append one action to every row and return the logits of the next actions.

        Args:
            actions: token id of each row's action.
            shortest: length of the shortest row in use, in tokens, including the prompt and the new action.
            longest: length of the longest row in use, in tokens, including the prompt and the new action.
        """

    def copy(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Copy the rows `old` to the rows `new`. If a row in `new` does not exist yet, it is added."""

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep only the given rows and drop all other rows."""


class WholeBatch:
    """Batch for any causal model, in which all sequences start together. The model creates the cache."""

    can_refill = False

    def __init__(self, model: nn.Module, pad_token_id: int) -> None:
        self.model, self.pad_token_id = model, pad_token_id
        self.accepted = accepted_arguments(model, ["position_ids", "logits_to_keep"])
        self.cache: Any = None
        self.is_padded = False
        self.attention_mask = self.lengths = torch.empty(0)

    def fill(
        self, rows: Sequence[int], prompts: Sequence[TokenIds], of_prompt: Sequence[int]
    ) -> Float[Tensor, "filled vocabulary"]:
        """Start new sequences and return the logits of their first actions; see `Batch.fill`."""
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
        """Append one action to every row and return the logits of the next actions; see `Batch.step`."""
        self.attention_mask = pad(self.attention_mask, (0, 1), value=1)
        self.lengths = self.lengths + 1
        return self._forward(actions[:, None], (self.lengths - 1)[:, None])

    def copy(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Copy rows to other rows; see `Batch.copy`."""
        source_of = [*range(max(len(self.lengths), max(new) + 1))]
        for source, target in zip(old, new, strict=True):
            source_of[target] = source
        self.keep(integers(source_of, self.lengths.device))

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep only the given rows; see `Batch.keep`."""
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
