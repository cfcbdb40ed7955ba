"""Reward functions that fail in various ways: the run finishes, and all weights stay finite."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Watcher, new_run, rows, same, small_policy, timeless, trainer, weights

from llm_reinforce.problems import Problem
from llm_reinforce.rewards import Isolation, WeightedReward, load_reward
from llm_reinforce.runs import RunDirectory

# The functions fail for the problem "0", in the way given by an expression, and return a number for others.
FAULTS = """\
import math, os, sys, time

def well(completion):
    return len(completion) % 3 / 2

def faulty(does):
    def function(completion, problem):
        return eval(does) if problem.id == "0" else well(completion)
    return function

def raises(text):
    raise RuntimeError(text)

def mixed(completion, problem):
    does = ["raises('failed')", "math.nan", "math.inf", "-math.inf", "'1'", "sys.exit(3)", "os._exit(3)",
            "os.abort()", "[0] * 10**9", "time.sleep(60)", "None", "10**400"]
    turn = sum(map(ord, completion)) + len(completion)
    return eval(does[turn % len(does)]) if problem.id == "0" else well(completion)

NAMES = ["raises('failed')", "math.nan", "'1'", "sys.exit(3)", "10**400"]
"""
NAMESPACE: dict[str, Any] = {}
exec(FAULTS, NAMESPACE)


def whole_run(
    path: Path, reward: Callable[..., Any] | WeightedReward, num_updates: int = 3
) -> tuple[dict[str, Any], list[dict[str, Any]], RunDirectory]:
    """Train a run in which every fourth problem fails; return weights, metrics and directory."""
    policy, watcher, directory = small_policy(), Watcher(), new_run(path)
    rewards = (reward if isinstance(reward, WeightedReward) else WeightedReward("r", reward),)
    state = trainer(policy, num_updates, rewards=rewards, run_directory=directory, display=watcher).train()
    assert (state.num_updates, state.num_skipped_updates) == (num_updates, 0)
    after = weights(policy)
    assert all(bool(value.isfinite().all()) for value in after.values())
    return after, timeless(rows(directory)), directory


@pytest.fixture(scope="module")
def unscored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Return the weights after a run in which the reward function returns None for every fourth problem."""
    return whole_run(tmp_path_factory.mktemp("none") / "run", NAMESPACE["faulty"]("None"))[0]


def test_a_failing_reward_function_over_a_run(tmp_path: Path, unscored: dict[str, torch.Tensor]) -> None:
    faults = itertools.cycle(NAMESPACE["NAMES"])

    def faulty(completion: str, problem: Problem) -> Any:
        return eval(next(faults), NAMESPACE) if problem.id == "0" else NAMESPACE["well"](completion)

    after, lines, directory = whole_run(tmp_path / "faulty", faulty)
    assert [line["num_unscored"] for line in lines] == [3] * 3
    failures = [row["failure"] for row in rows(directory, "episodes.jsonl") if row["problem"] == "0"]
    assert all(failures)
    assert len(set(failures)) == len(NAMESPACE["NAMES"])
    # a failure and None give the same bits
    assert same(after, unscored)


def test_all_failures_in_worker_processes_over_a_run(
    tmp_path: Path, unscored: dict[str, torch.Tensor]
) -> None:
    file = tmp_path / "faults.py"
    file.write_text(FAULTS)
    isolation = Isolation(num_workers=2, time_limit=1.5, memory_limit=1024)
    reward = load_reward(f"{file}:mixed", isolation=isolation)
    try:
        after, lines, directory = whole_run(tmp_path / "faulty", reward)
    finally:
        reward.function.close()  # type: ignore[union-attr]
    assert [line["num_unscored"] for line in lines] == [3] * 3
    kinds = {row["failure"].split(":")[1] for row in rows(directory, "episodes.jsonl") if row["failure"]}
    assert len(kinds) >= 3, kinds
    assert same(after, unscored)


DRAWS = """\
import random
import numpy as np

def each(completion, problem):
    return random.random() + float(np.random.rand())
"""
WITH_TORCH = """\
import torch

def together(completions, **columns):
    return torch.rand(len(completions)).tolist()
"""


@pytest.mark.parametrize(
    ("name", "isolation"),
    [
        ("each", None),
        ("together", None),
        ("each", Isolation(num_workers=2)),
        ("together", Isolation(num_workers=1)),  # which imports torch
    ],
    ids=["each", "together", "each in workers", "together in a worker"],
)
def test_a_reward_with_random_numbers_is_the_same_in_a_resumed_run(
    tmp_path: Path, name: str, isolation: Isolation | None
) -> None:
    file = tmp_path / "draws.py"
    file.write_text(DRAWS if name == "each" else WITH_TORCH)
    rewards = (load_reward(f"{file}:{name}", isolation=isolation),)
    straight = small_policy()
    trainer(straight, 3, rewards=rewards, run_directory=(whole := new_run(tmp_path / "whole"))).train()
    stopped, watcher, directory = small_policy(), Watcher(2), new_run(tmp_path / "run")
    watcher.trainer = trainer(stopped, 3, rewards=rewards, display=watcher, run_directory=directory)
    assert watcher.trainer.train().num_updates == 2
    random.random()
    if (
        name == "each" and isolation is not None
    ):  # a killed run leaves no workers; importing torch again is slow
        rewards[0].function.close()  # type: ignore[union-attr]
        rewards = (load_reward(f"{file}:{name}", isolation=isolation),)
    resumed = small_policy()
    trainer(resumed, 3, rewards=rewards, run_directory=directory).train(resume=True)
    assert same(weights(resumed), weights(straight))
    drawn = [row["reward"] for row in rows(whole, "episodes.jsonl")]
    assert drawn == [row["reward"] for row in rows(directory, "episodes.jsonl")]
    assert len(set(drawn)) == len(drawn)  # all numbers differ
    if isolation is not None:
        rewards[0].function.close()  # type: ignore[union-attr]
