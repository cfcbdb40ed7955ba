"""Baselines that need more than returns: greedy completions and a value head."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import (
    COPY,
    Watcher,
    new_run,
    rows,
    same,
    sevens,
    small_policy,
    timeless,
    trainer,
    weights,
)

from llm_reinforce.config import AdapterConfig, EvaluationConfig, ReinforceConfig, ValueConfig
from llm_reinforce.episodes import EpisodeBatch
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy, load_policy
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import StepRewards, WeightedReward
from llm_reinforce.runs.run_directory import RunDirectory
from llm_reinforce.training import TrainingLoop
from llm_reinforce.training.batch_sampler import BatchSampler


def with_baseline(baseline: str, **settings: Any) -> ReinforceConfig:
    return ReinforceConfig(
        problems_per_update=4,
        episodes_per_problem=3,
        baseline=baseline,  # type: ignore[arg-type]
        **settings,
    )


def head_of(one: TrainingLoop) -> dict[str, torch.Tensor]:
    assert one.value_baseline is not None
    return {name: value.clone() for name, value in one.value_baseline.tensors().items()}


# ------------------------------------------------------------------------------------------- greedy


def test_greedy_completions_are_rewarded_logged_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher()
    one = trainer(num_updates=2, reinforce=with_baseline("greedy"), display=watcher)
    collected: list[EpisodeBatch] = []
    collect = BatchSampler.collect

    def kept(*arguments: Any, **options: Any) -> EpisodeBatch:
        collected.append(collect(*arguments, **options))
        return collected[-1]

    monkeypatch.setattr(BatchSampler, "collect", kept)
    one.train()
    trial, *batches = collected
    assert trial.greedy == ()
    num_tokens = 0
    for batch, metrics in zip(batches, watcher.metrics, strict=True):
        rewards = [sevens(episode.completion.text, episode.problem) for episode in batch.greedy]
        assert len(rewards) == 4
        assert metrics["greedy/reward"] == pytest.approx(sum(rewards) / 4)
        assert metrics["baseline"] == pytest.approx(sum(rewards) / 4, abs=1e-6)  # groups of equal size
        assert "greedy/num_unscored" not in metrics
        sampled = [sevens(episode.completion.text, episode.problem) for episode in batch.episodes]
        assert metrics["reward"] == pytest.approx(sum(sampled) / 12, abs=1e-6)  # of the sampled ones only
        num_tokens += batch.num_tokens
        assert batch.num_tokens > int(batch.lengths.sum())
        assert metrics["num_tokens"] == num_tokens
    assert one.state.num_tokens == num_tokens


def test_a_reward_that_fails_on_greedy_completions_only_is_reported_and_skips_the_update() -> None:
    policy, watcher = small_policy(), Watcher()
    before = weights(policy)
    calls = 0

    def fails_later(completion: str, problem: Problem) -> float:
        nonlocal calls
        calls += 1
        if calls > 16:  # 4 trial episodes and 12 sampled ones
            raise RuntimeError("the judge failed")
        return sevens(completion, problem)

    reward = WeightedReward("fails_later", fails_later)
    trainer(policy, 1, reinforce=with_baseline("greedy"), rewards=(reward,), display=watcher).train()
    assert watcher.metrics[0]["greedy/num_unscored"] == 4
    assert "greedy/reward" not in watcher.metrics[0]
    assert watcher.metrics[0]["num_unscored"] == 0
    assert any("the judge failed" in line for line in watcher.said)
    assert same(weights(policy), before)


# -------------------------------------------------------------------------------------------- value


def test_the_value_baseline_is_zero_in_the_first_update_only() -> None:
    # V is 0 initially, and the episodes of an update are predicted before the head is fitted to them
    results: dict[str, list[dict[str, torch.Tensor]]] = {}
    for baseline in ("none", "value"):
        copies = results.setdefault(baseline, [])
        policy = small_policy()

        class Copying(Watcher):
            def update(self, *arguments: Any, copies: Any = copies, policy: Any = policy) -> None:
                super().update(*arguments)
                copies.append(weights(policy))

        watcher = Copying()
        trainer(policy, 3, reinforce=with_baseline(baseline), display=watcher).train()
    assert same(results["none"][0], results["value"][0])
    assert not same(results["none"][1], results["value"][1])


def test_value_metrics_are_computed_before_the_fit() -> None:
    watcher = Watcher()
    one = trainer(num_updates=6, reinforce=with_baseline("value"), display=watcher)
    one.train()
    first = watcher.metrics[0]
    returns = torch.tensor(
        [episode.reward for episode in watcher.episodes[0] for _ in episode.completion.token_ids]
    )
    assert first["baseline"] == 0.0
    assert first["value/explained_variance"] == 0.0
    assert first["value/loss"] == pytest.approx(float(returns.square().mean()), rel=1e-5)
    assert watcher.metrics[-1]["value/loss"] < first["value/loss"]
    assert watcher.metrics[-1]["baseline"] > 0.0


def test_the_value_head_learns_predictable_returns() -> None:
    # the reward is the digit of the prompt, which V can read from the states
    watcher = Watcher()
    reward = WeightedReward("digit", lambda completion, problem: float(problem.answer) / 3)
    reinforce = with_baseline("value", value=ValueConfig(learning_rate=3e-2, num_steps=20))
    slow = {"learning_rate": 1e-5}
    trainer(num_updates=15, reinforce=reinforce, rewards=(reward,), display=watcher, training=slow).train()
    assert watcher.metrics[-1]["value/explained_variance"] > 0.8
    assert watcher.metrics[-1]["advantage_std"] < 0.5 * watcher.metrics[0]["advantage_std"]


def run_of(directory: RunDirectory, watcher: Watcher, **training: Any) -> TrainingLoop:
    one = trainer(
        reinforce=with_baseline("value", discount=0.9, value=ValueConfig(gae_lambda=0.9, hidden_size=8)),
        training={"schedule": "linear", **training},
        held_out=COPY[:2],
        evaluation=EvaluationConfig(every=2),
        run_directory=directory,
        display=watcher,
    )
    watcher.trainer = one
    return one


@pytest.mark.parametrize("stop_after", [2])
def test_a_resumed_run_with_a_value_head_ends_with_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    straight = run_of(straight_run := new_run(tmp_path / "straight"), Watcher())
    straight.train()
    run_of(stopped_run := new_run(tmp_path / "stopped"), Watcher(stop_after)).train()
    resumed = run_of(stopped_run, watcher := Watcher())
    assert resumed.train(resume=True) == straight.state
    assert watcher.said == [f"resuming from update-{stop_after:06d}"]
    assert same(weights(resumed.policy), weights(straight.policy))
    assert same(head_of(resumed), head_of(straight))
    assert len(head_of(straight)) == 4 + 4 * 3  # 4 weights, 3 optimizer tensors for each
    for name in ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl"):
        assert timeless(rows(stopped_run, name)) == timeless(rows(straight_run, name)), name


def test_a_checkpoint_without_a_value_head_is_resumed_with_a_new_one(tmp_path: Path) -> None:
    directory = new_run(tmp_path / "run")
    trainer(num_updates=1, run_directory=directory).train()
    watcher = Watcher()
    run_of(directory, watcher).train(resume=True)
    assert "checkpoint update-000001 has no value head; the run continues with a new one" in watcher.said
    assert watcher.metrics[0]["value/explained_variance"] == 0.0


def test_a_value_head_of_a_different_size_is_rejected(tmp_path: Path) -> None:
    directory = new_run(tmp_path / "run")
    run_of(directory, Watcher(1)).train()
    other = trainer(reinforce=with_baseline("value"), run_directory=directory)
    with pytest.raises(InputError, match=r"different size; set reinforce.value.hidden_size"):
        other.train(resume=True)


def test_a_fit_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    policy, copies = small_policy(), []
    is_broken = False

    def huge(completion: str, problem: Problem) -> float:
        return 3e38 if is_broken else sevens(completion, problem)

    class Copying(Watcher):
        def update(self, num_updates: int, *arguments: Any) -> None:
            nonlocal is_broken
            super().update(num_updates, *arguments)
            is_broken = num_updates == 1
            assert self.trainer is not None
            copies.append(head_of(self.trainer))

    watcher = Copying()
    one = trainer(
        policy, 3, reinforce=with_baseline("value"), rewards=(WeightedReward("huge", huge),), display=watcher
    )
    watcher.trainer = one
    one.train()
    first, second, third = copies
    assert same(first, second)
    assert not same(second, third)
    assert all(bool(value.isfinite().all()) for value in third.values())
    assert one.state.num_skipped_fits == 1
    assert [metrics["value/num_skipped_fits"] for metrics in watcher.metrics] == [0, 1, 1]
    assert sum("steps of the value head were skipped in update 2" in said for said in watcher.said) == 1


def test_unscored_episodes_do_not_change_the_value_head() -> None:
    def picky(value: float | None) -> Any:
        return lambda completion, problem: value if problem.id == "0" else sevens(completion, problem)

    heads = []
    for reward in (picky(None), picky(float("nan"))):
        one = trainer(num_updates=2, reinforce=with_baseline("value"), rewards=(WeightedReward("r", reward),))
        one.train()
        heads.append((head_of(one), weights(one.policy)))
    assert same(heads[0][0], heads[1][0])
    assert same(heads[0][1], heads[1][1])


def test_the_value_head_is_fitted_to_discounted_step_rewards() -> None:
    def first_character(completion: str, problem: Problem) -> StepRewards:
        return StepRewards([(0, 1, 2.0)] if completion else [])

    watcher = Watcher()
    reinforce = with_baseline("value", discount=0.5, value=ValueConfig(learning_rate=1e-2, num_steps=20))
    trainer(
        num_updates=20,
        reinforce=reinforce,
        rewards=(WeightedReward("first", first_character),),
        display=watcher,
    ).train()
    # the return falls from 2 to 0 after the first character, and the state shows if there is one
    assert watcher.metrics[-1]["value/explained_variance"] > 0.5


def test_the_value_head_does_not_change_the_policy(tmp_path: Path) -> None:
    small_policy().save(tmp_path / "base")
    policy = load_policy(tmp_path / "base", lora=AdapterConfig(rank=2))
    one = trainer(policy, 2, reinforce=with_baseline("value"))
    assert one.value_baseline is not None
    before = weights(policy)
    batch = one.sampler.collect(COPY, one.state)
    prediction = one.value_baseline.predict(batch)
    assert one.value_baseline.fit(prediction, one.estimate_batch(batch, prediction))
    assert same(weights(policy), before)
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    one.train()
    assert not same(weights(policy), before)


def test_a_policy_without_readable_hidden_states_is_rejected_before_training(
    tiny_policy: LanguagePolicy,
) -> None:
    model: Any = tiny_policy.model
    model.get_output_embeddings = lambda: None
    model.model.layers[0].register_forward_hook(lambda *arguments: None)  # disables the fast path
    with pytest.raises(InputError, match="choose another baseline"):
        trainer(tiny_policy, reinforce=with_baseline("value"))
