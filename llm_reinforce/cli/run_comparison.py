"""What a run made of its policy, problem by problem: its first evaluation against its last."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_reinforce.evaluation import Comparison, Criterion, Evaluation
    from llm_reinforce.training import RunDirectory


def compare_run(directory: "RunDirectory", max_new_tokens: int) -> "dict[str, dict[Criterion, Comparison]]":
    """By decoding, what changed from the run's first evaluation to its last; writes `comparison.json`.

    Empty where there are no two evaluations of the same problems.
    """
    from llm_reinforce.evaluation import comparisons

    by_update: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for row in directory.rows("answers.jsonl"):
        by_update.setdefault(row["decoding"], {}).setdefault(row["update"], []).append(row)
    changes: dict[str, dict[Criterion, Comparison]] = {}
    for decoding, updates in by_update.items():
        first, last = min(updates), max(updates)
        before, after = (_evaluation(updates[update], max_new_tokens) for update in (first, last))
        if first != last and len(before.problems) == len(after.problems):
            changes[decoding] = comparisons(before, after)
    if changes:
        rows = {
            decoding: {criterion: comparison.summary() for criterion, comparison in both.items()}
            for decoding, both in changes.items()
        }
        directory.write_text("comparison.json", json.dumps(rows, indent=2) + "\n")
    return changes


def _evaluation(rows: list[dict[str, Any]], max_new_tokens: int) -> "Evaluation":
    from llm_reinforce.evaluation import Evaluation, answers_in, measures_of
    from llm_reinforce.problems import Problem

    problems = [Problem(row["prompt"], row["answer"], id=row["id"]) for row in rows]
    answers = [answers_in(row) for row in rows]
    return Evaluation(rows[0]["decoding"], problems, answers, measures_of(answers, max_new_tokens))
