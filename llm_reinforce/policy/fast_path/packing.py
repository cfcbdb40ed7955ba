"""Distinct prompts packed into one sequence of tokens, and their rows for `Attention`."""

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
    """Distinct prompts whose common prefix, such as a system turn, is stored once.

    Attributes:
        token_ids: token ids of the common prefix, then of the rest of each prompt.
        positions: position of each token in its prompt.
        slots: for each prompt, the indices of its tokens in `token_ids`, padded with the last token of the
            prompt. (A token of another prompt cannot serve as padding, because its activations might be NaN,
            which a mask does not hide.) If there is a common prefix, the last row of `slots` contains the
            common prefix.
        lengths: for each row of `slots`, the number of tokens without padding.
        places: for each token, its index in the flattened `slots`. For tokens of the common prefix, this is
            an index in the last row.
        num_prompts: number of prompts, which is the number of rows of `slots` without the common prefix.
    """

    token_ids: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    slots: Int[Tensor, "row column"]
    lengths: Int[Tensor, " row"]
    places: Int[Tensor, " token"]
    num_prompts: int

    @property
    def last(self) -> Int[Tensor, " prompt"]:
        """For each prompt, the index of its last token, after which the first action is sampled."""
        return self.slots[: self.num_prompts, -1]

    @property
    def rows(self) -> Rows:
        """Rows for causal attention. Padding is at the end, so no token attends to it."""
        return Rows(self.slots, self.slots, self.places)


def pack_prompts(prompts: Sequence[TokenIds], device: torch.device) -> PackedPrompts:
    """Pack distinct prompts. None of the prompts may be empty."""
    common = _common_prefix_length(prompts)
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


def _common_prefix_length(prompts: Sequence[TokenIds]) -> int:
    """Return the length of the common prefix of all prompts, or 0 if there is only one prompt.

    The last token of a prompt is not part of the prefix.
    """
    if len(prompts) < 2:
        return 0
    longest = min(len(prompt) for prompt in prompts) - 1
    columns = zip(*(prompt[:longest] for prompt in prompts), strict=True)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
