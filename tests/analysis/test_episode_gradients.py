"""Gradients of episodes, compared with autograd of the training loss for every estimator."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import all_episodes, arbitrary_values, padded

from llm_reinforce.analysis.episode_gradients import EpisodeGradients, episode_gradients, spanned
from llm_reinforce.analysis.estimators import (
    Estimator,
    action_weights,
    estimators_for,
    with_exact_norms,
)
from llm_reinforce.analysis.measured_episodes import MeasuredEpisodes
from llm_reinforce.analysis.sketch import Sketch
from llm_reinforce.config import AdapterConfig, ReinforceConfig
from llm_reinforce.episodes import EpisodeBatch, estimate_advantages
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy, load_policy, token_log_probs
from llm_reinforce.policy_gradient import MovingAverage, reinforce_loss

BEFORE = MovingAverage(0.3, 0.5)
PLAIN = ReinforceConfig(problems_per_update=3, episodes_per_problem=3)
OTHERS = {
    "plain": PLAIN,
    "discounted": PLAIN.model_copy(update={"discount": 0.7}),
    "as recipes may have it": PLAIN.model_copy(
        update={"discount": 0.9, "standardize": True, "denominator": "tokens", "baseline": "batch_mean"}
    ),
    "by a small constant": PLAIN.model_copy(update={"denominator": 0.25, "baseline": "leave_one_out"}),
}


def some_updates(policy: LanguagePolicy, *, has_step_rewards: bool = True) -> MeasuredEpisodes:
    """Two updates of three problems with three episodes each.

    One episode of the second problem and all episodes of the last problem are unscored.
    """
    updates, values = [], []
    for update in range(2):
        episodes, greedy, learned = [], [], []
        for group, prompt in enumerate(("10", "0", "01"), start=3 * update):
            every, _ = all_episodes(policy, prompt, group)
            if not has_step_rewards:
                every = [replace(episode, step_rewards=()) for episode in every]
            chosen = [every[(2 * group + 3 * k) % 7] for k in range(3)]
            if group == 1:
                chosen[2] = replace(chosen[2], reward=None)
            if group == 5:
                chosen = [replace(episode, reward=None) for episode in chosen]
            episodes += chosen
            greedy.append(every[group])
            of_state = arbitrary_values(prompt)
            learned += [of_state(episode.completion.token_ids) for episode in chosen]
        updates.append(EpisodeBatch.of(episodes, greedy=greedy))
        values.append(padded(learned))
    return MeasuredEpisodes(tuple(updates), BEFORE, tuple(values))


def gradients_of(
    policy: LanguagePolicy,
    collected: MeasuredEpisodes,
    estimators: tuple[Estimator, ...],
    sketch: Sketch | None = None,
) -> EpisodeGradients:
    weights = torch.stack([action_weights(estimator, collected) for estimator in estimators])
    return episode_gradients(policy, collected.batch.episodes, weights, sketch=sketch)


def mean_of_groups(gradients: EpisodeGradients, estimator: int, num_groups: int) -> Tensor:
    """Return (1/K) Σ_k h_k."""
    return gradients.coefficients[estimator] @ torch.stack(list(gradients.rows)).double() / num_groups


def plain_gradient(policy: LanguagePolicy, collected: MeasuredEpisodes, estimator: Estimator) -> Tensor:
    """Return minus the gradient of the training loss, averaged over the updates."""
    total: Tensor = torch.tensor(0.0)
    for number, update in enumerate(collected.updates):
        estimate = estimate_advantages(
            update, estimator.settings, collected.moving_average, values=collected.values[number]
        )
        scores = token_log_probs(
            policy.model,
            [episode.prompt_ids for episode in update.episodes],
            [episode.completion.token_ids for episode in update.episodes],
            pad_token_id=policy.pad_token_id,
        )
        weights = estimate.advantages
        if estimator.credit == "whole_return":
            rows = [[float(row[0])] * len(row) for row in estimate.returns]
            weights = torch.tensor(rows)
        loss = reinforce_loss(scores.log_probs, weights, estimate.mask, estimate.denominator)
        parameters = [each for each in policy.model.parameters() if each.requires_grad]
        found = torch.autograd.grad(loss, parameters)
        total = total - torch.cat([part.flatten() for part in found]).double() / len(collected.updates)
    return total


def relative_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


# ----------------------------------------------------------------------------- against autograd


@pytest.mark.parametrize(
    ("name", "has_step_rewards"),
    [
        ("plain", False),
        ("discounted", True),
        ("as recipes may have it", True),
        ("by a small constant", False),
    ],
)
def test_mean_of_the_groups_is_the_gradient_of_the_training_loss(
    exact_policy: Callable[..., LanguagePolicy], name: str, has_step_rewards: bool
) -> None:
    policy = exact_policy(alphabet="01", seed=3)
    collected = some_updates(policy, has_step_rewards=has_step_rewards)
    estimators = tuple(each for each in estimators_for(OTHERS[name]) if each.credit != "exact_norms")
    assert ("this recipe" in [each.name for each in estimators]) == (name not in ("plain", "discounted"))
    gradients = gradients_of(policy, collected, estimators)
    for index, estimator in enumerate(estimators):
        found = mean_of_groups(gradients, index, 6)
        expected = plain_gradient(policy, collected, estimator)
        assert relative_difference(found, expected) < 1e-6, estimator.name  # rewards are in float32


def test_gram_matrix_of_the_groups(exact_policy: Callable[..., LanguagePolicy]) -> None:
    policy = exact_policy(alphabet="01", seed=3)
    collected = some_updates(policy)
    estimators = estimators_for(PLAIN)
    gradients = gradients_of(policy, collected, estimators)
    groups, rows = collected.batch.groups, torch.stack(list(gradients.rows))

    def vectors(estimator: int) -> Tensor:
        weighted = gradients.coefficients[estimator][:, None] * rows
        of_row = groups[gradients.episode_of]
        return torch.stack([weighted[of_row == group].sum(dim=0) for group in range(6)])

    for one, other in ((0, 0), (2, 5), (5, 2)):
        expected = (vectors(one) @ vectors(other).T).numpy()
        assert gradients.gram(one, other, groups.tolist()) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    # the last problem has no scored episode
    assert not gradients.gram(0, 0, groups.tolist())[5].any()


def test_optimal_baseline_by_exact_norms(exact_policy: Callable[..., LanguagePolicy]) -> None:
    policy = exact_policy(alphabet="01", seed=3)
    settings = PLAIN.model_copy(update={"discount": 0.7})
    collected = some_updates(policy)
    estimators = estimators_for(settings)
    names = [estimator.name for estimator in estimators]
    groups = collected.batch.groups.tolist()
    plain = gradients_of(policy, collected, estimators)
    found = with_exact_norms(plain, estimators, groups)
    number = [each.credit for each in estimators].index("exact_norms")
    rows = torch.stack(list(plain.rows))

    def of_episode(gradients: EpisodeGradients, estimator: int, episode: int) -> Tensor:
        own = gradients.episode_of == episode
        return gradients.coefficients[estimator][own] @ rows[own]

    # the first group's three episodes, and the second's two that are scored
    for group in ([0, 1, 2], [3, 4]):
        for i in group:
            others = [j for j in group if j != i]
            v = {j: of_episode(plain, names.index("none"), j) for j in group}
            # s = Σ γ^t ∇log π, scaled as v is: 3 groups, 8 scored episodes
            s = {j: of_episode(plain, number, j) for j in group}
            b = sum(float(v[j] @ s[j]) for j in others) / sum(float(s[j] @ s[j]) for j in others)
            assert torch.allclose(of_episode(found, number, i), v[i] - b * s[i], rtol=1e-9, atol=1e-12)
    # s equals the gradient of Σ γ^t log π
    episode = collected.batch.episodes[0]
    log_probs = token_log_probs(
        policy.model, [episode.prompt_ids], [episode.completion.token_ids], pad_token_id=policy.pad_token_id
    ).log_probs[0]
    value = sum(0.7**t * log_prob for t, log_prob in enumerate(log_probs)) * 3 / 8
    expected_gradient = torch.cat(
        [part.flatten() for part in torch.autograd.grad(value, list(policy.model.parameters()))]
    )
    assert relative_difference(of_episode(plain, number, 0), expected_gradient) < 1e-6


def test_only_adapters_have_a_gradient(tiny_policy: LanguagePolicy, tmp_path: Path) -> None:
    tiny_policy.save(tmp_path)
    policy = load_policy(tmp_path, lora=AdapterConfig(rank=2))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # new adapters have no effect
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    base = {name: each.clone() for name, each in policy.model.named_parameters()}
    collected = updates_of_digits(policy)
    estimators = estimators_for(PLAIN)[:3]
    gradients = gradients_of(policy, collected, estimators)
    assert len(gradients.rows[0]) == sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    for index, estimator in enumerate(estimators):
        expected = plain_gradient(policy, collected, estimator)
        assert relative_difference(mean_of_groups(gradients, index, 2), expected) < 1e-4
    assert all(torch.equal(base[name], each) for name, each in policy.model.named_parameters())


def updates_of_digits(policy: LanguagePolicy) -> MeasuredEpisodes:
    """One update of two problems, for policies over more than two characters."""
    episodes = []
    for group, prompt in enumerate(("1+2=", "3+4=")):
        every, _ = all_episodes(policy, prompt, group)
        episodes += [every[4], every[1], every[6]]
    return MeasuredEpisodes((EpisodeBatch.of(episodes),), BEFORE, (torch.zeros(6, 2),))


# ------------------------------------------------------------------------------------ side effects


def test_policy_is_not_changed(tiny_policy: LanguagePolicy) -> None:
    parameters = dict(tiny_policy.model.named_parameters())
    before = {name: parameter.clone() for name, parameter in parameters.items()}
    marks = {name: torch.full_like(parameter, 7.0) for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.grad = marks[name].clone()
    gradients_of(tiny_policy, updates_of_digits(tiny_policy), estimators_for(PLAIN)[:3])
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, marks[name])
    assert not tiny_policy.model.training


def test_progress_is_reported_and_episodes_of_weight_zero_are_skipped(tiny_policy: LanguagePolicy) -> None:
    collected = updates_of_digits(tiny_policy)
    weights = torch.ones(1, 6, 2)
    weights[0, 4] = 0.0
    reported: list[int] = []
    gradients = episode_gradients(tiny_policy, collected.batch.episodes, weights, progress=reported.append)
    assert reported == [1, 2, 3, 4, 5, 6]
    assert gradients.episode_of.tolist() == [0, 1, 2, 3, 5]


def test_zero_weights_give_zero_gradients(tiny_policy: LanguagePolicy) -> None:
    collected = updates_of_digits(tiny_policy)
    gradients = episode_gradients(tiny_policy, collected.batch.episodes, torch.zeros(2, 6, 2))
    assert not gradients.gram(0, 1, [0, 0, 0, 1, 1, 1]).any()


def test_weights_at_padding_are_ignored(tiny_policy: LanguagePolicy) -> None:
    (end,) = tiny_policy.end_token_ids
    episodes = [all_episodes(tiny_policy, "1+2=")[0][0]]  # the end token at once
    assert episodes[0].completion.token_ids == (end,)
    padding = torch.tensor([[[2.0, float("nan"), float("inf")]]])
    gradients = episode_gradients(tiny_policy, episodes, padding)
    assert len(gradients.rows) == 1
    assert abs(float(gradients.coefficients[0, 0])) == pytest.approx(2.0)


def test_infinite_gradient_is_an_error(tiny_policy: LanguagePolicy) -> None:
    with torch.no_grad():
        next(iter(tiny_policy.model.parameters())).fill_(float("inf"))
    episodes = all_episodes(tiny_policy, "1+2=")[0][1:2]
    with pytest.raises(InputError, match="is not finite"):
        episode_gradients(tiny_policy, episodes, torch.ones(1, 1, 2))


# -------------------------------------------------------------------------- directions and sketch


@pytest.mark.parametrize(
    ("weights", "num"),
    [
        ([[2.0, 2.0], [-5.0, -5.0], [0.0, 0.0]], 1),  # a terminal reward and constant baselines
        ([[0.0, 0.0]], 0),
        ([[1.0, 2.0], [1.0, 1.0], [3.0, 4.0]], 2),
        ([[1e6, 1e6], [1e-6, 0.0]], 2),  # a separate direction, even if small
        ([[1.0, 1.0], [1.0, 1.0 + 1e-7]], 1),  # rounding
        ([[1e-9, 1e-9]], 1),
    ],
)
def test_number_of_directions(weights: list[list[float]], num: int) -> None:
    rows = torch.tensor(weights, dtype=torch.float64)
    found = spanned(rows)
    assert len(found) == num
    assert torch.allclose(found @ found.T, torch.eye(num, dtype=torch.float64))
    assert torch.allclose(rows @ found.T @ found, rows, rtol=1e-6)


def test_sketched_gradients(exact_policy: Callable[..., LanguagePolicy]) -> None:
    policy = exact_policy(alphabet="01", seed=3)
    collected = some_updates(policy)
    estimators, groups = estimators_for(PLAIN), collected.batch.groups.tolist()
    num_parameters = sum(parameter.numel() for parameter in policy.model.parameters())
    exact = gradients_of(policy, collected, estimators).gram(0, 3, groups)
    # a sketch of the same length preserves all inner products
    long = gradients_of(policy, collected, estimators, Sketch.random(num_parameters, num_parameters, 0))
    assert long.gram(0, 3, groups) == pytest.approx(exact, rel=1e-9, abs=1e-12)
    short = gradients_of(policy, collected, estimators, Sketch.random(num_parameters, 64, 0))
    assert {len(row) for row in short.rows} == {64}
    assert short.gram(0, 3, groups) != pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_policy_in_bfloat16(tiny_policy: LanguagePolicy) -> None:
    collected = updates_of_digits(tiny_policy)
    estimators, groups = estimators_for(PLAIN)[:3], [0, 0, 0, 1, 1, 1]
    exact = gradients_of(tiny_policy, collected, estimators).gram(0, 0, groups)
    tiny_policy.model.to(torch.bfloat16)
    found = gradients_of(tiny_policy, collected, estimators).gram(0, 0, groups)
    assert found == pytest.approx(exact, rel=0.1, abs=0.05 * float(exact.max()))
