"""Everything that a run has recorded, without the values of secret environment variables."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm_reinforce.errors import InputError, texts_without_secrets, without_secrets
from llm_reinforce.runs import RunDirectory, RunSummary, list_runs, summarize_run

Row = Mapping[str, Any]

# maximum number of bytes read from episodes.jsonl; in memory, episodes take up several times as much
MAX_BYTES = 50_000_000
_UPDATE = re.compile(rb'\{"update": ([0-9]+)')  # the beginning of each line of episodes.jsonl


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """Files of a run, as JSON values.

    Attributes:
        name: short name that distinguishes the run from the other runs of a report.
        variant: for a run of `compare`, the name of its variant, which it shares with the runs that differ
            only in the seed. For any other run, `name`. The curves of a variant have one color.
        summary: state and progress of the run.
        settings: content of `recipe.yaml`; None if it cannot be read.
        environment: content of `environment.json`.
        metrics: rows of `metrics.jsonl`.
        evaluations: rows of `evaluations.jsonl`.
        answers: rows of `answers.jsonl`.
        episodes: rows of `episodes.jsonl`. If the file is large, only the episodes of evenly spaced updates
            are read.
        num_episode_updates: number of updates in `episodes.jsonl`.
        comparison: content of `comparison.json`; empty if the run has not ended.
        variance: content of `variance.json`; empty if there is no such file. `llm-reinforce variance` writes
            the file if its option `--output` is the directory of the run.
    """

    name: str
    variant: str
    summary: RunSummary
    settings: Mapping[str, Any] | None
    environment: Mapping[str, Any]
    metrics: list[Row]
    evaluations: list[Row]
    answers: list[Row]
    episodes: list[Row]
    num_episode_updates: int
    comparison: Mapping[str, Any]
    variance: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """Directory of the run."""
        return self.summary.path


def total_reward(episode: Row) -> float | None:
    """Return the sum of the terminal and the step rewards of an episode; None if the episode is unscored.

    Args:
        episode: a row of `episodes.jsonl`.
    """
    terminal = episode.get("reward")
    return None if terminal is None else terminal + sum(episode.get("step_rewards") or ())


def find_runs(paths: list[Path]) -> list[RunSummary]:
    """Return the runs in the given directories, each of which is the directory of a run or contains runs.

    Raises:
        InputError: if a directory does not exist or contains no run.
    """
    found: dict[Path, RunSummary] = {}
    for path in paths:
        runs = [summarize_run(path)] if (path / "recipe.yaml").is_file() else list_runs(path)
        if not runs:
            raise InputError(
                f"{path}: this directory contains no run; give the output directory of a run or of `compare`"
            )
        found |= {run.path.resolve(): run for run in sorted(runs, key=lambda run: run.path)}
    return list(found.values())


def read_run(summary: RunSummary, name: str) -> RecordedRun:
    """Read the files of a run. A file that the run has not written is read as empty."""
    directory = RunDirectory(summary.path)
    episodes, num_episode_updates = _episodes(summary.path / "episodes.jsonl")
    is_seed = summary.path.name.startswith("seed-")  # `compare` writes VARIANT/seed-N
    return RecordedRun(
        name=name,
        variant=summary.path.parent.name if is_seed else name,
        summary=summary,
        settings=_recipe(summary.path / "recipe.yaml"),
        environment=_mapping(summary.path / "environment.json"),
        metrics=_rows(directory, "metrics.jsonl"),
        evaluations=_rows(directory, "evaluations.jsonl"),
        answers=_rows(directory, "answers.jsonl"),
        episodes=episodes,
        num_episode_updates=num_episode_updates,
        comparison=_mapping(summary.path / "comparison.json"),
        variance=_mapping(summary.path / "variance.json"),
    )


def _rows(directory: RunDirectory, name: str) -> list[Row]:
    rows: list[Row] = texts_without_secrets(directory.rows(name))
    return [row for row in rows if isinstance(row, dict) and "update" in row]


def _episodes(file: Path) -> tuple[list[Row], int]:
    """Return episodes of at most about `MAX_BYTES` bytes, and the number of updates in the whole file.

    If the file is larger, only the episodes of evenly spaced updates and of the last update are returned.
    """
    if not file.is_file():
        return [], 0
    with file.open("rb") as lines:
        updates = sorted({int(found[1]) for line in lines if (found := _UPDATE.match(line))})
    stride = max(1, -(-file.stat().st_size // MAX_BYTES))
    kept = {*updates[::stride], *updates[-1:]}
    rows = []
    with file.open("rb") as lines:
        for line in lines:
            if (found := _UPDATE.match(line)) and int(found[1]) in kept:
                with suppress(ValueError):  # the last line of a killed run may be incomplete
                    rows.append(json.loads(line.decode("utf-8", errors="replace")))
    return texts_without_secrets(rows), len(updates)


def _text(file: Path) -> str:
    return without_secrets(file.read_text("utf-8", errors="replace")) if file.is_file() else ""


def _recipe(file: Path) -> Mapping[str, Any] | None:
    try:
        value = yaml.safe_load(_text(file))
    except yaml.YAMLError:
        return None
    return value if isinstance(value, dict) else None


def _mapping(file: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file; empty if the file is missing or damaged."""
    try:
        value = json.loads(_text(file))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
