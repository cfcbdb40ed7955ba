"""Audit of a data set: a check that the verifier accepts every reference answer as an answer to its problem.

Each reference answer is inserted into several *wrappings*, which are texts such as `The answer is %s.`, and
the result is verified like a completion.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from llm_reinforce.verifier.notation import plain
from llm_reinforce.verifier.plain_answers import read_answer
from llm_reinforce.verifier.verify import verify

PLAINLY = "#### %s"
WRAPPINGS = (
    "%s",
    r"\boxed{%s}",
    r"So it is $\boxed{%s}$.",
    PLAINLY,
    "The answer is %s.",
    "<answer>%s</answer>",
    "First 1, then 2.\n#### %s\n",
)
_LATEX = re.compile(r"\\[A-Za-z]|[\^_]\{|\$|\b[a-z]\s?[-+*/^=]\s?[0-9a-z]")
_MAX_SHOWN = 4_096
_BOX = re.compile(r"\\(?:boxed|fbox)\s?\{((?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})*+)\}")
_WHOLE = re.compile(r"\\(?:boxed|fbox)\b|####|\S\s*\n\s*\S|[a-z]\. [A-Z][a-z]")
_LOSSES = (
    ("equation", re.compile(r"(?<![<>!=])=(?!=)")),
    ("mixed number", re.compile(r"(?<![0-9./])[0-9]++[ ]++[0-9]++/[0-9]++")),
    ("letters", re.compile(r"[0-9][A-Za-z](?![A-Za-z])|[0-9]_[0-9]")),
)


class AnsweredQuestion(Protocol):
    """The attributes of a problem that an audit uses; see `llm_reinforce.Problem`."""

    @property
    def id(self) -> str: ...

    @property
    def prompt(self) -> str: ...

    @property
    def answer(self) -> str: ...

    @property
    def solution(self) -> str | None: ...

    @property
    def algebra(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Doubt:
    """A reference answer that the verifier rejects.

    Attributes:
        problem: problem that the reference answer belongs to.
        wrapping: first wrapping in which the answer is rejected; "" if the answer is empty.
        reason: reason for the verdict, as in `Verdict.reason`; `empty` if the answer is empty.
    """

    problem: AnsweredQuestion
    wrapping: str
    reason: str


@dataclass(frozen=True, slots=True)
class Loss:
    """A reference answer that should be checked, because the verifier may ignore a part of it.

    Attributes:
        problem: problem that the reference answer belongs to.
        kind: `equation`, `mixed number`, `letters`, `whole solution` or `several boxes`. Letters directly
            after digits are read as variables and not as a unit. A whole solution is a text with a box, a
            `####` or several lines. If a solution has several different boxes, the last box is the answer.
        reading: the number that the verifier reads, such as "3/2"; "text" or "algebra" if the answer is
            compared as text or algebra.
    """

    problem: AnsweredQuestion
    kind: str
    reading: str


@dataclass(frozen=True, slots=True)
class Audit:
    """Result of an audit: the kinds of a data set's answers, and the answers that should be checked.

    Attributes:
        total: number of problems.
        kinds: number of answers of each kind: `number`, `percentage`, `text`, `latex` or `empty`.
        doubts: reference answers that the verifier rejects.
        num_latex_as_text: number of answers that look like LaTeX or algebra but are compared as text.
        losses: reference answers of which the verifier may ignore a part.
    """

    total: int
    kinds: dict[str, int]
    doubts: Sequence[Doubt]
    num_latex_as_text: int
    losses: Sequence[Loss] = ()


def find_losses(problems: Iterable[AnsweredQuestion]) -> Iterator[Loss]:
    """Yield a `Loss` for each reference answer of which the verifier may ignore a part."""
    for problem in problems:
        answer = plain(problem.answer[:_MAX_SHOWN])
        kinds = [kind for kind, pattern in _LOSSES if pattern.search(answer)]
        if _WHOLE.search(problem.answer):
            kinds.insert(0, "whole solution")
        boxes = {" ".join(plain(box).split()) for box in _BOX.findall(problem.solution or "")}
        if len(boxes) > 1:
            kinds.insert(0, "several boxes")
        if kinds:
            value = read_answer(problem.answer).value
            text = "algebra" if problem.algebra else "text"
            yield Loss(problem, kinds[0], text if value is None else str(value))


def find_doubts(
    problems: Iterable[AnsweredQuestion], wrappings: Sequence[str] = (PLAINLY,)
) -> Iterator[Doubt]:
    """Yield a `Doubt` for each reference answer that is empty, or that is rejected in any wrapping."""
    for problem in problems:
        if not problem.answer.strip():
            yield Doubt(problem, "", "empty")
            continue
        for wrapping in wrappings:
            verdict = verify(
                wrapping % problem.answer,
                problem.answer,
                algebra=problem.algebra,
                prompt=problem.prompt,
            )
            if not verdict.correct:
                yield Doubt(problem, wrapping, verdict.reason)
                break


def audit_answers(
    problems: Sequence[AnsweredQuestion], progress: Callable[[int], None] | None = None
) -> Audit:
    """Verify every reference answer as if it were a completion, and return the result of the audit.

    Args:
        problems: problems of the data set.
        progress: function that is called after every 64 problems with the number of problems audited so far.
    """
    kinds: dict[str, int] = {}
    doubts: list[Doubt] = []
    num_latex_as_text = 0
    for index, problem in enumerate(problems, 1):
        kind = kind_of_answer(problem.answer)
        kinds[kind] = kinds.get(kind, 0) + 1
        num_latex_as_text += kind == "latex" and not problem.algebra
        doubts += find_doubts([problem], WRAPPINGS)
        if progress and index % 64 == 0:
            progress(index)
    return Audit(len(problems), kinds, doubts, num_latex_as_text, tuple(find_losses(problems)))


def kind_of_answer(answer: str) -> str:
    """Return the kind of an answer: `number`, `percentage`, `text`, `latex` or `empty`."""
    if not answer.strip():
        return "empty"
    if read_answer(answer).value is not None:
        return "percentage" if re.search(r"%|\bper ?cent\b", answer) else "number"
    return "latex" if _LATEX.search(answer) else "text"
