"""Comparison of two policies on the same problems: the gain in accuracy, and why answers changed."""

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
    """Part of the difference in accuracy that is due to one kind of failure, as shares of the problems.

    Attributes:
        gained: share of the problems that failed in this way before and are correct after.
        lost: share of the problems that were correct before and fail in this way after.
    """

    gained: float
    lost: float

    @property
    def difference(self) -> float:
        """Change of the accuracy due to this kind of failure."""
        return self.gained - self.lost


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference in accuracy between two evaluations of the same problems.

    Attributes:
        criterion: `accuracy` if the verifier decides which answers are correct, `strict` if
            lm-evaluation-harness's strict extraction does.
        before, after: accuracy of the first and of the second evaluation.
        interval: paired 95% confidence interval of the difference.
        p_value: two-sided p-value of the null hypothesis that the policies do not differ.
        test: the test that gives the p-value: exact McNemar for one sample per problem, otherwise its
            generalization, the sign-flip test.
        gained, lost: ids of the problems with a higher share of correct answers after than before, and of
            those with a lower one.
        parts: the difference by kind of failure; the parts add up to the difference.
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
        """Accuracy after minus accuracy before."""
        return self.after - self.before

    def summary(self) -> dict[str, object]:
        """Return the comparison as a JSON object."""
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
    """Classify the failure of a wrong answer: the first of these kinds that applies.

    - `format`: the verifier or the last number of the text gives the correct value, but the answer does
      not have the required form.
    - `truncation`: the completion was cut at the token budget.
    - `arithmetic`: the value is wrong.
    """
    if answer.correct or answer.flexible:
        return "format"
    return "arithmetic" if answer.terminated else "truncation"


def is_right(answer: Answer, criterion: Criterion) -> bool:
    """Return True if the answer is correct by the criterion."""
    return answer.correct if criterion == "accuracy" else answer.strict


def compare_by(before: Evaluation, after: Evaluation, criterion: Criterion = "accuracy") -> Comparison:
    """Compare two evaluations of the same problems by one criterion.

    A gained problem is attributed to the kind of failure in the first evaluation, and a lost problem to the
    kind of failure in the second. With several samples per problem, all pairs of a sample before and a sample
    after count equally. With p the share of a problem's samples that are correct, and f the share that fails
    in one way,

        gained = mean (p_after f_before),   lost = mean (p_before f_after)

    Summed over all kinds, gained - lost = mean (p_after - p_before).

    Raises:
        ValueError: if the evaluations are of different problems.
    """
    evaluated = [[(problem.id, problem.answer) for problem in side.problems] for side in (before, after)]
    if evaluated[0] != evaluated[1]:
        raise ValueError(
            "the two evaluations are of different problems; evaluate both policies on the same problems"
        )
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
    """Compare two evaluations by accuracy and, if it accepts any answer, by strict extraction.

    The verifier is lenient about the form of an answer, so a gain in format shows in the strict comparison.

    Raises:
        ValueError: if the evaluations are of different problems.
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


def _shares(evaluation: Evaluation, predicate: Callable[[Answer], bool]) -> list[float]:
    return [sum(map(predicate, row)) / len(row) for row in evaluation.answers]


def _ids(evaluation: Evaluation, chosen: Sequence[bool]) -> list[str]:
    return [
        problem.id or problem.prompt
        for problem, is_chosen in zip(evaluation.problems, chosen, strict=True)
        if is_chosen
    ]
