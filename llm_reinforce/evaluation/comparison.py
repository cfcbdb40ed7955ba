"""Comparison of two policies on the same problems: the difference in accuracy, by kind of failure."""

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
    """Part of the difference in accuracy that is due to one kind of failure.

    Attributes:
        gained: share of problems with this kind of failure in the first evaluation that are correct in the
            second evaluation.
        lost: share of problems that are correct in the first evaluation and have this kind of failure in the
            second evaluation.
    """

    gained: float
    lost: float

    @property
    def difference(self) -> float:
        """Change in accuracy that is due to one kind of failure: `gained` minus `lost`."""
        return self.gained - self.lost


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference in accuracy between two evaluations of the same problems.

    Attributes:
        criterion: `accuracy` if the verifier decides which answers are correct, `strict` if the strict
            extraction of lm-evaluation-harness decides.
        before, after: accuracy of the first and of the second evaluation.
        interval: paired 95% confidence interval of the difference.
        p_value: two-sided p-value of the null hypothesis that the policies do not differ.
        test: test that gives the p-value. For one sample per problem, this is the exact McNemar test
            (`mcnemar`). Otherwise it is the sign-flip test (`sign_flip`), which generalizes McNemar's test.
        gained, lost: ids of the problems whose share of correct answers is higher or lower in the second
            evaluation, respectively.
        parts: for each kind of failure, its part of the difference. All parts add up to the difference.
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
        """Accuracy of the second evaluation minus accuracy of the first evaluation."""
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
    """Return the reason why a criterion rejects an answer: the first of the following kinds that applies.

    - `format`: the value is correct, but not in the form that the criterion requires. The value is correct if
      the verifier accepts the answer, or if the last number of the text is correct.
    - `truncation`: the completion was truncated at the token budget.
    - `arithmetic`: the value is wrong or missing, although the completion ended.
    """
    if answer.correct or answer.flexible:
        return "format"
    return "arithmetic" if answer.terminated else "truncation"


def is_correct(answer: Answer, criterion: Criterion) -> bool:
    """Return True if the verifier (`accuracy`) or the strict extraction (`strict`) accepts the answer."""
    return answer.correct if criterion == "accuracy" else answer.strict


def compare_by(before: Evaluation, after: Evaluation, criterion: Criterion = "accuracy") -> Comparison:
    """Compare two evaluations of the same problems by one criterion.

    A problem is gained if it is correct only in the second evaluation. Its gain is attributed to the kind of
    failure in the first evaluation. A problem is lost if it is correct only in the first evaluation. Its loss
    is attributed to the kind of failure in the second evaluation.

    With several samples per problem, every pair of a sample from the first evaluation and a sample from the
    second evaluation has the same weight. Let p be the share of a problem's samples that are correct, and f
    the share that has a certain kind of failure. The part of this kind of failure is computed with means over
    the problems:

        gained = mean (p_after f_before),   lost = mean (p_before f_after)

    The sum of gained - lost over all kinds of failure equals mean (p_after - p_before).

    Raises:
        ValueError: if the two evaluations have different problems.
    """
    if not have_same_problems(before, after):
        raise ValueError(
            "the two evaluations are of different problems; evaluate both policies on the same problems"
        )
    correct_before = _shares(before, lambda answer: is_correct(answer, criterion))
    correct_after = _shares(after, lambda answer: is_correct(answer, criterion))
    differences = [late - early for early, late in zip(correct_before, correct_after, strict=True)]
    gained = tuple(_ids(before, [difference > 0 for difference in differences]))
    lost = tuple(_ids(before, [difference < 0 for difference in differences]))
    is_single = before.samples_per_problem == after.samples_per_problem == 1
    sides = correct_before, correct_after
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
    """Compare two evaluations by accuracy, and by strict accuracy unless it is 0 in both evaluations.

    The accuracy counts correct answers in any form that the verifier can read. The strict accuracy counts
    only correct answers in the form `#### 7`, as the strict extraction of lm-evaluation-harness does. It
    therefore also increases if more answers have this form.

    Raises:
        ValueError: if the two evaluations have different problems.
    """
    both: dict[Criterion, Comparison] = {"accuracy": compare_by(before, after)}
    if before.measures["strict"].value or after.measures["strict"].value:
        both["strict"] = compare_by(before, after, "strict")
    return both


def _part(
    kind: Kind,
    criterion: Criterion,
    evaluations: tuple[Evaluation, Evaluation],
    correct: tuple[Sequence[float], Sequence[float]],
) -> Part:
    def fails(answer: Answer) -> bool:
        return not is_correct(answer, criterion) and kind_of_failure(answer) == kind

    failed = [_shares(evaluation, fails) for evaluation in evaluations]
    gained = [late * early for late, early in zip(correct[1], failed[0], strict=True)]
    lost = [early * late for early, late in zip(correct[0], failed[1], strict=True)]
    return Part(math.fsum(gained) / len(gained), math.fsum(lost) / len(lost))


def _shares(evaluation: Evaluation, predicate: Callable[[Answer], bool]) -> list[float]:
    return [sum(map(predicate, row)) / len(row) for row in evaluation.answers]


def _ids(evaluation: Evaluation, chosen: Sequence[bool]) -> list[str]:
    return [
        problem.id or problem.prompt
        for problem, is_chosen in zip(evaluation.problems, chosen, strict=True)
        if is_chosen
    ]


def have_same_problems(first: Evaluation, second: Evaluation) -> bool:
    """Return True if two evaluations have problems with equal ids and answers, in the same order."""
    evaluated = [[(problem.id, problem.answer) for problem in each.problems] for each in (first, second)]
    return evaluated[0] == evaluated[1]
