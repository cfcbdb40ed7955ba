"""Measured variances, compared with the exact values of a toy, and on a tiny policy."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy import BEFORE, PROMPTS, Toy, all_episodes, make_toy

from llm_reinforce.analysis import (
    GradientVariance,
    MeasuredEpisodes,
    collect_updates,
    estimators_for,
    gradient_statistics,
    measure_estimators,
)
from llm_reinforce.analysis.estimators import action_weights
from llm_reinforce.analysis.gradient_variance import estimator_statistics
from llm_reinforce.config import ReinforceConfig, SamplingConfig
from llm_reinforce.episodes import EpisodeBatch
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy, token_log_probs
from llm_reinforce.policy_gradient import UNBIASED
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import WeightedReward, correct_answer

PLAIN = ReinforceConfig(problems_per_update=4, episodes_per_problem=2)
COVERED = ("none", "leave_one_out", "value, λ 0.9")
NUM_REPEATS, NUM_GROUPS = 64, 96


@pytest.fixture(scope="module")
def toy(exact_policy: Callable[..., LanguagePolicy]) -> Toy:
    return make_toy(exact_policy(alphabet="01", seed=3))


# ----------------------------------------------------------------------------- exact expectations


def test_expected_gradients_equal_the_gradient_of_the_objective(
    toy: Toy, exact_policy: Callable[..., LanguagePolicy]
) -> None:
    policy = exact_policy(alphabet="01", seed=3)
    objective = torch.tensor(0.0, dtype=torch.float64)
    for prompt in PROMPTS:  # J = the mean over prompts of Σ_c π(c) g_0(c)
        episodes, _ = all_episodes(policy, prompt)
        for episode in episodes:
            scores = token_log_probs(
                policy.model,
                [episode.prompt_ids],
                [episode.completion.token_ids],
                pad_token_id=policy.pad_token_id,
            )
            assert episode.total_reward is not None
            objective = objective + scores.log_probs.sum().exp() * episode.total_reward / len(PROMPTS)
    parts = torch.autograd.grad(objective, list(policy.model.parameters()))
    exact = torch.cat([part.flatten() for part in parts])
    group_of = torch.tensor(toy.groups)[toy.gradients.episode_of]
    chances = torch.from_numpy(toy.probabilities)[group_of]
    rows = torch.stack(list(toy.gradients.rows))
    for index, estimator in enumerate(toy.estimators):
        expected = (chances * toy.gradients.coefficients[index]) @ rows
        difference = float((expected - exact).norm() / exact.norm())
        if estimator.settings.baseline in UNBIASED and estimator.settings.value.gae_lambda == 1.0:
            assert difference < 1e-6, estimator.name  # rewards are in float32
        elif estimator.settings.baseline == "value":
            assert difference > 0.01, estimator.name
        else:  # group_mean, and batch_mean since an update is one group of two episodes
            assert torch.allclose(expected, exact / 2, atol=1e-6 * float(exact.norm())), estimator.name


def test_estimators_with_terminal_rewards_only(exact_policy: Callable[..., LanguagePolicy]) -> None:
    names = ("whole return", "none", "group_mean", "leave_one_out")
    toy = make_toy(exact_policy(alphabet="01", seed=3), is_rare=True, names=names)
    # the reward-to-go of every action is the return of the episode; group_mean halves every advantage
    assert toy.variance("whole return") == pytest.approx(toy.variance("none"), rel=1e-6)
    assert toy.variance("group_mean") == pytest.approx(toy.variance("leave_one_out") / 4, rel=1e-6)


def test_reward_to_go_has_a_lower_variance_than_the_whole_return(toy: Toy) -> None:
    assert toy.variance("none") < toy.variance("whole return")


# -------------------------------------------------------------------------------------- coverage


def test_intervals_cover_the_exact_values_at_their_nominal_rate(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coverage is at least 84% for each statistic (95% minus four standard errors), and 95% ± 2% overall.

    tests/benchmarks/variance_coverage.py has more repetitions, other numbers of groups and rarer rewards.
    """
    monkeypatch.setattr(gradient_statistics, "NUM_RESAMPLES", 199)  # enough for the quantiles at 2.5%
    toy = toy.only(COVERED)
    truths = {name: toy.truth(name, toy.cosine(name, NUM_GROUPS, 400)) for name in COVERED}
    hits: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for seed in range(NUM_REPEATS):
        figures, squared_norm, _ = toy.measure(NUM_GROUPS, seed)
        exact = toy.squared_norm("leave_one_out")
        hits["leave_one_out", "squared norm"].append(squared_norm.low <= exact <= squared_norm.high)
        for found in figures:
            for figure, truth in truths[found.name].items():
                if (measured := getattr(found, figure)) is not None:
                    slack = 1e-6 * abs(truth)  # the expectation of group_mean is exactly ∇J / 2
                    hits[found.name, figure].append(measured.low - slack <= truth <= measured.high + slack)
    shares = {key: float(np.mean(held)) for key, held in hits.items()}
    assert {key: share for key, share in shares.items() if share < 0.84} == {}
    assert 0.93 <= np.mean(list(shares.values())) <= 0.97


