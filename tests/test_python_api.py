"""Training from Python: arguments, results, errors, and equality with runs from YAML and the command line."""

import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import llm_reinforce
from llm_reinforce import (
    InputError,
    Problem,
    ReinforceTrainer,
    evaluate,
    load_recipe,
    random_policy,
    verify,
)
from llm_reinforce.cli import app
from llm_reinforce.config import GenerateConfig, RandomInitConfig, TrainingConfig
from llm_reinforce.evaluation import choose_prompting, sample
from llm_reinforce.policy import LanguagePolicy, character_tokenizer, sample_completions, token_log_probs
from llm_reinforce.training.metrics import TIMES

ALPHABET = "0123456789+="
SMALL: dict[str, Any] = {
    "num_updates": 3,
    "problems_per_update": 4,
    "episodes_per_problem": 3,
    "max_new_tokens": 4,
    "learning_rate": 1e-2,
    "num_held_out": 10,
}
SUMS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(6) for b in range(6)]


def own_model(seed: int = 0) -> tuple[LlamaForCausalLM, Any]:
    """Return a user's model and tokenizer, created with transformers only."""
    tokenizer = character_tokenizer(ALPHABET)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config), tokenizer


def short_and_right(completion: str, problem: Problem) -> float:
    return float(verify(completion, problem.answer).correct and len(completion) < 20)


def length_reward(completions: list[str], **columns: Any) -> list[float]:
    """Reward function with TRL's signature."""
    return [1.0 / (1 + len(completion)) for completion in completions]


def timeless(directory: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (directory / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def weights_of(policy: LanguagePolicy) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}


# --------------------------------------------------------------------------------- the trainer


def test_first_example_of_the_documentation(tmp_path: Path) -> None:
    """The first example, with a tiny policy and a small file instead of SmolLM2 and GSM8K."""
    model, tokenizer = own_model()
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in SUMS))

    trainer = ReinforceTrainer(
        str(tmp_path / "tiny"), str(data), short_and_right, output_dir=tmp_path / "mine", **SMALL
    )
    result = trainer.train()
    assert result.is_over
    assert [row["update"] for row in result.history] == [1, 2, 3]
    assert result.before["greedy"].total == result.after["greedy"].total == 10
    assert result.comparisons["greedy"]["accuracy"].before == result.before["greedy"].accuracy
    assert result.policy is trainer.policy
    names = {entry.name for entry in (tmp_path / "mine").iterdir()}
    assert {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "comparison.json",
        "checkpoints",
        "policy",
    } <= names


def test_loop_yields_after_each_update() -> None:
    trainer = ReinforceTrainer(own_model(), SUMS, short_and_right, evaluation={"every": 2}, **SMALL)
    seen = []
    for update in trainer.updates():
        assert update.state.num_updates == update.number == trainer.state.num_updates
        assert len(update.episodes) == 12
        assert update.metrics["update"] == update.number
        seen.append((update.number, sorted(update.evaluations)))
    assert seen == [(1, []), (2, ["greedy"]), (3, ["greedy"])]
    assert trainer.result().is_over


def test_run_can_be_resumed_after_leaving_the_loop(tmp_path: Path) -> None:
    whole = ReinforceTrainer(
        own_model(), SUMS, short_and_right, output_dir=tmp_path / "whole", **SMALL
    ).train()

    def trainer() -> ReinforceTrainer:
        return ReinforceTrainer(own_model(), SUMS, short_and_right, output_dir=tmp_path / "parts", **SMALL)

    for update in trainer().updates():
        if update.number == 2:
            break
    result = trainer().train(resume=True)
    assert [row["update"] for row in result.history] == [3]
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")
    for name, weight in weights_of(whole.policy).items():
        assert torch.equal(weight, dict(result.policy.model.named_parameters())[name])


def test_stop_in_the_loop_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    trainer = ReinforceTrainer(own_model(), SUMS, short_and_right, output_dir=tmp_path / "run", **SMALL)
    numbers = []
    for update in trainer.updates():
        numbers.append(update.number)
        trainer.stop()
    assert numbers == [1]
    assert (tmp_path / "run" / "checkpoints" / "update-000001").is_dir()
    trainer.save_policy()
    assert (tmp_path / "run" / "policy" / "config.json").is_file()


