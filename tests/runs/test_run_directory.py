"""Tests of run directories: only files of a run are deleted, and all lines of logs are valid JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_reinforce.errors import InputError
from llm_reinforce.runs import RunDirectory, environment
from llm_reinforce.runs.run_directory import OWN_NAMES


def contents(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Return the directory of an earlier run."""
    directory = RunDirectory(tmp_path / "run")
    for name in ("checkpoints/update-000001", "policy"):
        (directory.path / name).mkdir(parents=True)
        (directory.path / name / "model.safetensors").write_text("weights")
    for name in OWN_NAMES:
        if not (directory.path / name).exists():
            (directory.path / name).write_text("old\n")
    return directory


def refusal(directory: RunDirectory, *, resume: bool = False, overwrite: bool = False) -> str:
    """Return the error message of `check` and `prepare`, which must not change the directory."""
    is_directory = directory.path.is_dir()
    before = contents(directory.path) if is_directory else None
    for method in (directory.check, directory.prepare):
        with pytest.raises(InputError) as caught:
            method(resume=resume, overwrite=overwrite)
    assert directory.path.is_dir() == is_directory
    assert (contents(directory.path) if is_directory else None) == before
    assert str(directory.path) in str(caught.value)
    return str(caught.value)


def test_a_new_directory_is_created_with_its_parents(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a" / "b" / "run")
    directory.check(resume=False, overwrite=False)
    assert not (tmp_path / "a").exists()
    directory.prepare(resume=False, overwrite=False)
    assert contents(directory.path) == {}
    directory.prepare(resume=False, overwrite=False)  # an empty directory is accepted


def test_directory_without_a_run_cannot_be_resumed_or_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        message = refusal(RunDirectory(tmp_path), overwrite=overwrite)
        assert "files not written by a run (mine.txt)" in message
        assert "resume" not in message


def test_existing_files_are_not_overwritten(run: RunDirectory) -> None:
    message = refusal(run)
    for way_out in ("--resume", "--overwrite", "another output_dir"):
        assert way_out in message


def test_overwriting_removes_the_earlier_run(run: RunDirectory) -> None:
    (run.path / "metrics.jsonl.partial").write_text("half")
    run.prepare(resume=False, overwrite=True)
    assert list(run.path.iterdir()) == []


@pytest.mark.parametrize("foreign", ["thesis.tex", ".git", "policy.txt", "metrics.jsonl.bak"])
def test_overwriting_refuses_files_not_written_by_a_run(run: RunDirectory, foreign: str) -> None:
    (run.path / foreign).write_text("mine")
    assert foreign in refusal(run, overwrite=True)


def test_overwriting_does_not_follow_links(run: RunDirectory, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    (run.path / "policy" / "model.safetensors").unlink()
    (run.path / "policy").rmdir()
    (run.path / "policy").symlink_to(precious)
    run.prepare(resume=False, overwrite=True)
    assert contents(precious) == {"file": "mine"}
    assert list(run.path.iterdir()) == []


def test_resuming_changes_no_files(run: RunDirectory) -> None:
    before = contents(run.path)
    (run.path / "notes.txt").write_text("mine")
    run.prepare(resume=True, overwrite=False)
    assert contents(run.path) == {**before, "notes.txt": "mine"}


@pytest.mark.parametrize("exists", [False, True])
def test_resuming_without_a_run_is_rejected(tmp_path: Path, exists: bool) -> None:
    directory = RunDirectory(tmp_path / "run")
    if exists:
        directory.path.mkdir()
        (directory.path / "notes.txt").write_text("mine")
    assert "nothing to resume" in refusal(directory, resume=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_dir_that_is_a_file_is_rejected(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "run").write_text("mine")
    assert "is a file; choose another" in refusal(RunDirectory(tmp_path / "run"), overwrite=overwrite)
    assert (tmp_path / "run").read_text() == "mine"


def test_an_output_dir_below_a_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "can't be written to" in refusal(RunDirectory(tmp_path / "file" / "run"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_dir_that_cannot_be_written_to_is_rejected(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "can't be written to" in refusal(RunDirectory(tmp_path / "run"))
    finally:
        tmp_path.chmod(0o700)


# ------------------------------------------------------------------------------------------- logs


def rows(directory: RunDirectory, name: str = "metrics.jsonl") -> list[dict[str, object]]:
    text = (directory.path / name).read_text("utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


@pytest.fixture
def logs(tmp_path: Path) -> RunDirectory:
    """Return logs of three updates with two episodes each, and of evaluations at updates 0 and 2."""
    directory = RunDirectory(tmp_path)
    for update in (1, 2, 3):
        directory.append("metrics.jsonl", {"update": update, "reward": update / 3})
        for completion in ("é\u2028", "∇\n"):
            directory.append("episodes.jsonl", {"update": update, "completion": completion})
    for update in (0, 2):
        directory.append("evaluations.jsonl", {"update": update})
    return directory


def test_appended_lines_are_flushed(logs: RunDirectory) -> None:
    assert rows(logs)[0] == {"update": 1, "reward": 1 / 3}  # floats are exact
    assert [row["completion"] for row in rows(logs, "episodes.jsonl")] == ["é\u2028", "∇\n"] * 3


def test_unpaired_surrogates_are_written(logs: RunDirectory) -> None:
    logs.append("episodes.jsonl", {"update": 4, "failure": "\ud800"})  # the text of a user's exception
    assert rows(logs, "episodes.jsonl")[-1] == {"update": 4, "failure": "\ud800"}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_null(logs: RunDirectory, number: float) -> None:
    logs.append("metrics.jsonl", {"update": 4, "grad_norm": number})
    assert rows(logs)[-1] == {"update": 4, "grad_norm": None}


@pytest.mark.parametrize("num_updates", [-1, 0, 1, 2, 3, 9])
def test_lines_of_later_updates_are_removed(logs: RunDirectory, num_updates: int) -> None:
    before = {name: rows(logs, name) for name in ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl")}
    logs.cut_logs(num_updates)
    for name, lines in before.items():
        assert rows(logs, name) == [line for line in lines if line["update"] <= num_updates]  # type: ignore[operator]


def test_lines_of_an_evaluation_that_is_made_again_are_removed(logs: RunDirectory) -> None:
    made = [
        {"update": update, "decoding": decoding} for update in (0, 2) for decoding in ("greedy", "sampled")
    ]
    for row in made:
        logs.append("answers.jsonl", row)
    logs.cut_logs(2, ["sampled"])
    assert rows(logs, "answers.jsonl") == made[:3]


@pytest.mark.parametrize(
    "torn", [b'{"update": 3, "comp', b'{"update": 3, "completion": "\xe2\x88', b"\0\0\0\0", b"\n", b"3"]
)
def test_an_incomplete_last_line_is_removed(logs: RunDirectory, torn: bytes) -> None:
    before = rows(logs, "episodes.jsonl")
    with (logs.path / "episodes.jsonl").open("ab") as file:
        file.write(torn)
    logs.cut_logs(3)
    assert rows(logs, "episodes.jsonl") == before
    logs.append("episodes.jsonl", {"update": 4})
    assert rows(logs, "episodes.jsonl") == [*before, {"update": 4}]


def test_a_complete_last_line_without_newline_is_kept(logs: RunDirectory) -> None:
    file = logs.path / "metrics.jsonl"
    before = rows(logs)
    file.write_bytes(file.read_bytes()[:-1])
    logs.cut_logs(3)
    assert rows(logs) == before


def test_cutting_logs_creates_no_files(tmp_path: Path) -> None:
    RunDirectory(tmp_path).cut_logs(3)
    assert list(tmp_path.iterdir()) == []


def test_text_files_are_replaced(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_text("recipe.yaml", "é: 1\n")
    directory.write_text("recipe.yaml", "é: 2\n")
    assert contents(tmp_path) == {"recipe.yaml": "é: 2\n"}


def test_the_environment_can_be_written_as_json() -> None:
    values = json.loads(json.dumps(environment(seed=3, device="cpu")))
    assert (values["seed"], values["device"]) == (3, "cpu")
    assert "torch" in values["versions"]
    assert values["versions"]["torch"] != "unknown"


def test_only_complete_lines_of_a_log_are_read(run: RunDirectory) -> None:
    (run.path / "answers.jsonl").write_text('{"update": 0}\n{"update": 1}\n{"upd', encoding="utf-8")
    assert run.rows("answers.jsonl") == [{"update": 0}, {"update": 1}]
    assert run.rows("nothing.jsonl") == []


def test_secrets_are_replaced_in_text_only(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORT_KEY", "accuracy")
    monkeypatch.setenv("NUMBER_TOKEN", "12345678")
    monkeypatch.setenv("QUOTED_TOKEN", 'abcd"efgh\\ij')
    texts = ["no accuracy, 12345678", 'abcd"efgh\\ij']
    row = {"accuracy": 12345678, "failures": [{"accuracy": texts[0]}, texts[1]]}
    run.append("metrics.jsonl", row)
    said = {"accuracy": "no <SORT_KEY>, <NUMBER_TOKEN>"}
    expected = {"accuracy": 12345678, "failures": [said, "<QUOTED_TOKEN>"]}
    assert run.rows("metrics.jsonl")[-1] == expected


def test_only_one_run_may_use_a_directory(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory.locked():
        directory.prepare(resume=False, overwrite=False)  # the lock does not count as an earlier run
        with pytest.raises(InputError, match=r"another run is writing to this directory"), directory.locked():
            raise AssertionError("the lock was acquired twice")
        directory.write_text("recipe.yaml", "seed: 0\n")
    with directory.locked():
        directory.prepare(resume=False, overwrite=True)
    assert not (directory.path / "recipe.yaml").exists()


def test_a_lock_is_released_when_its_process_dies(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    holds = (
        "import sys, time; from pathlib import Path; from llm_reinforce.runs import RunDirectory\n"
        f"with RunDirectory(Path({str(directory.path)!r})).locked():\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another run"), directory.locked():
            raise AssertionError("the lock was acquired twice")
    finally:
        holder.kill()
        holder.wait()
    with directory.locked():
        pass


def test_a_run_killed_before_its_recipe_was_written_can_be_resumed(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory.locked():
        directory.write_text("environment.json", "{}")
    (directory.path / "recipe.yaml.partial").write_text("see")
    directory.check(resume=True, overwrite=False)
    (directory.path / "thesis.txt").write_text("mine")
    assert "nothing to resume" in refusal(directory, resume=True)
