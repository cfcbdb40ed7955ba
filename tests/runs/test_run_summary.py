"""Summaries of recorded runs."""

import json
from pathlib import Path

import pytest

from llm_reinforce.config import Config, DataConfig, PolicyConfig, ProblemsConfig, TrainingConfig, dump_config
from llm_reinforce.errors import InputError
from llm_reinforce.runs import RunDirectory, list_runs


def write_run(path: Path, *, num_updates: int, num_tokens: int | None = None) -> RunDirectory:
    """Write the files of a run that should make 4 updates and has made `num_updates`."""
    run = RunDirectory(path)
    path.mkdir(parents=True)
    config = Config(
        output_dir=str(path),
        policy=PolicyConfig(name_or_path="tiny"),
        problems=ProblemsConfig(train=DataConfig(data="sums.jsonl")),
        training=TrainingConfig(num_updates=4, num_tokens=num_tokens),
    )
    run.write_text("recipe.yaml", dump_config(config))
    run.write_text("environment.json", "{}")
    for update in range(1, num_updates + 1):
        run.append("metrics.jsonl", {"update": update, "num_tokens": 100 * update})
    for update, accuracy in ((0, 0.25), (num_updates, 0.75)):
        run.append("evaluations.jsonl", {"update": update, "decoding": "greedy", "accuracy": accuracy})
    return run


def test_state_and_result_of_each_run(tmp_path: Path) -> None:
    write_run(tmp_path / "done", num_updates=4).policy.mkdir()
    write_run(tmp_path / "tokens_spent", num_updates=2, num_tokens=150).policy.mkdir()
    write_run(tmp_path / "tokens_left", num_updates=2, num_tokens=250)
    half = write_run(tmp_path / "group" / "half", num_updates=2)
    with (half.path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 3, "num_')  # killed while writing
    write_run(tmp_path / "grown", num_updates=3).policy.mkdir()  # resumed with more updates, then stopped
    (tmp_path / "not_a_run").mkdir()
    (tmp_path / "not_a_run" / "recipe.yaml").write_text("seed: 1")

    found = {run.path.name: run for run in list_runs(tmp_path)}

    assert {name: run.state for name, run in found.items()} == {
        "done": "finished",
        "tokens_spent": "finished",
        "tokens_left": "stopped",
        "half": "stopped",
        "grown": "stopped",
    }
    assert (found["half"].num_updates, found["half"].max_updates) == (2, 4)
    assert (found["tokens_spent"].num_updates, found["tokens_spent"].max_updates) == (2, 2)
    assert (found["tokens_left"].num_updates, found["tokens_left"].max_updates) == (2, 3)  # 100 tokens each
    assert found["half"].accuracies == {"greedy": (0.25, 0.75)}


def test_run_whose_lock_is_held_is_running(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", num_updates=1)
    with run.locked():
        assert [each.state for each in list_runs(tmp_path)] == ["running"]
    assert [each.state for each in list_runs(tmp_path)] == ["stopped"]


def test_unreadable_runs_are_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", num_updates=1)
    run.write_text("recipe.yaml", "sed: 1")
    other = write_run(tmp_path / "other", num_updates=1)
    other.append("evaluations.jsonl", {"update": json.loads("1")})
    assert [each.state for each in list_runs(tmp_path)] == ["unreadable", "unreadable"]


def test_missing_directory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        list_runs(tmp_path / "runs")
    assert list_runs(tmp_path) == []
