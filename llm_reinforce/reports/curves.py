"""Curves of a report: metrics and evaluations of runs, with a limited number of points."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from llm_reinforce.reports.recorded_run import RecordedRun, Row

MAX_POINTS = 1_000  # maximum number of points of a curve
MAX_POINTS_OF_RUNS = 6_000  # maximum number of points in all curves of one metric together


@dataclass(frozen=True, slots=True)
class Chart:
    """Chart of one or more metrics.

    Attributes:
        title: title of the chart.
        unit: unit of the vertical axis.
        metrics: patterns of the names in `metrics.jsonl`. With several runs, a chart shows only the first
            metric, one curve per run.
        has_evaluations: True if the chart also shows the accuracies in `evaluations.jsonl`.
        is_share: True if the values are between 0 and 1, and are shown in percent.
    """

    title: str
    unit: str
    metrics: tuple[str, ...]
    has_evaluations: bool = False
    is_share: bool = False


CHARTS = (
    Chart("Accuracy", "share of problems", ("accuracy",), has_evaluations=True, is_share=True),
    Chart("Reward", "mean over episodes", ("reward", "rewards/*/mean", "greedy/reward")),
    Chart("Entropy", "nats per token", ("entropy",)),
    Chart("Completion length", "tokens", ("completions/mean_length", "completions/max_length")),
    Chart("Truncated completions", "share of episodes", ("completions/clipped_ratio",), is_share=True),
    Chart(
        "Problems whose episodes have equal rewards",
        "share of problems",
        ("frac_reward_zero_std",),
        is_share=True,
    ),
    Chart("Unscored episodes", "episodes per update", ("num_unscored",)),
    Chart("Verdicts", "share of episodes", ("verdicts/*",), is_share=True),
    Chart("Gradient norm", "before clipping", ("grad_norm",)),
    Chart("KL divergence", "nats per token", ("kl", "kl/*")),
    Chart("Effective sample size", "share of episodes", ("importance/effective_sample_size",), is_share=True),
    Chart("Tokens sampled for refills", "tokens per batch", ("refill/num_tokens",)),
    Chart("Explained variance of the value head", "share of variance", ("value/explained_variance",)),
    Chart("Learning rate", "of the optimizer", ("learning_rate",)),
    Chart("Time of an update", "seconds", ("step_time", "step_time/collect", "step_time/update")),
)


def run_curves(run: RecordedRun, num_runs: int) -> dict[str, Any]:
    """Return the curves of a run as JSON values.

    Args:
        run: the run.
        num_runs: number of runs on the page. With many runs, each curve has fewer points.

    Returns:
        a dict with these keys:

        - `name` and `variant`: see `RecordedRun`.
        - `x`: positions of the points on each horizontal axis (`update`, `tokens` and `minutes`).
        - `metrics`: for each metric of `CHARTS`, one value per point, which is null if it is missing.
        - `evaluations`: for each decoding mode, the positions of the evaluations on each axis, and their
          `accuracy`, `low` and `high`.
        - `mean_of`: number of successive updates that are averaged into one point of `metrics`.
    """
    width = max(1, math.ceil(len(run.metrics) / max(100, min(MAX_POINTS, MAX_POINTS_OF_RUNS // num_runs))))
    bins = [run.metrics[start : start + width] for start in range(0, len(run.metrics), width)]
    patterns = [pattern for chart in CHARTS for pattern in chart.metrics]
    names = {name for row in run.metrics for name in row if any(fnmatch(name, each) for each in patterns)}
    return {
        "name": run.name,
        "variant": run.variant,
        "mean_of": width,
        "x": _axes([part[-1] for part in bins], run.metrics),
        "metrics": {name: [_mean(part, name) for part in bins] for name in sorted(names)},
        "evaluations": _evaluations(run),
    }


def _evaluations(run: RecordedRun) -> dict[str, dict[str, list[Any]]]:
    rows_of: dict[str, list[Row]] = {}
    for row in run.evaluations:
        rows_of.setdefault(str(row["decoding"]), []).append(row)
    at_update = {row["update"]: row for row in run.metrics}
    curves = {}
    for decoding, rows in rows_of.items():
        when = [at_update.get(row["update"], {"update": row["update"]}) for row in rows]
        curves[decoding] = {
            **_axes(when, run.metrics),
            "accuracy": [rounded(row.get("accuracy")) for row in rows],
            "low": [rounded((row.get("interval") or [None, None])[0]) for row in rows],
            "high": [rounded((row.get("interval") or [None, None])[1]) for row in rows],
        }
    return curves


def _axes(rows: Sequence[Row], metrics: Sequence[Row]) -> dict[str, list[Any]]:
    """Return the positions of rows on each horizontal axis. The initial policy is at 0 on all axes."""
    begin = metrics[0]["wall_time"] - metrics[0].get("step_time", 0) if _has_time(metrics) else None
    return {
        "update": [row["update"] for row in rows],
        "tokens": [row.get("num_tokens", 0 if row["update"] == 0 else None) for row in rows],
        "minutes": [
            0
            if row["update"] == 0
            else rounded((row["wall_time"] - begin) / 60)
            if begin is not None and row.get("wall_time") is not None
            else None
            for row in rows
        ],
    }


def _has_time(metrics: Sequence[Row]) -> bool:
    return bool(metrics) and metrics[0].get("wall_time") is not None


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
    return rounded(sum(values) / len(values)) if values else None


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Round a number to `digits` significant digits. Return None for None, NaN and infinities."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def first_and_last(metrics: Sequence[Row]) -> list[tuple[str, float | None, float | None]]:
    """Return each metric's name and its values in the first and in the last update, sorted by name."""
    if not metrics:
        return []
    first, last = metrics[0], metrics[-1]
    names = sorted({*first, *last} - {"update", "wall_time"})
    return [(name, rounded(_number(first, name)), rounded(_number(last, name))) for name in names]


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else None
