"""Training and evaluation problems that coincide."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_reinforce.problems.problem import Problem

MIN_WORDS = 4  # of a text whose numbers are masked; shorter ones, such as sums, are all alike

_BETWEEN_DIGITS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_PUNCTUATION = re.compile(r"[.,;:!?\"'`´‘’“”()\[\]{}](?![0-9])|(?<![0-9])[.,;:!?\"'`´‘’“”()\[\]{}]")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True, slots=True)
class Overlap:
    """Which of the evaluated problems training shows, as (evaluated id, training id).

    Attributes:
        same: the same text but for case, white space and punctuation.
        masked: the same text with other numbers, and not among `same`.
    """

    same: tuple[tuple[str, str], ...]
    masked: tuple[tuple[str, str], ...]
    num_evaluated: int

    def sentences(self) -> tuple[str, ...]:
        """What there is to tell; nothing where the two do not coincide."""
        told = []
        for pairs, what in (
            (self.same, "are training problems as well: the policy may know their answers by heart"),
            (self.masked, "are training problems with other numbers"),
        ):
            if pairs:
                shown = ", ".join(f"{evaluated} = {training}" for evaluated, training in pairs[:3])
                more = ", …" if len(pairs) > 3 else ""
                told.append(f"{len(pairs):,} of {self.num_evaluated:,} problems asked {what} ({shown}{more})")
        return tuple(told)

    def summary(self) -> dict[str, int]:
        """The counts, as JSON has them."""
        return {"same": len(self.same), "masked": len(self.masked), "evaluated": self.num_evaluated}


def find_overlap(train: Sequence[Problem], evaluated: Sequence[Problem]) -> Overlap:
    """The evaluated problems that coincide with a training problem. Give the prompts without a template.

    >>> find_overlap([Problem("What is 1 + 1?", "2", id="a")], [Problem("what is 1 + 1", "2", id="b")]).same
    (('b', 'a'),)
    """
    same = _pairs(train, evaluated, normal_text)
    seen = {evaluated_id for evaluated_id, _ in same}
    masked = [pair for pair in _pairs(train, evaluated, masked_text) if pair[0] not in seen]
    return Overlap(tuple(same), tuple(masked), len(evaluated))


def normal_text(prompt: str) -> str:
    """A prompt without what says nothing: case, white space, punctuation, thousands' commas.

    >>> normal_text("Tom has 1,000  apples.")
    'tom has 1000 apples'
    """
    text = unicodedata.normalize("NFKC", prompt).casefold()
    text = _BETWEEN_DIGITS.sub("", text)
    return " ".join(_PUNCTUATION.sub(" ", text).split())


def masked_text(prompt: str) -> str:
    """The same with every number masked; empty where hardly a word is left, as in a sum.

    >>> masked_text("Tom has 1,000 red apples."), masked_text("12+34=")
    ('tom has # red apples', '')
    """
    text = _NUMBER.sub("#", normal_text(prompt))
    return text if len(_WORD.findall(text)) >= MIN_WORDS else ""


def _pairs(
    train: Sequence[Problem], evaluated: Sequence[Problem], form: Callable[[str], str]
) -> list[tuple[str, str]]:
    first: dict[str, Problem] = {}
    for problem in train:
        first.setdefault(form(problem.prompt), problem)
    return [
        (_name(problem), _name(first[text]))
        for problem in evaluated
        if (text := form(problem.prompt)) and text in first
    ]


def _name(problem: Problem) -> str:
    return problem.id or problem.prompt[:40]