# --------------------------------------------------------------------------- scales of statistics


def measured_by(settings: ReinforceConfig, num_groups: int = 40, seed: int = 0) -> list[SimpleNamespace]:
    """Return the statistics of `none`, `group_mean` and `leave_one_out` for the same artificial vectors."""
    vectors = np.random.default_rng(7).normal(0.5, 1.0, size=(num_groups, 3))
    factors = {"none": 1.0, "group_mean": 0.5, "leave_one_out": 1.0}
    estimators = [each for each in estimators_for(settings) if each.name in factors]
    scale = [factors[each.name] for each in estimators]
    gram = vectors @ vectors.T
    figures, _, _ = estimator_statistics(lambda i, j: scale[i] * scale[j] * gram, estimators, seed=seed)
    return [SimpleNamespace(**{name: getattr(each, name) for name in each.__slots__}) for each in figures]


def test_variance_is_per_episode_and_snr_per_update() -> None:
    base = measured_by(PLAIN)[0]
    wider = measured_by(PLAIN.model_copy(update={"problems_per_update": 40}))[0]
    deeper = measured_by(PLAIN.model_copy(update={"episodes_per_problem": 6}))[0]
    # ten times as many problems per update: ten times the SNR, and no other change
    assert wider.variance == base.variance
    assert wider.noise_scale == base.noise_scale
    assert wider.snr.value == pytest.approx(10 * base.snr.value)
    assert (wider.snr.low, wider.snr.high) == pytest.approx((10 * base.snr.low, 10 * base.snr.high))
    # the same vectors from three times as many episodes: three times the variance per episode
    assert deeper.variance.value == pytest.approx(3 * base.variance.value)
    assert deeper.snr.value == pytest.approx(base.snr.value)
    assert deeper.noise_scale.value == pytest.approx(3 * base.noise_scale.value)
    # the SNR of an update is its number of episodes divided by the noise scale
    assert base.snr.value == pytest.approx(8 / base.noise_scale.value)


def test_group_mean_has_half_the_gradient_and_the_same_snr() -> None:
    none, group_mean, leave_one_out = measured_by(PLAIN)
    assert (none.along, none.bias, leave_one_out.bias) == (None, None, None)
    assert group_mean.along.value == pytest.approx(0.5)
    assert (group_mean.along.low, group_mean.along.high) == pytest.approx((0.5, 0.5))
    assert group_mean.bias.value == pytest.approx(0.5)
    assert group_mean.variance.value == pytest.approx(leave_one_out.variance.value / 4)
    assert group_mean.snr.value == pytest.approx(leave_one_out.snr.value)
    assert group_mean.cosine.value == pytest.approx(leave_one_out.cosine.value)


def test_noise_scale_without_signal_has_no_upper_limit() -> None:
    vectors = np.random.default_rng(1).normal(size=(40, 200))
    estimators = [each for each in estimators_for(PLAIN) if each.name == "leave_one_out"]
    (found,), squared_norm, _ = estimator_statistics(lambda i, j: vectors @ vectors.T, estimators)
    assert squared_norm.low < 0 < squared_norm.high
    assert found.snr.low < 0 < found.snr.high
    assert found.noise_scale.high == math.inf
    assert 0 < found.noise_scale.low < math.inf


