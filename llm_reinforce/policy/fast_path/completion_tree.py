"""Completions packed as a tree of tokens, and the attention masks of this tree.

A prefix that several completions of a prompt share occurs once in the tree.
"""

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

BUNDLE_SIZE = 32
"""Maximum number of tokens of a bundle (see `Bundles`). Longer bundles are allowed up to the length of the
shortest prompt, and up to the largest number of tokens that a completion adds to the tree."""


@dataclass(frozen=True, slots=True)
class CompletionTree:
    """Completions as a tree of tokens.

    The parent of a token is the token before it in its completion. The parent of the first token of a
    completion is the prompt.

    The tokens are in preorder: a token is directly followed by its descendants. The last action of a
    completion is not in the tree, because no action follows it.

    Attributes:
        token_ids: token id of each token.
        positions: position of each token in its sequence, including the prompt.
        states: for each action, the index of its state; concatenated over the completions. With P prompts,
            state i < P is the end of prompt i, and state P + j is the state whose last token is token j of
            the tree.
        is_action: True for the actions of each completion, False for padding.
        bundles: the tokens, divided into bundles for attention; None if the tree has no tokens.
    """

    token_ids: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    states: Int[Tensor, " action"]
    is_action: Bool[Tensor, "completion column"]
    bundles: "Bundles | None"


@dataclass(frozen=True, slots=True)
class Bundles:
    """The tokens of a tree, divided into bundles. Each bundle is one row of `attention.Rows`.

    A bundle consists of consecutive tokens that belong to the same prompt. The keys of the prompt are copied
    once per bundle. Without bundles, each completion would be a row, and the keys of the prompt would be
    copied once per completion. A NaN in a completion may spread to other completions of the same prompt, but
    never to completions of another prompt.

    Attributes:
        prompt: for each bundle, the index of its prompt.
        slots: indices of the tokens of each bundle, padded with the last token of the bundle.
        places: for each token, its index in the flattened `slots`.
        seen: for each bundle, the tokens of the tree to which its tokens attend, as indices. These are the
            ancestors of the bundle's first token, followed by the tokens of the bundle. The padding value is
            the total number of tokens of the tree.
        ends: for each token, the index of the next token in preorder that is not its descendant.
    """

    prompt: Int[Tensor, " bundle"]
    slots: Int[Tensor, "bundle query"]
    places: Int[Tensor, " token"]
    seen: Int[Tensor, "bundle own_key"]
    ends: Int[Tensor, " token"]

    @property
    def _gathered(self) -> Int[Tensor, "bundle own_key"]:
        """The indices in `seen`. Padding is replaced by the index of the last token of the bundle."""
        return torch.minimum(self.seen, self.slots[:, -1:])

    def rows(self, prompts: PackedPrompts) -> Rows:
        """Return rows in which each token attends to its prompt, its ancestors and itself.

        The indices in the rows refer to the tokens of the prompts, followed by the tokens of the tree.
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
    """The beginning of a bundle. The bundle ends where the next one begins; see `Bundles`.

    Attributes:
        prompt: index of the prompt.
        ancestors: indices, in the tree, of the ancestors of the bundle's first token.
        start: index of the bundle's first token.
    """

    prompt: int
    ancestors: list[int]
    start: int


def pack_completions(
    completions: Sequence[TokenIds],
    prompts: Sequence[int],
    prompt_lengths: Sequence[int],
    device: torch.device,
) -> CompletionTree:
    """Pack completions into a tree.

    Args:
        completions: tokens of the completions. None of them may be empty.
        prompts: for each completion, the index of its prompt.
        prompt_lengths: number of tokens of each prompt.
        device: device of the result.
    """
    # in sorted order, a completion shares its longest prefix with the completion directly before it
    order = sorted(zip(prompts, completions, range(len(completions)), strict=True))
    shared = [0, *(_num_shared(one, other) for one, other in pairwise(order))]
    num_own = [len(tokens) - 1 - num for (_, tokens, _), num in zip(order, shared, strict=True)]
    # bundles are padded to the widest bundle; all tokens that a completion adds must fit into one bundle
    limit = max(BUNDLE_SIZE, min(prompt_lengths), *num_own)
    token_ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    states: list[list[int]] = [[]] * len(completions)
    runs: list[_Run] = []
    path: list[int] = []  # tokens of the current completion
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


def _num_shared(one: tuple[int, TokenIds, int], other: tuple[int, TokenIds, int]) -> int:
    """Return the length of the common prefix of two completions, or 0 if their prompts differ.

    The last action of a completion is never part of the prefix. Each argument is a tuple (index of the
    prompt, tokens of the completion, row).
    """
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
    seen = [[*run.ancestors, *range(run.start, stop)] for run, stop in zip(runs, stops, strict=True)]
    first, end = integers(starts, device), integers(stops, device)
    widest = max(stop - start for start, stop in zip(starts, stops, strict=True))
    bundle = torch.arange(len(runs), device=device).repeat_interleave(end - first, output_size=num_tokens)
    return Bundles(
        prompt=integers([run.prompt for run in runs], device),
        slots=torch.minimum(first[:, None] + torch.arange(widest, device=device), end[:, None] - 1),
        places=bundle * widest + torch.arange(num_tokens, device=device) - first[bundle],
        seen=pad_right(seen, num_tokens, device),
        ends=ends,
    )
