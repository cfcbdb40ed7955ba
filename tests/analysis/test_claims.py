"""The article's claims: predictions are compared with explicit sums, and measurements with predictions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

from llm_reinforce.analysis import classifier_claim, length_claim
from llm_reinforce.analysis.constant_claim import COMPARED, constant_variances, with_constant
from llm_reinforce.analysis.measured_episodes import MeasuredEpisodes, collect_updates
from llm_reinforce.config import RandomInitConfig, ReinforceConfig, SamplingConfig
from llm_reinforce.episodes import EpisodeBatch
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy, random_policy
from llm_reinforce.policy_gradient import MovingAverage
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import WeightedReward

SETTINGS = ReinforceConfig(problems_per_update=16, episodes_per_problem=4)


# ----------------------------------------------------------------------- a constant added to rewards


@pytest.fixture(scope="module")
def policy() -> LanguagePolicy:
    return small_policy("0123456789+=")


def small_policy(alphabet: str, seed: int = 1) -> LanguagePolicy:
    shape = RandomInitConfig(
        alphabet=alphabet, num_layers=1, num_heads=2, hidden_size=16, intermediate_size=16, max_length=16
    )
    return random_policy(shape, seed=seed)


@pytest.fixture(scope="module")
def collected(policy) -> MeasuredEpisodes:
    """32 groups of four episodes. The reward depends on the first token, so there is a gradient."""

    def is_even(completion: str, problem: Problem) -> float:
        return float(completion[:1] in set("02468"))

    problems = [Problem(f"{digit}=", str(digit)) for digit in range(8)]
    return collect_updates(
        policy,
        problems,
        [WeightedReward("is_even", is_even)],
        SETTINGS,
        SamplingConfig(max_new_tokens=2),
        num_problems=32,
        seed=0,
    )


def test_constant_is_added_to_rewards_moving_average_and_values(collected):
    higher = with_constant(collected, 3.0)
    assert (higher.batch.terminal_rewards - collected.batch.terminal_rewards).unique().tolist() == [3.0]
    assert higher.moving_average.value == pytest.approx(collected.moving_average.value + 3.0)
    assert all(
        torch.allclose(high, low + 3.0) for high, low in zip(higher.values, collected.values, strict=True)
    )
    unscored = replace(collected.batch.episodes[0], reward=None)
    kept = with_constant(MeasuredEpisodes((EpisodeBatch.of([unscored]),), MovingAverage()), 3.0)
    assert kept.batch.episodes[0].reward is None


def test_constant_raises_the_variance_as_predicted_only_without_a_baseline(policy, collected):
    figures = constant_variances(policy, collected, SETTINGS, constants=(0.0, 1.0, 3.0, 10.0))
    for name in COMPARED[1:]:
        values = [each.measured.value for each in figures if each.baseline == name]
        assert values == pytest.approx([values[0]] * 4, rel=1e-3)  # up to rounding errors
    none = {each.constant: each for each in figures if each.baseline == "none"}
    v0, v1, v3, v10 = (none[constant].measured.value for constant in (0.0, 1.0, 3.0, 10.0))
    # V(c) = V(0) + 2 c X + c² F holds exactly on the same episodes: two constants give X and F, and the third
    # one tests the formula
    f = (v3 - v0 - 3 * (v1 - v0)) / 6
    x = (v1 - v0 - f) / 2
    assert v10 == pytest.approx(v0 + 20 * x + 100 * f, rel=1e-3)
    for constant in (1.0, 3.0, 10.0):  # predicted from the other half of the episodes
        assert none[constant].predicted == pytest.approx(none[constant].measured.value, rel=0.35)
    assert v10 > 50 * v0


def test_discount_is_an_error(policy, collected):
    discounting = SETTINGS.model_copy(update={"discount": 0.9})
    with pytest.raises(InputError, match=r"reinforce\.discount"):
        constant_variances(policy, collected, discounting)


# ------------------------------------------------------------------------------------------ classifier


def test_prediction_is_the_sum_over_states_and_classes():
    states = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    p_right, offset = expit(np.array([0.3, -1.0, 2.0])), np.array([0.0, -1.0, 0.5])
    found = classifier_claim.variance_at("", states, p_right, offset, np.random.default_rng(0), seed=0)
    mean, mean_square = np.zeros(2), 0.0
    for x, p, c in zip(states, p_right, offset, strict=True):
        for chance, reward, gradient in ((p, 1 + c, (1 - p) * x), (1 - p, c, -p * x)):
            mean += chance * reward * gradient / 3
            mean_square += chance * (reward * gradient) @ (reward * gradient) / 3
    assert found.predicted == pytest.approx(mean_square - mean @ mean)
    assert found.signal == pytest.approx(np.linalg.norm(mean))
    assert found.measured.low < found.predicted < found.measured.high


def test_offset_changes_the_variance_and_not_the_expectation(monkeypatch):
    monkeypatch.setattr(classifier_claim, "NUM_EPISODES", 1000)
    by_name = {each.name: each for each in classifier_claim.classifier_variances(seed=1)}
    assert len({round(each.signal, 9) for each in by_name.values()}) == 1
    one, mixed, far = (
        by_name[name]
        for name in ("w or 0 everywhere", "w or 0 here, 0 or -w there", "w or 0, plus 2 or minus 2")
    )
    best = by_name["each state's optimal baseline"]
    assert one.share_reinforced == 1.0 > mixed.share_reinforced
    assert best.predicted == min(each.predicted for each in by_name.values())
    assert far.predicted > 5 * one.predicted
    assert far.share_to_label == pytest.approx(0.5, abs=0.05)
    for each in by_name.values():
        assert each.measured.value == pytest.approx(each.predicted, rel=0.15)


# ---------------------------------------------------------------------------------------------- length


def test_variance_of_coins():
    figures = length_claim.toss_coins(seed=0)
    assert [each.num_coins for each in figures] == list(length_claim.LENGTHS)
    for each in figures:
        assert each.independent.value == pytest.approx(each.num_coins / 4, rel=0.03)
        assert each.one_coin.value == pytest.approx(each.num_coins**2 / 4, rel=0.03)


def endless_policy(seed: int) -> LanguagePolicy:
    """Return a smaller model than `length_claim.coin_policy`."""
    return replace(small_policy("01=", seed), end_token_ids=(length_claim.NEVER,))


@pytest.fixture(scope="module")
def by_length() -> dict[tuple[str, str, int], length_claim.LengthVariance]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(length_claim, "LENGTHS", (1, 4))
        patch.setattr(length_claim, "NUM_GROUPS", 24)
        patch.setattr(length_claim, "coin_policy", endless_policy)
        reported: list[int] = []
        figures = length_claim.length_variances(seed=0, progress=reported.append)
        assert reported[-1] == 3 * 24 * 2 == len(reported)
    return {(each.paid, each.estimator, each.num_actions): each for each in figures}


def test_terminal_reward_is_the_reward_to_go_of_every_action(by_length):
    for paid in ("at the end", "verdict"):
        for num in (1, 4):
            whole, to_go = (by_length[paid, name, num].measured for name in ("whole return", "reward to go"))
            assert whole.value == pytest.approx(to_go.value, rel=1e-6)


def test_variance_grows_with_the_length_as_predicted(by_length):
    for figures in by_length.values():  # wide limits: squared gradients have heavy tails, and groups are few
        if figures.estimator == "value":  # the terms that the prediction omits are not small here
            assert figures.measured.value < 2.5 * figures.predicted
            continue
        assert 0.4 < figures.measured.value / figures.predicted < 2.5
    whole, to_go, value = (
        by_length["each step", name, 4].measured for name in ("whole return", "reward to go", "value")
    )
    assert value.value < 0.7 * to_go.value
    assert to_go.value < 0.7 * whole.value


def test_state_dependent_baseline_removes_actions_without_effect(by_length):
    # the verdict depends only on the first action
    value = [by_length["verdict", "value", num].measured for num in (1, 4)]
    plain = [by_length["verdict", "reward to go", num].measured for num in (1, 4)]
    assert value[1].value < 1.5 * value[0].value
    assert plain[1].value > 3 * plain[0].value
