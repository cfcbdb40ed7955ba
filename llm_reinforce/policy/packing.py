"""Prompts and completions as one row of tokens, each computed once, and attention that keeps them apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from math import ceil
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from llm_reinforce.policy.language_policy import TokenIds

BUNDLED = 32
"""Tokens of completions that attend together, where no prompt has more."""


@dataclass(frozen=True, slots=True)
class PackedPrompts:
    """Distinct prompts; what they all begin with, a system turn say, stands there once.

    Attributes:
        token_ids, positions: of each packed token: the common beginning, then each prompt's rest.
        slots: where the tokens of each prompt stand in the row; past its end its last one again, since what
            is NaN in another sequence would pass any mask. If there is a common beginning it has a row of its
            own, the last.
        lengths: of the prompts, and of the common beginning.
        places: the place of each packed token in the flattened `slots`; that of a common one in its own row.
    """

    token_ids: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    slots: Int[Tensor, "row column"]
    lengths: Int[Tensor, " row"]
    places: Int[Tensor, " token"]

    @property
    def last(self) -> Int[Tensor, " row"]:
        """Where each row's last token stands: behind a prompt's the first action is drawn."""
        return self.slots.gather(1, self.lengths[:, None] - 1).squeeze(1)

    def attend(
        self,
        queries: Float[Tensor, "token head channel"],
        keys: Float[Tensor, "token key_head channel"],
        values: Float[Tensor, "token key_head channel"],
    ) -> tuple[
        Float[Tensor, "token head channel"],
        Float[Tensor, "row column key_head channel"],
        Float[Tensor, "row column key_head channel"],
    ]:
        """Each token attends to those before it; also each row's keys and values, past its end any."""
        of_queries, of_keys, of_values = (_take(packed, self.slots) for packed in (queries, keys, values))
        mixed = scaled_dot_product_attention(
            of_queries.transpose(1, 2),
            of_keys.transpose(1, 2),
            of_values.transpose(1, 2),
            is_causal=True,  # what is past a prompt's end is to the right of all its tokens
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
        return mixed.transpose(1, 2).flatten(0, 1).index_select(0, self.places), of_keys, of_values


def pack_prompts(prompts: Sequence[TokenIds], device: torch.device) -> PackedPrompts:
    """Lay distinct prompts side by side, none empty."""
    common = _common_beginning(prompts)
    width = max(len(prompt) for prompt in prompts)
    token_ids, positions = list(prompts[0][:common]), list(range(common))
    places, slots = list(range(len(prompts) * width, len(prompts) * width + common)), []
    for number, prompt in enumerate(prompts):
        start = len(token_ids) - common
        slots.append([*range(common), *range(start + common, start + len(prompt))])
        slots[-1] += [slots[-1][-1]] * (width - len(prompt))
        token_ids += prompt[common:]
        positions += range(common, len(prompt))
        places += range(number * width + common, number * width + len(prompt))
    lengths = [len(prompt) for prompt in prompts]
    if common:
        slots.append([*range(common), *[common - 1] * (width - common)])
        lengths.append(common)
    return PackedPrompts(
        *(torch.tensor(rows, device=device) for rows in (token_ids, positions, slots, lengths, places))
    )


def _common_beginning(prompts: Sequence[TokenIds]) -> int:
    """How many tokens all of several prompts begin with; each keeps its last for itself."""
    if len(prompts) < 2:
        return 0
    longest = min(len(prompt) for prompt in prompts) - 1
    columns = zip(*(prompt[:longest] for prompt in prompts), strict=True)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


@dataclass(frozen=True, slots=True)
class PackedCompletions:
    """Completions side by side behind their prompts, each attending to its own prompt and to itself.

    The last action of a completion is not among the tokens: nothing is drawn after it.

    Attributes:
        token_ids, positions: of each packed token.
        prompt: the number of each completion's prompt.
        slots: where the tokens of each completion stand in the row; past its end any.
        is_own: True in `slots` where a token of the completion stands.
        bundles: what attends together.
    """

    token_ids: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    prompt: Int[Tensor, " completion"]
    slots: Int[Tensor, "completion column"]
    is_own: Bool[Tensor, "completion column"]
    bundles: "Bundles"


@dataclass(frozen=True, slots=True)
class Bundles:
    """Completions of one prompt in a row, so that attention has few rows and lays out a prompt but once each.

    What is NaN in one of them is NaN in its whole bundle; it never leaves the completions of a prompt.

    Attributes:
        prompt: the number of each bundle's prompt.
        slots: where the tokens of each bundle stand in the row of all; past its end its last one again (any
            where it has none).
        places: the place of each packed token in the flattened `slots`.
        owner: which of the bundle's completions each of its tokens is of; -1 past its end.
    """

    prompt: Int[Tensor, " bundle"]
    slots: Int[Tensor, "bundle column"]
    places: Int[Tensor, " token"]
    owner: Int[Tensor, "bundle column"]

    def mask(self, prompts: PackedPrompts, num_repeats: int) -> Bool[Tensor, "bundle 1 query key"]:
        """True where a query may look: at the bundle's prompt, and at its own completion up to itself.

        The queries of the heads that share a key are one block below the other, `num_repeats` times.
        """
        columns = torch.arange(prompts.slots.shape[1], device=self.slots.device)
        of_prompt = columns < prompts.lengths[self.prompt][:, None]
        width = self.slots.shape[1]
        is_own = (self.owner[:, :, None] == self.owner[:, None, :]).tril()
        seen = torch.cat([of_prompt[:, None].expand(-1, width, -1), is_own], dim=2)
        return seen.repeat(1, num_repeats, 1)[:, None]

    def attend(
        self,
        queries: Float[Tensor, "token head channel"],
        keys: Float[Tensor, "token key_head channel"],
        values: Float[Tensor, "token key_head channel"],
        prompt_keys: Float[Tensor, "row column key_head channel"],
        prompt_values: Float[Tensor, "row column key_head channel"],
        *,
        mask: Bool[Tensor, "bundle 1 query key"],
    ) -> Float[Tensor, "token head channel"]:
        """Attention of each completion's tokens to its prompt's and its own."""
        num_rows, width = self.slots.shape
        _, num_heads, num_channels = queries.shape
        of_queries, of_keys, of_values = (
            _Unpack.apply(packed, self.slots, self.places)  # type: ignore[no-untyped-call]
            for packed in (queries, keys, values)
        )
        every_key = torch.cat([prompt_keys.index_select(0, self.prompt), of_keys], dim=1)
        every_value = torch.cat([prompt_values.index_select(0, self.prompt), of_values], dim=1)
        # heads that share a key: their queries one below the other, so that no key is copied for them
        below = of_queries.view(num_rows, width, keys.shape[1], -1, num_channels).permute(0, 2, 3, 1, 4)
        mixed = scaled_dot_product_attention(
            below.flatten(2, 3), every_key.transpose(1, 2), every_value.transpose(1, 2), attn_mask=mask
        )
        mixed = (
            mixed.view(below.shape).permute(0, 3, 1, 2, 4).reshape(num_rows, width, num_heads, num_channels)
        )
        packed: Tensor = _Pack.apply(mixed, self.slots, self.places, self.owner >= 0)  # type: ignore[no-untyped-call]
        return packed


def pack_completions(
    completions: Sequence[TokenIds],
    prompts: Sequence[int],
    prompt_lengths: Sequence[int],
    device: torch.device,
) -> PackedCompletions:
    """Lay completions side by side.

    Args:
        prompts: the number of each completion's prompt.
        prompt_lengths: of each completion's prompt.
    """
    lengths = [len(completion) - 1 for completion in completions]
    starts = [0, *accumulate(lengths)]
    columns = torch.arange(max(lengths), device=device)
    is_own = columns < torch.tensor(lengths, device=device)[:, None]
    slots = torch.tensor(starts[:-1], device=device)[:, None] + columns
    token_ids = [token for completion in completions for token in completion[:-1]]
    positions = [
        length + step
        for completion, length in zip(completions, prompt_lengths, strict=True)
        for step in range(len(completion) - 1)
    ]
    return PackedCompletions(
        token_ids=torch.tensor(token_ids, dtype=torch.long, device=device),
        positions=torch.tensor(positions, dtype=torch.long, device=device),
        prompt=torch.tensor(prompts, device=device),
        slots=slots.masked_fill(~is_own, 0),
        is_own=is_own,
        bundles=_bundle(starts, prompts, prompt_lengths, device),
    )


def _bundle(
    starts: Sequence[int], prompts: Sequence[int], prompt_lengths: Sequence[int], device: torch.device
) -> Bundles:
    """Put the completions that stand between these places together."""
    of_prompt: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        of_prompt.setdefault(prompt, []).append(row)
    limit = max(BUNDLED, min(prompt_lengths))  # by the shortest: all bundles are as wide as the widest
    bundles = []
    for rows in of_prompt.values():
        longest = max(1, *(starts[row + 1] - starts[row] for row in rows))
        most = limit // longest  # completions a bundle
        num_bundles = ceil(len(rows) / max(1, most))
        size = ceil(len(rows) / num_bundles)
        bundles += [rows[first : first + size] for first in range(0, len(rows), size)]
    width = max(sum(starts[row + 1] - starts[row] for row in rows) for rows in bundles)
    places = [0] * starts[-1]
    slots, owners = [], []
    for number, rows in enumerate(bundles):
        of_bundle = [slot for row in rows for slot in range(starts[row], starts[row + 1])]
        owner = [row for row in rows for _ in range(starts[row], starts[row + 1])]
        for column, slot in enumerate(of_bundle):
            places[slot] = number * width + column
        num_left = width - len(of_bundle)
        slots.append(of_bundle + [of_bundle[-1] if of_bundle else 0] * num_left)
        owners.append(owner + [-1] * num_left)
    return Bundles(
        prompt=torch.tensor([prompts[rows[0]] for rows in bundles], device=device),
        slots=torch.tensor(slots, dtype=torch.long, device=device).reshape(len(bundles), width),
        places=torch.tensor(places, dtype=torch.long, device=device),
        owner=torch.tensor(owners, dtype=torch.long, device=device).reshape(len(bundles), width),
    )


def _take(packed: Tensor, slots: Int[Tensor, "row column"]) -> Tensor:
    return packed.index_select(0, slots.flatten()).view(*slots.shape, *packed.shape[1:])


class _Unpack(torch.autograd.Function):
    """A row of tokens as rows of sequences. Each token has one place, so the gradient is a selection too."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, slots: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return _take(packed, slots)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradients[0].flatten(0, 1).index_select(0, places), None, None


class _Pack(torch.autograd.Function):
    """Back again; where no token stands there is no gradient."""

    @staticmethod
    def forward(ctx: Any, unpacked: Tensor, slots: Tensor, places: Tensor, is_own: Tensor) -> Tensor:
        ctx.save_for_backward(slots, is_own)
        return unpacked.flatten(0, 1).index_select(0, places)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        slots, is_own = ctx.saved_tensors
        return _take(gradients[0], slots).masked_fill_(~is_own[:, :, None, None], 0.0), None, None, None