@pytest.mark.parametrize("num_with_gradient", [0, 1, 3])
def test_too_few_problems_with_a_gradient_are_an_error(num_with_gradient: int) -> None:
    vectors = np.zeros((20, 3))
    vectors[:num_with_gradient] = 1.0
    estimators = [each for each in estimators_for(PLAIN) if each.name == "leave_one_out"]
    found = f"only {num_with_gradient}" if num_with_gradient else "none"
    with pytest.raises(InputError, match=f"{found} of the 20 problems have a nonzero gradient"):
        estimator_statistics(lambda i, j: vectors @ vectors.T, estimators)


def test_few_problems_with_a_gradient_give_finite_results() -> None:
    vectors = np.zeros((40, 3))
    vectors[:4] = np.random.default_rng(2).normal(1.0, 1.0, size=(4, 3))
    estimators = [each for each in estimators_for(PLAIN) if each.name in ("none", "leave_one_out")]
    figures, squared_norm, num = estimator_statistics(lambda i, j: vectors @ vectors.T, estimators)
    assert num == 4
    for measured in (
        squared_norm,
        *(getattr(each, name) for each in figures for name in ("variance", "snr")),
    ):
        assert not any(math.isnan(number) for number in asdict(measured).values())


def test_rounding_errors_do_not_count_as_gradient() -> None:
    vectors = np.random.default_rng(2).normal(size=(20, 3))
    factors = [1.0, 1e-7]  # none, and leave_one_out where all returns are 0.9
    estimators = [each for each in estimators_for(PLAIN) if each.name in ("none", "leave_one_out")]
    with pytest.raises(InputError, match="none of the 20 problems have a nonzero gradient"):
        estimator_statistics(lambda i, j: factors[i] * factors[j] * vectors @ vectors.T, estimators)


def test_action_weights_by_hand(exact_policy: Callable[..., LanguagePolicy]) -> None:
    every, _ = all_episodes(exact_policy(alphabet="01", seed=3), "0")
    # one action with reward 1, and two actions with reward 3 and a step reward of 1 at the first action
    one = replace(every[0], reward=1.0, step_rewards=())
    two = replace(every[3], reward=3.0, step_rewards=(1.0, 0.0))
    assert (len(one.completion.token_ids), len(two.completion.token_ids)) == (1, 2)
    lost = [replace(each, group=1, reward=None) for each in (one, two)]
    collected = MeasuredEpisodes((EpisodeBatch.of([one, two, *lost]),), BEFORE)

    def weights(name: str, settings: ReinforceConfig = PLAIN) -> list[list[float]]:
        (estimator,) = [each for each in estimators_for(settings) if each.name == name]
        found: list[list[float]] = action_weights(estimator, collected)[:2].tolist()
        return found

    # two groups and two scored episodes: factor 1
    assert weights("none") == [[1.0, 0.0], [4.0, 3.0]]
    assert weights("whole return") == [[1.0, 0.0], [4.0, 4.0]]
    assert weights("leave_one_out") == [[-3.0, 0.0], [3.0, 2.0]]
    assert weights("group_mean") == [[-1.5, 0.0], [1.5, 0.5]]
    # a denominator of three tokens: factor 2/3; a denominator of 0.5: factor 4
    tokens = PLAIN.model_copy(update={"denominator": "tokens", "baseline": "none"})
    assert weights("this recipe", tokens) == [
        pytest.approx([2 / 3, 0.0]),
        pytest.approx([8 / 3, 2.0]),
    ]
    # each episode is divided by its length, which is 1 or 2
    lengths = PLAIN.model_copy(update={"denominator": "episode_lengths", "baseline": "none"})
    assert weights("this recipe", lengths) == [[1.0, 0.0], [2.0, 1.5]]
    half = PLAIN.model_copy(update={"denominator": 0.5, "baseline": "none"})
    assert weights("this recipe", half) == [[4.0, 0.0], [16.0, 12.0]]


# ---------------------------------------------------------------------------------- a tiny policy


