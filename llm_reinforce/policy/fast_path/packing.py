"""Prompts as one row of tokens, each distinct one computed once, and who attends to whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from jaxtyping import Int
from torch import Tensor

from llm_reinforce.policy.fast_path.attention import Rows
from llm_reinforce.policy.language_policy import TokenIds, integers


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
        num_prompts: how many there are, whose rows come first.
    """

    token_ids: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    slots: Int[Tensor, "row column"]
    lengths: Int[Tensor, " row"]
    places: Int[Tensor, " token"]
    num_prompts: int

    @property
    def last(self) -> Int[Tensor, " prompt"]:
        """Where each prompt's last token stands, behind which the first action is drawn."""
        return self.slots[: self.num_prompts, -1]

    @property
    def rows(self) -> Rows:
        """Each token attends to those before it and to itself: what is past a prompt's end is behind all."""
        return Rows(self.slots, self.slots, self.places)


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
        token_ids=integers(token_ids, device),
        positions=integers(positions, device),
        slots=integers(slots, device),
        lengths=integers(lengths, device),
        places=integers(places, device),
        num_prompts=len(prompts),
    )


def _common_beginning(prompts: Sequence[TokenIds]) -> int:
    """How many tokens all of several prompts begin with; each keeps its last for itself."""
    if len(prompts) < 2:
        return 0
    longest = min(len(prompt) for prompt in prompts) - 1
    columns = zip(*(prompt[:longest] for prompt in prompts), strict=True)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
