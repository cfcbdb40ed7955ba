"""Tests of matching the parameters of reward functions with values by name."""

import asyncio
import functools
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from llm_reinforce.errors import InputError
from llm_reinforce.problems import Problem, problems_from
from llm_reinforce.problems.sources import with_all_columns
from llm_reinforce.rewards import (
    JudgedCompletion,
    WeightedReward,
    check_rewards,
    combine_rewards,
    rewards_from,
)
from llm_reinforce.verifier import Verdict

COLUMNS = {"question": "1+1?", "ground_truth": "2", "level": 3, "verdict": "column"}
PROBLEM = Problem("Q: 1+1?", "2", solution="one and one", id="a-1", columns=COLUMNS)
JUDGED = JudgedCompletion(PROBLEM, "two", (5, 0), Verdict(False, "two", "different"))


def seen_by(make: Callable[[dict[str, Any]], Callable[..., Any]]) -> dict[str, Any]:
    """Return what a reward function received, by the name of its parameter."""
    seen: dict[str, Any] = {}
    (scored,) = combine_rewards([JUDGED], [WeightedReward("f", make(seen))]).scored
    assert scored.failure is None
    return seen


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("completion, problem", {"completion": "two", "problem": PROBLEM}),
        ("problem, completion", {"completion": "two", "problem": PROBLEM}),
        ("completion, answer", {"completion": "two", "answer": "2"}),
        ("answer, completion", {"completion": "two", "answer": "2"}),
        ("prompt, completion", {"prompt": "Q: 1+1?", "completion": "two"}),
        ("completion, solution", {"completion": "two", "solution": "one and one"}),
        ("completion, ground_truth", {"completion": "two", "ground_truth": "2"}),
        ("completion, question, level", {"completion": "two", "question": "1+1?", "level": 3}),
        ("completion, id", {"completion": "two", "id": "a-1"}),
        ("completion, completion_ids", {"completion": "two", "completion_ids": [5, 0]}),
        ("completion, verdict", {"completion": "two", "verdict": JUDGED.verdict}),
        ("completion, level=9", {"completion": "two", "level": 3}),
        ("completion, *, level=9, answer='?'", {"completion": "two", "level": 3, "answer": "2"}),
        ("completion, bonus=1, *, level", {"completion": "two", "bonus": 1, "level": 3}),
        ("completion, problem, /, level", {"completion": "two", "problem": PROBLEM, "level": 3}),
        ("completion", {"completion": "two"}),
        ("completion, _problem", {"completion": "two", "_problem": PROBLEM}),
        ("completion, _", {"completion": "two", "_": None}),
        ("*rest", {"rest": ("two", PROBLEM)}),
        ("completion, *rest", {"completion": "two", "rest": (PROBLEM,)}),
    ],
)
def test_parameter_receives_what_it_names(parameters: str, expected: dict[str, Any]) -> None:
    def make(seen: dict[str, Any]) -> Callable[..., Any]:
        scope: dict[str, Any] = {"seen": seen}
        exec(f"def f({parameters}):\n    seen.update(locals())\n    return 0.0\n", scope)
        return scope["f"]  # type: ignore[no-any-return]

    assert seen_by(make) == expected


def test_trainer_state_and_all_other_values_reach_a_function_with_keywords() -> None:
    def make(seen: dict[str, Any]) -> Callable[..., Any]:
        def f(completion: str, trainer_state: Any, **rest: Any) -> float:
            seen.update(rest, step=trainer_state.global_step)
            return 0.0

        return f

    seen = seen_by(make)
    assert seen["verdict"] is JUDGED.verdict  # not the column of the same name
    assert {**seen, "verdict": None, "problem": None} == {
        **{"step": 0, "prompt": "Q: 1+1?", "answer": "2", "solution": "one and one", "id": "a-1"},
        **{**COLUMNS, "verdict": None, "problem": None, "completion_ids": [5, 0]},
    }


class Judge:
    def __call__(self, answer: str, completion: str) -> float:
        return float((completion, answer) == ("two", "2"))

    def method(self, answer: str, completion: str) -> float:
        return self(answer, completion)

    @staticmethod
    def static(answer: str, completion: str) -> float:
        return Judge()(answer, completion)

    @classmethod
    async def later(cls, answer: str, completion: str) -> float:
        await asyncio.sleep(0)
        return cls()(answer, completion)


