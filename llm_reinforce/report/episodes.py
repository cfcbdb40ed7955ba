"""Episodes of a report: sampled completions with the numbers of each token, up to a limited size."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from llm_reinforce.report.curves import rounded
from llm_reinforce.report.recorded_run import RecordedRun, Row
from llm_reinforce.report.shown_text import MAX_TOKEN, shown

MAX_BYTES = 2_500_000  # JSON of all episodes of a page
MAX_TOKENS = 2_000  # tokens of a completion
NUM_TRACKED = 20  # problems whose answers are recorded at every evaluation

# names of the values of each token: in episodes.jsonl, and on the page
TOKEN_VALUES = {
    "advantages": "advantage",
    "behavior_log_probs": "log_prob",
    "entropies": "entropy",
    "returns": "return",
    "importance_weights": "weight",
}


class _Table:
    """List of distinct values, each referred to by its index."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._index: dict[str, int] = {}

    def index(self, key: str, value: Any) -> int:
        if key not in self._index:
            self._index[key] = len(self.values)
            self.values.append(value)
        return self._index[key]


def episodes_data(runs: Sequence[RecordedRun]) -> dict[str, Any]:
    """Return the episodes of runs, and the answers to the tracked held-out problems, as JSON values.

    Returns:
        `problems` and `texts`: tables to which the rows refer by index; `rows`: one item per episode or
        answer; `num_updates` and `num_shown`: number of recorded updates, and of those that are on the page.
    """
    problems, texts = _Table(), _Table()
    by_update: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for place, run in enumerate(runs):
        for row in run.episodes:
            by_update.setdefault((place, row["update"]), []).append(_episode(row, place, problems, texts))
    kept = _thinned(by_update, len(runs))
    answers = [row for place, run in enumerate(runs) for row in _answers(run, place, problems)]
    return {
        "problems": problems.values,
        "texts": texts.values,
        "rows": [row for key in kept for row in by_update[key]] + answers,
        "num_updates": len(by_update),
        "num_shown": len(kept),
    }


def _thinned(by_update: dict[tuple[int, int], list[dict[str, Any]]], num_runs: int) -> list[tuple[int, int]]:
    """Return the runs and updates whose episodes fit on the page.

    Each run has an equal part of the page. Its first and its last update are kept, and those between them
    are at equal distances.
    """
    kept = []
    for place in range(num_runs):
        keys = sorted(key for key in by_update if key[0] == place)
        size = sum(len(json.dumps(row)) for key in keys for row in by_update[key])
        stride = max(1, -(-size * num_runs // MAX_BYTES))
        chosen = {*keys[::stride], *keys[-1:]}
        kept += [key for key in keys if key in chosen]
    return kept


def _problem(row: Row, problems: _Table) -> int:
    name, prompt = str(row.get("problem", row.get("id", ""))), shown(row.get("prompt", ""))
    answer = shown(row.get("answer", ""))
    return problems.index(
        f"{name}\0{prompt}", {"id": shown(name, MAX_TOKEN), "prompt": prompt, "answer": answer}
    )


def _episode(row: Row, place: int, problems: _Table, texts: _Table) -> dict[str, Any]:
    tokens = row.get("tokens") or []
    episode = {
        "run": place,
        "update": row["update"],
        "problem": _problem(row, problems),
        "correct": bool(row.get("correct")),
        "reason": shown(row.get("reason", "")),
        "extracted": shown(row.get("extracted") or "", 200),
        "terminated": bool(row.get("terminated")),
        "reward": rounded(row.get("reward")),
        "rewards": {shown(name, 200): rounded(value) for name, value in row.get("rewards", {}).items()},
        "failure": shown(row["failure"], 500) if row.get("failure") else None,
    }
    if not tokens:
        return {**episode, "text": shown(row.get("completion", ""))}
    episode["tokens"] = [texts.index(token, shown(token, MAX_TOKEN)) for token in tokens[:MAX_TOKENS]]
    if len(tokens) > MAX_TOKENS:
        episode["num_tokens"] = len(tokens)
    for column, name in TOKEN_VALUES.items():
        if values := row.get(column):
            episode[name] = _compact([rounded(value, 3) for value in values[:MAX_TOKENS]])
    return episode


def _compact(values: list[float | None]) -> list[float | None] | float | None:
    """Return the values, or a single number if all of them are equal."""
    return values[0] if len(set(values)) == 1 else values


def _answers(run: RecordedRun, place: int, problems: _Table) -> Iterator[dict[str, Any]]:
    """Yield the first answer to each tracked problem at each evaluation."""
    for row in run.answers:
        if row.get("index", NUM_TRACKED) >= NUM_TRACKED or not row.get("completions"):
            continue
        answer = row["completions"][0]
        yield {
            "run": place,
            "update": row["update"],
            "decoding": shown(row.get("decoding", "")),
            "problem": _problem(row, problems),
            "correct": bool(answer.get("correct")),
            "reason": shown(answer.get("reason", "")),
            "extracted": shown(answer.get("extracted") or "", 200),
            "terminated": bool(answer.get("terminated")),
            "text": shown(answer.get("text", "")),
        }
