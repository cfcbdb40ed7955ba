"""Overlap between training problems and evaluated problems."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_reinforce.problems.problem import Problem

MIN_WORDS = 4  # prompts with fewer words, such as sums, are not compared by `masked_text`

_BETWEEN_DIGITS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_PUNCTUATION = re.compile(r"[.,;:!?\"'`´‘’“”()\[\]{}](?![0-9])|(?<![0-9])[.,;:!?\"'`´‘’“”()\[\]{}]")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True, slots=True)
class Overlap:
    """Evaluated problems that are equal or similar to training problems.

    A pair contains the id of an evaluated problem and the id of a training problem.

    Attributes:
        same: pairs of problems with equal prompts, ignoring case, white space and punctuation.
        masked: pairs of problems whose prompts differ only in their numbers. An evaluated problem that is in
            `same` is not repeated in `masked`.
        num_evaluated: number of evaluated problems.
    """

    same: tuple[tuple[str, str], ...]
    masked: tuple[tuple[str, str], ...]
    num_evaluated: int

    def sentences(self) -> tuple[str, ...]:
        """Return messages about the overlap. The tuple is empty if there is no overlap."""
        found = []
        for pairs, what in (
            (self.same, "are also training problems, so the policy may have memorized their answers"),
            (self.masked, "differ from training problems only in their numbers"),
        ):
            if pairs:
                shown = ", ".join(f"{evaluated} = {training}" for evaluated, training in pairs[:3])
                more = ", …" if len(pairs) > 3 else ""
                found.append(
                    f"{len(pairs):,} of {self.num_evaluated:,} evaluated problems {what} ({shown}{more})"
                )
        return tuple(found)

    def summary(self) -> dict[str, int]:
        """Return the numbers of pairs and of evaluated problems, for a JSON file."""
        return {"same": len(self.same), "masked": len(self.masked), "evaluated": self.num_evaluated}


def find_overlap(train: Sequence[Problem], evaluated: Sequence[Problem]) -> Overlap:
    """Return the evaluated problems that are equal or similar to training problems.

    The prompts of the problems must not contain a template.

    >>> find_overlap([Problem("What is 1 + 1?", "2", id="a")], [Problem("what is 1 + 1", "2", id="b")]).same
    (('b', 'a'),)
    """
    same = _pairs(train, evaluated, normal_text)
    seen = {evaluated_id for evaluated_id, _ in same}
    masked = [pair for pair in _pairs(train, evaluated, masked_text) if pair[0] not in seen]
    return Overlap(tuple(same), tuple(masked), len(evaluated))


def normal_text(prompt: str) -> str:
    """Return a prompt in lower case without punctuation, repeated white space and thousands separators.

    >>> normal_text("Tom has 1,000  apples.")
    'tom has 1000 apples'
    """
    text = unicodedata.normalize("NFKC", prompt).casefold()
    text = _BETWEEN_DIGITS.sub("", text)
    return " ".join(_PUNCTUATION.sub(" ", text).split())


def masked_text(prompt: str) -> str:
    """Return the result of `normal_text` with every number replaced by #.

    The result is empty for a prompt with few words, such as `12+34=`, because many such prompts are equal
    once their numbers are removed.

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