def is_even(completion: str, problem: Problem) -> float:
    """A reward that a policy with random weights receives often."""
    return float(completion[:1] in set("02468"))


def collected_of(
    policy: LanguagePolicy, *, num_problems: int = 16, discount: float = 1.0
) -> MeasuredEpisodes:
    problems = [Problem(f"{a}+{b}=", str(a + b)) for a in range(3) for b in range(3)]
    return collect_updates(
        policy,
        problems,
        [WeightedReward("is_even", is_even), WeightedReward("correct_answer", correct_answer())],
        PLAIN.model_copy(update={"discount": discount}),
        SamplingConfig(max_new_tokens=4),
        num_problems=num_problems,
        seed=0,
    )


@pytest.fixture(scope="module")
def tiny(exact_policy: Callable[..., LanguagePolicy]) -> LanguagePolicy:
    """A policy that the tests do not change."""
    return exact_policy()


@pytest.fixture(scope="module")
def collected(tiny: LanguagePolicy) -> MeasuredEpisodes:
    return collected_of(tiny)


@pytest.fixture(scope="module")
def measured(tiny: LanguagePolicy, collected: MeasuredEpisodes) -> GradientVariance:
    return measure_estimators(tiny, collected, estimators_for(PLAIN))


def test_updates_are_complete_and_groups_are_numbered_across_them(tiny: LanguagePolicy) -> None:
    collected = collected_of(tiny, num_problems=6)
    assert [len(update) for update in collected.updates] == [8, 8]
    assert collected.batch.groups.tolist() == [group for group in range(8) for _ in range(2)]
    fewer = collected_of(tiny, num_problems=3)
    assert [len(update) for update in fewer.updates] == [6]


def test_moving_average_uses_discounted_returns(tiny: LanguagePolicy, collected: MeasuredEpisodes) -> None:
    discounted = collected_of(tiny, discount=0.5).moving_average.value
    assert 0 < discounted < collected.moving_average.value < 1


def test_measurement_is_deterministic_and_does_not_change_the_policy(
    tiny: LanguagePolicy, collected: MeasuredEpisodes, measured: GradientVariance
) -> None:
    before = {name: each.clone() for name, each in tiny.model.named_parameters()}
    reported: list[int] = []
    again = measure_estimators(tiny, collected, estimators_for(PLAIN), progress=reported.append)
    assert again == measured
    assert reported == list(range(1, 33))
    assert all(torch.equal(before[name], each) for name, each in tiny.model.named_parameters())
    assert all(parameter.grad is None for parameter in tiny.model.parameters())
    assert (again.num_problems, again.episodes_per_problem, again.episodes_per_update) == (16, 2, 8)
    assert 4 <= again.num_with_gradient <= 16
    assert again.sketch_error == 0.0
    assert again.num_parameters == sum(p.numel() for p in tiny.model.parameters())
    for each in again.estimators:
        assert 0 < each.variance.low < each.variance.value < each.variance.high
        assert -1 <= each.cosine.low <= each.cosine.value <= each.cosine.high <= 1
        assert (each.bias is None) == each.is_unbiased


def test_error_of_a_sketch_is_within_its_bound(
    tiny: LanguagePolicy, collected: MeasuredEpisodes, measured: GradientVariance
) -> None:
    found = measure_estimators(tiny, collected, estimators_for(PLAIN)[:7], sketch_size=512)
    assert found.sketch_error == math.sqrt(2 / 512)
    for one, other in zip(measured.estimators, found.estimators, strict=False):
        assert other.name == one.name
        assert other.variance.value == pytest.approx(one.variance.value, rel=4 * found.sketch_error)


def test_equal_returns_are_an_error(tiny: LanguagePolicy, collected: MeasuredEpisodes) -> None:
    updates = [
        EpisodeBatch.of(
            [replace(episode, reward=0.9) for episode in update.episodes], update.logged, update.greedy
        )
        for update in collected.updates[:2]
    ]
    with pytest.raises(InputError, match="none of the 8 problems have a nonzero gradient"):
        measure_estimators(tiny, replace(collected, updates=tuple(updates)), estimators_for(PLAIN))
