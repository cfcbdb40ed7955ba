"""Train and held-out problems, divided by group so that near copies stay together."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llm_reinforce.problems.problem import Problem

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProblemSplit:
    """Problems to learn from, and problems that no update may see."""

    train: tuple[Problem, ...]
    held_out: tuple[Problem, ...]


def divide_groups(
    groups: Mapping[str, Sequence[T]], num_held_out: int, generator: random.Random
) -> tuple[list[T], list[T]]:
    """Draw whole groups until `num_held_out` members are held out; return (train, held_out).

    The last group drawn may be too large. It is cut, and its surplus is used nowhere: the held-out
    count is exact, and no group ever has members on both sides.
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
    """What two prompts share that differ in case and white space alone: they are one problem."""
    return " ".join(prompt.casefold().split())
