"""Comparison of a run's first and last evaluations, problem by problem."""

import json
from collections.abc import Mapping
from typing import Any

from llm_reinforce.evaluation import (
    Comparison,
    Criterion,
    Evaluation,
    answers_in,
    compare_evaluations,
    have_same_problems,
    measures_of,
)
from llm_reinforce.problems import Problem
from llm_reinforce.runs.run_directory import RunDirectory


def recorded_evaluations(directory: RunDirectory, max_new_tokens: int) -> dict[str, dict[int, Evaluation]]:
    """Return the first and the last evaluation in `answers.jsonl` for each decoding ("greedy" or "sampled").

    An evaluation is left out if only some of its answers are recorded.

    Args:
        directory: directory of the run.
        max_new_tokens: maximum number of tokens of the completions.

    Returns:
        evaluations by decoding and by the number of updates made before the evaluation.
    """
    rows: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for row in directory.rows("answers.jsonl"):
        rows.setdefault(row["decoding"], {}).setdefault(row["update"], []).append(row)
    evaluations: dict[str, dict[int, Evaluation]] = {}
    for decoding, made in rows.items():
        num_problems = len(made[min(made)])  # all answers of the first evaluation are recorded
        whole = [number for number in made if len(made[number]) == num_problems]
        evaluations[decoding] = {
            number: _evaluation(made[number], max_new_tokens) for number in (min(whole), max(whole))
        }
    return evaluations


def compare_evaluations_of_run(
    evaluations: Mapping[str, Mapping[int, Evaluation]],
) -> dict[str, dict[Criterion, Comparison]]:
    """Compare the first and the last evaluation of each decoding ("greedy" or "sampled").

    A decoding is omitted if it has only one evaluation, or if the two evaluations have different problems,
    which happens if the held-out problems were changed before the run was resumed.

    Args:
        evaluations: evaluations by decoding and by the number of updates made before the evaluation.

    Returns:
        comparisons by decoding and criterion.
    """
    pairs = {decoding: (made[min(made)], made[max(made)]) for decoding, made in evaluations.items()}
    return {
        decoding: compare_evaluations(before, after)
        for decoding, (before, after) in pairs.items()
        if before is not after and have_same_problems(before, after)
    }


def compare_first_and_last(
    directory: RunDirectory, max_new_tokens: int
) -> dict[str, dict[Criterion, Comparison]]:
    """Compare the first and the last evaluation of a run, and write the result to `comparison.json`.

    If there is nothing to compare, no file is written.

    Returns:
        comparisons by decoding and criterion. Empty if there is nothing to compare.
    """
    changes = compare_evaluations_of_run(recorded_evaluations(directory, max_new_tokens))
    if changes:
        rows = {
            decoding: {criterion: comparison.summary() for criterion, comparison in both.items()}
            for decoding, both in changes.items()
        }
        directory.write_text("comparison.json", json.dumps(rows, indent=2) + "\n")
    return changes


def _evaluation(rows: list[dict[str, Any]], max_new_tokens: int) -> Evaluation:
    problems = [Problem(row["prompt"], row["answer"], id=row["id"]) for row in rows]
    answers = [answers_in(row) for row in rows]
    return Evaluation(rows[0]["decoding"], problems, answers, measures_of(answers, max_new_tokens))
