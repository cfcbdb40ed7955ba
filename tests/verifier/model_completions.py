"""Completions that a real model wrote, labeled by hand; model_completions.md describes the file."""

import json
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("model_completions.jsonl")
UNFINISHED = "unfinished"
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Pair:
    """A completion with a reference answer, and the label of this pair.

    Attributes:
        completion: text of the model.
        answer: reference answer.
        correct: True if the completion commits to the reference answer.
        kind: the form of the completion's final answer, see model_completions.md.
        row: number of the line in the file, from 1.
    """

    completion: str
    answer: str
    correct: bool
    kind: str
    row: int


def gold_pairs() -> list[Pair]:
    """Return each completion with the gold answer of its problem."""
    return [
        Pair(row["completion"], row["answer"], row["correct"], row["kind"], number)
        for number, row in enumerate(_rows(), start=1)
    ]


def derived_pairs() -> list[Pair]:
    """Return each completion with the value that it commits to, and with every other number that it contains.

    The pairs of the first kind are correct, the others are wrong. If a completion commits to no value, all
    its pairs are wrong. A completion that commits to 20% is paired with 20 as the correct answer, and 0.2 is
    not a wrong one. Unfinished completions are in `unfinished_pairs`.
    """
    return [pair for pair in _pairs_with_own_numbers() if pair.kind != UNFINISHED]


def unfinished_pairs() -> list[Pair]:
    """Return each unfinished completion with every number that it contains. All these pairs are wrong.

    A completion is unfinished if it was cut before it stated an answer. Its text alone does not always show
    this.
    """
    return [pair for pair in _pairs_with_own_numbers() if pair.kind == UNFINISHED]


def _pairs_with_own_numbers() -> list[Pair]:
    pairs = []
    for number, row in enumerate(_rows(), start=1):
        text, value = row["completion"], row["value"]
        numbers = {Fraction(found.replace(",", "")) for found in _NUMBER.findall(text)}
        if value is not None:
            correct = value.removesuffix("%")
            pairs.append(Pair(text, correct, True, row["kind"], number))
            numbers -= {Fraction(correct), Fraction(correct) / (100 if value.endswith("%") else 1)}
        pairs += [Pair(text, _decimal(other), False, row["kind"], number) for other in sorted(numbers)]
    return pairs


def _rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def _decimal(number: Fraction) -> str:
    return str(number) if number.denominator == 1 else str(float(number))
