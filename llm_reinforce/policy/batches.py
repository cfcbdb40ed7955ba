"""Batches of sequences that are being sampled, with the model's cache of keys and values.

`SlotBatch` is for Llama-like models. Its cache is allocated in advance, and rows of ended sequences are
reused for new sequences. `SeparateBatches` is for models whose logits for a sequence change if the batch is
padded or contains other sequences. `WholeBatch` is for all other causal models of transformers.
"""

import copy
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from llm_reinforce.policy.embedding import valid_pad_token
from llm_reinforce.policy.language_policy import TokenIds, accepted_arguments, integers, pad_left
from llm_reinforce.policy.plain_path import length_with_constant_positions, restart_positions, restored_order


@runtime_checkable
class Batch(Protocol):
    """Sequences that are being sampled, with the cache of their keys and values.

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
    """Batch for any causal model. All sequences start together, and the model creates the cache."""

    can_refill = False

    def __init__(self, model: nn.Module, pad_token_id: int) -> None:
        self.model, self.pad_token_id = model, valid_pad_token(model, pad_token_id)
        self.accepted = accepted_arguments(model, ["position_ids", "logits_to_keep"])
        self.has_changing_positions = length_with_constant_positions(model) is not None
        self.cache: Any = None
        self.is_padded = False
        self.attention_mask = self.lengths = torch.empty(0)

    def fill(
        self, rows: Sequence[int], prompts: Sequence[TokenIds], of_prompt: Sequence[int]
    ) -> Float[Tensor, "filled vocabulary"]:
        """Start new sequences and return the logits of their first actions; see `Batch.fill`."""
        device = next(self.model.parameters()).device
        states, selected = pad_left(prompts, self.pad_token_id, device), integers(of_prompt, device)
        # `is_padded` is computed from the lengths, because reading the mask would have to wait for a GPU
        self.is_padded, self.cache = len({len(prompt) for prompt in prompts}) > 1, None
        self.attention_mask, self.lengths = states.mask, states.mask.sum(dim=1)
        logits = self._forward(states.token_ids, states.positions)
        if self.is_padded:
            # without this attribute, transformers checks in each step if the mask can be omitted, and this
            # check waits for a GPU
            for layer in getattr(self.cache, "layers", ()):
                layer.is_compileable = True
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

    def cloned(self) -> "WholeBatch":
        """Return a copy of the batch with its own copy of the cache.

        This method is used instead of `copy` if the model's cache cannot select rows.
        """
        clone = copy.copy(self)
        clone.cache = copy.deepcopy(self.cache)
        return clone

    def _forward(
        self, input_ids: Int[Tensor, "row column"], positions: Int[Tensor, "row column"]
    ) -> Float[Tensor, "row vocabulary"]:
        if self.has_changing_positions:
            restart_positions(self.model, input_ids)
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


class SeparateBatches:
    """Several batches without padding, one for each prompt length or one for each row.

    Args:
        model: causal language model.
        pad_token_id: token id of padding.
        single_rows: True: each row is computed by itself. False: rows with prompts of equal length are
            computed together.
    """

    can_refill = False

    def __init__(self, model: nn.Module, pad_token_id: int, *, single_rows: bool) -> None:
        self.model, self.pad_token_id, self.single_rows = model, pad_token_id, single_rows
        self.parts: list[tuple[WholeBatch, list[int]]] = []  # each batch with its rows
        # `rows` has one tensor per batch; `places` has the position of each row in the concatenated batches
        self.rows, self.places = [torch.empty(0)], torch.empty(0)

    def fill(
        self, rows: Sequence[int], prompts: Sequence[TokenIds], of_prompt: Sequence[int]
    ) -> Float[Tensor, "filled vocabulary"]:
        """Start new sequences and return the logits of their first actions; see `Batch.fill`."""
        together: dict[int, list[int]] = {}
        for row, number in enumerate(of_prompt):
            together.setdefault(row if self.single_rows else len(prompts[number]), []).append(row)
        self.parts, logits = [], []
        for part in together.values():
            batch, numbers = WholeBatch(self.model, self.pad_token_id), [of_prompt[row] for row in part]
            distinct = list(dict.fromkeys(numbers))
            own = [distinct.index(number) for number in numbers]
            logits.append(batch.fill(part, [prompts[number] for number in distinct], own))
            self.parts.append((batch, part))
        self._refresh_rows()
        return torch.cat(logits)[self.places]

    def step(
        self, actions: Int[Tensor, " row"], shortest: int, longest: int
    ) -> Float[Tensor, "row vocabulary"]:
        """Append one action to every row and return the logits of the next actions; see `Batch.step`."""
        logits = [
            batch.step(actions[rows], shortest, longest)
            for (batch, _), rows in zip(self.parts, self.rows, strict=True)
        ]
        return torch.cat(logits)[self.places]

    def copy(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Copy rows to other rows; see `Batch.copy`."""
        sources = list(range(max(sum(len(part) for _, part in self.parts), max(new) + 1)))
        for source, target in zip(old, new, strict=True):
            sources[target] = source
        self._select(sources)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep only the given rows; see `Batch.keep`."""
        self._select(rows.tolist())

    def _select(self, sources: Sequence[int]) -> None:
        """Replace all rows by copies of current rows. Current rows that are not copied are dropped.

        Args:
            sources: for each new row, the index of the current row that is copied.
        """
        parts: list[tuple[WholeBatch, list[int]]] = []
        for batch, old in self.parts:
            place = {row: index for index, row in enumerate(old)}
            new = [row for row, source in enumerate(sources) if source in place]
            if self.single_rows:
                parts += [(batch if row == new[-1] else batch.cloned(), [row]) for row in new]
            elif new:
                batch.keep(integers([place[sources[row]] for row in new], batch.lengths.device))
                parts.append((batch, new))
        self.parts = parts
        self._refresh_rows()

    def _refresh_rows(self) -> None:
        """Recompute `rows` and `places` after `parts` has changed.

        They are kept between steps, because copying indices to a GPU would make each step wait.
        """
        parts, device = [part for _, part in self.parts], next(self.model.parameters()).device
        self.rows = [integers(part, device) for part in parts]
        self.places = integers(restored_order(parts), device)
