"""Tests of calling reward functions: valid values, invalid values and exceptions."""

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
    short_repr,
)

JUDGED = JudgedCompletion(Problem("47+85=", "132"), "abc", (5, 6, 7, 0))


class Broken:
    """An object that raises an error on every access."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no attributes")

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __float__ = __len__ = __iter__ = __repr__  # type: ignore[assignment]


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no str")


def result_of(function: Callable[..., Any]) -> RewardResult:
    return call_on_each(function, [JUDGED]).outcomes[0]


def result_of_value(value: Any) -> RewardResult:
    return result_of(lambda completion, problem: value)


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
def test_numbers_are_converted_to_floats(value: Any) -> None:
    result = result_of_value(value)
    assert result == RewardResult(1.0)
    assert type(result.value) is float


def test_none_means_not_applicable() -> None:
    assert result_of_value(None) == RewardResult()


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
        Decimal("1e39"),
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
def test_value_that_is_not_a_finite_number_is_a_failure(value: Any) -> None:
    result = result_of_value(value)
    assert result.value is None
    assert result.failure is not None
    assert result.failure.split(":")[0] in ("TypeError", "RuntimeError")
    assert result.traceback == ""  # no line of the traceback is in the user's function


def test_object_that_raises_on_every_access_is_a_failure() -> None:
    assert result_of_value(Broken()).failure == "RuntimeError: no attributes"
    assert result_of_value(StepRewards([Broken()])).failure is not None  # type: ignore[list-item]
    assert result_of_value(StepRewards(by_token=Broken())).failure is not None  # type: ignore[arg-type]


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
def test_exception_is_a_failure_with_its_traceback(error: BaseException) -> None:
    def raises(completion: str, problem: Problem) -> float:
        raise error

    async def raises_later(completion: str, problem: Problem) -> float:
        await asyncio.sleep(0)
        raise error

    for function in (raises, raises_later):
        result = result_of(function)
        assert result.failure == f"{type(error).__name__}: {error}"
        assert result.traceback.startswith("Traceback")
        assert function.__name__ in result.traceback
        assert "/calls.py" not in result.traceback


def test_unprintable_error_is_reported_by_its_type() -> None:
    def raises(completion: str, problem: Problem) -> float:
        raise UnprintableError

    assert result_of(raises).failure == "UnprintableError"


def test_infinite_recursion_is_a_failure_and_long_tracebacks_are_cut() -> None:
    def deeper(completion: str, problem: Problem) -> float:
        return deeper(completion, problem)

    def long(completion: str, problem: Problem) -> float:
        raise ValueError("x" * 100_000)

    result = result_of(deeper)
    assert result.failure is not None
    assert result.failure.startswith("RecursionError")
    assert len(result_of(long).traceback) == MAX_TRACEBACK


def test_function_with_the_wrong_parameters_is_a_failure() -> None:
    result = result_of(lambda text, problem: 1.0)  # type: ignore[misc]
    assert result.failure is not None
    assert "no value is available for the parameter 'text'" in result.failure
    assert "completion, prompt, problem" in result.failure


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not available")
def test_child_process_of_a_function_that_forks_exits() -> None:
    def forks(completion: str, problem: Problem) -> float:
        return float(os.fork() == 0)

    async def forks_later(completion: str, problem: Problem) -> float:
        await asyncio.sleep(0)
        return float(os.fork() == 0)

    parent = os.getpid()
    for function in (forks, forks_later):
        assert result_of(function) == RewardResult(0.0)
        assert os.getpid() == parent
        assert os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]) == 0


def test_coroutines_run_concurrently_even_within_an_event_loop() -> None:
    running = most = 0

    async def slow(completion: str, problem: Problem) -> float:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return float(completion)

    judged = [JudgedCompletion(JUDGED.problem, str(number)) for number in range(5)]

    async def notebook() -> list[RewardResult]:
        return list(call_on_each(slow, judged).outcomes)

    assert asyncio.run(notebook()) == [RewardResult(float(number)) for number in range(5)]
    assert most == 5


def test_objects_bound_to_the_event_loop_can_be_reused_by_the_next_batch() -> None:
    limit = asyncio.Semaphore(2)
    loops: set[int] = set()

    async def limited(completion: str, problem: Problem) -> float:
        loops.add(id(asyncio.get_running_loop()))
        async with limit:
            await asyncio.sleep(0.001)
        return float(completion)

    judged = [JudgedCompletion(JUDGED.problem, str(number)) for number in range(5)]
    for _ in range(3):
        assert call_on_each(limited, judged).outcomes == [RewardResult(float(number)) for number in range(5)]
    assert len(loops) == 1


def test_function_that_exits_or_stops_the_event_loop_fails_alone() -> None:
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

    failure = result_of(in_a_task).failure  # type: ignore[arg-type]
    assert failure is not None
    assert "SystemExit" in failure
    assert result_of(stops) == RewardResult(1.0)
    assert result_of(right) == RewardResult(2.0)


def test_asynchronous_function_may_call_another_one() -> None:
    async def inner(completion: str, problem: Problem) -> float:
        await asyncio.sleep(0)
        return 2.0

    async def outer(completion: str, problem: Problem) -> float:
        return call_on_each(inner, [JudgedCompletion(problem, completion)]).outcomes[0].value  # type: ignore[return-value]

    assert result_of(outer) == RewardResult(2.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not available")
def test_forked_child_has_its_own_event_loop() -> None:
    async def later(completion: str, problem: Problem) -> float:
        await asyncio.sleep(0)
        return 1.0

    assert result_of(later) == RewardResult(1.0)
    child = os.fork()
    if child == 0:
        os._exit(0 if result_of(later) == RewardResult(1.0) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_functions_with_a_parameter_completion_ids_receive_the_tokens() -> None:
    def with_ids(completion: str, problem: Problem, completion_ids: list[int], factor: float = 1.0) -> float:
        return sum(completion_ids) * factor

    class CountsTokens:
        def __call__(self, completion: str, problem: Problem, *, completion_ids: list[int]) -> float:
            return float(len(completion_ids))

    assert result_of(with_ids) == RewardResult(18.0)
    assert result_of(partial(with_ids, factor=2.0)) == RewardResult(36.0)
    assert result_of(CountsTokens()) == RewardResult(4.0)


def test_function_written_in_c_can_be_called() -> None:
    with pytest.raises(ValueError, match="signature"):
        inspect.signature(max)
    assert result_of(lambda completion, problem: max(1.0, 2.0)) == RewardResult(2.0)
    assert result_of(max).failure is not None
    assert sys.getrecursionlimit() > 100  # unchanged


# -------------------------------------------------------------------------------------- step rewards


def test_step_rewards_are_converted_to_plain_numbers() -> None:
    def spans() -> Iterator[tuple[Any, ...]]:
        yield (0, 3, 1)
        yield [np.int64(1), np.int64(4), np.float32(0.5)]  # type: ignore[misc]

    result = result_of_value(StepRewards(spans()))  # type: ignore[arg-type]
    assert result == RewardResult(StepRewards([(0, 3, 1.0), (1, 4, 0.5)]))
    by_token = StepRewards(by_token=torch.tensor([0.0, 1.0, 0.0, -2.0]))  # type: ignore[arg-type]
    assert result_of_value(by_token) == RewardResult(StepRewards(by_token=[0.0, 1.0, 0.0, -2.0]))
    assert result_of_value(StepRewards()) == RewardResult(StepRewards([]))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (StepRewards([(0, 5, 1.0)]), "the span (0, 5) is empty or not within the completion"),
        (StepRewards([(-1, 2, 1.0)]), "start and end must be from 0 to 4"),
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
        (StepRewards([(0, 1, 1.0)], by_token=[0, 0, 0, 0]), "both given"),
    ],
)
def test_step_rewards_that_do_not_fit_the_completion_are_a_failure(steps: StepRewards, expected: str) -> None:
    failure = result_of_value(steps).failure
    assert failure is not None
    assert expected in failure


def test_short_repr_has_at_most_200_characters() -> None:
    assert short_repr("a" * 1000).endswith("...")
    assert len(short_repr("a" * 1000)) == 200
    assert short_repr(Broken()) == "a Broken"
