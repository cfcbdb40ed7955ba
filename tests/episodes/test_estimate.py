"""Tests of advantages with the baselines `greedy`, `optimal` and `value`, against values computed by hand."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from llm_reinforce.config import ReinforceConfig, ValueConfig
from llm_reinforce.episodes import Episode, EpisodeBatch, Estimate, estimate_advantages
from llm_reinforce.policy import Completion
from llm_reinforce.policy_gradient import MovingAverage
from llm_reinforce.problems import Problem
from llm_reinforce.verifier import verify


def episode(
    group: int,
    reward: float | None,
    num_actions: int = 1,
    norms: Sequence[float] | None = None,
    steps: tuple[float, ...] = (),
) -> Episode:
    zeros = (0.0,) * num_actions
    completion = Completion(
        (1,) * num_actions, zeros, zeros, "", True, zeros if norms is None else tuple(norms)
    )
    return Episode(Problem("p", "1"), group, (1,), completion, verify("", "1"), {}, reward, steps)


def estimate(batch: EpisodeBatch, values: Any = None, **settings: Any) -> Estimate:
    numbers = None if values is None else torch.tensor(values)
    return estimate_advantages(batch, ReinforceConfig(**settings), MovingAverage(), values=numbers)


# ------------------------------------------------------------------------------------------- greedy


def test_greedy_baseline_is_the_return_of_the_greedy_episode() -> None:
    batch = EpisodeBatch.of(
        (episode(4, 1.0, 2), episode(4, 0.0), episode(7, 3.0)),
        greedy=(episode(7, 2.0, 3), episode(4, 0.5)),  # assigned to the sampled episodes by group
    )
    found = estimate(batch, baseline="greedy")
    assert found.baselines.tolist() == [0.5, 0.5, 2.0]
    assert found.advantages.tolist() == [[0.5, 0.5], [-0.5, 0.0], [1.0, 0.0]]
    assert found.mean_return == pytest.approx(4 / 3)  # the mean of the sampled episodes only
    assert found.denominator == 3.0
    assert estimate(batch, baseline="greedy", denominator="tokens").denominator == 4.0


def test_greedy_baseline_with_discount_and_step_rewards() -> None:
    # γ = 1/2; greedy: rewards 4, 2, 8, so g_0 = 4 + 2/2 + 8/4 = 7; sampled: rewards 0, 1
    batch = EpisodeBatch.of((episode(0, 1.0, 2),), greedy=(episode(0, 8.0, 3, steps=(4.0, 2.0, 0.0)),))
    found = estimate(batch, baseline="greedy", discount=0.5)
    assert found.baselines.tolist() == [7.0]
    # ½ - 7,  ½ (1 - 7)
    assert found.advantages.tolist() == [[-6.5, -3.0]]


def test_advantages_are_zero_if_the_greedy_completion_is_unscored() -> None:
    batch = EpisodeBatch.of(
        (episode(0, 1.0, 2), episode(0, 0.0), episode(1, 2.0)), greedy=(episode(0, None), episode(1, 0.0))
    )
    assert estimate(batch, baseline="greedy").advantages.tolist() == [[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]]


def test_greedy_baseline_without_greedy_episodes_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"no greedy episode of the groups \[1\]"):
        estimate(
            EpisodeBatch.of((episode(0, 1.0), episode(1, 1.0)), greedy=(episode(0, 1.0),)), baseline="greedy"
        )


# ------------------------------------------------------------------------------------------ optimal


def test_optimal_baseline_weights_returns_by_recorded_norms() -> None:
    # returns 1, 0, 4 with weights 1 + 1, 1, 3: b = (0·1 + 4·3)/4, (1·2 + 4·3)/5, (1·2 + 0·1)/3
    batch = EpisodeBatch.of(
        (episode(0, 1.0, 2, (1.0, 1.0)), episode(0, 0.0, 1, (1.0,)), episode(0, 4.0, 1, (3.0,)))
    )
    found = estimate(batch, baseline="optimal")
    assert found.baselines.tolist() == pytest.approx([3.0, 2.8, 2 / 3])
    assert found.advantages[0].tolist() == [-2.0, -2.0]


def test_optimal_baseline_with_step_rewards_weights_the_return_of_every_action() -> None:
    # first episode: the second one has g = 3, 1 with weights 1, 3, so b = (3 + 3) / 4 = 1.5
    batch = EpisodeBatch.of((episode(0, 0.0, 1, (1.0,)), episode(0, 1.0, 2, (1.0, 3.0), steps=(2.0, 0.0))))
    assert estimate(batch, baseline="optimal").baselines.tolist() == [1.5, 0.0]
    # γ = 1/2: g = 2.5, 1 with weights 1, 3/4, so b = (2.5 + 0.75) / 1.75
    found = estimate(batch, baseline="optimal", discount=0.5)
    assert found.baselines.tolist() == pytest.approx([3.25 / 1.75, 0.0])


def test_optimal_baseline_leaves_out_unscored_episodes() -> None:
    batch = EpisodeBatch.of(
        (episode(0, 1.0, 1, (1.0,)), episode(0, None, 1, (5.0,)), episode(1, 2.0, 1, (1.0,)),
         episode(1, 6.0, 1, (2.0,)))
    )  # fmt: skip
    found = estimate(batch, baseline="optimal")
    assert found.advantages.flatten().tolist() == [0.0, 0.0, -4.0, 4.0]


def test_optimal_baseline_without_recorded_norms_is_rejected() -> None:
    batch = EpisodeBatch.of((episode(0, 1.0, 2, ()), episode(0, 1.0, 1, (1.0,))))
    with pytest.raises(ValueError, match="were not recorded"):
        estimate(batch, baseline="optimal")
    assert batch.behavior_log_probs.shape == (2, 2)  # other tensors are available


# -------------------------------------------------------------------------------------------- value


def test_value_baseline_has_a_value_for_every_action() -> None:
    batch = EpisodeBatch.of((episode(0, 1.0, 2), episode(0, None, 1), episode(1, 3.0, 1)))
    values = [[0.25, 0.5], [float("nan"), 0.0], [1.0, float("nan")]]
    found = estimate(batch, values, baseline="value", episodes_per_problem=1)
    assert found.advantages.tolist() == [[0.75, 0.5], [0.0, 0.0], [2.0, 0.0]]
    assert found.baselines.tolist() == [0.25, 0.0, 1.0]
    below = {"baseline": "value", "value": ValueConfig(gae_lambda=0.0)}
    # V(s_1) - V(s_0), r - V(s_1)
    assert estimate(batch, values, **below).advantages[0].tolist() == [0.25, 0.5]
    # γ = 1/2: 1/2 V(s_1) - V(s_0),  1/2 (r - V(s_1))
    assert estimate(batch, values, discount=0.5, **below).advantages[0].tolist() == [0.0, 0.25]


def test_value_baseline_with_step_rewards() -> None:
    batch = EpisodeBatch.of((episode(0, 1.0, 2, steps=(2.0, 0.5)),))
    found = estimate(batch, [[1.0, 1.0]], baseline="value", episodes_per_problem=1)
    assert found.returns.tolist() == [[3.5, 1.5]]
    assert found.advantages.tolist() == [[2.5, 0.5]]


def test_value_baseline_without_values_is_rejected() -> None:
    with pytest.raises(ValueError, match="'value' needs the argument"):
        estimate(EpisodeBatch.of((episode(0, 1.0),)), baseline="value")


# ------------------------------------------------------------------------------------ all baselines

BATCH = EpisodeBatch.of(
    (
        episode(0, 1.0, 2, (1.0, 0.5)),
        episode(0, 0.0, 3, (0.2, 0.3, 1.0)),
        episode(0, None, 1, (4.0,)),
        episode(1, 2.0, 1, (0.7,)),
        episode(1, 0.5, 3, (0.1, 0.1, 0.1), steps=(0.0, 1.0, 0.0)),
        episode(1, 0.0, 2, (0.0, 0.0)),
    ),
    greedy=(episode(0, 0.25, 2), episode(1, 1.0, 1)),
)
VALUES = torch.linspace(-1, 1, 18).reshape(6, 3)


def test_part_of_an_estimate() -> None:
    whole = estimate(BATCH, baseline="leave_one_out", standardize=True)
    part = whole.part(slice(2, 4), 1)
    for name in ("returns", "advantages", "mask"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[2:4, :1])
    assert torch.equal(part.baselines, whole.baselines[2:4])
    assert (part.denominator, part.mean_return) == (whole.denominator, whole.mean_return)


@pytest.mark.parametrize("baseline", ["optimal", "greedy", "value"])
def test_standardized_advantages_are_divided_by_the_spread(baseline: str) -> None:
    plain = estimate(BATCH, VALUES.tolist(), baseline=baseline)
    divided = estimate(BATCH, VALUES.tolist(), baseline=baseline, standardize=True)
    g0, scored = plain.returns[:, 0], BATCH.scored
    spread = (g0 - plain.baselines)[scored].square().mean().sqrt()
    torch.testing.assert_close(divided.advantages, plain.advantages / (spread + 1e-6))


@pytest.mark.parametrize("baseline", ["optimal", "greedy", "value"])
def test_empty_completion_has_no_advantage(baseline: str) -> None:
    batch = EpisodeBatch.of(
        (episode(0, 1.0, 2, (1.0, 1.0)), episode(0, 5.0, 0, ())), greedy=(episode(0, 0.0, 0, ()),)
    )
    found = estimate(batch, [[0.5, 0.5], [0.0, 0.0]], baseline=baseline)
    # an empty completion has no action that could earn its reward of 5
    expected = {"optimal": [1.0, 1.0], "greedy": [1.0, 1.0], "value": [0.5, 0.5]}[baseline]
    assert found.advantages.tolist() == [expected, [0.0, 0.0]]
