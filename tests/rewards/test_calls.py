"""What a function may answer, and what it may do instead: whatever it is, the run goes on."""

import asyncio
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from llm_reinforce.problems import Problem
from llm_reinforce.rewards.calls import (
    MAX_TRACEBACK,
    JudgedCompletion,
    RewardResult,
    StepRewards,
    call_on_each,
    shown,
)

ASKED = JudgedCompletion(Problem("47+85=", "132"), "abc", (5, 6, 7, 0))


class Odd:
    """Fails at whatever it is asked."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("don't ask")

    def __repr__(self) -> str:
        raise RuntimeError("don't look")

    __float__ = __len__ = __iter__ = __repr__  # type: ignore[assignment]


class OddError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("don't look")


def ask(function: Callable[..., Any]) -> RewardResult:
    return call_on_each(function, [ASKED]).outcomes[0]


def answering(value: Any) -> RewardResult:
    return ask(lambda completion, problem: value)


@pytest.mark.parametrize(
    "value",
    [
        1,
        True,
        1.0,
        Fraction(1),
        np.float64(1.0),
        np.float32(1.0),
        np.float16(1.0),
        np.int64(1),
        np.bool_(True),
        np.array(1.0),
        torch.tensor(1.0),
        torch.tensor(1, dtype=torch.int64),
        torch.tensor(1.0, requires_grad=True),
    ],
)
def test_numbers_are_floats_in_the_end(value: Any) -> None:
    told = answering(value)
    assert told == RewardResult(1.0)
    assert type(told.value) is float


def test_none_does_not_apply() -> None:
    assert answering(None) == RewardResult()


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        1e39,
        -(10**39),
        10**400,
        Fraction(10**400),
        np.float32("nan"),
        torch.tensor(math.inf),
        Decimal(1),
        "1",
        b"1",
        [1.0],
        {"a": 1},
        1j,
        object(),
        torch.tensor([1.0, 2.0]),
        np.array([1.0]),
        float,
    ],
)
def test_what_is_no_finite_number_is_a_failure(value: Any) -> None:
    told = answering(value)
    assert told.value is None
    assert told.failure is not None
    assert told.failure.split(":")[0] in ("TypeError", "RuntimeError")
    assert told.traceback == ""  # none of its lines are the user's


def test_an_object_that_fails_at_whatever_it_is_asked() -> None:
    assert answering(Odd()).failure == "RuntimeError: don't ask"
    assert answering(StepRewards([Odd()])).failure is not None  # type: ignore[list-item]
    assert answering(StepRewards(by_token=Odd())).failure is not None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("broken"),
        KeyError("k"),
        ZeroDivisionError(),
        RecursionError(),
        SystemExit(3),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseException("base"),
    ],
)
def test_what_it_raises_is_a_failure(error: BaseException) -> None:
    def raises(completion: str, problem: Problem) -> float:
        raise error

    async def raises_later(completion: str, problem: Problem) -> float:
        await asyncio.sleep(0)
        raise error

    for function in (raises, raises_later):
        told = ask(function)
        assert told.failure == f"{type(error).__name__}: {error}"
        assert told.traceback.startswith("Traceback")
        assert function.__name__ in told.traceback
        assert "/calls.py" not in told.traceback


def test_an_error_that_cannot_be_shown() -> None:
    def raises(completion: str, problem: Problem) -> float:
        raise OddError

    assert ask(raises).failure == "OddError"


def test_endless_recursion_and_a_long_traceback() -> None:
    def deeper(completion: str, problem: Problem) -> float:
        return deeper(completion, problem)

    def long(completion: str, problem: Problem) -> float:
        raise ValueError("x" * 100_000)

    told = ask(deeper)
    assert told.failure is not None
    assert told.failure.startswith("RecursionError")
    assert len(ask(long).traceback) == MAX_TRACEBACK


def test_a_call_that_does_not_fit_is_a_failure_without_a_traceback() -> None:
    told = ask(lambda completion: 1.0)  # type: ignore[misc]
    assert told.failure is not None
    assert "argument" in told.failure


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_function_that_forks_does_not_go_on() -> None:
    def forks(completion: str, problem: Problem) -> float:
        return float(os.fork() == 0)

    async def forks_later(completion: str, problem: Problem) -> float:
        await asyncio.sleep(0)
        return float(os.fork() == 0)

    parent = os.getpid()
    for function in (forks, forks_later):
        assert ask(function) == RewardResult(0.0)
        assert os.getpid() == parent
        assert os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]) == 0


def test_coroutines_are_awaited_together_also_within_an_event_loop() -> None:
    running = most = 0

    async def slow(completion: str, problem: Problem) -> float:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return float(completion)

    asked = [JudgedCompletion(ASKED.problem, str(number)) for number in range(5)]

    async def notebook() -> list[RewardResult]:
        return list(call_on_each(slow, asked).outcomes)

    assert asyncio.run(notebook()) == [RewardResult(float(number)) for number in range(5)]
    assert most == 5


def test_what_is_bound_to_the_event_loop_serves_the_next_batch() -> None:
    limit = asyncio.Semaphore(2)
    loops: set[int] = set()

    async def limited(completion: str, problem: Problem) -> float:
        loops.add(id(asyncio.get_running_loop()))
        async with limit:
            await asyncio.sleep(0.001)
        return float(completion)

    asked = [JudgedCompletion(ASKED.problem, str(number)) for number in range(5)]
    for _ in range(3):
        assert call_on_each(limited, asked).outcomes == [RewardResult(float(number)) for number in range(5)]
    assert len(loops) == 1


def test_who_leaves_or_stops_the_event_loop_ends_nothing_but_an_answer() -> None:
    async def leaves() -> float:
        sys.exit(3)

    async def in_a_task(completion: str, problem: Problem) -> list[float]:
        return await asyncio.gather(leaves())

    async def stops(completion: str, problem: Problem) -> float:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return 1.0

    async def right(completion: str, problem: Problem) -> float:
        return 2.0

    told = ask(in_a_task).failure  # type: ignore[arg-type]
    assert told is not None
    assert "SystemExit" in told
    assert ask(stops) == RewardResult(1.0)
    assert ask(right) == RewardResult(2.0)


def test_an_asynchronous_function_may_ask_another() -> None:
    async def inner(completion: str, problem: Problem) -> float:
        await asyncio.sleep(0)
        return 2.0

    async def outer(completion: str, problem: Problem) -> float:
        return call_on_each(inner, [JudgedCompletion(problem, completion)]).outcomes[0].value  # type: ignore[return-value]

    assert ask(outer) == RewardResult(2.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_an_event_loop_of_its_own() -> None:
    async def later(completion: str, problem: Problem) -> float:
        await asyncio.sleep(0)
        return 1.0

    assert ask(later) == RewardResult(1.0)
    child = os.fork()
    if child == 0:
        os._exit(0 if ask(later) == RewardResult(1.0) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_tokens_go_to_who_asks_for_them() -> None:
    def with_ids(completion: str, problem: Problem, completion_ids: list[int], factor: float = 1.0) -> float:
        return sum(completion_ids) * factor

    class CountsTokens:
        def __call__(self, completion: str, problem: Problem, *, completion_ids: list[int]) -> float:
            return float(len(completion_ids))

    assert ask(with_ids) == RewardResult(18.0)
    assert ask(partial(with_ids, factor=2.0)) == RewardResult(36.0)
    assert ask(CountsTokens()) == RewardResult(4.0)


def test_a_function_written_in_c() -> None:
    with pytest.raises(ValueError, match="signature"):
        inspect.signature(max)
    assert ask(lambda completion, problem: max(1.0, 2.0)) == RewardResult(2.0)
    assert ask(max).failure is not None
    assert sys.getrecursionlimit() > 100  # untouched


# -------------------------------------------------------------------------------------- step rewards


def test_step_rewards_come_back_in_plain_numbers() -> None:
    def lazily() -> Iterator[tuple[Any, ...]]:
        yield (0, 3, 1)
        yield [np.int64(1), np.int64(4), np.float32(0.5)]  # type: ignore[misc]

    told = answering(StepRewards(lazily()))  # type: ignore[arg-type]
    assert told == RewardResult(StepRewards([(0, 3, 1.0), (1, 4, 0.5)]))
    by_token = StepRewards(by_token=torch.tensor([0.0, 1.0, 0.0, -2.0]))  # type: ignore[arg-type]
    assert answering(by_token) == RewardResult(StepRewards(by_token=[0.0, 1.0, 0.0, -2.0]))
    assert answering(StepRewards()) == RewardResult(StepRewards([]))


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (StepRewards([(0, 5, 1.0)]), "the span (0, 5) is empty or not within 0 to 4"),
        (StepRewards([(-1, 2, 1.0)]), "the span (-1, 2) is empty"),
        (StepRewards([(2, 2, 1.0)]), "the span (2, 2) is empty"),
        (StepRewards([(2, 1, 1.0)]), "the span (2, 1) is empty"),
        (StepRewards([(0, 1.0, 1.0)]), "a span is (start, end, value), not (0, 1.0, 1.0)"),  # type: ignore[list-item]
        (StepRewards([(0, 1)]), "a span is (start, end, value), not (0, 1)"),  # type: ignore[list-item]
        (StepRewards([(0, 1, 1.0, 2.0)]), "a span is (start, end, value), not"),  # type: ignore[list-item]
        (StepRewards([5]), "a span is (start, end, value), not 5"),  # type: ignore[list-item]
        (StepRewards([(0, 1, math.nan)]), "not nan"),
        (StepRewards([(0, 1, "1")]), "not '1'"),  # type: ignore[list-item]
        (StepRewards([(0, 1, None)]), "not None"),  # type: ignore[list-item]
        (StepRewards(5), "not iterable"),  # type: ignore[arg-type]
        (StepRewards(None), "not iterable"),  # type: ignore[arg-type]
        (StepRewards(by_token=5), "not iterable"),  # type: ignore[arg-type]
        (StepRewards(by_token=[1.0]), "1 values for 4 tokens"),
        (StepRewards(by_token=[]), "0 values for 4 tokens"),
        (StepRewards(by_token=[0, 0, 0, math.inf]), "not inf"),
        (StepRewards([(0, 1, 1.0)], by_token=[0, 0, 0, 0]), "not both"),
    ],
)
def test_step_rewards_that_do_not_fit_are_a_failure(steps: StepRewards, told: str) -> None:
    failure = answering(steps).failure
    assert failure is not None
    assert told in failure


def test_what_is_shown_is_short() -> None:
    assert shown("a" * 1000).endswith("...")
    assert len(shown("a" * 1000)) == 200
    assert shown(Odd()) == "a Odd"
