"""Headline of a report: what was trained, the accuracy before and after training, and the cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_reinforce.config import WarmStartConfig
from llm_reinforce.console.text import accuracy_title, duration, shown_accuracy
from llm_reinforce.reports.recorded_run import RecordedRun, Row
from llm_reinforce.reports.shown_text import shown


@dataclass(frozen=True, slots=True)
class Result:
    """Accuracy before and after training.

    Attributes:
        decoding: "greedy" or "sampled".
        title: what was measured, such as "held-out accuracy".
        before: accuracy of the first evaluation with its 95% interval, such as "13.8% [11.1, 17.2]".
        after: accuracy of the last evaluation with its 95% interval.
        last_update: number of updates before the last evaluation.
        gain: difference of the two accuracies, in percentage points.
    """

    decoding: str
    title: str
    before: str
    after: str
    last_update: int
    gain: float


@dataclass(frozen=True, slots=True)
class Headline:
    """Summary of a run.

    Attributes:
        name: name of the run on the page.
        state: "finished", "running", "stopped" or "unreadable".
        facts: rows of a table, as a dict from the name of a row to its value.
        results: one item per decoding mode.
    """

    name: str
    state: str
    facts: dict[str, str]
    results: list[Result]

    @property
    def text(self) -> str:
        """The number of updates, and the accuracies before and after training, in one line."""
        results = [
            f"{each.title}, {each.decoding}: {each.before} → {each.after} after {each.last_update:,} updates"
            for each in self.results
        ]
        return "; ".join([f"{self.state}, {self.facts['Updates']} updates", *results])


def headline(run: RecordedRun) -> Headline:
    """Return the summary of a run."""
    results = _results(run.evaluations)
    seconds, num_tokens = _cost(run.metrics, run.summary.num_updates)
    facts = {
        **_task(run.settings),
        "Updates": f"{run.summary.num_updates:,} of {run.summary.max_updates:,}",
        "Sampled tokens": f"{num_tokens:,}",
        "Time of the updates": duration(seconds),
    }
    if results and results[0].gain > 0:
        seconds, num_tokens = _cost(run.metrics, results[0].last_update)
        facts[f"Cost per percentage point gained ({results[0].decoding})"] = (
            f"{num_tokens / results[0].gain:,.0f} sampled tokens, {seconds / results[0].gain:,.1f} seconds"
        )
    return Headline(
        run.name, run.summary.state, {name: shown(text, 300) for name, text in facts.items()}, results
    )


def _cost(metrics: list[Row], num_updates: int) -> tuple[float, int]:
    """Return the seconds and the number of sampled tokens of the first `num_updates` updates."""
    rows = [row for row in metrics if row["update"] <= num_updates]
    num_tokens = rows[-1].get("num_tokens", 0) if rows else 0
    return sum(row.get("step_time") or 0.0 for row in rows), num_tokens


def _results(evaluations: list[Row]) -> list[Result]:
    first: dict[str, Row] = {}
    last: dict[str, Row] = {}
    for row in evaluations:
        first.setdefault(row["decoding"], row)
        last[row["decoding"]] = row
    return [
        Result(
            shown(decoding),
            accuracy_title(row.get("data", "held_out")),
            shown_accuracy(first[decoding]["accuracy"], first[decoding]["interval"]),
            shown_accuracy(row["accuracy"], row["interval"]),
            row["update"],
            100 * (row["accuracy"] - first[decoding]["accuracy"]),
        )
        for decoding, row in last.items()
    ]


def _task(settings: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the problems, the policy, the rewards, the warm start and the baseline of a recipe."""
    if settings is None:
        return {}
    try:
        problems, policy = settings["problems"], settings["policy"]
        generated = problems.get("generate")
        data = (
            f"generated: {', '.join(generated['operations'])}"
            if generated
            else (problems.get("train") or {}).get("data", "given in Python")
        )
        name = policy.get("name_or_path")
        warm_start = settings["training"].get("warm_start")
        return {
            "Problems": str(data),
            "Policy": (Path(name).name if Path(name).is_absolute() else name) if name else "random weights",
            "Rewards": ", ".join(f"{each['function']} × {each['weight']:g}" for each in settings["rewards"]),
            **({"Warm start": WarmStartConfig.model_validate(warm_start).summary} if warm_start else {}),
            "Baseline": str(settings["reinforce"]["baseline"]),
        }
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}  # the recipe was changed by hand; the page still lists its settings
