"""Small runs for the tests of the training loop: a tiny policy, four problems, and recording displays."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llm_reinforce.config import (
    AdapterConfig,
    EvaluationConfig,
    RandomInitConfig,
    ReinforceConfig,
    SamplingConfig,
    TrainingConfig,
    WarmStartConfig,
)
from llm_reinforce.console.run_display import Silent
from llm_reinforce.episodes import Episode
from llm_reinforce.evaluation import Evaluation
from llm_reinforce.policy import LanguagePolicy, load_policy, random_policy
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import WeightedReward
from llm_reinforce.runs import RunDirectory
from llm_reinforce.training import TrainingLoop
from llm_reinforce.training.metrics import TIMES

COPY = [Problem(f"{digit}=", str(digit), id=str(digit)) for digit in range(4)]


def small_policy(seed: int = 0) -> LanguagePolicy:
    shape = RandomInitConfig(
        alphabet="0123=", num_layers=1, num_heads=2, hidden_size=16, intermediate_size=32, max_length=8
    )
    return random_policy(shape, seed=seed)


def adapted_policy(directory: Path) -> LanguagePolicy:
    """Return the small policy with a LoRA adapter; the base model is saved in the directory."""
    if not directory.exists():
        small_policy().save(directory)
    return load_policy(directory, lora=AdapterConfig(rank=2))


def sevens(completion: str, problem: Problem) -> float:
    """Return a reward that differs between most completions."""
    return sum(ord(character) for character in completion) % 7 / 7


def trainer(policy: LanguagePolicy | None = None, num_updates: int = 4, **arguments: Any) -> TrainingLoop:
    """Return a training loop for the copy task, with the reward `sevens`."""
    settings = {"num_updates": num_updates, "learning_rate": 1e-2, **arguments.pop("training", {})}
    defaults: dict[str, Any] = {
        "reinforce": ReinforceConfig(problems_per_update=4, episodes_per_problem=3),
        "sampling": SamplingConfig(max_new_tokens=4),
        "rewards": (WeightedReward("sevens", sevens),),
    }
    return TrainingLoop(
        policy or small_policy(), COPY, TrainingConfig(**settings), **{**defaults, **arguments}
    )


def weights(policy: LanguagePolicy) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def rows(directory: RunDirectory, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory.path / name).read_text().splitlines()]


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def new_run(path: Path) -> RunDirectory:
    directory = RunDirectory(path)
    directory.prepare(resume=False, overwrite=False)
    directory.write_text("recipe.yaml", "seed: 0\n")
    return directory


class Watcher(Silent):
    """Record all messages, metrics and episodes; stop the trainer after `stop_after` updates."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.trainer: TrainingLoop | None = None
        self.said: list[str] = []  # all messages except warnings
        self.warnings: list[str] = []
        self.metrics: list[Mapping[str, Any]] = []
        self.accuracies: list[float] = []
        self.episodes: list[Sequence[Episode]] = []
        self.warm_updates = 0

    def say(self, sentence: str) -> None:
        (self.warnings if sentence.startswith("warning: ") else self.said).append(sentence)

    def warm_start(self, num_updates: int, total: int, loss: float) -> None:
        self.warm_updates = num_updates

    def update(
        self, num_updates: int, total: int, metrics: Mapping[str, Any], episodes: Sequence[Episode]
    ) -> None:
        self.metrics.append(dict(metrics))
        self.episodes.append(episodes)
        if num_updates == self.stop_after:
            assert self.trainer is not None
            self.trainer.stop_requested = True

    def evaluation(self, num_updates: int, data: str, evaluation: Evaluation) -> None:
        self.accuracies.append(evaluation.accuracy)


def full(
    directory: RunDirectory,
    watcher: Watcher,
    every: int = 3,
    policy: LanguagePolicy | None = None,
    baseline: Any = "moving_average",
    **training: Any,
) -> TrainingLoop:
    """Return a loop with everything that has state: warm start, moving average, schedule, evaluations."""
    one = trainer(
        policy,
        reinforce=ReinforceConfig(problems_per_update=3, episodes_per_problem=3, baseline=baseline),
        training={
            "schedule": "linear",
            "warm_start": WarmStartConfig(num_updates=3, batch_size=4, num_warmup_updates=1),
            **training,
        },
        held_out=COPY[:2],
        evaluation=EvaluationConfig(every=every, decodings=("greedy", "sampled")),
        run_directory=directory,
        display=watcher,
    )
    watcher.trainer = one
    return one


class KilledError(Exception):
    """Stands for a kill of the process."""


class Killer(Watcher):
    """Raise KilledError while the update `stop_after` is logged."""

    def update(self, num_updates: int, *arguments: Any) -> None:
        super().update(num_updates, *arguments)
        if num_updates == self.stop_after:
            raise KilledError
