"""Division into training and held-out problems by groups, so that near copies stay together."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llm_reinforce.problems.problem import Problem

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProblemSplit:
    """Training problems, and held-out problems that are never trained on."""

    train: tuple[Problem, ...]
    held_out: tuple[Problem, ...]


def divide_groups(
    groups: Mapping[str, Sequence[T]], num_held_out: int, generator: random.Random
) -> tuple[list[T], list[T]]:
    """Hold out random groups until `num_held_out` members are held out; return (train, held_out).

    If the last group is too large, its surplus members are not used. The number of held-out members is
    therefore exact, and no group has members on both sides.
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
    """Return a prompt without case and repeated white space; prompts that are then equal are one problem."""
    return " ".join(prompt.casefold().split())
