"""Tests of the signs that a policy does not learn."""

from typing import Any

import pytest

from llm_reinforce.reports import RunFacts, WarningSigns
from llm_reinforce.reports.collapse_sign import has_collapsed

LEARNING = {
    "sampling/sampling_logp_difference/max": 1e-6,
    "reward": 0.5,
    "reward_std": 0.5,
    "accuracy": 0.5,
    "grad_norm": 1.0,
    "num_unscored": 0,
    "completions/clipped_ratio": 0.1,
    "learning_rate": 1e-3,
}


def found(*updates: dict[str, Any], num_updates: int = 100) -> list[str]:
    """Return the sentences that updates with these metrics cause, with 128 episodes each."""
    signs = WarningSigns(RunFacts(1000, 16, 8, num_updates))
    added = [signs.add({**LEARNING, "update": number, **row}) for number, row in enumerate(updates, 1)]
    said = [finding.text for finding in added if finding is not None]
    assert said == list(signs.sentences)
    return said


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"reward_std": 0.0}, "have the reward 0.5"),
        ({"reward": 0.1 + 1e-9, "reward_std": 1e-9, "grad_norm": 1e-9}, "have the reward 0.1"),
        ({"grad_norm": 0.0}, "the gradient is zero in updates 1–5"),
        ({"completions/clipped_ratio": 0.8}, "80% of the completions in updates 1–10 are cut off"),
        ({"num_unscored": 32}, "25% of the episodes in updates 1–5 could not be scored"),
        ({"grad_norm": None}, "the gradients of 5 of 5 updates in updates 1–5 are not finite"),
        ({"frac_weights_changed": 0.02}, "only 2.00% of the weights with a nonzero gradient changed"),
        ({"sampling/sampling_logp_difference/max": 0.5}, "differ by up to 0.5 nats in updates 1–5"),
        ({"frac_reward_zero_std": 0.97}, "for 97% of the problems in updates 1–5, all episodes"),
        ({"entropy": 1e-4, "accuracy": 0.2, "reward": 0.2}, "no longer explores"),
        ({"reward": 0.0, "reward_std": 0.0, "accuracy": 0.0}, "no answer is correct"),
    ],
)
def test_each_sign_is_reported_once(changed: dict[str, Any], words: str) -> None:
    said = found(*[changed] * 12)
    assert len(said) == 1
    assert words in said[0]
    assert not found(*[changed] * 4)
    assert not found(changed, *[{}] * 10)


def test_difference_that_is_measured_in_some_updates_only_is_a_sign() -> None:
    name = "sampling/sampling_logp_difference/max"
    assert "differ by up to 0.5 nats" in found({name: 0.5}, *[{name: None}] * 4)[0]
    assert not found({name: 1e-6}, *[{name: None}] * 10)


def test_server_that_samples_from_older_weights_on_purpose_is_no_sign() -> None:
    name, age = "sampling/sampling_logp_difference/max", "server/num_batches_since_sync"
    stale = [{name: 0.5 if number % 3 else 1e-5, age: number % 3} for number in range(12)]
    assert not found(*stale)
    (sentence,) = found(*[{name: 0.5, age: 0}] * 12)
    assert "check that no other run uses the server" in sentence


def test_short_run_is_measured_over_all_its_updates() -> None:
    assert len(found(*[{"reward_std": 0.0}] * 3, num_updates=3)) == 1


def test_policy_that_learns_to_end_its_completions_is_no_sign() -> None:
    shares = [0.78, 0.78, 0.75, 0.71, 0.71, 0.6, 0.46, 0.47, 0.4, 0.3]  # as in the recipe from_scratch
    updates = [{"completions/clipped_ratio": share} for share in shares]
    for length in range(2, len(updates) + 1):
        assert not found(*updates[:length], num_updates=length)
    assert found(*updates[:1] * 6, num_updates=6)


def test_collapse_is_the_only_sign_of_a_learning_rate_that_is_too_high() -> None:
    broken = {"accuracy": 0.0, "reward_std": 0.0, "grad_norm": 0.0, "completions/clipped_ratio": 0.8}
    (sentence,) = found({"accuracy": 0.3}, *[broken] * 20)
    assert "the policy has collapsed" in sentence


def test_collapse() -> None:
    first, broken = {"accuracy": 0.3}, {"accuracy": 0.005}
    (sentence,) = found(first, *[broken] * 10)
    assert "reached 30.0%, fell below half of this value in update 2" in sentence
    assert "training.learning_rate (in this run, it is 0.001)" in sentence
    assert not found(*[first] * 10, *[{"accuracy": 0.2}] * 10)
    assert has_collapsed(0.3, 128, 0.0, 640)
    assert not has_collapsed(0.125, 8, 0.0, 40)  # one correct answer in 8 is chance


def test_problems_of_different_difficulty_are_no_collapse() -> None:
    # numbers of correct answers, out of 64, in a run of smollm2_word_problems with 8 problems per update, in
    # which the greedy accuracy on held-out problems rose from 33% to 38%
    counts = (
        "24 9 10 16 16 21 21 34 18 26 14 10 13 26 12 11 9 14 25 22 26 10 14 20 29 16 19 12 26 15 "
        "28 25 19 29 11 33 13 22 15 24 35 19 28 20 19 13 15 6 18 15 21 18 29 18 23 19 18 15 16 14 "
        "16 32 27 16 16 9 30 25 9 28 31 21 32 18 40 20 15 36 19 43 29 22 33 34 36 32 34 43 23 17 "
        "17 28 35 11 31 12 5 30 22 18 "
    )
    signs = WarningSigns(RunFacts(1016, 8, 8, 100))
    for update, count in enumerate(map(int, counts.split()), 1):
        assert signs.add({**LEARNING, "update": update, "accuracy": count / 64}) is None


def test_success_and_missing_numbers_are_no_signs() -> None:
    assert not found(*[{"accuracy": 1.0, "reward": 1.0, "reward_std": 0.0, "grad_norm": 0.0}] * 10)
    assert not found(*[{"reward": None, "completions/clipped_ratio": None}] * 10)


def test_fewer_problems_than_an_update_asks_for() -> None:
    signs = WarningSigns(RunFacts(3, 16, 8, 100))
    finding = signs.before_first_update()
    assert finding is not None
    assert "needs 16 problems, but there are only 3 training problems" in finding.sentence
    assert signs.before_first_update() is None
    assert signs.sentences == (finding.text,)
    assert WarningSigns(RunFacts(16, 16, 8, 100)).before_first_update() is None
