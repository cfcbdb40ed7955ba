"""Warm starts with data of their own: the forms of its rows, epochs, and a run that continues an adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Watcher, adapted_policy, small_policy, trainer, weights

from llm_reinforce import ReinforceTrainer
from llm_reinforce.config import ReinforceConfig, WarmStartConfig
from llm_reinforce.errors import InputError
from llm_reinforce.policy import load_policy
from llm_reinforce.problems import Problem, read_demonstrations
from llm_reinforce.training import warm_start

USER, ASSISTANT = {"role": "user", "content": "1="}, {"role": "assistant", "content": "1"}


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1=", "completion": "1"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": [USER], "completion": "1"},
        {"messages": [USER, ASSISTANT]},
        {"conversations": [{"from": "human", "value": "1="}, {"from": "gpt", "value": "1"}]},
    ],
    ids=str,
)
def test_rows_of_each_form_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    (found,) = read_demonstrations(written(tmp_path / "data.jsonl", row))
    assert (found.prompt, found.solution) == ("1=", "1")
    assert found.messages == (() if row.get("prompt") == "1=" else (USER,))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "1=", "answer": "1"}, "the columns prompt and completion, or the column messages, but"),
        ({"messages": [USER]}, "should be a chat that ends in a message of the assistant"),
        ({"messages": "1="}, "should be a chat that ends in a message of the assistant"),
        ({"prompt": "1=", "completion": 1}, "column 'completion' should be text or one message"),
        ({"prompt": [USER], "completion": [USER]}, "column 'completion' should be text or one message"),
        ({"prompt": 1, "completion": "1"}, "column 'prompt' should be text or a list of chat messages"),
        (["1="], "should have the columns prompt and completion"),
    ],
    ids=str,
)
def test_other_rows_are_rejected(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"data.jsonl, (line|row) 1: .*{message}"):
        read_demonstrations(written(tmp_path / "data.jsonl", row))


def test_empty_data_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"data.jsonl: is empty; write one JSON object"):
        read_demonstrations(tmp_path / "data.jsonl")


def test_each_epoch_uses_every_demonstration_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []
    plain = warm_start._backward

    def watched(policy: Any, model: Any, problems: Any, *rest: Any) -> float:
        drawn.append([problem.id for problem in problems])
        return plain(policy, model, problems, *rest)

    monkeypatch.setattr(warm_start, "_backward", watched)
    data = [Problem(f"{number % 4}=", solution="0", id=str(number)) for number in range(5)]
    watcher = Watcher()
    start = WarmStartConfig(epochs=2, batch_size=3, learning_rate=1e-2)
    one = trainer(num_updates=1, training={"warm_start": start}, demonstrations=data, display=watcher)
    one.train()
    assert [len(each) for each in drawn] == [3, 3, 3, 1]
    assert watcher.warm_updates == 4
    order = [identifier for each in drawn for identifier in each]
    assert sorted(order[:5]) == sorted(order[5:]) == list("01234")
    assert order[:5] != order[5:]


def test_a_trainer_learns_from_demonstrations(tmp_path: Path) -> None:
    data = written(tmp_path / "data.jsonl", *({"prompt": f"{n}=", "completion": "33"} for n in range(4)))
    one = ReinforceTrainer(
        small_policy(),
        [{"prompt": f"{n}=", "answer": str(n)} for n in range(4)],
        num_held_out=0,
        num_updates=1,
        problems_per_update=2,
        episodes_per_problem=4,
        max_new_tokens=4,
        training={"warm_start": {"data": str(data), "epochs": 40, "batch_size": 4, "learning_rate": 1e-2}},
        progress=False,
    )
    texts = [episode.completion.text for update in one.updates() for episode in update.episodes]
    assert texts.count("33") >= 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "num_updates: num_updates and epochs are both missing"),
        ({"num_updates": 2, "epochs": 1}, "num_updates: num_updates and epochs cannot both be set"),
    ],
)
def test_a_warm_start_has_one_length(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WarmStartConfig(**settings)


def test_demonstrations_with_unknown_characters_are_rejected(tmp_path: Path) -> None:
    data = written(tmp_path / "data.jsonl", {"prompt": "1=", "completion": "x"})
    with pytest.raises(InputError, match=r"training.warm_start: 'x' cannot be encoded"):
        ReinforceTrainer(
            small_policy(),
            [{"prompt": "1=", "answer": "1"}],
            num_held_out=0,
            max_new_tokens=4,
            training={"warm_start": {"data": str(data), "epochs": 1}},
            progress=False,
        )


def test_a_supervised_adapter_is_trained_further(tmp_path: Path) -> None:
    supervised = adapted_policy(tmp_path / "base")
    with torch.no_grad():  # stands for supervised fine-tuning
        for name, parameter in supervised.model.named_parameters():
            if "lora_B" in name:
                parameter += 0.3
    supervised.save(tmp_path / "adapter")
    policy = load_policy(tmp_path / "adapter")
    before = weights(policy)
    watcher = Watcher()
    settings = ReinforceConfig(problems_per_update=4, episodes_per_problem=3, kl={"coefficient": 0.1})
    one = trainer(policy, num_updates=2, reinforce=settings, display=watcher)
    one.train()
    changed = {name for name, value in weights(policy).items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora" in name for name in changed)
    # the reference is the supervised adapter, not the base model
    assert watcher.metrics[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert watcher.metrics[1]["kl"] > 1e-5
