"""Training on problems without reference answers: rewards that need none, and no accuracy anywhere."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llm_reinforce import ReinforceTrainer, evaluate
from llm_reinforce.cli import app
from llm_reinforce.errors import InputError
from llm_reinforce.problems import Problem

ROWS = [{"question": f"{n}=", "level": n} for n in range(4)]
RECIPE = """\
policy:
  random_init:
    {num_layers: 1, num_heads: 2, hidden_size: 8, intermediate_size: 8, max_length: 24, alphabet: "0123="}
problems: {train: {data: rows.jsonl}}
rewards: [{function: readability}]
sampling: {max_new_tokens: 3}
reinforce: {problems_per_update: 2, episodes_per_problem: 2}
training: {num_updates: 2, checkpoint_every: 1}
evaluation: {every: 1, decodings: [greedy, sampled]}
"""


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("recipe.yaml").write_text(RECIPE)


def command(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def test_no_accuracy_is_reported() -> None:
    text = command("train", "recipe.yaml", "--set", "output_dir=run")
    assert "the problems have no reference answers, so no accuracy is measured" in text
    text += command("runs", "list", ".") if "list" in command("runs", "--help") else ""
    assert "not evaluated" in text or "runs" not in text
    text = text.replace("no accuracy is measured", "")
    for word in ("nan", "0.0%", "correct", "wrong"):
        assert word not in text.lower(), word
    metrics = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in metrics] == [1, 2]
    verified = ("accuracy", "answers/", "verdicts")
    assert not [name for row in metrics for name in row if name.startswith(verified)]
    assert all(row["rewards/readability/mean"] is not None for row in metrics)
    episodes = [json.loads(line) for line in Path("run/episodes.jsonl").read_text().splitlines()]
    assert {(row["answer"], row["correct"], row["reason"]) for row in episodes} == {(None, None, None)}
    evaluations = Path("run/evaluations.jsonl")
    assert not evaluations.exists() or not evaluations.read_text()
    assert not Path("run/comparison.json").exists()
    longer = ("output_dir=run", "training.num_updates=3")
    text = command("train", "recipe.yaml", "--resume", *(x for each in longer for x in ("--set", each)))
    assert "nan" not in text


def test_accuracy_on_held_out_problems_with_answers_is_reported() -> None:
    held_out = [Problem("1=", "1", id="a")]
    result = ReinforceTrainer(**_arguments(), held_out=held_out).train()
    assert result.after["greedy"].total == 1
    assert all("accuracy" not in row for row in result.history)


def _arguments(**changes: Any) -> dict[str, Any]:
    from llm_reinforce.config import RandomInitConfig

    shape = RandomInitConfig(
        alphabet="0123=", num_layers=1, num_heads=2, hidden_size=8, intermediate_size=8, max_length=24
    )
    return {
        "policy": shape,
        "problems": ROWS,
        "rewards": lambda completion, level: float(len(completion) > level),
        "num_updates": 1,
        "problems_per_update": 2,
        "episodes_per_problem": 2,
        "max_new_tokens": 3,
        "output_dir": None,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": "correct_answer"}, r"'correct_answer': needs reference answers .*; columns .*'level'"),
        ({"rewards": "conciseness"}, "'conciseness': needs reference answers"),
        ({"rewards": lambda completion, answer: 1.0}, r"needs reference answers \(parameter 'answer'\)"),
        ({"rewards": lambda completions, solution, **columns: [1.0]}, "parameter 'solution'"),
        ({"rewards": lambda completion, verdict=None: 1.0}, "parameter 'verdict'"),
        ({"rewards": lambda completion, levle: 1.0}, "for the parameter 'levle'; did you mean 'level'"),
        ({"num_held_out": 2}, "num_held_out is 2, but the problems have no reference answers"),
        ({"problems": [{"question": "1=", "anwser": "1"}]}, r"no answer column .*did you mean 'anwser'"),
        ({"problems": ROWS, "answer_column": "gold"}, "no answer column 'gold'"),
        ({"held_out": [{"question": "1="}]}, "no answer column"),
    ],
)
def test_rewards_and_settings_that_need_answers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ReinforceTrainer(**_arguments(**changes)).train()


def test_reward_that_reads_the_answer_of_a_problem_fails_loudly() -> None:
    def quiet(completion: str, problem: Problem) -> float:
        return float(problem.answer in completion)  # type: ignore[operator]

    with pytest.raises(InputError, match=r"quiet.*failed on all"):
        ReinforceTrainer(**_arguments(rewards=quiet)).train()


def test_evaluation_of_problems_without_answers_is_refused() -> None:
    trainer = ReinforceTrainer(**_arguments())
    trainer.train()
    with pytest.raises(InputError, match="no answer column"):
        evaluate(trainer.policy, ROWS)
    Path("other.yaml").write_text(RECIPE)
    text = command(
        "compare", "recipe.yaml", "other.yaml", "--seeds", "2", "--tokens", "10", "--output", "out", code=2
    )
    assert "no reference answers, so recipes cannot be compared by accuracy" in text