def test_a_stopped_trainer_can_continue() -> None:
    trainer = ReinforceTrainer(own_model(), SUMS, short_and_right, **SMALL)
    for _ in trainer.updates():
        trainer.stop()
    assert [update.number for update in trainer.updates()] == [2, 3]


def test_a_trainer_that_has_not_run_does_not_replace_an_earlier_run(tmp_path: Path) -> None:
    def trainer() -> ReinforceTrainer:
        return ReinforceTrainer(own_model(), SUMS, short_and_right, output_dir=tmp_path / "run", **SMALL)

    trainer().train()
    other = trainer()
    for save in (other.save_policy, other.save_checkpoint):
        with pytest.raises(InputError, match="has not run yet"):
            save()
    assert [each.name for each in (tmp_path / "run" / "checkpoints").iterdir()] == ["update-000003"]


def test_an_interrupted_trainer_resumes_from_the_checkpoint_that_it_saved(tmp_path: Path) -> None:
    numbers = iter(range(1000))

    def interrupted(completion: str) -> float:
        if next(numbers) == 30:  # in the third update of twelve episodes, after the trial episodes
            raise KeyboardInterrupt
        return float(len(completion))

    trainer = ReinforceTrainer(own_model(), SUMS, interrupted, output_dir=tmp_path / "run", **SMALL)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    done = [row["update"] for row in timeless(tmp_path / "run")]
    assert done
    with pytest.raises(InputError, match=r"no checkpoint to resume from.*save_checkpoint"):
        trainer.train(resume=True)
    trainer.save_checkpoint()
    trainer.train(resume=True)
    assert [row["update"] for row in timeless(tmp_path / "run")] == [1, 2, 3]


def test_a_second_loop_makes_no_second_warm_start() -> None:
    warm_start = {"num_updates": 2, "batch_size": 2}

    def trainer() -> ReinforceTrainer:
        return ReinforceTrainer(own_model(), SUMS, short_and_right, warm_start=warm_start, **SMALL)

    whole, parts = trainer(), trainer()
    whole.train()
    for _ in parts.updates():
        break
    parts.train()
    for name, weight in weights_of(whole.policy).items():
        assert torch.equal(weight, weights_of(parts.policy)[name])


def test_a_used_trainer_does_not_overwrite_its_run(tmp_path: Path) -> None:
    trainer = ReinforceTrainer(own_model(), SUMS, short_and_right, output_dir=tmp_path / "run", **SMALL)
    updates = trainer.updates()
    next(updates)
    with pytest.raises(InputError, match="still open"):
        trainer.train(resume=True)
    updates.close()
    with pytest.raises(InputError, match="create a new ReinforceTrainer"):
        trainer.train(overwrite=True)
    assert [row["update"] for row in timeless(tmp_path / "run")] == [1]
    assert [row["update"] for row in trainer.train(resume=True).history] == [2, 3]


def test_a_trainer_without_a_directory_continues_until_its_run_is_over() -> None:
    trainer = ReinforceTrainer(own_model(), SUMS, short_and_right, **SMALL)
    for _ in trainer.updates():
        break
    assert [update.number for update in trainer.updates()] == [2, 3]
    with pytest.raises(InputError, match="over after update 3"):
        trainer.train()
    for save in (trainer.save_policy, trainer.save_checkpoint):
        with pytest.raises(InputError, match="no output_dir"):
            save()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0, "decoding": "sampled"}, "temperature: should be greater than 0, not 0; .*greedy"),
        ({"max_new_tokens": 0}, "max_new_tokens: should be at least 1, not 0"),
        ({"num_problems": -1}, "num_problems: should be at least 1, not -1"),
        ({"samples_per_problem": 0, "decoding": "sampled"}, "samples_per_problem: should be at least 1"),
        ({"few_shot": -1}, "few_shot: should be at least 0"),
        ({"batch_size": 0}, "batch_size: should be at least 1"),
        ({"seed": -1}, "seed: should be at least 0"),
    ],
)
def test_evaluation_refuses_numbers_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(own_model(), [{"prompt": "1+1=", "answer": "2"}], **settings)