def wrapped(inner: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def positional(*args: Any) -> Any:
        return inner(*args)

    return positional


def wrapped_by_keyword(inner: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def keyword(**kwargs: Any) -> Any:
        return inner(**kwargs)

    return keyword


def with_another_interface(inner: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def batched(completions: list[str], answer: list[str]) -> list[float]:
        return [inner(answer=gold, completion=text) for text, gold in zip(completions, answer, strict=True)]

    return batched


def scaled(factor: float, answer: str, completion: str, power: int = 1) -> float:
    return float(factor == 1.0 and power == 2) * Judge()(answer, completion)


@pytest.mark.parametrize(
    "function",
    [
        Judge(),
        Judge().method,
        Judge.static,
        Judge.later,
        lambda answer, completion: Judge()(answer, completion),
        wrapped(Judge().method),
        wrapped_by_keyword(Judge().method),
        with_another_interface(Judge().method),
        partial(scaled, 1.0, power=2),
        partial(scaled, factor=1.0, power=2),
        partial(partial(scaled, power=2), factor=1.0),
    ],
    ids=range(11),
)
def test_kinds_of_callables_receive_values_by_name(function: Callable[..., Any]) -> None:
    (scored,) = combine_rewards([JUDGED], [WeightedReward("f", function)]).scored
    assert (scored.total, scored.failure) == (1.0, None)


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda response, problem: 1.0,
            "for the parameter 'response'; a function that is called once per completion can have the "
            "parameters completion, prompt, problem, verdict, answer, solution, completion_ids, "
            "trainer_state and the columns of the data: 'id', 'question', 'level'; rename the parameter",
        ),
        (lambda completion, levl: 1.0, "'levl'; did you mean 'level'?"),
        (lambda completion, *, gold: 1.0, "'gold'"),
        (lambda completions, gold, **kwargs: [1.0], "'gold'"),
        (lambda completions, completion: [1.0], "'completion'"),
        (lambda completions, prompt: [1.0], "'prompt'"),
        (lambda completions, environments: [1.0], "'environments'"),
        (lambda completions, problem: [1.0], "'problem'"),
        (partial(lambda completion, gold, factor: 1.0, factor=2), "'gold'"),
    ],
)
def test_unknown_parameter_is_refused_when_the_data_is_known(
    function: Callable[..., Any], message: str
) -> None:
    problems = problems_from([{"question": "1+1?", "answer": "2", "level": 3, "id": "a"}])
    with pytest.raises(InputError, match=re.escape(message)):
        check_rewards([WeightedReward("f", function)], problems)


@pytest.mark.parametrize(
    "function",
    [lambda text, gold: 1.0, lambda text: 1.0, lambda *, text: 1.0, lambda: 1.0, lambda text=1: 1.0, len],
)
def test_function_without_a_known_parameter_is_refused_at_once(function: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="none of the function's parameters has a name"):
        rewards_from(function)


def test_column_that_only_some_rows_have_is_none_in_the_others() -> None:
    problems = with_all_columns(
        problems_from([{"prompt": "a", "answer": "1", "level": 3}, {"prompt": "b", "answer": "2"}])
    )
    judged = [JudgedCompletion(problem, "x") for problem in problems]
    levels: list[Any] = []

    def f(completion: str, level: int = 5) -> float:
        levels.append(level)
        return 0.0

    def batched(completions: list[str], level: list[int]) -> list[float]:
        levels.extend(level)
        return [0.0] * len(completions)

    rewards = [WeightedReward("f", f), WeightedReward("b", batched)]
    check_rewards(rewards, problems)
    for one in judged:
        assert combine_rewards([one], rewards).scored[0].failure is None
    assert levels == [3, 3, None, None]


# --------------------------------------------------------------------------- examples of TRL's docs


def documented_lengths_of_ids(completion_ids: Any, **kwargs: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def documented_lengths_of_ids_in_earlier_releases(completions_ids: Any, **kwargs: Any) -> list[float]:
    return [float(len(ids)) for ids in completions_ids]


def documented_lengths(completions: Any, **kwargs: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def documented_format(completions: Any, **kwargs: Any) -> list[float]:
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(r"^<think>.*?</think><answer>.*?</answer>$", each) else 0.0 for each in contents]


def documented_reference(completions: Any, ground_truth: Any, **kwargs: Any) -> list[float]:
    matches = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth, strict=True)]


def documented_task(prompts: Any, completions: Any, task: Any, **kwargs: Any) -> list[float | None]:
    return [1.0 if each == "math" else None for each in task]


