"""From episodes to advantages by the baselines that need more than returns, by hand."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

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


def test_greedy_is_the_greedy_episode_s_own_return() -> None:
    batch = EpisodeBatch.of(
        (episode(4, 1.0, 2), episode(4, 0.0), episode(7, 3.0)),
        greedy=(episode(7, 2.0, 3), episode(4, 0.5)),  # found by their group
    )
    found = estimate(batch, baseline="greedy")
    assert found.baselines.tolist() == [0.5, 0.5, 2.0]
    assert found.advantages.tolist() == [[0.5, 0.5], [-0.5, 0.0], [1.0, 0.0]]
    assert found.mean_return == pytest.approx(4 / 3)  # of what was sampled alone
    assert found.denominator == 3.0
    assert estimate(batch, baseline="greedy", denominator="tokens").denominator == 4.0


def test_greedy_with_a_discount_and_step_rewards() -> None:
    # γ = 1/2, greedy: steps 4, 2 and 8 at the end of three: 4 + 1 + 2 = 7;  sampled: 1 at the second action
    batch = EpisodeBatch.of((episode(0, 1.0, 2),), greedy=(episode(0, 8.0, 3, steps=(4.0, 2.0, 0.0)),))
    found = estimate(batch, baseline="greedy", discount=0.5)
    assert found.baselines.tolist() == [7.0]
    # ½ - 7,  ½ (1 - 7)
    assert found.advantages.tolist() == [[-6.5, -3.0]]


def test_a_greedy_completion_that_was_not_scored_leaves_nothing_to_compare_with() -> None:
    batch = EpisodeBatch.of(
        (episode(0, 1.0, 2), episode(0, 0.0), episode(1, 2.0)), greedy=(episode(0, None), episode(1, 0.0))
    )
    assert estimate(batch, baseline="greedy").advantages.tolist() == [[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]]


def test_greedy_without_greedy_episodes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a greedy completion of groups \[1\]"):
        estimate(
            EpisodeBatch.of((episode(0, 1.0), episode(1, 1.0)), greedy=(episode(0, 1.0),)), baseline="greedy"
        )


# ------------------------------------------------------------------------------------------ optimal


def test_optimal_weighs_by_what_was_recorded() -> None:
    # weights 1 + 1, 1 and 3 of returns 1, 0, 4: (0·1 + 4·3)/4, (1·2 + 4·3)/5, (1·2 + 0·1)/3
    batch = EpisodeBatch.of(
        (episode(0, 1.0, 2, (1.0, 1.0)), episode(0, 0.0, 1, (1.0,)), episode(0, 4.0, 1, (3.0,)))
    )
    found = estimate(batch, baseline="optimal")
    assert found.baselines.tolist() == pytest.approx([3.0, 2.8, 2 / 3])
    assert found.advantages[0].tolist() == [-2.0, -2.0]


def test_optimal_with_step_rewards_weighs_every_action_s_own_return() -> None:
    # the second: g = 3, 1 of weights 1, 3: 4, and (3 + 3) / 4 = 1.5;  the first has no other than it
    batch = EpisodeBatch.of((episode(0, 0.0, 1, (1.0,)), episode(0, 1.0, 2, (1.0, 3.0), steps=(2.0, 0.0))))
    assert estimate(batch, baseline="optimal").baselines.tolist() == [1.5, 0.0]
    # γ = 1/2: g = 2.5, 1 of weights 1, 3/4: (2.5 + 0.75) / 1.75
    found = estimate(batch, baseline="optimal", discount=0.5)
    assert found.baselines.tolist() == pytest.approx([3.25 / 1.75, 0.0])


def test_optimal_leaves_the_unscored_out_and_whoever_is_alone_where_it_is() -> None:
    batch = EpisodeBatch.of(
        (episode(0, 1.0, 1, (1.0,)), episode(0, None, 1, (5.0,)), episode(1, 2.0, 1, (1.0,)),
         episode(1, 6.0, 1, (2.0,)))
    )  # fmt: skip
    found = estimate(batch, baseline="optimal")
    assert found.advantages.flatten().tolist() == [0.0, 0.0, -4.0, 4.0]


def test_optimal_of_episodes_that_were_not_sampled_here_is_refused() -> None:
    batch = EpisodeBatch.of((episode(0, 1.0, 2, ()), episode(0, 1.0, 1, (1.0,))))
    with pytest.raises(ValueError, match="were not recorded"):
        estimate(batch, baseline="optimal")
    assert batch.behavior_log_probs.shape == (2, 2)  # the rest of the batch is as good as ever


# -------------------------------------------------------------------------------------------- value


def test_value_has_a_number_for_every_action() -> None:
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


def test_value_with_step_rewards() -> None:
    batch = EpisodeBatch.of((episode(0, 1.0, 2, steps=(2.0, 0.5)),))
    found = estimate(batch, [[1.0, 1.0]], baseline="value", episodes_per_problem=1)
    assert found.returns.tolist() == [[3.5, 1.5]]
    assert found.advantages.tolist() == [[2.5, 0.5]]


def test_value_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="'value' needs values"):
        estimate(EpisodeBatch.of((episode(0, 1.0),)), baseline="value")


# ---------------------------------------------------------------------------------------------- all

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


@pytest.mark.parametrize("baseline", ["optimal", "greedy", "value"])
@pytest.mark.parametrize("standardize", [False, True])
def test_two_processes_have_the_advantages_of_one(baseline: str, standardize: bool) -> None:
    settings = ReinforceConfig(baseline=baseline, standardize=standardize, discount=0.9)  # type: ignore[arg-type]
    whole = estimate_advantages(BATCH, settings, MovingAverage(), values=VALUES)
    parts = [
        EpisodeBatch.of(BATCH.episodes[:3], greedy=BATCH.greedy[:1]),
        EpisodeBatch.of(BATCH.episodes[3:], greedy=BATCH.greedy[1:]),
    ]
    asked: list[list[Tensor]] = [[], []]
    for number, part in enumerate(parts):  # what each process has to tell the other, in order

        def told(numbers: Tensor, number: int = number) -> Tensor:
            asked[number].append(numbers)
            return torch.cat([numbers, numbers])

        own = slice(3 * number, 3 * number + 3)
        estimate_advantages(part, settings, MovingAverage(), told, 0, values=VALUES[own])
    for number, part in enumerate(parts):
        answers = iter([torch.cat(pair) for pair in zip(*asked, strict=True)])
        own = slice(3 * number, 3 * number + 3)
        found = estimate_advantages(
            part, settings, MovingAverage(), lambda _, a=answers: next(a), number, values=VALUES[own]
        )
        torch.testing.assert_close(found.advantages, whole.advantages[own])
        torch.testing.assert_close(found.baselines, whole.baselines[own])
        assert (found.denominator, found.mean_return) == (whole.denominator, whole.mean_return)


@pytest.mark.parametrize("baseline", ["optimal", "greedy", "value"])
def test_standardized_they_keep_their_direction(baseline: str) -> None:
    plain = estimate(BATCH, VALUES.tolist(), baseline=baseline)
    divided = estimate(BATCH, VALUES.tolist(), baseline=baseline, standardize=True)
    g0, scored = plain.returns[:, 0], BATCH.scored
    spread = (g0 - plain.baselines)[scored].square().mean().sqrt()
    torch.testing.assert_close(divided.advantages, plain.advantages / (spread + 1e-6))


@pytest.mark.parametrize("baseline", ["optimal", "greedy", "value"])
def test_an_empty_completion_is_nobody_s_action(baseline: str) -> None:
    batch = EpisodeBatch.of(
        (episode(0, 1.0, 2, (1.0, 1.0)), episode(0, 5.0, 0, ())), greedy=(episode(0, 0.0, 0, ()),)
    )
    found = estimate(batch, [[0.5, 0.5], [0.0, 0.0]], baseline=baseline)
    # nobody acted, so nobody earned the 5
    expected = {"optimal": [1.0, 1.0], "greedy": [1.0, 1.0], "value": [0.5, 0.5]}[baseline]
    assert found.advantages.tolist() == [expected, [0.0, 0.0]]
