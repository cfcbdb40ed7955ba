"""The baselines that need more of a run than its returns: greedy completions, a value head."""

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


def test_greedy_completions_are_sampled_rewarded_logged_and_counted() -> None:
    watcher = Watcher()
    one = trainer(num_updates=2, reinforce=with_baseline("greedy"), display=watcher)
    collected: list[EpisodeBatch] = []
    collect = one._collect

    def kept(*arguments: Any, **options: Any) -> EpisodeBatch:
        collected.append(collect(*arguments, **options))
        return collected[-1]

    one._collect = kept  # type: ignore[method-assign]
    one.train()
    trial, *batches = collected
    assert trial.greedy == ()
    num_tokens = 0
    for batch, metrics in zip(batches, watcher.metrics, strict=True):
        rewards = [sevens(episode.completion.text, episode.problem) for episode in batch.greedy]
        assert len(rewards) == 4
        assert metrics["greedy/reward"] == pytest.approx(sum(rewards) / 4)
        assert metrics["baseline"] == pytest.approx(sum(rewards) / 4, abs=1e-6)  # equally many of each
        assert "greedy/num_unscored" not in metrics
        sampled = [sevens(episode.completion.text, episode.problem) for episode in batch.episodes]
        assert metrics["reward"] == pytest.approx(sum(sampled) / 12, abs=1e-6)  # not mixed in
        num_tokens += batch.num_tokens
        assert batch.num_tokens > int(batch.lengths.sum())
        assert metrics["num_tokens"] == num_tokens
    assert one.state.num_tokens == num_tokens


def test_a_reward_that_fails_on_greedy_completions_alone_moves_nothing_and_is_told() -> None:
    policy, watcher = small_policy(), Watcher()
    before = weights(policy)
    calls = 0

    def falls_ill(completion: str, problem: Problem) -> float:
        nonlocal calls
        calls += 1
        if calls > 16:  # 4 when the rewards are tried, 12 that are sampled
            raise RuntimeError("the judge is ill")
        return sevens(completion, problem)

    reward = WeightedReward("ill", falls_ill)
    trainer(policy, 1, reinforce=with_baseline("greedy"), rewards=(reward,), display=watcher).train()
    assert watcher.metrics[0]["greedy/num_unscored"] == 4
    assert "greedy/reward" not in watcher.metrics[0]
    assert watcher.metrics[0]["num_unscored"] == 0
    assert any("the judge is ill" in line for line in watcher.said)
    assert same(weights(policy), before)


# -------------------------------------------------------------------------------------------- value


def test_the_first_update_is_that_of_no_baseline_and_later_ones_are_not() -> None:
    # at birth V is 0; and what is predicted is predicted before the head has seen the episodes
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


def test_the_logged_numbers_are_of_before_the_fit() -> None:
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


def test_it_learns_what_can_be_foretold() -> None:
    # the reward is the prompt's digit, whatever is said, which the states show
    watcher = Watcher()
    reward = WeightedReward("digit", lambda completion, problem: float(problem.answer) / 3)
    reinforce = with_baseline("value", value=ValueConfig(learning_rate=1e-2, num_steps=20))
    slow = {"learning_rate": 1e-5}
    trainer(num_updates=40, reinforce=reinforce, rewards=(reward,), display=watcher, training=slow).train()
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


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, stop_after: int) -> None:
    straight = run_of(straight_run := new_run(tmp_path / "straight"), Watcher())
    straight.train()
    run_of(stopped_run := new_run(tmp_path / "stopped"), Watcher(stop_after)).train()
    resumed = run_of(stopped_run, watcher := Watcher())
    assert resumed.train(resume=True) == straight.state
    assert watcher.said == [f"resuming from update-{stop_after:06d}"]
    assert same(weights(resumed.policy), weights(straight.policy))
    assert same(head_of(resumed), head_of(straight))
    assert len(head_of(straight)) == 4 + 4 * 3  # weights and moments
    for name in ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl"):
        assert timeless(rows(stopped_run, name)) == timeless(rows(straight_run, name)), name


