"""Problems that the policy solves more often, or less often, in the last evaluation than in the first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_reinforce.reports.recorded_run import RecordedRun, Row
from llm_reinforce.reports.shown_text import shown

MAX_LISTED = 50  # maximum number of problems in each list


@dataclass(frozen=True, slots=True)
class Change:
    """Problem whose share of correct answers differs between two evaluations.

    Attributes:
        prompt: the prompt.
        answer: the reference answer.
        before: text of the policy's first answer in the first evaluation.
        after: text of the policy's first answer in the last evaluation.
    """

    prompt: str
    answer: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Changes:
    """Differences between the first and the last evaluation with one decoding mode.

    An evaluation is used only if its answers to all problems are recorded.

    Attributes:
        decoding: "greedy" or "sampled".
        first: number of updates before the first evaluation.
        last: number of updates before the last evaluation.
        num_gained: number of problems with a higher share of correct answers in the last evaluation.
        num_lost: number of problems with a lower share of correct answers in the last evaluation.
        gained: the problems counted by `num_gained`, or the first `MAX_LISTED` of them.
        lost: the problems counted by `num_lost`, or the first `MAX_LISTED` of them.
        comparison: comparison of the two accuracies, from `comparison.json`; empty if the run has not ended.
    """

    decoding: str
    first: int
    last: int
    num_gained: int
    num_lost: int
    gained: list[Change]
    lost: list[Change]
    comparison: Mapping[str, Any]


def changes_of(run: RecordedRun) -> list[Changes]:
    """Return one `Changes` for each decoding mode with at least two evaluations that can be compared."""
    evaluations: dict[str, dict[int, dict[int, Row]]] = {}
    for row in run.answers:
        if row.get("completions"):
            evaluations.setdefault(row["decoding"], {}).setdefault(row["update"], {})[row["index"]] = row
    found = []
    for decoding, made in evaluations.items():
        first = min(made)
        last = max(update for update in made if len(made[update]) == len(made[first]))
        if last != first:
            comparison = run.comparison.get(decoding, {}).get("accuracy", {})
            found.append(_changes(decoding, (first, made[first]), (last, made[last]), comparison))
    return found


def _changes(
    decoding: str,
    first: tuple[int, Mapping[int, Row]],
    last: tuple[int, Mapping[int, Row]],
    comparison: Mapping[str, Any],
) -> Changes:
    gained: list[tuple[Row, Row]] = []
    lost: list[tuple[Row, Row]] = []
    for index, before in first[1].items():
        after = last[1].get(index)
        difference = 0.0 if after is None else _share(after) - _share(before)
        if after is not None and difference:
            (gained if difference > 0 else lost).append((before, after))
    return Changes(
        decoding,
        first[0],
        last[0],
        len(gained),
        len(lost),
        [_change(*pair) for pair in gained[:MAX_LISTED]],
        [_change(*pair) for pair in lost[:MAX_LISTED]],
        comparison,
    )


def _share(row: Row) -> float:
    return sum(bool(each["correct"]) for each in row["completions"]) / len(row["completions"])


def _change(before: Row, after: Row) -> Change:
    return Change(
        shown(before["prompt"], 1_000),
        shown(before["answer"], 200),
        shown(before["completions"][0]["text"], 1_000),
        shown(after["completions"][0]["text"], 1_000),
    )
