"""Batch of sequences that are sampled from a Llama-like model, with the cache of their keys and values.

The cache is allocated in advance, so that new sequences can reuse the rows of ended sequences.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from llm_reinforce.policy.fast_path.activations import Activations
from llm_reinforce.policy.fast_path.attention import Attention, gather
from llm_reinforce.policy.fast_path.packed_forward import Attend, forward_packed
from llm_reinforce.policy.fast_path.packing import pack_prompts
from llm_reinforce.policy.fast_path.products import layer_product
from llm_reinforce.policy.fast_path.step_graph import StepGraph
from llm_reinforce.policy.language_policy import TokenIds, integers

MAX_PROMPT_TOKENS = 16384  # maximum number of prompt tokens computed at once
ROOM = 32  # maximum number of spare columns when the cache is allocated or grows, without CUDA graphs


class SlotBatch:
    """Batch for a Llama-like model; see `Batch`. Rows have no padding on the left and start at column 0.

    Args:
        model: a model returned by `packable_model`.
        num_rows: initial number of rows.
        max_new_tokens: maximum number of tokens of a completion.
        activations: store for the activations. None: do not keep activations.
        has_fixed_shapes: if True, attention is computed over all columns of the cache, and unused columns are
            masked. The shapes of the tensors then stay the same until the cache grows or rows are dropped.
        cuda_graphs: if True, steps have fixed shapes and are replayed as CUDA graphs.
    """

    can_refill = True

    def __init__(
        self,
        model: Any,
        num_rows: int,
        max_new_tokens: int,
        activations: Activations | None = None,
        *,
        has_fixed_shapes: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        self.has_fixed_shapes, self.graph = has_fixed_shapes, StepGraph() if cuda_graphs else None
        # a graph must be recorded again when the cache grows, so the cache has room for whole completions
        self.room = max_new_tokens if cuda_graphs else min(max_new_tokens, ROOM)
        self.model, self.activations = model, activations
        weight = model.model.embed_tokens.weight
        self.lengths = torch.zeros(num_rows, dtype=torch.long, device=weight.device)
        self.keys: list[Tensor] = []  # one tensor per layer: [row, key_head, column, channel]
        self.values: list[Tensor] = []

    def fill(
        self, rows: Sequence[int], prompts: Sequence[TokenIds], of_prompt: Sequence[int]
    ) -> Float[Tensor, "filled vocabulary"]:
        """Start new sequences and return the logits of their first actions; see `Batch.fill`."""
        parts, computed = _parts(prompts), []
        for part in parts:
            place = {number: index for index, number in enumerate(part)}
            own = [(row, number) for row, number in zip(rows, of_prompt, strict=True) if number in place]
            computed.append(
                self._fill(
                    [row for row, _ in own],
                    [prompts[number] for number in part],
                    [place[number] for _, number in own],
                )
            )
        place = {number: index for index, number in enumerate(chain.from_iterable(parts))}
        selected = integers([place[number] for number in of_prompt], self.lengths.device)
        return torch.cat(computed).index_select(0, selected)

    def _fill(
        self, filled: Sequence[int], prompts: Sequence[TokenIds], numbers: Sequence[int]
    ) -> Float[Tensor, "prompt vocabulary"]:
        device = self.lengths.device
        rows, of_prompt = integers(filled, device), integers(numbers, device)
        packed = pack_prompts(prompts, device)
        slots, width = packed.slots.index_select(0, of_prompt), packed.slots.shape[1]
        config = self.model.config
        attention = Attention([packed.rows], config.num_attention_heads, config.num_key_value_heads)
        self._reserve(len(self.lengths), width)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            for cache, new in ((self.keys, keys), (self.values, values)):
                new = gather(new, slots).transpose(1, 2)
                if layer == len(cache):
                    shape = (len(self.lengths), new.shape[1], width + self.room, new.shape[3])
                    cache.append(new.new_empty(shape))
                # overwrite the whole row, because a mask would not hide NaN values of an earlier sequence
                new = pad(new, (0, 0, 0, cache[layer].shape[2] - width))
                cache[layer].index_copy_(0, rows, new)
            return attention(queries, keys, values)

        if self.activations is not None:
            places = (self.activations.num_tokens + packed.slots[: packed.num_prompts]).tolist()
            for prompt, own in zip(prompts, places, strict=True):
                self.activations.record_prompt(prompt, own[: len(prompt)])
        hidden = self._forward(packed.token_ids, packed.positions, attend, packed.last)
        self.lengths[rows] = packed.lengths.index_select(0, of_prompt)
        return self._logits(hidden)

    def step(
        self, actions: Int[Tensor, " row"], shortest: int, longest: int
    ) -> Float[Tensor, "row vocabulary"]:
        """Append one action to every row and return the logits of the next actions; see `Batch.step`."""
        self._reserve(len(self.lengths), longest)
        if self.graph is not None:
            return self.graph(self.append, actions, [self.lengths, *self.keys, *self.values])
        if self.has_fixed_shapes:
            return self.append(actions)
        return self.append(actions, longest, is_even=shortest == longest)

    def append(
        self, actions: Int[Tensor, " row"], width: int | None = None, *, is_even: bool = False
    ) -> Float[Tensor, "row vocabulary"]:
        """Append an action to every row. The cache must have a free column in each row; see `step`.

        Args:
            actions: token id of each row's action.
            width: number of columns of the cache over which attention is computed. None: all columns.
            is_even: True if every row has exactly `width` tokens, including its new action. No mask is then
                needed.
        """
        width = width or self.keys[0].shape[2]
        num_rows, positions = len(actions), self.lengths[: len(actions)].clone()
        self.lengths[:num_rows] += 1
        # an unused row may be longer than all rows in use
        own_columns = positions.clamp(max=width - 1)
        columns = torch.arange(width, device=actions.device)
        rows = torch.arange(num_rows, device=actions.device)
        mask = None if is_even else (columns <= positions[:, None])[:, None, None]

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            for cache, new in ((self.keys[layer], keys), (self.values[layer], values)):
                if is_even:
                    cache[:num_rows, :, width - 1] = new[:num_rows]
                else:
                    cache[rows, :, own_columns] = new[:num_rows]
            mixed = scaled_dot_product_attention(
                # query heads that share a key head become further queries, so that keys are not copied
                queries[:num_rows].view(num_rows, keys.shape[1], -1, keys.shape[2]),
                self.keys[layer][:num_rows, :, :width],
                self.values[layer][:num_rows, :, :width],
                attn_mask=mask,
            )
            return mixed.flatten(1, 2)

        return self._logits(self._forward(actions, positions, attend))

    def copy(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Copy rows to other rows; see `Batch.copy`."""
        self._reserve(max(new) + 1, 0)
        rows, start, stop = integers(old, self.lengths.device), new[0], new[0] + len(new)
        is_contiguous = max(old) < start and [*new] == [*range(start, stop)]
        for cache in (*self.keys, *self.values, self.lengths):
            if is_contiguous:  # copy without a temporary tensor
                torch.index_select(cache[:start], 0, rows, out=cache[start:stop])
            else:
                cache.index_copy_(0, integers(new, rows.device), cache.index_select(0, rows))

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep only the given rows; see `Batch.keep`."""
        for cache in (self.keys, self.values):
            for layer, old in enumerate(cache):
                cache[layer] = old.index_select(0, rows)
        self.lengths = self.lengths[rows]

    def _reserve(self, num_rows: int, width: int) -> None:
        """Grow the cache to at least `num_rows` rows and `width` columns, with some spare rows and columns.

        A cache that is large enough is unchanged.
        """
        num_more = max(num_rows - len(self.lengths), 0)
        if num_more:
            num_more = max(num_more, len(self.lengths) // 4)
            self.lengths = pad(self.lengths, (0, num_more))
        for cache in (self.keys, self.values):
            for layer, old in enumerate(cache):
                num_columns = width + self.room - old.shape[2] if old.shape[2] < width else 0
                if num_more or num_columns:
                    cache[layer] = pad(old, (0, 0, 0, num_columns, 0, 0, 0, num_more))

    def _forward(
        self,
        token_ids: Int[Tensor, " token"],
        positions: Int[Tensor, " token"],
        attend: Attend,
        read: Int[Tensor, " read"] | None = None,
    ) -> Float[Tensor, "read hidden"]:
        """Return the hidden states of the tokens in `read`, and record activations if they are to be kept."""
        if self.activations is None:
            return forward_packed(self.model, token_ids, positions, attend, read)
        hidden = forward_packed(self.model, token_ids, positions, attend, read, self.activations.multiply)
        self.activations.end_pass()
        return hidden

    def _logits(self, hidden: Float[Tensor, "row hidden"]) -> Float[Tensor, "row vocabulary"]:
        return layer_product(self.model.lm_head, self.model.model.norm(hidden))


def _parts(prompts: Sequence[TokenIds]) -> list[list[int]]:
    """Divide the prompts into parts. The prompts of a part are computed at once.

    A part is limited to `MAX_PROMPT_TOKENS` tokens. Its prompts have similar lengths, so that there is little
    padding.

    Returns:
        for each part, the indices of its prompts.
    """
    parts: list[list[int]] = []
    num_tokens = 0
    for number in sorted(range(len(prompts)), key=lambda number: len(prompts[number])):
        length = len(prompts[number])
        padded = (len(parts[-1]) + 1) * length if parts else 0
        if not parts or padded > MAX_PROMPT_TOKENS or padded > 2 * (num_tokens + length):
            parts.append([])
            num_tokens = 0
        parts[-1].append(number)
        num_tokens += length
    return parts