def test_a_checkpoint_without_a_value_head_is_gone_on_from_with_a_new_one(tmp_path: Path) -> None:
    directory = new_run(tmp_path / "run")
    trainer(num_updates=1, run_directory=directory).train()
    watcher = Watcher()
    run_of(directory, watcher).train(resume=True)
    assert "checkpoint update-000001 has no value head: it starts anew" in watcher.said
    assert watcher.metrics[0]["value/explained_variance"] == 0.0


def test_a_value_head_of_another_size_is_told(tmp_path: Path) -> None:
    directory = new_run(tmp_path / "run")
    run_of(directory, Watcher(1)).train()
    other = trainer(reinforce=with_baseline("value"), run_directory=directory)
    with pytest.raises(InputError, match=r"another size \(reinforce.value.hidden_size\)"):
        other.train(resume=True)


def test_a_regression_that_is_not_finite_moves_no_head_and_the_next_does(tmp_path: Path) -> None:
    policy, copies = small_policy(), []
    is_ill = False

    def huge(completion: str, problem: Problem) -> float:
        return 3e38 if is_ill else sevens(completion, problem)

    class Copying(Watcher):
        def update(self, num_updates: int, *arguments: Any) -> None:
            nonlocal is_ill
            super().update(num_updates, *arguments)
            is_ill = num_updates == 1
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
    assert sum("the value head skips steps of update 2" in said for said in watcher.said) == 1


def test_unscored_episodes_teach_the_head_nothing() -> None:
    def picky(value: float | None) -> Any:
        return lambda completion, problem: value if problem.id == "0" else sevens(completion, problem)

    heads = []
    for reward in (picky(None), picky(float("nan"))):
        one = trainer(num_updates=2, reinforce=with_baseline("value"), rewards=(WeightedReward("r", reward),))
        one.train()
        heads.append((head_of(one), weights(one.policy)))
    assert same(heads[0][0], heads[1][0])
    assert same(heads[0][1], heads[1][1])


def test_step_rewards_and_a_discount_reach_the_head() -> None:
    def first_character(completion: str, problem: Problem) -> StepRewards:
        return StepRewards([(0, 1, 2.0)] if completion else [])

    watcher = Watcher()
    reinforce = with_baseline("value", discount=0.5, value=ValueConfig(learning_rate=1e-2, num_steps=20))
    trainer(
        num_updates=30,
        reinforce=reinforce,
        rewards=(WeightedReward("first", first_character),),
        display=watcher,
    ).train()
    # what is to come falls from 2 to 0 once the first character is there, which the state shows
    assert watcher.metrics[-1]["value/explained_variance"] > 0.5


def test_adapters_are_judged_too_and_neither_they_nor_their_base_learn_from_it(tmp_path: Path) -> None:
    small_policy().save(tmp_path / "base")
    policy = load_policy(tmp_path / "base", lora=AdapterConfig(rank=2))
    one = trainer(policy, 2, reinforce=with_baseline("value"))
    assert one.value_baseline is not None
    before = weights(policy)
    batch = one._collect(COPY)
    prediction = one.value_baseline.predict(batch)
    assert one.value_baseline.fit(prediction, one._estimate(batch, prediction))
    assert same(weights(policy), before)
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    one.train()
    assert not same(weights(policy), before)


def test_a_policy_without_a_head_to_look_at_is_refused_before_training(tiny_policy: LanguagePolicy) -> None:
    model: Any = tiny_policy.model
    model.get_output_embeddings = lambda: None
    model.model.layers[0].register_forward_hook(lambda *arguments: None)  # so that it goes the general way
    with pytest.raises(InputError, match="choose another baseline"):
        trainer(tiny_policy, reinforce=with_baseline("value"))
