"""Tests of combining several rewards into one; a failed reward function does not count as 0."""

import math
from typing import Any

import pytest
import torch

from llm_reinforce.errors import LeaveAtOnce
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import (
    CombinedReward,
    JudgedCompletion,
    StepRewards,
    WeightedReward,
    combine_rewards,
)

PROBLEM = Problem(prompt="47+85=", answer="132")


def constant(value: Any, name: str = "constant", weight: float = 1.0) -> WeightedReward:
    return WeightedReward(name, lambda completion, problem: value, weight)


def failing(error: BaseException, name: str = "failing") -> WeightedReward:
    def function(completion: str, problem: Problem) -> float:
        raise error

    return WeightedReward(name, function)


def scored(*rewards: WeightedReward, completion: str = "x") -> CombinedReward:
    (one,) = combine_rewards([JudgedCompletion(PROBLEM, completion, (7, 8))], rewards).scored
    return one


def test_total_is_the_weighted_sum() -> None:
    one = scored(constant(2.0, "a", 0.5), constant(3.0, "b", -1.0), constant(True, "c"))
    assert one.total == pytest.approx(0.5 * 2 - 3 + 1)
    assert one.parts == {"a": 2.0, "b": 3.0, "c": 1.0}  # unweighted
    assert one.failure is None


def test_reward_that_does_not_apply_is_left_out_of_the_sum() -> None:
    one = scored(constant(None, "a"), constant(3.0, "b", 2.0))
    assert (one.total, one.parts, one.failure) == (6.0, {"a": None, "b": 3.0}, None)


def test_completion_is_unscored_if_no_reward_applies() -> None:
    assert scored(constant(None)).total is None
    assert scored().total is None


def test_failure_on_one_completion_does_not_affect_the_others() -> None:
    def raises_on_c(completion: str, problem: Problem) -> float:
        return {"a": 1.0, "b": 2.0}[completion]

    judged = [JudgedCompletion(PROBLEM, completion) for completion in "abc"]
    totals = [one.total for one in combine_rewards(judged, [WeightedReward("reward", raises_on_c)]).scored]
    assert totals == [1.0, 2.0, None]
    assert combine_rewards([], [constant(1.0)]).scored == []


def test_failure_makes_the_episode_unscored_and_keeps_the_other_parts() -> None:
    one = scored(constant(1.0, "fine"), failing(ValueError("broken")))
    assert (one.total, one.parts) == (None, {"fine": 1.0, "failing": None})
    assert one.failure == "failing: ValueError: broken"
    assert one.traceback.startswith("Traceback")
    assert "in function" in one.traceback
    assert "/calls.py" not in one.traceback


def test_every_failure_and_the_first_traceback_are_reported() -> None:
    one = scored(constant("text", "a"), failing(ValueError("one"), "b"), failing(ValueError("two"), "c"))
    assert one.failure is not None
    assert one.failure.startswith("a: TypeError")
    assert one.failure.endswith("; b: ValueError: one; c: ValueError: two")
    assert one.failures.keys() == {"a", "b", "c"}
    assert "ValueError: one" in one.traceback
    assert "ValueError: two" not in one.traceback


@pytest.mark.parametrize("interrupt", [LeaveAtOnce(130), KeyboardInterrupt()])
def test_interrupts_are_not_caught(interrupt: BaseException) -> None:
    with pytest.raises(type(interrupt)):
        scored(failing(interrupt))


@pytest.mark.parametrize("weight", [100.0, -100.0, math.nan, math.inf])
def test_completion_is_unscored_if_the_sum_is_not_finite_in_float32(weight: float) -> None:
    one = scored(constant(1e38, "large", weight), constant(1.0, "fine"))
    assert (one.total, one.parts) == (None, {"large": 1e38, "fine": 1.0})
    assert one.failure is not None
    assert "not finite in float32" in one.failure


def test_largest_float32_is_a_valid_reward() -> None:
    largest = float(torch.finfo(torch.float32).max)
    assert scored(constant(largest)).total == largest
    assert scored(constant(math.nextafter(largest, math.inf))).total is None


def test_rewards_with_the_same_name_all_count() -> None:
    # a recipe may use answer_format twice with different patterns, or two files with a function `reward`
    one = scored(constant(1.0, "form", 2.0), constant(5.0, "form"), constant(None, "form"))
    assert one.total == 7.0
    assert one.parts == {"form": 1.0, "form_2": 5.0, "form_3": None}


def test_step_rewards_are_weighted_and_not_part_of_the_total() -> None:
    steps = StepRewards([(0, 1, 2.0), (1, 2, -0.5)])
    one = scored(constant(steps, "steps", 0.5), constant(StepRewards(by_token=[0, 4]), "tokens", 0.25))
    assert one.parts == {"steps": 1.5, "tokens": 4.0}
    assert one.total == 0.0  # no terminal reward, but scored
    assert one.steps == (StepRewards([(0, 1, 1.0), (1, 2, -0.25)]), StepRewards(by_token=[0.0, 1.0]))
    with_end = scored(constant(steps, "steps"), constant(3.0, "end"))
    assert (with_end.total, with_end.parts) == (3.0, {"steps": 1.5, "end": 3.0})


def test_step_rewards_of_an_unscored_episode_are_dropped() -> None:
    one = scored(constant(StepRewards([(0, 1, 1.0)]), "steps"), failing(ValueError()))
    assert (one.total, one.steps, one.parts["steps"]) == (None, (), 1.0)


def test_completion_is_unscored_if_its_step_rewards_are_not_finite_together() -> None:
    one = scored(constant(StepRewards(by_token=[3e38, 3e38])))
    assert one.total is None
    assert one.failure is not None
    assert "not finite in float32" in one.failure
