"""Prompts and completions as one row of tokens, each computed once, and attention that keeps them apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
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
        owner: the completion that each of the bundle's tokens is of; -1 past its end.
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
        packed: Tensor = _Pack.apply(mixed, self.slots, self.places, self.owner)  # type: ignore[no-untyped-call]
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
    lengths = torch.tensor([len(completion) - 1 for completion in completions], device=device)
    starts = lengths.cumsum(0) - lengths
    columns = torch.arange(int(lengths.max()), device=device)
    is_own = columns < lengths[:, None]
    owner = torch.arange(len(completions), device=device).repeat_interleave(lengths)
    steps = torch.arange(len(owner), device=device) - starts[owner]
    token_ids = [token for completion in completions for token in completion[:-1]]
    return PackedCompletions(
        token_ids=torch.tensor(token_ids, dtype=torch.long, device=device),
        positions=torch.tensor(prompt_lengths, device=device)[owner] + steps,
        prompt=torch.tensor(prompts, device=device),
        slots=starts[:, None] + columns,
        is_own=is_own,
        bundles=_bundle(completions, prompts, prompt_lengths, owner, steps),
    )


def _bundle(
    completions: Sequence[TokenIds],
    prompts: Sequence[int],
    prompt_lengths: Sequence[int],
    owner: Int[Tensor, " token"],
    steps: Int[Tensor, " token"],
) -> Bundles:
    """Put completions together; of each token its completion and its number therein are given."""
    of_prompt: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        of_prompt.setdefault(prompt, []).append(row)
    limit = max(BUNDLED, min(prompt_lengths))  # by the shortest: all bundles are as wide as the widest
    prompt_of: list[int] = []  # each bundle's prompt, and how many tokens it has
    lengths: list[int] = []
    bundles = [0] * len(completions)  # each completion's bundle, and its first token's column there
    offsets = [0] * len(completions)
    for prompt, rows in of_prompt.items():
        longest = max(1, *(len(completions[row]) - 1 for row in rows))
        num_bundles = ceil(len(rows) / max(1, limit // longest))
        size = ceil(len(rows) / num_bundles)
        for place, row in enumerate(rows):
            if place % size == 0:
                prompt_of.append(prompt)
                lengths.append(0)
            bundles[row], offsets[row] = len(lengths) - 1, lengths[-1]
            lengths[-1] += len(completions[row]) - 1
    device, width = owner.device, max(lengths)
    firsts = torch.tensor(bundles, device=device) * width + torch.tensor(offsets, device=device)
    places = firsts[owner] + steps
    owners = owner.new_full((len(lengths), width), -1)
    owners.view(-1)[places] = owner
    slots = owner.new_zeros(len(lengths), width)
    slots.view(-1)[places] = torch.arange(len(owner), device=device)
    if width:
        last = torch.tensor(lengths, device=device).sub(1).clamp(min=0)
        slots = slots.where(owners >= 0, slots.gather(1, last[:, None]))
    return Bundles(torch.tensor(prompt_of, device=device), slots, places, owners)


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
    def forward(ctx: Any, unpacked: Tensor, slots: Tensor, places: Tensor, owner: Tensor) -> Tensor:
        ctx.save_for_backward(slots, owner)
        return unpacked.flatten(0, 1).index_select(0, places)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        slots, owner = ctx.saved_tensors
        return _take(gradients[0], slots).masked_fill_((owner < 0)[:, :, None, None], 0.0), None, None, None
