"""State and result of recorded runs, read from their files without importing torch."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from llm_reinforce.config import load_config
from llm_reinforce.errors import InputError
from llm_reinforce.runs.run_directory import LOCK, RunDirectory

State = Literal["finished", "running", "stopped", "unreadable"]
TAIL = 1 << 16  # bytes read from the end of metrics.jsonl; a row has about 2,000


@dataclass(frozen=True, slots=True)
class RunSummary:
    """State and result of a run.

    Attributes:
        path: directory of the run.
        state: "unreadable" if the recipe or the logs cannot be read; "running" if a process holds the run's
            lock; "finished" if the last update was made and the policy was saved; "stopped" in all other
            cases.
        num_updates: number of updates made so far.
        max_updates: expected number of updates of the whole run, which for a finished run is `num_updates`.
            With a token budget, it is estimated from the tokens of the updates so far.
        accuracies: for each decoding mode, the accuracies of the first and of the last evaluation, in 0..1.
        last_change: time of the last change of metrics.jsonl or recipe.yaml, in seconds since 1970.
    """

    path: Path
    state: State
    num_updates: int
    max_updates: int
    accuracies: Mapping[str, tuple[float, float]]
    last_change: float


def list_runs(directory: str | Path = "runs") -> list[RunSummary]:
    """Return a summary of each run in a directory and its subdirectories, sorted by last change.

    Raises:
        InputError: if the directory does not exist.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise InputError(f"{root}: no such directory; give the directory that contains the runs")
    found = []
    for folder, subfolders, files in os.walk(root):
        if "recipe.yaml" in files and "environment.json" in files:
            found.append(summarize_run(Path(folder)))
            subfolders.clear()  # the directory of a run contains no other runs
    return sorted(found, key=lambda run: run.last_change)


def summarize_run(path: Path) -> RunSummary:
    """Return the state and the result of the run in the directory `path`, which contains a `recipe.yaml`."""
    run = RunDirectory(path)
    metrics = path / "metrics.jsonl"
    last_change = (metrics if metrics.is_file() else path / "recipe.yaml").stat().st_mtime
    try:
        config = load_config(path)
        training = config.training
        last = _last_row(metrics)
        num_updates, num_tokens = int(last.get("update", 0)), int(last.get("num_tokens", 0))
        first_and_last: dict[str, tuple[float, float]] = {}
        reached = 0.0  # maximum of the lower limit of the accuracy's 95% interval
        for row in run.rows("evaluations.jsonl"):
            first = first_and_last.get(row["decoding"], (row["accuracy"],))[0]
            first_and_last[row["decoding"]] = (first, row["accuracy"])
            if row["decoding"] == config.evaluation.decodings[0] and "interval" in row:
                reached = max(reached, row["interval"][0])
    except (InputError, OSError, KeyError, TypeError, ValueError):
        return RunSummary(path, "unreadable", 0, 0, {}, last_change)
    max_updates = config.reinforce.in_whole_batches(training.expected_updates(num_updates, num_tokens))
    is_reached = training.stop_at is not None and reached >= training.stop_at
    is_over = (num_updates >= max_updates or is_reached) and run.policy.is_dir()
    state: State = "running" if _is_locked(path) else "finished" if is_over else "stopped"
    if state == "finished":
        max_updates = num_updates
    return RunSummary(path, state, num_updates, max_updates, first_and_last, last_change)


def _last_row(file: Path) -> dict[str, Any]:
    """Return the last complete row of a JSONL file, or {} if there is none."""
    if not file.is_file():
        return {}
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - TAIL))
        lines = opened.read().split(b"\n")
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a killed run may be incomplete
            continue
        if isinstance(row, dict):
            return row
    return {}


def _is_locked(path: Path) -> bool:
    lock = path / LOCK
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # no permission to open the lock file: the run belongs to another user
        return False
