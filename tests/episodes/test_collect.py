"""Tests of collecting episodes."""

from typing import Any

import pytest
import torch

from llm_reinforce.episodes import EpisodeBatch, collect_episodes
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy, sample_completions
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import WeightedReward
from llm_reinforce.verifier import verify

PROBLEMS = [Problem("1+1=", "2", id="a"), Problem("10+11=", "21", id="b"), Problem("5=", "5", id="c")]


def length(completion: str, problem: Problem) -> float:
    return float(len(completion))


def fails_on_b(completion: str, problem: Problem) -> float | None:
    if problem.id == "b":
        raise ValueError("no b")
    return 1.0


def collect(
    policy: LanguagePolicy, *rewards: WeightedReward, seed: int = 0, first_group: int = 0
) -> EpisodeBatch:
    return collect_episodes(
        policy,
        PROBLEMS,
        rewards or (WeightedReward("length", length),),
        episodes_per_problem=4,
        max_new_tokens=5,
        generator=torch.Generator().manual_seed(seed),
        first_group=first_group,
    )


def test_episodes_are_in_the_order_of_their_problems(tiny_policy: LanguagePolicy) -> None:
    batch = collect(tiny_policy)
    assert len(batch) == 12
    assert [episode.problem for episode in batch.episodes] == [p for p in PROBLEMS for _ in range(4)]
    assert batch.groups.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert collect(tiny_policy, first_group=7).groups.tolist()[::4] == [7, 8, 9]
    for episode in batch.episodes:
        assert episode.prompt_ids == tiny_policy.encode_prompt(episode.problem.prompt)


def test_lengths_include_the_end_token(tiny_policy: LanguagePolicy) -> None:
    batch = collect(tiny_policy)
    ended = [episode.completion.terminated for episode in batch.episodes]
    assert {True, False} == set(ended)
    for episode, num_actions in zip(batch.episodes, batch.lengths.tolist(), strict=True):
        # in this policy, a character is a token
        assert num_actions == len(episode.completion.text) + episode.completion.terminated
        if not episode.completion.terminated:
            assert num_actions == 5


def test_tensors_contain_the_numbers_of_the_episodes(tiny_policy: LanguagePolicy) -> None:
    batch = collect(tiny_policy)
    log_probs = batch.behavior_log_probs
    assert log_probs.shape == (12, int(batch.lengths.max()))
    for row, episode in enumerate(batch.episodes):
        num_actions = int(batch.lengths[row])
        assert log_probs[row, :num_actions].tolist() == pytest.approx(episode.completion.log_probs)
        assert (log_probs[row, num_actions:] == 0).all()
        assert episode.reward == len(episode.completion.text)
    assert batch.terminal_rewards.tolist() == [episode.reward for episode in batch.episodes]
    assert batch.scored.all()


def test_episodes_are_unscored_if_a_reward_function_fails(tiny_policy: LanguagePolicy) -> None:
    rewards = [WeightedReward("length", length), WeightedReward("fails_on_b", fails_on_b)]
    batch = collect(tiny_policy, *rewards)
    assert batch.scored.tolist() == [True] * 4 + [False] * 4 + [True] * 4
    for episode in batch.episodes:
        if episode.problem.id == "b":
            assert episode.reward is None
            assert episode.failure == "fails_on_b: ValueError: no b"
            assert episode.rewards == {"length": len(episode.completion.text), "fails_on_b": None}
        else:
            assert episode.failure is None
            assert episode.reward == len(episode.completion.text) + 1.0
    assert (batch.terminal_rewards[4:8] == 0).all()


def test_verdict_does_not_depend_on_the_reward(tiny_policy: LanguagePolicy) -> None:
    def constant(completion: str, problem: Problem) -> float:
        return 100.0

    plain = collect(tiny_policy)
    for rewards in (
        [WeightedReward("constant", constant, weight=9.0)],
        [WeightedReward("fails_on_b", fails_on_b)],
        [WeightedReward("length", length, weight=-1.0)],
    ):
        batch = collect(tiny_policy, *rewards)
        assert [e.verdict for e in batch.episodes] == [e.verdict for e in plain.episodes]
        assert [e.completion for e in batch.episodes] == [e.completion for e in plain.episodes]
    for episode in plain.episodes:
        assert episode.verdict == verify(episode.completion.text, episode.problem.answer)


def test_episodes_depend_only_on_the_seed(tiny_policy: LanguagePolicy) -> None:
    assert collect(tiny_policy).episodes == collect(tiny_policy).episodes
    assert collect(tiny_policy).episodes != collect(tiny_policy, seed=1).episodes


def test_prompt_that_cannot_be_encoded_is_rejected(tiny_policy: LanguagePolicy) -> None:
    with pytest.raises(InputError, match="alphabet lacks 'x'"):
        collect_episodes(tiny_policy, [Problem("x=", "1")], (), episodes_per_problem=1, max_new_tokens=1)


def test_greedy_completions_do_not_change_the_sampled_ones(tiny_policy: LanguagePolicy) -> None:
    def with_greedy(with_greedy: bool, *rewards: WeightedReward) -> EpisodeBatch:
        return collect_episodes(
            tiny_policy,
            PROBLEMS,
            rewards or (WeightedReward("length", length),),
            episodes_per_problem=4,
            max_new_tokens=5,
            generator=torch.Generator().manual_seed(0),
            first_group=7,
            with_greedy=with_greedy,
        )

    batch, plain = with_greedy(True), with_greedy(False)
    assert batch.episodes == plain.episodes
    assert plain.greedy == ()
    assert [episode.group for episode in batch.greedy] == [7, 8, 9]
    most_likely = sample_completions(
        tiny_policy, [e.prompt_ids for e in batch.greedy], max_new_tokens=5, greedy=True
    )
    assert [episode.completion for episode in batch.greedy] == most_likely
    assert [episode.problem for episode in batch.greedy] == PROBLEMS
    assert [episode.reward for episode in batch.greedy] == [len(e.completion.text) for e in batch.greedy]
    num_greedy = sum(len(completion.token_ids) for completion in most_likely)
    assert batch.num_tokens == int(batch.lengths.sum()) + num_greedy == plain.num_tokens + num_greedy
    partly_failed = with_greedy(True, WeightedReward("fails_on_b", fails_on_b))
    assert [episode.reward for episode in partly_failed.greedy] == [1.0, None, 1.0]


def test_metrics_logged_for_greedy_completions_are_not_mixed_in(tiny_policy: LanguagePolicy) -> None:
    batch_sizes: list[int] = []

    def logging(prompts: list[str], completions: list[str], log_metric: Any, **_: Any) -> list[float]:
        batch_sizes.append(len(completions))
        log_metric("number", float(len(completions)))
        return [0.0] * len(completions)

    reward = WeightedReward("logging", logging)
    batch = collect_episodes(
        tiny_policy, PROBLEMS, (reward,), episodes_per_problem=4, max_new_tokens=2, with_greedy=True
    )
    assert batch_sizes == [12, 3]
    assert list(batch.logged.values()) == [12.0]