async def documented_asynchronous(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    await asyncio.sleep(0.01)
    return [1.0 if completion else 0.0 for completion in completions]


def documented_logging(
    completions: Any, ground_truth: Any, log_extra: Any = None, log_metric: Any = None, **kwargs: Any
) -> list[float]:
    extracted = [re.search(r"\\boxed\{(.*?)\}", c) for c in completions]
    rewards = [1.0 if e and e.group(1) == gt else 0.0 for e, gt in zip(extracted, ground_truth, strict=True)]
    if log_extra:
        log_extra("golden_answer", list(ground_truth))
    if log_metric:
        log_metric("accuracy", sum(rewards) / len(rewards))
    return rewards


def all_as_keywords(**kwargs: Any) -> list[float]:
    return documented_reference(kwargs["completions"], kwargs["ground_truth"])


def all_as_keywords_and_positions(*args: Any, **kwargs: Any) -> list[float]:
    return documented_reference(kwargs["completions"], kwargs["ground_truth"])


def only_a_column(ground_truth: Any, **kwargs: Any) -> list[float]:
    return documented_reference(kwargs["completions"], ground_truth)


@pytest.mark.parametrize(
    ("function", "conversational", "expected"),
    [
        (documented_lengths_of_ids, False, [2.0, 4.0]),
        (documented_lengths_of_ids_in_earlier_releases, False, [2.0, 4.0]),
        (documented_lengths, False, [27.0, 27.0]),
        (documented_format, True, [0.0, 0.0]),
        (documented_reference, False, [1.0, 0.0]),
        (documented_task, False, [1.0, None]),
        (documented_asynchronous, False, [1.0, 1.0]),
        (documented_logging, False, [1.0, 0.0]),
        (all_as_keywords, False, [1.0, 0.0]),
        (all_as_keywords_and_positions, False, [1.0, 0.0]),
        (only_a_column, False, [1.0, 0.0]),
    ],
)
def test_documented_functions_of_trl_run_unchanged(
    function: Callable[..., Any], conversational: bool, expected: list[float | None]
) -> None:
    problems = problems_from(
        [
            {"prompt": "Solve the equation $2x + 3 = 7$.", "ground_truth": "2", "task": "math"},
            {"prompt": "Solve the equation $3x - 5 = 10$.", "ground_truth": "5", "task": "code"},
        ]
    )
    texts = [r" The solution is \boxed{2}.", r" The solution is \boxed{6}."]
    judged = [
        JudgedCompletion(problem, text, ids)
        for problem, text, ids in zip(problems, texts, [(6303, 13), (304, 279, 12884, 13)], strict=True)
    ]
    rewards = [WeightedReward(function.__name__, function)]
    check_rewards(rewards, problems)
    scored = combine_rewards(judged, rewards, conversational=conversational).scored
    assert [one.failure for one in scored] == [None, None]
    assert [one.total for one in scored] == expected


def test_columns_reach_trl_functions_under_their_own_names_and_types() -> None:
    row = {"id": 7, "question": "1+1?", "ground_truth": 2.0, "solution": "1 and 1", "tags": ["a"]}
    (problem,) = problems_from([row])
    seen: dict[str, Any] = {}

    def f(completions: list[str], **kwargs: Any) -> list[float]:
        seen.update(kwargs)
        return [0.0]

    combine_rewards([JudgedCompletion(problem, "2")], [WeightedReward("f", f)])
    assert {name: seen[name] for name in row} == {name: [value] for name, value in row.items()}
    assert seen["answer"] == ["2"]


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("0.5"), 0.5),
        (Fraction(1, 2), 0.5),
        (np.float32(0.5), 0.5),
        (np.int64(2), 2.0),
        (np.bool_(True), 1.0),
        (np.array(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(True), 1.0),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (True, 1.0),
        (3, 3.0),
        (Decimal("NaN"), None),
        (Decimal("sNaN"), None),
        (Decimal("Infinity"), None),
        (Decimal("1e60"), None),
        (Fraction(10**400), None),
        (np.float64("nan"), None),
        (1j, None),
        ("0.5", None),
    ],
)
def test_kinds_of_numbers_are_rewards(value: object, expected: float | None) -> None:
    rewards = [
        WeightedReward("one", lambda completion: value),
        WeightedReward("batch", lambda completions: [value]),
    ]
    for reward in rewards:
        (scored,) = combine_rewards([JUDGED], [reward]).scored
        assert (scored.total, scored.failure is None) == (expected, expected is not None)
