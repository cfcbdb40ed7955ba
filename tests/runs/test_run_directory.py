"""A run's directory: nobody's files are lost, and logs stay lines of JSON."""

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
    """The directory of an earlier run."""
    directory = RunDirectory(tmp_path / "run")
    for name in ("checkpoints/update-000001", "policy"):
        (directory.path / name).mkdir(parents=True)
        (directory.path / name / "model.safetensors").write_text("weights")
    for name in OWN_NAMES:
        if not (directory.path / name).exists():
            (directory.path / name).write_text("old\n")
    return directory


def refusal(directory: RunDirectory, *, resume: bool = False, overwrite: bool = False) -> str:
    """The message of a directory that won't do; nothing in it is touched, whichever way it is asked."""
    is_directory = directory.path.is_dir()
    before = contents(directory.path) if is_directory else None
    for ask in (directory.check, directory.prepare):
        with pytest.raises(InputError) as caught:
            ask(resume=resume, overwrite=overwrite)
    assert directory.path.is_dir() == is_directory
    assert (contents(directory.path) if is_directory else None) == before
    assert str(directory.path) in str(caught.value)
    return str(caught.value)


def test_a_new_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a" / "b" / "run")
    directory.check(resume=False, overwrite=False)
    assert not (tmp_path / "a").exists()
    directory.prepare(resume=False, overwrite=False)
    assert contents(directory.path) == {}
    directory.prepare(resume=False, overwrite=False)  # an empty one will do


def test_what_is_there_stays(run: RunDirectory) -> None:
    message = refusal(run)
    for way_out in ("--resume", "--overwrite", "another output_dir"):
        assert way_out in message


def test_overwriting_takes_the_earlier_run_away(run: RunDirectory) -> None:
    (run.path / "metrics.jsonl.partial").write_text("half")
    run.prepare(resume=False, overwrite=True)
    assert list(run.path.iterdir()) == []


@pytest.mark.parametrize("foreign", ["thesis.tex", ".git", "policy.txt", "metrics.jsonl.bak"])
def test_overwriting_refuses_what_is_no_runs(run: RunDirectory, foreign: str) -> None:
    (run.path / foreign).write_text("mine")
    assert foreign in refusal(run, overwrite=True)