def test_a_single_text_is_not_a_list_of_prompts() -> None:
    with pytest.raises(InputError, match=r"prompts: should be a list of texts, such as \['1\+1='\]"):
        sample(own_model(), "1+1=")
    with pytest.raises(InputError, match="num_completions: should be at least 1, not 0"):
        sample(own_model(), ["1+1="], num_completions=0)


def test_columns_are_also_those_of_the_worked_examples() -> None:
    rows = [{"q": row["prompt"], "a": row["answer"]} for row in SUMS]
    shape = {"num_layers": 1, "num_heads": 2, "hidden_size": 8, "intermediate_size": 16}
    found = evaluate(
        random_policy(RandomInitConfig(alphabet=ALPHABET + "\n", **shape)),
        rows[:2],
        prompt_column="q",
        answer_column="a",
        few_shot=1,
        examples=rows[2:],
        max_new_tokens=2,
        show_progress=False,
    )
    assert found.total == 2


def test_an_evaluation_is_not_continued_with_another_comparison_of_answers(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"max_new_tokens": 2, "output_dir": tmp_path, "show_progress": False}
    evaluate(own_model(), SUMS[:2], **arguments)
    with pytest.raises(InputError, match=r"another evaluation \(algebra: None in the file, True now\)"):
        evaluate(own_model(), SUMS[:2], algebra=True, **arguments)


def test_temperatures_of_two_runs_matter_only_for_sampled_decoding(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("warm", "cool")]
    for run, temperature in zip(runs, (1.0, 0.7), strict=True):
        run.mkdir()
        recipe = f"policy: {{random_init: {{}}}}\nsampling: {{temperature: {temperature}}}\n"
        (run / "recipe.yaml").write_text(recipe + "problems: {generate: {}}\n")
    assert choose_prompting(runs, is_sampled=False).max_new_tokens == 256
    with pytest.raises(InputError, match="temperature: the runs were trained with different values"):
        choose_prompting(runs)


def test_a_recipe_is_adapted_to_keywords_for_any_kind_of_policy() -> None:
    recipe = load_recipe("quickstart").config
    with pytest.warns(UserWarning, match="num_warmup_updates"):
        trainer = ReinforceTrainer(
            policy=random_policy(recipe.policy.random_init), config=recipe, num_updates=2
        )
    assert trainer.config.training.num_updates == 2
    assert trainer.config.training.learning_rate == recipe.training.learning_rate


def test_held_out_problems_of_a_run_can_be_evaluated_again(tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    template = "={prompt}"
    trainer = ReinforceTrainer(
        own_model(), str(data), output_dir=run, progress=False, template=template, **SMALL
    )
    result = trainer.train()
    held_out = ReinforceTrainer(config=load_recipe(run).config).held_out
    again = evaluate(run, held_out, template="{prompt}")
    assert again.answers == result.after["greedy"].answers
    lines = str(result).splitlines()
    assert lines[0] == f"finished after update 3, with {result.state.num_tokens} sampled tokens"
    assert lines[1].endswith("after, on 10 problems")
    assert lines[-1] == f"recorded in {run}"


def test_the_result_of_a_resumed_loop_has_the_first_evaluation_of_the_run(tmp_path: Path) -> None:
    def trainer(**settings: Any) -> ReinforceTrainer:
        evaluation = {"every": 1}
        arguments = {**SMALL, "evaluation": evaluation, **settings}
        return ReinforceTrainer(own_model(), SUMS, short_and_right, output_dir=tmp_path / "run", **arguments)

    first = trainer()
    for _ in first.updates():
        break
    second = trainer()
    for update in second.updates(resume=True):
        last = update.evaluations
        if update.number == 2:
            break
    result = second.result()
    assert result.before["greedy"].answers == first.result().before["greedy"].answers
    assert result.after == last
    assert result.comparisons["greedy"]["accuracy"].after == last["greedy"].accuracy


def test_a_run_can_be_moved_and_resumed_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = ReinforceTrainer(own_model(), SUMS, "correct_answer", output_dir="runs/mine", **SMALL)
    for _ in trainer.updates():
        break
    shutil.move(tmp_path / "runs" / "mine", tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = load_recipe("../moved").train(resume=True)
    assert [row["update"] for row in result.history] == [2, 3]
    assert (tmp_path / "moved" / "policy").is_dir()
    assert not (tmp_path / "elsewhere" / "runs").exists()


def test_a_run_in_the_home_directory_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    trainer = ReinforceTrainer(own_model(), SUMS, "correct_answer", output_dir="~/mine", **SMALL)
    for _ in trainer.updates():
        break
    shutil.move(tmp_path / "mine", tmp_path / "moved")
    assert [row["update"] for row in load_recipe(tmp_path / "moved").train(resume=True).history] == [2, 3]
    assert not (tmp_path / "mine").exists()


def test_a_run_is_not_resumed_with_another_model(tmp_path: Path) -> None:
    arguments = {"output_dir": tmp_path / "run", **SMALL}
    for _ in ReinforceTrainer(own_model(), SUMS, "correct_answer", **arguments).updates():
        break
    tokenizer = own_model()[1]
    wider = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_attention_heads=2,
            num_hidden_layers=1,
            intermediate_size=32,
        )
    )
    with pytest.raises(InputError, match="not those of this policy"):
        ReinforceTrainer((wider, tokenizer), SUMS, "correct_answer", **arguments).train(resume=True)


