"""The commands `variance` and `claims`, and the same measurements from Python."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llm_reinforce.analysis import (
    classifier_claim,
    gradient_statistics,
    gradient_variance,
    length_claim,
    measure_classifier_claim,
    measure_variance,
    measured_episodes,
    measured_recipe,
)
from llm_reinforce.cli import app
from llm_reinforce.config import load_config
from llm_reinforce.errors import InputError

RECIPE = """\
policy:
  random_init:
    {num_layers: 1, num_heads: 2, hidden_size: 8, intermediate_size: 16, max_length: 24,
     alphabet: "0123456789+="}
problems:
  generate: {digits: [1], form: "{expression}="}
  num_held_out: 10
rewards:
  - function: rewards.py:is_even
sampling: {max_new_tokens: 1}
reinforce: {problems_per_update: 8, episodes_per_problem: 2, standardize: true}
training: {num_updates: 2, learning_rate: 1e-3}
"""
REWARD = "def is_even(completion, problem):\n    return float(completion[:1] in set('02468'))\n"
REWARD += "\ndef same(completion, problem):\n    return 1.0\n"
REWARD += "\ndef broken(completion, problem):\n    raise ValueError('it is broken')\n"
REWARD += "\ndef huge(completion, problem):\n    return 1e30 * is_even(completion, problem)\n"


@pytest.fixture(scope="module", autouse=True)
def _short_measurements() -> Iterator[None]:
    """Shorten what the tests of the library check: fewer episodes and resamples, and no fitted values."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier_claim, "NUM_EPISODES", 200)
        patch.setattr(gradient_statistics, "NUM_RESAMPLES", 99)
        patch.setattr(measured_episodes, "fit_values", lambda *arguments, **settings: None)
        yield


@pytest.fixture(autouse=True)
def _temporary_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "rewards.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the recipe, for runs and measurements that the tests only read."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "rewards.py").write_text(REWARD)
    return folder


