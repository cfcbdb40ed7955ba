"""Completions behind their prompts, what several begin with but once, and who attends to whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from llm_reinforce.policy.fast_path.attention import Rows
from llm_reinforce.policy.fast_path.packing import PackedPrompts
from llm_reinforce.policy.language_policy import TokenIds, integers, pad_right

BUNDLED = 32
"""Tokens of completions that attend together, where every prompt is shorter."""


@dataclass(frozen=True, slots=True)
class CompletionTree:
    """The tokens of completions, each following its prompt or another token.

    They are in preorder: each before all that follow it, and these before any other. The last action of a
    completion is not among them: nothing is drawn after it.

    Attributes:
        token_ids, positions: of each token.
        states: behind what each action was drawn, one completion's after the other's: the number of a prompt
            or, counted on from the prompts, that of a token.
        is_action: where in `[completion, column]` these actions stand.
        bundles: what attends together; None if there are no tokens.
    """

    token_ids: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    states: Int[Tensor, " action"]
    is_action: Bool[Tensor, "completion column"]
    bundles: "Bundles | None"


@dataclass(frozen=True, slots=True)
class Bundles:
    """Runs of tokens behind one prompt, so that attention has few rows and lays out a prompt but once each.

    What is NaN in one completion is NaN in its whole bundle, and in those that follow it; it never leaves the
    completions of a prompt.

    Attributes:
        prompt: the number of each bundle's prompt.
        slots: the tokens of each bundle; past its end its last one again.
        places: the place of each token in the flattened `slots`.
        seen: the tokens that a bundle may look at, which are those that its first one follows and its own;
            past their end the number of all tokens.
        ends: behind each token the number of the first that doesn't follow it.
    """

    prompt: Int[Tensor, " bundle"]
    slots: Int[Tensor, "bundle query"]
    places: Int[Tensor, " token"]
    seen: Int[Tensor, "bundle own_key"]
    ends: Int[Tensor, " token"]

    @property
    def _gathered(self) -> Int[Tensor, "bundle own_key"]:
        """The same, past the end the bundle's last token again."""
        return torch.minimum(self.seen, self.slots[:, -1:])

    def rows(self, prompts: PackedPrompts) -> Rows:
        """Each token attends to the bundle's prompt, to what it follows and to itself.

        All tokens lie in one row, those of the prompts first.
        """
        first = len(prompts.token_ids)
        of_prompt = prompts.slots.index_select(0, self.prompt)
        columns = torch.arange(of_prompt.shape[1], device=self.slots.device)
        sees_prompt = columns < prompts.lengths[self.prompt][:, None]
        queries, keys, ends = self.slots[:, :, None], self.seen[:, None], self.ends[self._gathered][:, None]
        return Rows(
            queries=first + self.slots,
            keys=torch.cat([of_prompt, first + self._gathered], dim=1),
            places=self.places,
            mask=torch.cat(
                [
                    sees_prompt[:, None].expand(-1, self.slots.shape[1], -1),
                    (keys <= queries) & (queries < ends),
                ],
                dim=2,
            ),
        )


class _Run(NamedTuple):
    """A bundle: its prompt, the tokens before it that its first one follows, and the number of that one."""

    prompt: int
    followed: list[int]
    start: int


def pack_completions(
    completions: Sequence[TokenIds],
    prompts: Sequence[int],
    prompt_lengths: Sequence[int],
    device: torch.device,
) -> CompletionTree:
    """Lay completions behind their prompts, none empty.

    Args:
        prompts: the number of each completion's prompt.
        prompt_lengths: of each prompt.
    """
    # sorted, no completion before it shares more with the one at hand than the last
    order = sorted(zip(prompts, completions, range(len(completions)), strict=True))
    shared = [0, *(_num_alike(one, other) for one, other in pairwise(order))]
    num_own = [len(tokens) - 1 - num for (_, tokens, _), num in zip(order, shared, strict=True)]
    # all bundles are as wide as the widest, and a completion's own tokens stay together
    limit = max(BUNDLED, min(prompt_lengths), *num_own)
    token_ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    states: list[list[int]] = [[]] * len(completions)
    runs: list[_Run] = []
    path: list[int] = []  # the tokens of the completion at hand
    for (prompt, tokens, row), num_shared, num_new in zip(order, shared, num_own, strict=True):
        start, stop = len(token_ids), len(token_ids) + num_new
        for token in path[num_shared:]:
            ends[token] = start
        path[num_shared:] = range(start, stop)
        states[row] = [prompt - len(prompt_lengths), *path]
        if num_new:
            if not runs or runs[-1].prompt != prompt or stop - runs[-1].start > limit:
                runs.append(_Run(prompt, path[:num_shared], start))
            token_ids += tokens[num_shared:-1]
            position = prompt_lengths[prompt] + num_shared
            positions += range(position, position + num_new)
            ends += [0] * num_new
    for token in path:
        ends[token] = len(token_ids)
    lengths = [len(completion) for completion in completions]
    return CompletionTree(
        token_ids=integers(token_ids, device),
        positions=integers(positions, device),
        states=len(prompt_lengths) + integers([state for of_one in states for state in of_one], device),
        is_action=torch.arange(max(lengths), device=device) < integers(lengths, device)[:, None],
        bundles=_bundles(runs, integers(ends, device)) if runs else None,
    )


def _num_alike(one: tuple[int, TokenIds, int], other: tuple[int, TokenIds, int]) -> int:
    """How many tokens two completions begin with, their last actions not among them; 0 of two prompts."""
    if one[0] != other[0]:
        return 0
    num = 0
    for left, right in zip(one[1][:-1], other[1][:-1], strict=False):
        if left != right:
            break
        num += 1
    return num


def _bundles(runs: Sequence[_Run], ends: Int[Tensor, " token"]) -> Bundles:
    device, num_tokens = ends.device, len(ends)
    starts = [run.start for run in runs]
    stops = [*starts[1:], num_tokens]
    seen = [[*run.followed, *range(run.start, stop)] for run, stop in zip(runs, stops, strict=True)]
    first, behind = integers(starts, device), integers(stops, device)
    widest = max(stop - start for start, stop in zip(starts, stops, strict=True))
    bundle = torch.arange(len(runs), device=device).repeat_interleave(behind - first, output_size=num_tokens)
    return Bundles(
        prompt=integers([run.prompt for run in runs], device),
        slots=torch.minimum(first[:, None] + torch.arange(widest, device=device), behind[:, None] - 1),
        places=bundle * widest + torch.arange(num_tokens, device=device) - first[bundle],
        seen=pad_right(seen, num_tokens, device),
        ends=ends,
    )