# ------------------------------------------------------------------------------- equal runs


RECIPE = """\
seed: 3
output_dir: {output_dir}
policy:
  random_init: {{num_layers: 1, num_heads: 2, hidden_size: 16, intermediate_size: 32, max_length: 16}}
problems:
  generate: {{digits: [1]}}
  num_held_out: 10
rewards:
  - function: correct_answer
  - function: conciseness
    weight: 0.5
sampling: {{max_new_tokens: 4}}
reinforce: {{problems_per_update: 4, episodes_per_problem: 3}}
training: {{num_updates: 3, learning_rate: 1e-2}}
"""


def test_yaml_command_line_and_python_give_identical_runs(tmp_path: Path) -> None:
    def path(name: str) -> Path:
        (tmp_path / f"{name}.yaml").write_text(RECIPE.format(output_dir=tmp_path / name))
        return tmp_path / f"{name}.yaml"

    load_recipe(path("yaml")).train()
    done = CliRunner().invoke(app, ["train", str(path("command"))])
    assert done.exit_code == 0, done.output
    ReinforceTrainer(
        RandomInitConfig(num_layers=1, num_heads=2, hidden_size=16, intermediate_size=32, max_length=16),
        GenerateConfig(digits=(1,)),
        {"correct_answer": 1.0, "conciseness": 0.5},
        output_dir=tmp_path / "python",
        seed=3,
        num_held_out=10,
        max_new_tokens=4,
        problems_per_update=4,
        episodes_per_problem=3,
        training=TrainingConfig(num_updates=3, learning_rate=1e-2),
    ).train()
    for name in ("command", "python"):
        for file in ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl", "answers.jsonl"):
            assert timeless(tmp_path / name, file) == timeless(tmp_path / "yaml", file), (name, file)
        for file in (
            "policy/model.safetensors",
            "checkpoints/update-000003/optimizer.safetensors",
            "comparison.json",
        ):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "yaml" / file).read_bytes(), (
                name,
                file,
            )
        own, other = (
            (tmp_path / each / "recipe.yaml").read_text().replace(str(tmp_path / each), "")
            for each in (name, "yaml")
        )
        assert own == other


