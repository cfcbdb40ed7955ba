"""A tiny task is learned from random weights, with every kind of estimate and by the warm start."""

from typing import Any

import pytest
from small_runs import (
    COPY,
    Watcher,
    small_policy,
    trainer,
)

from llm_reinforce.config import (
    ReinforceConfig,
    SamplingConfig,
    TrainingConfig,
    ValueConfig,
    WarmStartConfig,
)
from llm_reinforce.evaluation import measure_accuracy
from llm_reinforce.training.loop import TrainingLoop


def test_a_tiny_task_is_learned_from_random_weights() -> None:
    policy = small_policy()
    before = measure_accuracy(policy, COPY, max_new_tokens=2)
    watcher = Watcher()
    TrainingLoop(
        policy,
        COPY,
        TrainingConfig(num_updates=30, learning_rate=3e-2),
        reinforce=ReinforceConfig(problems_per_update=4, episodes_per_problem=16),
        sampling=SamplingConfig(max_new_tokens=2),
        display=watcher,
    ).train()
    assert before.accuracy < 0.5
    assert sum(metrics["reward"] for metrics in watcher.metrics[-10:]) / 10 >= 0.9
    assert measure_accuracy(policy, COPY, max_new_tokens=2).accuracy == 1.0
    assert watcher.metrics[-1]["entropy"] < watcher.metrics[0]["entropy"]


@pytest.mark.parametrize(
    "settings",
    [
        {"baseline": "none"},
        {"baseline": "optimal", "standardize": True},
        {"baseline": "greedy", "denominator": "tokens"},
        {
            "baseline": "value",
            "value": ValueConfig(gae_lambda=0.9),
            "standardize": True,
            "denominator": "tokens",
            "entropy_coefficient": 0.01,
        },
    ],
    ids=str,
)
def test_other_estimators_learn_too(settings: dict[str, Any]) -> None:
    watcher = Watcher()
    TrainingLoop(
        small_policy(),
        COPY,
        TrainingConfig(num_updates=25, learning_rate=2e-2),
        reinforce=ReinforceConfig(problems_per_update=4, episodes_per_problem=8, **settings),
        sampling=SamplingConfig(max_new_tokens=2),
        display=watcher,
    ).train()
    first, last = ([m["reward"] for m in part] for part in (watcher.metrics[:5], watcher.metrics[-5:]))
    assert sum(last) > sum(first) + 1.5


def test_the_warm_start_teaches_the_answers() -> None:
    policy = small_policy()
    watcher = Watcher()
    trainer(
        policy,
        num_updates=1,
        training={"warm_start": WarmStartConfig(num_updates=60, batch_size=8, learning_rate=1e-2)},
        sampling=SamplingConfig(max_new_tokens=2),
        display=watcher,
    ).train()
    assert watcher.warm_updates == 60
    assert watcher.metrics[0]["accuracy"] > 0.9
