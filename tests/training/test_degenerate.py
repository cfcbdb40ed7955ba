"""Degenerate updates: empty completions, all truncated, equal rewards, a single scored episode."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Watcher, adapted_policy, same, sevens, small_policy, trainer, weights

from llm_reinforce.config import ReinforceConfig
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.policy_gradient import BASELINES
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import WeightedReward

NUM_UPDATES = 2
Reward = Callable[[str, Problem], float | None]


def biased(policy: LanguagePolicy, bias: float) -> None:
    """Add `bias` to the logits of the end tokens, in sampling and in the loss."""

    def hook(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        towards = torch.zeros(output.shape[-1])
        towards[list(policy.end_token_ids)] = bias
        return output + towards

    policy.model.lm_head.register_forward_hook(hook)  # type: ignore[union-attr, operator]


def whole_run(
    policy: LanguagePolicy, reward: Reward, **settings: Any
) -> tuple[list[Mapping[str, Any]], Watcher]:
    """Train a run and return its metrics; check that all metrics and weights are finite."""
    watcher = Watcher()
    reinforce = ReinforceConfig(problems_per_update=4, episodes_per_problem=3, **settings)
    one = trainer(
        policy,
        NUM_UPDATES,
        reinforce=reinforce,
        rewards=(WeightedReward("r", reward),),
        display=watcher,
    )
    state = one.train()
    assert (state.num_updates, state.num_skipped_updates) == (NUM_UPDATES, 0)
    assert all(bool(value.isfinite().all()) for value in weights(policy).values())
    assert all(math.isfinite(value) for metrics in watcher.metrics for value in metrics.values())
    return watcher.metrics, watcher


ESTIMATES = [
    {"baseline": baseline, "standardize": bool(number % 2), "denominator": ("episodes", "tokens")[number % 2]}
    for number, baseline in enumerate(BASELINES)
]


@pytest.mark.parametrize("settings", ESTIMATES, ids=lambda each: "-".join(map(str, each.values())))
def test_empty_completions(tmp_path: Path, settings: dict[str, Any]) -> None:
    """An empty completion is the end token alone: one action, with a gradient."""
    is_adapted = settings["baseline"] in ("none", "value")
    policy = adapted_policy(tmp_path / "base") if is_adapted else small_policy()
    before = weights(policy)
    biased(policy, 6.0)

    def uneven(completion: str, problem: Problem) -> float:
        return int(problem.id) + len(completion)

    lines, watcher = whole_run(policy, uneven, **settings)
    empty = [e for episodes in watcher.episodes for e in episodes if e.completion.text == ""]
    assert len(empty) > 0.9 * 12 * NUM_UPDATES
    for episode in empty:
        assert len(episode.completion.token_ids) == 1
        assert episode.completion.terminated
        assert (episode.verdict.correct, episode.verdict.reason) == (False, "no_answer")
    assert lines[0]["completions/mean_length"] < 1.5
    assert lines[0]["completions/clipped_ratio"] == 0.0
    is_compared_in_groups = settings["baseline"] in ("leave_one_out", "group_mean")
    assert is_compared_in_groups or not same(weights(policy), before)


@pytest.mark.parametrize("settings", ESTIMATES[::3], ids=lambda each: "-".join(map(str, each.values())))
def test_all_completions_truncated(settings: dict[str, Any]) -> None:
    policy = small_policy()
    before = weights(policy)
    biased(policy, -math.inf)
    lines, watcher = whole_run(policy, sevens, **settings)
    for line in lines:
        assert line["completions/clipped_ratio"] == 1.0
        assert line["completions/mean_length"] == line["completions/max_length"] == 4
        assert line["answers/truncated"] + line["answers/wrong"] + line["accuracy"] == pytest.approx(1.0)
    assert not any(e.completion.terminated for episodes in watcher.episodes for e in episodes)
    assert not same(weights(policy), before)


@pytest.mark.parametrize(
    ("settings", "value"),
    [*((each, 1.0) for each in ESTIMATES), (ESTIMATES[0], 0.0), (ESTIMATES[-1], 0.0)],
    ids=lambda each: "-".join(map(str, each.values())) if isinstance(each, dict) else str(each),
)
def test_all_rewards_equal(settings: dict[str, Any], value: float) -> None:
    policy = small_policy()
    before = weights(policy)
    lines, _ = whole_run(policy, lambda completion, problem: value, **settings)
    assert [line["frac_reward_zero_std"] for line in lines] == [1.0] * NUM_UPDATES
    assert [line["reward_std"] for line in lines] == [0.0] * NUM_UPDATES
    is_compared_here = settings["baseline"] in ("leave_one_out", "group_mean", "batch_mean")
    assert same(weights(policy), before) or not (is_compared_here or value == 0.0)


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_single_scored_episode(baseline: str) -> None:
    """One of twelve episodes is scored: there are no others for a baseline, and no division by zero."""
    calls = 0

    def rarely(completion: str, problem: Problem) -> float | None:
        nonlocal calls
        calls += 1
        return 1.0 if calls % 12 == 5 else None

    policy = small_policy()
    watcher = Watcher()
    one = trainer(
        policy,
        NUM_UPDATES,
        reinforce=ReinforceConfig(problems_per_update=4, episodes_per_problem=3, baseline=baseline),  # type: ignore[arg-type]
        rewards=(WeightedReward("r", rarely),),
        training={"max_unscored_share": 1.0},
        display=watcher,
    )
    state = one.train()
    assert (state.num_updates, state.num_skipped_updates) == (NUM_UPDATES, 0)
    assert all(bool(value.isfinite().all()) for value in weights(policy).values())
    assert [line["num_unscored"] for line in watcher.metrics] == [11] * NUM_UPDATES
    assert [line["reward"] for line in watcher.metrics] == [1.0] * NUM_UPDATES