def test_run_from_objects_is_resumed_by_its_recipe(tmp_path: Path) -> None:
    """The recipe refers to the saved policy and problems of the run, and to the file of the function."""
    file = tmp_path / "rewards.py"
    file.write_text("def digits(completion, problem):\n    return float(completion.isdigit())\n")
    sys.path.insert(0, str(tmp_path))
    try:
        from rewards import digits  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))

    def run(name: str, num_updates: int) -> ReinforceTrainer:
        settings = {**SMALL, "num_updates": num_updates}
        return ReinforceTrainer(
            own_model(), SUMS, digits, held_out=SUMS[:3], output_dir=tmp_path / name, **settings
        )

    run("whole", 3).train()
    run("parts", 2).train()
    recipe = load_recipe(tmp_path / "parts", ["training.num_updates=3"])
    assert recipe.config.rewards[0].function == f"{file}:digits"
    result = recipe.train(resume=True)
    assert result.is_over
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")
    last = "policy/model.safetensors"
    assert (tmp_path / "parts" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def test_resumed_run_needs_the_same_settings_and_problems(tmp_path: Path) -> None:
    def trainer(problems: Any = SUMS, **settings: Any) -> ReinforceTrainer:
        return ReinforceTrainer(own_model(), problems, output_dir=tmp_path / "run", **{**SMALL, **settings})

    trainer().train()
    with pytest.raises(InputError, match=r"not empty.*resume=True.*overwrite=True"):
        trainer().train()
    with pytest.raises(InputError, match=r"training\.learning_rate: 0\.01 in the run, 0\.5 now"):
        trainer(learning_rate=0.5).train(resume=True)
    with pytest.raises(InputError, match="started with other problems"):
        trainer(SUMS[1:], num_updates=4).train(resume=True)


def test_reward_file_that_trains_when_imported_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(
        "from llm_reinforce import ReinforceTrainer\n"
        "def mine(completion, problem):\n    return 1.0\n"
        "ReinforceTrainer('x', [{'prompt': '1', 'answer': '1'}], mine).train()\n"
    )
    with pytest.raises(InputError, match=r"starts training when it is imported.*__main__"):
        ReinforceTrainer(own_model(), SUMS, f"{file}:mine", **SMALL)


# ------------------------------------------------------------------------------- kinds of arguments


@pytest.mark.parametrize(
    "rewards",
    [
        short_and_right,
        "correct_answer",
        length_reward,
        [short_and_right, "conciseness"],
        {short_and_right: 1.0, length_reward: 0.1, "answer_format": 0.2},
        lambda completion, problem: 0.5,
        [lambda completion, problem: 0.5, lambda completion, problem: len(completion)],
    ],
)
def test_all_kinds_of_rewards(rewards: Any) -> None:
    result = ReinforceTrainer(own_model(), SUMS, rewards, **{**SMALL, "num_updates": 1}).train()
    assert result.history[0]["num_unscored"] == 0


class Judge:
    """Callable object, which has no `__name__`."""

    def __call__(self, completion: str, problem: Problem) -> float:
        return 1.0


def test_names_of_rewards() -> None:
    import functools

    def scaled(completion: str, problem: Problem, scale: float) -> float:
        return scale

    rewards = {Judge(): 1.0, functools.partial(scaled, scale=2.0): 0.5, "correct_answer": 1.0}
    trainer = ReinforceTrainer(own_model(), SUMS, rewards, **SMALL)
    assert [(reward.name, reward.weight) for reward in trainer.rewards] == [
        ("Judge", 1.0),
        ("scaled", 0.5),
        ("correct_answer", 1.0),
    ]


def test_reward_function_may_take_the_verdict() -> None:
    seen = []

    def watching(completion: str, problem: Problem, verdict: Any) -> float:
        seen.append(verdict == verify(completion, problem.answer))
        return float(verdict.correct)

    ReinforceTrainer(own_model(), SUMS, watching, **{**SMALL, "num_updates": 1}).train()
    assert len(seen) >= 12
    assert all(seen)


def test_all_kinds_of_problems(tmp_path: Path) -> None:
    import datasets

    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    as_problems = [Problem(row["prompt"], row["answer"]) for row in SUMS]
    for problems in (
        SUMS,
        as_problems,
        datasets.Dataset.from_list(SUMS),
        file,
        str(file),
        tuple(as_problems),
    ):
        trainer = ReinforceTrainer(own_model(), problems, **SMALL)
        assert (len(trainer.problems), len(trainer.held_out)) == (26, 10)
    trainer = ReinforceTrainer(own_model(), "generate:digits=1,num=30", **SMALL)
    assert len(trainer.problems) == 20
    separate = ReinforceTrainer(own_model(), SUMS, held_out=SUMS[:2], **{**SMALL, "num_held_out": 2})
    assert (len(separate.problems), len(separate.held_out)) == (34, 2)


def test_columns_with_other_names() -> None:
    rows = [{"q": row["prompt"], "sum": row["answer"]} for row in SUMS]
    columns = {"prompt_column": "q", "answer_column": "sum"}
    for problems in (rows, datasets.Dataset.from_list(rows)):
        trainer = ReinforceTrainer(own_model(), problems, held_out=rows[:4], **columns, **without_held_out())
        assert {problem.prompt for problem in trainer.held_out} == {row["q"] for row in rows[:4]}
        assert evaluate(own_model(), problems, **columns, max_new_tokens=2).total == len(rows)


def without_held_out() -> dict[str, Any]:
    return {key: value for key, value in SMALL.items() if key != "num_held_out"}


@pytest.mark.parametrize(
    ("policy", "rate"),
    [
        (own_model, 5e-4),
        (lambda: random_policy(RandomInitConfig(alphabet=ALPHABET, max_length=32)), 5e-4),
        (lambda: saved_and_loaded(own_model()), 1e-5),
    ],
)
def test_the_default_learning_rate_depends_on_the_model(policy: Callable[[], Any], rate: float) -> None:
    settings = {key: value for key, value in SMALL.items() if key != "learning_rate"}
    assert ReinforceTrainer(policy(), SUMS, **settings).config.training.learning_rate == rate


def test_a_config_keeps_its_training_settings_beside_a_model_object() -> None:
    config = load_recipe("quickstart").config
    trainer = ReinforceTrainer(own_model(), SUMS, config=config, num_held_out=10, max_new_tokens=4)
    assert trainer.config.training == config.training


def test_a_default_learning_rate_is_not_passed_on_to_another_policy(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "policy: {name_or_path: smollm2-135m}\n"
        "problems: {generate: {digits: [1]}}\n"
        "training: {num_updates: 3}\n"
    )
    config = load_recipe(tmp_path / "mine.yaml").config
    assert config.training.learning_rate == 1e-5
    shape = RandomInitConfig(alphabet=ALPHABET, max_length=32)
    trainer = ReinforceTrainer(shape, config=config, max_new_tokens=4)
    assert trainer.config.training.learning_rate == 5e-4


def saved_and_loaded(pair: tuple[LlamaForCausalLM, Any]) -> tuple[Any, Any]:
    with tempfile.TemporaryDirectory() as directory:
        pair[0].save_pretrained(directory)
        return AutoModelForCausalLM.from_pretrained(directory), pair[1]


def test_an_end_token_of_the_model_that_is_text_ends_nothing() -> None:
    model, tokenizer = own_model()
    model.generation_config.eos_token_id = 2  # the default of LlamaConfig; here it is the digit 2
    trainer = ReinforceTrainer((model, tokenizer), SUMS, **SMALL)
    assert trainer.policy.end_token_ids == (tokenizer.eos_token_id,)
    assert trainer.policy.decode(trainer.policy.encode_completion("12")) == "12"


def test_keyword_arguments_are_assigned_to_sections() -> None:
    trainer = ReinforceTrainer(
        own_model(), SUMS, template="{prompt}", baseline="none", evaluation={"every": 7}, **SMALL
    )
    config = trainer.config
    assert (config.problems.template, config.evaluation.template) == ("{prompt}", None)
    assert (config.reinforce.baseline, config.evaluation.every) == ("none", 7)
    assert (config.training.num_updates, config.sampling.max_new_tokens) == (3, 4)


def test_one_fifth_is_held_out_by_default() -> None:
    settings = {key: value for key, value in SMALL.items() if key != "num_held_out"}
    trainer = ReinforceTrainer(own_model(), SUMS, **settings)
    assert (len(trainer.problems), len(trainer.held_out)) == (29, 7)


def test_all_kinds_of_policies(tmp_path: Path, tiny_policy: LanguagePolicy) -> None:
    model, tokenizer = own_model()
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    for policy in (
        str(tmp_path / "tiny"),
        tmp_path / "tiny",
        (model, tokenizer),
        tiny_policy,
        RandomInitConfig(),
    ):
        trainer = ReinforceTrainer(policy, SUMS, **{**SMALL, "num_updates": 1})
        assert trainer.train().is_over
    adapted = ReinforceTrainer(own_model(), SUMS, lora={"rank": 2}, **SMALL)
    assert sum(each.requires_grad for each in adapted.policy.model.parameters()) == 14


# ---------------------------------------------------------------------------------- error messages


def none_of(text: str) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: {"policy": 3}, r"policy: 3 \(int\) is not a policy"),
        (lambda: {"policy": None}, "policy: missing"),
        (
            lambda: {"policy": (torch.nn.Linear(1, 1), own_model()[1])},
            "causal language model of transformers, not a Linear",
        ),
        (lambda: {"policy": own_model()[::-1]}, r"the order is \(model, tokenizer\)"),
        (lambda: {"policy": "no/such/model/here"}, "no such directory or file"),
        (lambda: {"problems": []}, "problems: is empty"),
        (lambda: {"problems": 7}, r"problems: 7 \(int\) is not a list of problems"),
        (lambda: {"problems": [{"prompt": "1+1="}]}, "the problems have no reference answers"),
        (lambda: {"problems": ["1+1="]}, r"problems\[0\]: should be a dict"),
        (lambda: {"problems": "gsm9k"}, "did you mean"),
        (lambda: {"held_out": 3}, "held_out: 3"),
        (lambda: {"rewards": 3}, r"rewards\[0\]: 3 \(int\) is not a reward"),
        (lambda: {"rewards": []}, "rewards: empty"),
        (lambda: {"rewards": "corect_answer"}, "did you mean 'correct_answer'"),
        (
            lambda: {"rewards": none_of},
            r"'none_of': none of the function's parameters has .* receive \(parameters: text\)",
        ),
        (lambda: {"rewards": {"correct_answer": "1"}}, "a weight must be a number"),
        (lambda: {"learning_rat": 1}, "unknown argument 'learning_rat'; did you mean 'learning_rate'"),
        (
            lambda: {"batch_size": 1},
            r"batch_size is a key of the sections sampling and evaluation; write sampling=\{'batch_size'",
        ),
        (
            lambda: {"learning_rate": "1"},
            "ReinforceTrainer: training.learning_rate: should be a number above 0",
        ),
        (
            lambda: {"sampling": {"temperatur": 1.0}},
            "sampling.temperatur: unknown key; did you mean 'temperature'",
        ),
        (
            lambda: {"num_updates": 0, "temperature": -1.0},
            r"temperature: .*\n.*num_updates: |num_updates: .*\n.*temperature",
        ),
        (lambda: {"dtype": "bfloat16"}, "dtype: not used for a policy that is already loaded"),
        (lambda: {"config": {}}, "config: should be a Config"),
        (lambda: {"training": {"num_updates": 2}}, "num_updates is given twice, as an argument and in"),
        (lambda: {"num_generations": 8}, "'num_generations'; use episodes_per_problem"),
        (lambda: {"reward_funcs": none_of}, "'reward_funcs'; use rewards"),
        (lambda: {"problems": (row for row in SUMS)}, "not a list of problems"),
        (
            lambda: {"problems": datasets.Dataset.from_list(SUMS).to_iterable_dataset()},
            "IterableDataset has no length",
        ),
        (lambda: {"problems": GenerateConfig(), "prompt_column": "q"}, "not used with a GenerateConfig"),
    ],
)
def test_invalid_arguments_are_reported(arguments: Callable[[], dict[str, Any]], message: str) -> None:
    given = {"policy": own_model(), "problems": SUMS, **SMALL, **arguments()}
    with pytest.raises(InputError, match=message):
        ReinforceTrainer(**given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            lambda: TrainingConfig(num_update=3),
            "TrainingConfig.num_update: unknown key; did you mean",
        ),
        (lambda: RandomInitConfig(num_layers=0), "RandomInitConfig.num_layers: should be a whole number of"),
    ],
)
def test_invalid_settings_objects_are_reported(settings: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings()


def test_unrecordable_objects_are_reported_before_training(tmp_path: Path) -> None:
    problem = Problem("1+1=", "2", columns={"when": object()})
    with pytest.raises(InputError, match="cannot be written as JSON"):
        ReinforceTrainer(own_model(), [problem], output_dir=tmp_path / "run", **{**SMALL, "num_held_out": 0})
    with pytest.raises(InputError, match="base model of this adapter was not loaded from a path"):
        ReinforceTrainer(own_model(), SUMS, lora={"rank": 2}, output_dir=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------- the host process


def state_of_the_process() -> tuple[Any, ...]:
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        gc.get_threshold(),
        gc.get_freeze_count(),
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
        list(sys.path),
        dict(os.environ),
    )


def test_host_process_is_not_changed(tmp_path: Path) -> None:
    trainer = ReinforceTrainer(own_model(), SUMS, output_dir=tmp_path / "run", **SMALL)
    before = state_of_the_process()
    for _ in trainer.updates():
        assert state_of_the_process() == before
    assert state_of_the_process() == before


def test_train_shows_progress_unless_it_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    ReinforceTrainer(own_model(), SUMS, progress=False, **SMALL).train()
    assert capsys.readouterr().out == ""
    trainer = ReinforceTrainer(own_model(), SUMS, **SMALL)
    assert "policy: llama" in capsys.readouterr().out
    list(trainer.updates())
    assert capsys.readouterr().out == ""
    ReinforceTrainer(own_model(), SUMS, **SMALL).train()
    assert "update 3/3" in capsys.readouterr().out


def test_top_level_names() -> None:
    for name in llm_reinforce.__all__:
        assert getattr(llm_reinforce, name) is not None
    assert {
        "ReinforceTrainer",
        "Config",
        "load_policy",
        "load_recipe",
        "evaluate",
        "compare",
        "verify",
    } <= set(llm_reinforce.__all__)
    assert callable(sample_completions)
    assert callable(token_log_probs)


# ------------------------------------------------------------------------- runs of the first edition


FIRST_EDITION = Path(__file__).parent / "data" / "first_edition_run"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """Directory of a run of 4 updates written by version 0.1.0, with its path in `output_dir`."""
    folder = tmp_path / "old"
    shutil.copytree(FIRST_EDITION, folder)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("output_dir: runs/first_edition", f"output_dir: {folder}"))
    return folder


