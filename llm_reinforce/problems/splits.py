"""Divide problems into training and held-out problems, without separating equal or similar problems."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llm_reinforce.data_sets import MAX_HELD_OUT
from llm_reinforce.problems.problem import Problem

T = TypeVar("T")

HELD_OUT_SHARE = 5  # by default, the fraction of held-out problems is 1 divided by this number


def default_num_held_out(num_problems: int) -> int:
    """Return the default number of held-out problems: 200, or a fifth of the problems if a fifth is fewer."""
    return min(MAX_HELD_OUT, num_problems // HELD_OUT_SHARE)


@dataclass(frozen=True, slots=True)
class ProblemSplit:
    """Training problems and held-out problems.

    Attributes:
        train: training problems.
        held_out: problems that are never trained on.
        demonstrations: for a split of `problems_from_config`, the worked solutions in
            `training.warm_start.data`. Empty if there is no such data.
    """

    train: tuple[Problem, ...]
    held_out: tuple[Problem, ...]
    demonstrations: tuple[Problem, ...] = ()


def divide_groups(
    groups: Mapping[str, Sequence[T]], num_held_out: int, generator: random.Random
) -> tuple[list[T], list[T]]:
    """Divide the members of groups at random into training members and `num_held_out` held-out members.

    All members of a group are on the same side. If the last held-out group has more members than needed, the
    surplus members are left out, so that exactly `num_held_out` members are held out.

    Returns:
        The training members and the held-out members.
    """
    keys = list(groups)
    generator.shuffle(keys)
    train: list[T] = []
    held_out: list[T] = []
    for key in keys:
        side = held_out if len(held_out) < num_held_out else train
        side.extend(groups[key])
    return train, held_out[:num_held_out]


def folded_prompt(prompt: str) -> str:
    """Return a prompt in lower case without repeated white space, to find equal prompts."""
    return " ".join(prompt.casefold().split())
