"""Each symptom of the doctor is provoked by a short run, and recognized in what the run has recorded."""

import random
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from llm_reinforce import Problem, RandomInitConfig, ReinforceTrainer, diagnose
from llm_reinforce.reports.finding import SEVERITIES

TINY = RandomInitConfig(num_layers=1, num_heads=2, hidden_size=16, intermediate_size=32, max_length=16)
SUMS = [(a, b) for a in range(10) for b in range(10) if (a + b) % 10 != 7]
PROBLEMS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in SUMS]
SEVENS = [{"prompt": f"{a}+{7 - a}=", "answer": "7"} for a in range(2)]
WARM_START = {"num_updates": 60, "batch_size": 8, "learning_rate": 1e-2, "num_warmup_updates": 0}

Reward = Callable[[str, Problem], float | None]


class Run(NamedTuple):
    """A run and the symptoms that it has, apart from others."""

    symptoms: set[str]
    reward: Reward | str
    settings: Mapping[str, Any] = {}
    problems: list[dict[str, str]] = PROBLEMS
    held_out: list[dict[str, str]] = PROBLEMS[:4]
    has_noise: bool = False  # the policy computes other log-probabilities in the update than in sampling


def of_problem(completion: str, problem: Problem) -> float:
    return float(int(problem.prompt[0]) % 2)


def chance() -> Reward:
    """Return a reward that does not depend on the completion."""
    generator = random.Random(0)
    return lambda completion, problem: generator.gauss(0, 1)


def growing_chance() -> Reward:
    """Return a reward whose spread grows by 10% per update of 16 episodes."""
    generator, number = random.Random(0), count()
    return lambda completion, problem: 1.1 ** (next(number) // 16) * generator.gauss(0, 1)


def failing(every: int) -> Reward:
    """Return a reward that fails on one of `every` episodes."""
    number = count()

    def reward(completion: str, problem: Problem) -> float:
        if next(number) % every == every - 1:
            raise ValueError("no reward")
        return float(len(completion))

    return reward


RUNS = {
    "a reward for the answer 7": Run(
        {"reward_hacking", "one_answer", "small_evaluation"},
        lambda completion, problem: completion.startswith("7") + float(completion == "7"),
        {"num_updates": 40, "learning_rate": 1e-2},
        held_out=[*PROBLEMS[:18], *SEVENS],
    ),
    "a warm start on few problems": Run(
        {"memorized", "few_problems"},
        "correct_answer",
        {"num_updates": 3, "learning_rate": 1e-5, "warm_start": WARM_START},
        problems=PROBLEMS[:3],
        held_out=[each for each in PROBLEMS if int(each["answer"]) > 5],
    ),
    "a learning rate that destroys the policy": Run(
        {"collapse"},
        "correct_answer",
        {"num_updates": 8, "learning_rate": 1.0, "warm_start": WARM_START},
        problems=PROBLEMS[:4],
    ),
    "a completion of one token": Run(
        {"no_reward", "truncation"},
        "correct_answer",
        {"num_updates": 5, "max_new_tokens": 1},
        problems=[each for each in PROBLEMS if len(each["answer"]) == 2],
    ),
    "a constant reward": Run({"equal_rewards"}, lambda completion, problem: 0.5),
    "a reward that depends only on the problem": Run({"zero_gradient"}, of_problem),
    "no baseline, and noise in the update": Run(
        {"no_spread", "sampler_mismatch"}, of_problem, {"baseline": "none"}, has_noise=True
    ),
    "a reward that fails often": Run({"unscored"}, failing(4)),
    "a reward that fails seldom, and weights in half precision": Run(
        {"reward_failures", "steps_rounded"}, failing(20), {"dtype": "bfloat16", "learning_rate": 1e-7}
    ),
    "huge rewards": Run({"not_finite"}, lambda completion, problem: 3e38 if completion > "5" else -3e38),
    "a low learning rate": Run({"learning_rate_low"}, chance(), {"num_updates": 30, "learning_rate": 1e-7}),
    "a reward by chance": Run({"noisy_updates"}, chance(), {"num_updates": 40, "learning_rate": 1e-4}),
    "a high learning rate, and growing rewards": Run(
        {"learning_rate_high", "exploding_gradient"},
        growing_chance(),
        {"num_updates": 40, "learning_rate": 3e-3, "baseline": "none"},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_symptoms_of_a_run_are_recognized(tmp_path: Path, name: str) -> None:
    run = RUNS[name]
    settings = {"problems_per_update": 4, "episodes_per_problem": 4, "max_new_tokens": 3, "num_updates": 3}
    trainer = ReinforceTrainer(
        TINY,
        run.problems,
        run.reward,
        held_out=run.held_out,
        output_dir=tmp_path,
        progress=False,
        **{**settings, **run.settings},
    )
    if run.has_noise:
        trainer.policy.model.lm_head.register_forward_hook(  # type: ignore[union-attr, operator]
            lambda module, given, logits: logits + torch.is_grad_enabled() * torch.randn_like(logits)
        )
    trainer.train()
    assert run.symptoms <= {each.kind for each in diagnose(tmp_path)}


def test_each_symptom_is_provoked() -> None:
    assert set.union(*(run.symptoms for run in RUNS.values())) == set(SEVERITIES)