def test_overwriting_follows_no_link(run: RunDirectory, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    (run.path / "policy" / "model.safetensors").unlink()
    (run.path / "policy").rmdir()
    (run.path / "policy").symlink_to(precious)
    run.prepare(resume=False, overwrite=True)
    assert contents(precious) == {"file": "mine"}
    assert list(run.path.iterdir()) == []


def test_resuming_touches_nothing(run: RunDirectory) -> None:
    before = contents(run.path)
    (run.path / "notes.txt").write_text("mine")
    run.prepare(resume=True, overwrite=False)
    assert contents(run.path) == {**before, "notes.txt": "mine"}


@pytest.mark.parametrize("is_there", [False, True])
def test_nothing_to_resume(tmp_path: Path, is_there: bool) -> None:
    directory = RunDirectory(tmp_path / "run")
    if is_there:
        directory.path.mkdir()
        (directory.path / "notes.txt").write_text("mine")
    assert "nothing to resume" in refusal(directory, resume=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_its_place(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "run").write_text("mine")
    assert "this is a file" in refusal(RunDirectory(tmp_path / "run"), overwrite=overwrite)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_file_for_a_parent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "can't be written to" in refusal(RunDirectory(tmp_path / "file" / "run"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_that_cannot_be_written_to(tmp_path: Path) -> None:
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
    """Three updates in metrics, two episodes an update, evaluations at 0 and 2."""
    directory = RunDirectory(tmp_path)
    for update in (1, 2, 3):
        directory.append("metrics.jsonl", {"update": update, "reward": update / 3})
        for completion in ("é\u2028", "∇\n"):
            directory.append("episodes.jsonl", {"update": update, "completion": completion})
    for update in (0, 2):
        directory.append("evaluations.jsonl", {"update": update})
    return directory


def test_a_line_is_there_at_once(logs: RunDirectory) -> None:
    assert rows(logs)[0] == {"update": 1, "reward": 1 / 3}  # floats come back as they were
    assert [row["completion"] for row in rows(logs, "episodes.jsonl")] == ["é\u2028", "∇\n"] * 3


def test_text_that_is_no_text_is_a_line_all_the_same(logs: RunDirectory) -> None:
    logs.append("episodes.jsonl", {"update": 4, "failure": "\ud800"})  # as a user's exception may say
    assert rows(logs, "episodes.jsonl")[-1] == {"update": 4, "failure": "\ud800"}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_lacks_is_null(logs: RunDirectory, number: float) -> None:
    logs.append("metrics.jsonl", {"update": 4, "grad_norm": number})
    assert rows(logs)[-1] == {"update": 4, "grad_norm": None}


@pytest.mark.parametrize("num_updates", [-1, 0, 1, 2, 3, 9])
def test_later_lines_are_cut(logs: RunDirectory, num_updates: int) -> None:
    before = {name: rows(logs, name) for name in ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl")}
    logs.cut_logs(num_updates)
    for name, lines in before.items():
        assert rows(logs, name) == [line for line in lines if line["update"] <= num_updates]  # type: ignore[operator]


@pytest.mark.parametrize(
    "torn", [b'{"update": 3, "comp', b'{"update": 3, "completion": "\xe2\x88', b"\0\0\0\0", b"\n", b"3"]
)
def test_a_torn_last_line_is_mended(logs: RunDirectory, torn: bytes) -> None:
    before = rows(logs, "episodes.jsonl")
    with (logs.path / "episodes.jsonl").open("ab") as file:
        file.write(torn)
    logs.cut_logs(3)
    assert rows(logs, "episodes.jsonl") == before
    logs.append("episodes.jsonl", {"update": 4})
    assert rows(logs, "episodes.jsonl") == [*before, {"update": 4}]


def test_a_last_line_without_its_end_is_kept(logs: RunDirectory) -> None:
    file = logs.path / "metrics.jsonl"
    before = rows(logs)
    file.write_bytes(file.read_bytes()[:-1])
    logs.cut_logs(3)
    assert rows(logs) == before


def test_cutting_makes_no_files(tmp_path: Path) -> None:
    RunDirectory(tmp_path).cut_logs(3)
    assert list(tmp_path.iterdir()) == []


def test_a_text_is_written_whole(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_text("recipe.yaml", "é: 1\n")
    directory.write_text("recipe.yaml", "é: 2\n")
    assert contents(tmp_path) == {"recipe.yaml": "é: 2\n"}


def test_the_environment_is_json() -> None:
    values = json.loads(json.dumps(environment(seed=3, device="cpu")))
    assert (values["seed"], values["device"]) == (3, "cpu")
    assert "torch" in values["versions"]
    assert values["versions"]["torch"] != "unknown"


def test_the_whole_lines_of_a_log(run: RunDirectory) -> None:
    (run.path / "answers.jsonl").write_text('{"update": 0}\n{"update": 1}\n{"upd', encoding="utf-8")
    assert run.rows("answers.jsonl") == [{"update": 0}, {"update": 1}]
    assert run.rows("nothing.jsonl") == []


def test_a_secret_is_replaced_in_texts_alone(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORT_KEY", "accuracy")
    monkeypatch.setenv("NUMBER_TOKEN", "12345678")
    monkeypatch.setenv("QUOTED_TOKEN", 'abcd"efgh\\ij')
    texts = ["no accuracy, 12345678", 'abcd"efgh\\ij']
    row = {"accuracy": 12345678, "failures": [{"accuracy": texts[0]}, texts[1]]}
    run.append("metrics.jsonl", row)
    said = {"accuracy": "no <SORT_KEY>, <NUMBER_TOKEN>"}
    expected = {"accuracy": 12345678, "failures": [said, "<QUOTED_TOKEN>"]}
    assert run.rows("metrics.jsonl")[-1] == expected


def test_one_run_a_directory(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory.locked():
        directory.prepare(resume=False, overwrite=False)  # the lock is no earlier run
        with pytest.raises(InputError, match=r"another run is writing there"), directory.locked():
            raise AssertionError("nobody gets here")
        directory.write_text("recipe.yaml", "seed: 0\n")
    with directory.locked():
        directory.prepare(resume=False, overwrite=True)
    assert not (directory.path / "recipe.yaml").exists()


def test_a_lock_goes_with_its_holder(tmp_path: Path) -> None:
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
            raise AssertionError("nobody gets here")
    finally:
        holder.kill()
        holder.wait()
    with directory.locked():
        pass


def test_a_run_killed_before_it_had_a_recipe_starts_anew_when_resumed(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory.locked():
        directory.write_text("environment.json", "{}")
    (directory.path / "recipe.yaml.partial").write_text("see")
    directory.check(resume=True, overwrite=False)
    (directory.path / "thesis.txt").write_text("mine")
    assert "nothing to resume" in refusal(directory, resume=True)