def test_first_edition_run_can_be_resumed_evaluated_and_sampled(old_run: Path) -> None:
    before = timeless(old_run)
    result = load_recipe(old_run, ["training.num_updates=6"]).train(resume=True)
    assert result.state.num_updates == 6
    rows = timeless(old_run)
    assert rows[:4] == before
    # the updates of the first edition after resuming this run
    expected = json.loads((FIRST_EDITION / "resumed_by_first_edition.json").read_text())
    for row, known in zip(rows[4:], expected, strict=True):
        for name, value in known.items():
            assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    evaluation = llm_reinforce.evaluate(old_run, "generate:digits=1,num=5")
    assert evaluation.total == 5
    policy = llm_reinforce.load_policy(old_run)
    (completion,) = sample_completions(policy, policy.encode_prompts(["1+2="]), max_new_tokens=4)
    assert completion.token_ids


def test_solutions_of_a_warm_start_must_fit(tmp_path: Path) -> None:
    long = [{**problem, "answer": "1" * 40} for problem in SUMS]
    with pytest.raises(
        InputError, match=r"training\.warm_start: problem .* its solution has 41.* \(32 tokens\);"
    ):
        ReinforceTrainer(
            own_model(), long, progress=False, **{**SMALL, "warm_start": {"num_updates": 1, "batch_size": 4}}
        )


