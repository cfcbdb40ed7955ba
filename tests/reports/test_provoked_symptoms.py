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
    # from the second update on, the policy computes other log-probabilities in the update than in sampling; a
    # model that does so from the start is refused when the run starts
    has_noise: bool = False


def of_problem(completion: str, problem: Problem) -> float:
    return float(int(problem.prompt[0]) % 2)


def chance(growth: float = 1.0, failing: int = 0) -> Reward:
    """Return a reward that does not depend on the completion.

    Args:
        growth: factor by which the spread of the rewards grows per update.
        failing: the reward fails on one of this number of episodes. 0: it never fails.
    """
    generator, numbers = random.Random(0), count(1)

    def reward(completion: str, problem: Problem) -> float:
        number = next(numbers)
        if failing and number % failing == 0:
            raise ValueError("no reward")
        return growth ** (number // 16) * generator.gauss(0, 1)

    return reward


RUNS = {
    "a reward for the answer 7": Run(
        {"reward_hacking", "one_answer", "small_evaluation"},
        lambda completion, problem: completion.startswith("7") + float(completion == "7"),
        {"num_updates": 32, "learning_rate": 1e-2},
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
    "no baseline, noise in the update, and weights in half precision": Run(
        {"no_spread", "sampler_mismatch", "steps_rounded"},
        of_problem,
        {
            "num_updates": 5,
            "baseline": "none",
            "dtype": "bfloat16",
            "learning_rate": 1e-7,
            "master_weights": False,
        },
        has_noise=True,
    ),
    "huge rewards": Run({"not_finite"}, lambda completion, problem: 3e38 if completion > "5" else -3e38),
    "a low learning rate, and a reward that fails often": Run(
        {"learning_rate_low", "unscored"}, chance(failing=4), {"num_updates": 30, "learning_rate": 1e-7}
    ),
    "a reward by chance, which fails seldom": Run(
        {"noisy_updates", "reward_failures"}, chance(failing=20), {"num_updates": 32, "learning_rate": 1e-4}
    ),
    "a high learning rate, and growing rewards": Run(
        {"learning_rate_high", "exploding_gradient"},
        chance(growth=1.2),
        {"num_updates": 30, "learning_rate": 2e-2, "baseline": "none"},
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
    num_updates = 0

    def noisy(module: Any, given: Any, logits: torch.Tensor) -> torch.Tensor:
        is_noisy = run.has_noise and num_updates > 0 and torch.is_grad_enabled()  # not in sampling
        return logits + 3.0 * torch.randn_like(logits) if is_noisy else logits

    if run.has_noise:
        trainer.policy.model.lm_head.register_forward_hook(noisy)  # type: ignore[union-attr, operator]
    for update in trainer.updates():
        num_updates = update.number
    assert run.symptoms <= {each.kind for each in diagnose(tmp_path)}


def test_each_symptom_is_provoked() -> None:
    assert set.union(*(run.symptoms for run in RUNS.values())) == set(SEVERITIES)
