"""The named variants: the loss of a fixed batch equals the formula of the paper, written in plain Python."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, pstdev

import pytest
import torch

from llm_reinforce.config import VARIANTS, ReinforceConfig
from llm_reinforce.episodes import Episode, EpisodeBatch, estimate_advantages
from llm_reinforce.policy import Completion
from llm_reinforce.policy_gradient import MovingAverage
from llm_reinforce.problems import Problem
from llm_reinforce.training.objective import surrogate_loss
from llm_reinforce.verifier import verify

# two groups of three episodes: reward, and behavior log-probabilities and ratios of the actions
GROUPS = [
    [
        (1.0, [-0.5, -1.0, -2.0], [1.1, 0.7, 1.5]),
        (0.0, [-0.1, -0.3], [0.9, 1.3]),
        (0.25, [-1.5], [1.25]),
    ],
    [
        (0.5, [-0.7, -0.2], [7.0, 0.95]),
        (2.0, [-2.0, -0.4, -0.1], [1.0, 0.4, 1.6]),
        (0.75, [-0.9], [0.6]),
    ],
]
GREEDY = [0.4, 1.2]
EVERYONE = [episode for group in GROUPS for episode in group]
NUM_TOKENS = sum(len(ratios) for _, _, ratios in EVERYONE)
Advantage = Callable[[Sequence[float], int], float]


def ppo(ratio: float, advantage: float, low: float = 0.2, high: float = 0.2) -> float:
    return min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def normalized(rewards: Sequence[float], index: int) -> float:
    return (rewards[index] - fmean(rewards)) / pstdev(rewards)


def centered(rewards: Sequence[float], index: int) -> float:
    return rewards[index] - fmean(rewards)


def of_groups(advantage: Advantage) -> list[float]:
    """Return the advantage of each episode, computed from the rewards of its group."""
    rewards = [[reward for reward, _, _ in group] for group in GROUPS]
    return [advantage(own, index) for own in rewards for index in range(len(own))]


def sums(advantages: Sequence[float], term: Callable[[float, float], float]) -> list[float]:
    """Return the sum over the actions of each episode."""
    return [
        sum(term(ratio, advantage) for ratio in ratios)
        for advantage, (_, _, ratios) in zip(advantages, EVERYONE, strict=True)
    ]


def log_prob_sums(
    advantages: Sequence[float], weight: Callable[[float], float] = lambda _: 1.0
) -> list[float]:
    """Return Σ_t w(ρ_t) A log π(a_t | s_t) of each episode."""
    return [
        sum(weight(r) * advantage * (log + math.log(r)) for log, r in zip(logs, ratios, strict=True))
        for advantage, (_, logs, ratios) in zip(advantages, EVERYONE, strict=True)
    ]


def mean_over_lengths(values: Sequence[float]) -> float:
    return fmean(value / len(ratios) for value, (_, _, ratios) in zip(values, EVERYONE, strict=True))


REWARDS = [reward for reward, _, _ in EVERYONE]
# the objective that each paper maximizes
PAPERS: dict[str, Callable[[], float]] = {
    # (1/N) Σ_i r_i Σ_t log π
    "reinforce": lambda: fmean(log_prob_sums(REWARDS)),
    # (1/N) Σ_i (r_i - (1/(n-1)) Σ_{j≠i} r_j) Σ_t log π
    "rloo": lambda: fmean(log_prob_sums(of_groups(lambda r, i: r[i] - (sum(r) - r[i]) / (len(r) - 1)))),
    # (1/N) Σ_i (r_i - r_greedy) Σ_t log π
    "remax": lambda: fmean(
        log_prob_sums([reward - GREEDY[index // 3] for index, reward in enumerate(REWARDS)])
    ),
    # E_t min(ρ_t A, clip(ρ_t, 1 - ε, 1 + ε) A), A standardized over the batch
    "ppo": lambda: sum(sums([normalized(REWARDS, i) for i in range(6)], ppo)) / NUM_TOKENS,
    # (1/G) Σ_i (1/|o_i|) Σ_t min(…), A = (r_i - mean) / std; the mean over the questions
    "grpo": lambda: mean_over_lengths(sums(of_groups(normalized), ppo)),
    # (1/G) Σ_i Σ_t min(…), A = r_i - mean
    "dr_grpo": lambda: fmean(sums(of_groups(centered), ppo)),
    # (1/Σ|o_i|) Σ_i Σ_t min(…), clip(ρ_t, 1 - 0.2, 1 + 0.28)
    "dapo": lambda: sum(sums(of_groups(normalized), lambda r, a: ppo(r, a, 0.2, 0.28))) / NUM_TOKENS,
    # (1/Σ|o_i|) Σ_i Σ_t sg(min(ρ_t, 5)) A log π
    "cispo": lambda: sum(log_prob_sums(of_groups(normalized), lambda r: min(r, 5.0))) / NUM_TOKENS,
}


def episode(group: int, reward: float, logs: Sequence[float]) -> Episode:
    ids, zeros = (1,) * len(logs), (0.0,) * len(logs)
    completion = Completion(ids, tuple(logs), zeros, "", True, zeros)
    return Episode(Problem("p", "1"), group, (1,), completion, verify("", "1"), {}, reward)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_equals_the_formula_of_the_paper(variant: str) -> None:
    batch = EpisodeBatch.of(
        [episode(number, reward, logs) for number, group in enumerate(GROUPS) for reward, logs, _ in group],
        greedy=[episode(number, reward, [0.0]) for number, reward in enumerate(GREEDY)],
    )
    is_clipped = "clip" in VARIANTS[variant]
    settings = ReinforceConfig(
        variant=variant,
        problems_per_update=2,
        episodes_per_problem=3,
        updates_per_batch=2 if is_clipped else 1,
    )
    estimate = estimate_advantages(batch, settings, MovingAverage())
    ratios = torch.ones_like(batch.behavior_log_probs)
    for row, (_, _, of_actions) in enumerate(EVERYONE):
        ratios[row, : len(of_actions)] = torch.tensor(of_actions)
    advantages = estimate.advantages
    if estimate.loss_weights is not None:
        advantages = estimate.loss_weights[:, None] * advantages
    loss, _ = surrogate_loss(
        settings,
        batch.behavior_log_probs + ratios.log(),
        batch.behavior_log_probs,
        advantages,
        estimate.mask,
        estimate.denominator,
    )
    assert loss.item() == pytest.approx(-PAPERS[variant](), rel=1e-4)