def test_worked_examples_may_be_given_as_problems() -> None:
    arguments: dict[str, Any] = {"few_shot": 2, "max_new_tokens": 2, "show_progress": False}
    policy = random_policy(
        RandomInitConfig(alphabet=ALPHABET + "\n", num_layers=1, hidden_size=16, num_heads=2)
    )
    found = evaluate(policy, SUMS[:2], examples=SUMS[2:6], **arguments)
    assert found.problems[0].prompt.count("=") == 3


def test_run_with_other_held_out_problems_is_resumed_to_its_end(tmp_path: Path) -> None:
    """Its first and last evaluations are not compared."""
    file, settings = tmp_path / "held_out.jsonl", {**SMALL, "output_dir": tmp_path / "run", "progress": False}
    settings.pop("num_held_out")
    for answer, num_updates in (("2", 1), ("3", 2)):
        file.write_text(json.dumps({"prompt": "1+1=", "answer": answer}) + "\n")
        settings["num_updates"] = num_updates
        trainer = ReinforceTrainer(
            random_policy(RandomInitConfig(alphabet=ALPHABET, num_layers=1, hidden_size=16, num_heads=2)),
            SUMS,
            held_out=str(file),
            **settings,
        )
        result = trainer.train(resume=num_updates > 1)
    assert result.is_over
    assert not result.comparisons
