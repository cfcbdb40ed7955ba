"""Before and after: two policies on the same problems, what was gained, and of which kind it is."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llm_reinforce.evaluation.accuracy import Evaluation
from llm_reinforce.evaluation.answers import Answer
from llm_reinforce.evaluation.intervals import Interval, difference_interval, mcnemar, sign_flip

Kind = Literal["format", "truncation", "arithmetic"]
KINDS: tuple[Kind, ...] = ("format", "truncation", "arithmetic")

Criterion = Literal["accuracy", "strict"]


@dataclass(frozen=True, slots=True)
class Part:
    """A kind's part of the difference in accuracy, as shares of the problems."""

    gained: float
    lost: float

    @property
    def difference(self) -> float:
        """What this kind adds to the accuracy."""
        return self.gained - self.lost


@dataclass(frozen=True, slots=True)
class Comparison:
    """The accuracy after less the accuracy before.

    Attributes:
        criterion: what counts as right: the verifier's verdict, or the harness's strict reading.
        interval: 95%, paired: of the difference.
        p_value: of no difference at all; `test` says by which test, exact McNemar with one sample a problem,
            else its generalisation, sign flips.
        gained, lost: ids of the problems that are right (more often) only after, or only before.
        parts: the difference by kind; they add up to it.
    """

    criterion: Criterion
    before: float
    after: float
    interval: Interval
    p_value: float
    test: Literal["mcnemar", "sign_flip"]
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    parts: Mapping[Kind, Part]

    @property
    def difference(self) -> float:
        """After less before."""
        return self.after - self.before

    def summary(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "criterion": self.criterion,
            "before": self.before,
            "after": self.after,
            "difference": self.difference,
            "interval": list(self.interval),
            "p_value": self.p_value,
            "test": self.test,
            "parts": {
                kind: {"gained": part.gained, "lost": part.lost, "difference": part.difference}
                for kind, part in self.parts.items()
            },
            "gained": list(self.gained),
            "lost": list(self.lost),
        }


def kind_of_failure(answer: Answer) -> Kind:
    """Why a wrong answer is wrong, first that applies.

    `format`: a lenient reading finds the right value, the verifier's or the last number of the text, but it
    is not given as it has to be; `truncation`: the token budget ended before the answer; `arithmetic`: all
    else, which is to say the answer itself is wrong.
    """
    if answer.correct or answer.flexible:
        return "format"
    return "arithmetic" if answer.terminated else "truncation"


def is_right(answer: Answer, criterion: Criterion) -> bool:
    """By the verifier, or by the strict reading."""
    return answer.correct if criterion == "accuracy" else answer.strict


def compare_by(before: Evaluation, after: Evaluation, criterion: Criterion = "accuracy") -> Comparison:
    """Return what changed from one evaluation to another of the same problems, by one criterion.

    Each problem that is gained counts for the kind of its failure before, each that is lost for the kind of
    its failure after. With several samples a problem every pair of a sample before and one after counts, by
    its share: with p the share that is right and f the share that fails in this way,

        gained = mean (p_after f_before),   lost = mean (p_before f_after)

    and over all kinds gained - lost = mean (p_after - p_before).

    Raises:
        ValueError: they asked different problems.
    """
    asked = [[(problem.id, problem.answer) for problem in side.problems] for side in (before, after)]
    if asked[0] != asked[1]:
        raise ValueError("the two evaluations asked different problems")
    right_before = _shares(before, lambda answer: is_right(answer, criterion))
    right_after = _shares(after, lambda answer: is_right(answer, criterion))
    differences = [late - early for early, late in zip(right_before, right_after, strict=True)]
    gained = tuple(_ids(before, [difference > 0 for difference in differences]))
    lost = tuple(_ids(before, [difference < 0 for difference in differences]))
    is_single = before.samples_per_problem == after.samples_per_problem == 1
    sides = right_before, right_after
    return Comparison(
        criterion=criterion,
        before=before.measures[criterion].value,
        after=after.measures[criterion].value,
        interval=difference_interval(differences),
        p_value=mcnemar(len(gained), len(lost)) if is_single else sign_flip(differences),
        test="mcnemar" if is_single else "sign_flip",
        gained=gained,
        lost=lost,
        parts={kind: _part(kind, criterion, (before, after), sides) for kind in KINDS},
    )


def compare_evaluations(before: Evaluation, after: Evaluation) -> dict[Criterion, Comparison]:
    """Return what changed by the verifier's verdict, and by the strict reading if it accepts anything.

    The verifier is lenient about form, so a gain in format shows in the second one.

    Raises:
        ValueError: they asked different problems.
    """
    both: dict[Criterion, Comparison] = {"accuracy": compare_by(before, after)}
    if before.measures["strict"].value or after.measures["strict"].value:
        both["strict"] = compare_by(before, after, "strict")
    return both


def _part(
    kind: Kind,
    criterion: Criterion,
    evaluations: tuple[Evaluation, Evaluation],
    right: tuple[Sequence[float], Sequence[float]],
) -> Part:
    def fails(answer: Answer) -> bool:
        return not is_right(answer, criterion) and kind_of_failure(answer) == kind

    failed = [_shares(evaluation, fails) for evaluation in evaluations]
    gained = [late * early for late, early in zip(right[1], failed[0], strict=True)]
    lost = [early * late for early, late in zip(right[0], failed[1], strict=True)]
    return Part(math.fsum(gained) / len(gained), math.fsum(lost) / len(lost))


def _shares(evaluation: Evaluation, holds: Callable[[Answer], bool]) -> list[float]:
    return [sum(map(holds, row)) / len(row) for row in evaluation.answers]


def _ids(evaluation: Evaluation, chosen: Sequence[bool]) -> list[str]:
    return [
        problem.id or problem.prompt
        for problem, is_chosen in zip(evaluation.problems, chosen, strict=True)
        if is_chosen
    ]