@pytest.fixture(scope="module")
def measured(folder: Path) -> dict[str, Any]:
    """The JSON that `variance tiny.yaml --problems 32 --output figures` prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = command("variance", "tiny.yaml", "--problems", "32", "--json", "--output", "figures")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """Directory of a finished run of the recipe."""
    trained = command("train", str(folder / "tiny.yaml"), "--set", f"output_dir={folder / 'run'}")
    assert trained.exit_code == 0, trained.output
    return folder / "run"


ROWS = ("whole return", "none", "leave_one_out", "greedy", "value", "optimal, exact", "this recipe")


def test_variance_writes_files(measured, folder):
    written = {file.name for file in (folder / "figures").iterdir()}
    assert {"variance.json", "variance.png", "variance.svg"} <= written
    assert json.loads((folder / "figures" / "variance.json").read_text()) == measured
    assert {each["name"] for each in measured["estimators"]} >= set(ROWS)
    assert not list(folder.glob("runs*"))  # nothing was trained


def test_variance_prints_a_table_and_its_progress(monkeypatch):
    reported = []
    monkeypatch.setattr(measured_recipe, "progress", recording_progress(reported))
    done = command("variance", "tiny.yaml", "--problems", "36")
    assert done.exit_code == 0, done.output
    for name in ROWS:
        assert f"\n{name} " in done.stdout
    assert "40 problems x 2 episodes" in done.stdout  # 36 are rounded up to five updates of eight
    assert reported[9] == 72 == max(reported)


def recording_progress(reported):
    @contextmanager
    def progress(*_, **__):
        yield reported.append

    return progress


def test_another_seed_gives_other_episodes(measured):
    other = json.loads(command("variance", "tiny.yaml", "--problems", "32", "--seed", "1", "--json").stdout)
    one, two = (each["estimators"][0]["variance"]["value"] for each in (measured, other))
    assert one != two


def test_sketch_is_reported_and_accurate(measured):
    whole = measured
    sketched = json.loads(
        command("variance", "tiny.yaml", "--problems", "32", "--sketch", "512", "--json").stdout
    )
    assert (whole["sketch_error"], sketched["sketch_error"]) == (0.0, pytest.approx((2 / 512) ** 0.5))
    for one, other in zip(whole["estimators"], sketched["estimators"], strict=True):
        assert other["variance"]["value"] == pytest.approx(one["variance"]["value"], rel=0.2)


def test_weights_of_a_run_replace_those_of_the_recipe(measured, run):
    at_run = command("variance", "tiny.yaml", "--policy", str(run), "--problems", "32", "--json")
    assert at_run.exit_code == 0, at_run.output
    assert json.loads(at_run.stdout) != measured


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "reinforce.baseline=none", "--set", "reinforce.episodes_per_problem=1"], "at least 2"),
        (["--set", "rewards=[{function: rewards.py:same}]"], "of the 32 problems have a nonzero gradient"),
        (["--set", "rewards=[{function: rewards.py:broken}]"], "no episode could be scored"),
        (["--policy", "nowhere"], "nowhere"),
        (["--set", "reinforce.baselin=none"], "baseline"),
    ],
)
def test_invalid_measurements_are_refused(arguments, message):
    done = command("variance", "tiny.yaml", "--problems", "32", *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_table_is_printed_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = command("claims", "classifier", "--output", "figures")
    assert done.exit_code == 0, done.output
    assert "w or 0 everywhere" in done.stdout
    assert "llm-reinforce[plots]" in done.stderr
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["classifier.json"]


def test_claims_print_tables_and_write_files(tmp_path, monkeypatch):
    monkeypatch.setattr(length_claim, "LENGTHS", (1, 2))
    monkeypatch.setattr(length_claim, "NUM_GROUPS", 4)
    for name, arguments, words in (
        ("classifier", (), "each state's optimal baseline"),
        ("length", (), "a verdict at the end"),
        ("constant", ("tiny.yaml", "--problems", "64"), "+10"),
    ):
        done = command("claims", name, *arguments, "--output", "figures")
        assert done.exit_code == 0, done.output
        assert words in done.stdout
        assert "≈" in done.stdout
        assert json.loads((tmp_path / "figures" / f"{name}.json").read_text())
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 10_000


def test_existing_files_are_not_overwritten(tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("variance.json", "classifier.png"):
        (tmp_path / "figures" / name).write_text("mine")
    for arguments in (("variance", "tiny.yaml"), ("claims", "classifier")):
        done = command(*arguments, "--output", "figures")
        assert done.exit_code == 2, done.output
        assert "remove this file" in done.stderr
    assert {file.read_text() for file in (tmp_path / "figures").iterdir()} == {"mine"}


@pytest.mark.parametrize("output", ["rewards.py", "rewards.py/below"])
def test_invalid_output_is_refused_before_the_measurement(output, monkeypatch):
    monkeypatch.setattr(gradient_variance, "collect_from_recipe", None)
    done = command("variance", "tiny.yaml", "--output", output)
    assert done.exit_code == 2, done.output
    assert "is a file; give a directory" in done.stderr


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for arguments in (("variance", "tiny.yaml"), ("claims", "classifier")):
        done = command(*arguments)
        assert done.exit_code == 2, done.output
        assert "runs in one process" in done.stderr


def test_json_numbers_are_finite():
    # the squares of such large returns overflow when they are standardized, and all advantages become 0
    done = command(
        "variance",
        "tiny.yaml",
        "--problems",
        "32",
        "--json",
        "--set",
        "rewards=[{function: rewards.py:huge}]",
    )
    assert done.exit_code == 0, done.output
    rows = {each["name"]: each for each in json.loads(done.stdout, parse_constant=pytest.fail)["estimators"]}
    assert rows["this recipe"]["variance"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert rows["this recipe"]["noise_scale"]["value"] is None
    assert rows["none"]["variance"]["value"] > 1e58


def test_adapter_of_a_run_replaces_that_of_the_recipe(run):
    adapter = ("policy.random_init=null", f"policy.name_or_path={run}", "policy.lora={rank: 2}")
    changes = [word for change in adapter for word in ("--set", change)]
    assert command("train", "tiny.yaml", "--set", "output_dir=adapted", *changes).exit_code == 0
    done = command("variance", "tiny.yaml", *changes, "--policy", "adapted", "--problems", "32", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["num_parameters"] == 272  # the adapter of rank 2


def test_from_python_in_one_call(measured, folder, tmp_path, capsys, monkeypatch):
    config = load_config("tiny.yaml")
    by_python = measure_variance(config, num_problems=32, output_dir="figures")
    files = {file.name: file.read_bytes() for file in (tmp_path / "figures").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (folder / "figures").iterdir()}
    assert capsys.readouterr() == ("", "")  # no progress is shown without a terminal
    overrides = ["standardize=false", "kl.coefficient=0.1", "refill=1"]
    with pytest.warns(UserWarning, match="measurement ignores reinforce.kl, reinforce.refill: it measures"):
        changed = measure_variance(
            "tiny.yaml", num_problems=32, overrides=[f"reinforce.{each}" for each in overrides]
        )
    assert len(changed.estimators) == len(by_python.estimators) - 1  # without "this recipe"
    with pytest.raises(InputError, match=r"already contains the file variance\.json"):
        measure_variance(config, output_dir="figures")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # plots take more time than the measurement
    rows = measure_classifier_claim(output_dir="figures")
    assert json.loads((tmp_path / "figures" / "classifier.json").read_text())[0]["name"] == rows[0].name
