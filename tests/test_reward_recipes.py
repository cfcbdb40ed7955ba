"""The recipes `custom_reward` and `step_rewards`, with their files."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm_reinforce.cli import app
from llm_reinforce.config import builtin_recipes
from llm_reinforce.problems import Problem, read_problems
from llm_reinforce.rewards import StepRewards, intermediate_steps, load_reward
from llm_reinforce.verifier import verify

FOLDER = Path(__file__).parents[1] / "recipes"
FEW = "problems.generate.digits=[1]"  # the 8,100 problems of custom_reward take a second to prepare


@pytest.fixture(autouse=True)
def _temporary_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a directory without the files of the recipes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(FOLDER.parent), *sys.path])  # for worker processes
    return tmp_path


@pytest.mark.parametrize(
    ("name", "rewards"),
    [
        ("custom_reward", ["digits_in_place", "correct_answer"]),
        ("step_rewards", ["correct_answer", "intermediate_steps"]),
    ],
)
def test_copied_recipe_runs(name: str, rewards: list[str], tiny_run: list[str]) -> None:
    assert name in builtin_recipes()
    copied = CliRunner().invoke(app, ["recipes", "copy", name, "mine.yaml"])
    assert copied.exit_code == 0, copied.output
    overrides = (
        [*tiny_run, FEW] if name == "custom_reward" else tiny_run
    )  # the other one has a file of problems
    result = CliRunner().invoke(app, ["train", "mine.yaml", *(f"--set={override}" for override in overrides)])
    assert result.exit_code == 0, result.output
    metrics = [json.loads(line) for line in Path("runs", "mine", "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2
    for row in metrics:
        assert row["num_unscored"] == 0
        assert all(f"rewards/{reward}/mean" in row for reward in rewards)


def test_failing_reward_stops_the_run_and_a_fixed_one_continues_it(tiny_run: list[str]) -> None:
    CliRunner().invoke(app, ["recipes", "copy", "custom_reward", "mine.yaml"])
    file, overrides = Path("rewards_example.py"), [f"--set={override}" for override in [*tiny_run, FEW]]
    original = file.read_text()
    failing = "\n\nCALLS = []\n\n\ndef failing(completion, problem):\n    CALLS.append(1)\n"
    # 4 calls for the trial episodes, and 16 per update
    failing += "    if len(CALLS) > 20:\n        raise OSError('server down')\n    return len(completion)\n"
    file.write_text(original + failing)
    overrides += ["--set=rewards.0.function=rewards_example.py:failing"]
    result = CliRunner().invoke(app, ["train", "mine.yaml", *overrides])
    assert result.exit_code == 1
    assert "100% of the episodes of update 2 could not be scored" in " ".join(result.output.split())
    assert "OSError: server down" in result.output
    file.write_text(original + failing.replace("> 20", "> 10**6"))
    result = CliRunner().invoke(app, ["train", "mine.yaml", *overrides, "--resume"])
    assert result.exit_code == 0, result.output
    rows = Path("runs/mine/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["update"] for row in rows] == [1, 2]


def test_reward_that_always_fails_is_reported_before_the_first_update(tiny_run: list[str]) -> None:
    CliRunner().invoke(app, ["recipes", "copy", "custom_reward", "mine.yaml"])
    Path("rewards_example.py").write_text(
        "import time\n\ndef digits_in_place(completion, problem):\n    time.sleep(60)\n"
    )
    overrides = [f"--set={override}" for override in [*tiny_run, FEW, "rewards.0.isolation.time_limit=0.2"]]
    result = CliRunner().invoke(app, ["train", "mine.yaml", *overrides])
    assert result.exit_code == 2
    message = " ".join(result.output.split())
    assert "reward 'digits_in_place' failed on all 4 trial episodes; fix the function or" in message
    assert "remove it from `rewards`: TimeoutError" in message
    assert not Path("runs/mine/metrics.jsonl").exists()


def test_copy_does_not_overwrite_files() -> None:
    Path("rewards_example.py").write_text("mine = True\n")
    assert CliRunner().invoke(app, ["recipes", "copy", "custom_reward"]).exit_code == 0
    assert Path("rewards_example.py").read_text() == "mine = True\n"
    assert not Path("one_digit_chains.jsonl").exists()


@pytest.mark.parametrize(
    ("completion", "share"),
    [
        ("132", 1),
        (" 132 ", 1),
        ("122", 2 / 3),
        ("32", 2 / 3),
        ("1320", 0),
        ("", 0),
        ("432", 2 / 3),
        ("2", 1 / 3),
    ],
)
def test_digits_in_place(completion: str, share: float) -> None:
    reward = load_reward(f"{FOLDER}/rewards_example.py:digits_in_place")
    assert reward.function(completion, Problem("47+85=", "132")) == pytest.approx(share)


def test_chains_are_complete_and_solved_correctly() -> None:
    problems = read_problems(FOLDER / "one_digit_chains.jsonl")
    assert len({problem.prompt for problem in problems}) == len(problems) == 2000
    for problem in problems:
        assert problem.solution is not None
        steps = intermediate_steps()(problem.solution, problem)
        assert isinstance(steps, StepRewards)
        assert {value for _, _, value in steps.spans} == {1.0}
        first, last, _ = problem.solution.split(";")
        assert len(steps.spans) == len({first, last})
        assert first.split("=")[0] == problem.prompt[:3]
        assert last.split("=")[0] == first.split("=")[1] + problem.prompt[3:5]
        assert verify(problem.solution, problem.answer).correct
        assert verify(problem.answer, str(eval(problem.prompt[:-1]))).correct  # a file of this repository
