"""Episodes of a report: sampled completions with the recorded values of each token, up to a limited size."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from llm_reinforce.reports.curves import rounded
from llm_reinforce.reports.recorded_run import RecordedRun, Row, total_reward
from llm_reinforce.reports.shown_text import MAX_TOKEN, shown

MAX_BYTES = 2_500_000  # approximate maximum size of all episodes on a page, as JSON
EPISODE_BYTES, TOKEN_BYTES = 300, 30  # approximate size of an episode, and of each of its tokens
MAX_TOKENS = 2_000  # maximum number of tokens shown of a completion
NUM_TRACKED = 20  # number of problems whose answers are recorded at every evaluation

# for each value of a token, its name in episodes.jsonl and its name on the page
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

    def index(self, key: str, value: Callable[[], Any]) -> int:
        """Return the index of the value with this key. If the key is new, add the value."""
        if key not in self._index:
            self._index[key] = len(self.values)
            self.values.append(value())
        return self._index[key]


def episodes_data(runs: Sequence[RecordedRun]) -> dict[str, Any]:
    """Return the episodes of runs, and the answers to the tracked held-out problems, as JSON values.

    Returns:
        a dict with these keys:

        - `problems` and `texts`: lists of problems and of token texts, to which the rows refer by index.
        - `rows`: one item per episode or answer.
        - `num_updates`: number of updates whose episodes were recorded.
        - `num_shown`: number of updates whose episodes are on the page.
    """
    problems, texts = _Table(), _Table()
    rows: list[dict[str, Any]] = []
    num_updates = num_shown = 0
    for place, run in enumerate(runs):
        kept = _thinned(run.episodes, MAX_BYTES // len(runs))
        rows += [_episode(row, place, problems, texts) for row in run.episodes if row["update"] in kept]
        rows += _answers(run, place, problems)
        num_updates += run.num_episode_updates
        num_shown += len(kept)
    return {
        "problems": problems.values,
        "texts": texts.values,
        "rows": rows,
        "num_updates": num_updates,
        "num_shown": num_shown,
    }


def _thinned(episodes: Sequence[Row], max_bytes: int) -> set[int]:
    """Select updates whose episodes take at most about `max_bytes` bytes, and return their numbers.

    These are the first update, the last update, and evenly spaced updates between them.
    """
    updates = sorted({row["update"] for row in episodes})
    size = sum(EPISODE_BYTES + TOKEN_BYTES * len(row.get("tokens") or []) for row in episodes)
    stride = max(1, -(-size // max_bytes))
    return {*updates[::stride], *updates[-1:]}


def _problem(row: Row, problems: _Table) -> int:
    name, prompt = str(row.get("problem", row.get("id", ""))), str(row.get("prompt", ""))
    return problems.index(
        f"{name}\0{prompt}",
        lambda: {
            "id": shown(name, MAX_TOKEN),
            "prompt": shown(prompt),
            "answer": shown(row.get("answer") or ""),
        },
    )


def _episode(row: Row, place: int, problems: _Table, texts: _Table) -> dict[str, Any]:
    tokens = row.get("tokens") or []
    episode = {
        "run": place,
        "update": row["update"],
        "problem": _problem(row, problems),
        "correct": row.get("correct"),  # None: the problem has no reference answer
        "reason": shown(row.get("reason") or ""),
        "extracted": shown(row.get("extracted") or "", 200),
        "terminated": bool(row.get("terminated")),
        "reward": rounded(total_reward(row)),
        "rewards": {shown(name, 200): rounded(value) for name, value in row.get("rewards", {}).items()},
        "failure": shown(row["failure"], 500) if row.get("failure") else None,
    }
    if not tokens:
        return {**episode, "text": shown(row.get("completion", ""))}
    episode["tokens"] = [
        texts.index(token, partial(shown, token, MAX_TOKEN)) for token in tokens[:MAX_TOKENS]
    ]
    if len(tokens) > MAX_TOKENS:
        episode["num_tokens"] = len(tokens)
    for column, name in TOKEN_VALUES.items():
        if values := row.get(column):
            episode[name] = _compact([rounded(value, 3) for value in values[:MAX_TOKENS]])
    return episode


def _compact(values: list[float | None]) -> list[float | None] | float | None:
    """Return `values[0]` if all values are equal, and `values` otherwise."""
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
