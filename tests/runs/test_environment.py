"""Tests of the record of a run in `environment.json`."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_reinforce.problems import Problem
from llm_reinforce.rewards.plug_in import load_reward
from llm_reinforce.rewards.source_texts import describe_reward
from llm_reinforce.runs import RunDirectory, environment
from llm_reinforce.runs.environment import changed_by, changes, differences
from llm_reinforce.training.run_record import digest_of, write_record


def test_changes_can_be_applied_again() -> None:
    before = {"a": 1, "b": {"c": 2, "d": 3}, "e": [4]}
    now = {"a": 1, "b": {"c": 5}, "f": 6}
    assert changes(before, now) == {"b": {"c": 5, "d": None}, "f": 6, "e": None}
    assert changed_by(before, changes(before, now)) == now
    assert changes(now, now) == {}


def test_environment_describes_the_start_and_the_machine() -> None:
    here = environment(3, "cpu", 2)
    assert (here["seed"], here["device"], here["num_processes"]) == (3, "cpu", 2)
    assert here["cpu"]
    assert here["working_directory"] == str(Path.cwd())
    assert here["started"].endswith("+00:00")
    assert here["command"]
    json.dumps(here)


def test_differences_are_named() -> None:
    before = environment(0, "cpu")
    now = {**before, "started": "later", "cpu": "other", "versions": {**before["versions"], "torch": "9"}}
    assert differences(before, before) == []
    lines = differences(before, now)
    assert [line.partition(" (")[0] for line in lines] == ["cpu", "versions.torch"]
    assert differences({"seed": 0}, now) == []  # an earlier version of the toolkit recorded less


def test_resumed_run_records_what_differs(tmp_path: Path) -> None:
    said: list[str] = []
    here: dict[str, Any] = {**environment(0, "cpu"), "data": {"training": {"sha256": "a"}}}
    directory = RunDirectory(tmp_path)
    write_record(directory, here, said.append)
    write_record(directory, {**here, "started": "later"}, said.append)
    assert said == []
    write_record(directory, {**here, "started": "x", "data": {"training": {"sha256": "b"}}}, said.append)
    (note,) = said
    assert "data.training (its contents have changed)" in note
    whole = json.loads((tmp_path / "environment.json").read_text())
    assert whole["resumed"] == [
        {"started": "later"},
        {"started": "x", "data": {"training": {"sha256": "b"}}},
    ]


def test_source_of_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def reward(completion, problem):\n    return 1.0\n")
    name = f"{file}:reward"
    first = describe_reward(name, load_reward(name).function)
    assert (first["source"], first["file"]) == (file.read_text(), str(file))
    file.write_text(file.read_text().replace("1.0", "2.0"))
    assert describe_reward(name, load_reward(name).function)["sha256"] != first["sha256"]

    def local(completion: str, problem: Problem) -> float:
        return 0.25

    assert "return 0.25" in describe_reward("python:local", local)["source"]
    assert describe_reward("correct_answer", load_reward("correct_answer").function) == {
        "function": "correct_answer"
    }


def test_digest_of_problems() -> None:
    one, other = Problem("1+1=", "2", id="a"), Problem("1+2=", "3", id="b")
    assert digest_of([one, other]) == digest_of([one, other])
    digests = {digest_of(each)["sha256"] for each in ([one, other], [other, one], [one], [])}
    assert len(digests) == 4
