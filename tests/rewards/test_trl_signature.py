"""Tests of calling functions with TRL's signature: their arguments and the values that they may return."""

import asyncio
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from llm_reinforce.config import ReinforceConfig, SamplingConfig, TrainingConfig
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import CombinedRewards, JudgedCompletion, Progress, WeightedReward, combine_rewards
from llm_reinforce.rewards.trl_signature import has_trl_signature
from llm_reinforce.runs import RunDirectory
from llm_reinforce.training import TrainingLoop

JUDGED = [
    JudgedCompletion(Problem("1+1=", "2", columns={"level": 1, "answer": "#### 2"}), "2", (2, 0)),
    JudgedCompletion(
        Problem("2+2=", "4", solution="two twos", columns={"source": "b"}), "five", (5, 6, 7, 0)
    ),
    JudgedCompletion(Problem("3+3=", "6"), "", (0,)),
]


def combined(
    function: Callable[..., Any], judged: Sequence[JudgedCompletion] = JUDGED, **settings: Any
) -> CombinedRewards:
    return combine_rewards(judged, [WeightedReward("f", function)], **settings)


def totals(function: Callable[..., Any], **settings: Any) -> list[float | None]:
    return [one.total for one in combined(function, **settings).scored]


def lengths(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


# -------------------------------------------------------------------------------------- arguments


def test_function_receives_a_batch_with_columns_as_lists() -> None:
    seen: dict[str, Any] = {}

    def looks(**kwargs: Any) -> list[float]:
        seen.update(kwargs)
        return [0.0] * 3

    def trl_looks(prompts: Any, completions: Any, completion_ids: Any, **kwargs: Any) -> list[float]:
        return looks(prompts=prompts, completions=completions, completion_ids=completion_ids, **kwargs)

    assert totals(trl_looks, progress=Progress(7, 100, 0.5)) == [0.0] * 3
    assert seen["prompts"] == ["1+1=", "2+2=", "3+3="]
    assert seen["completions"] == ["2", "five", ""]
    assert seen["completion_ids"] == [[2, 0], [5, 6, 7, 0], [0]]
    assert seen["answer"] == ["#### 2", "4", "6"]  # the unchanged column of the data if there is one
    assert seen["solution"] == ["2", "two twos", "6"]
    assert seen["level"] == [1, None, None]
    assert seen["source"] == [None, "b", None]
    state = seen["trainer_state"]
    assert (state.global_step, state.max_steps, state.epoch) == (7, 100, 0.5)
    assert seen.keys() == {
        *("prompts", "completions", "completion_ids", "answer", "solution", "level", "source"),
        *("trainer_state", "log_extra", "log_metric"),
    }


def test_columns_do_not_replace_arguments() -> None:
    names = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "prompt")
    judged = [
        JudgedCompletion(Problem("a", "b", columns=dict.fromkeys([*names, "function"], "column")), "c", (1,))
    ]

    def looks(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        assert (prompts, completions, kwargs["completion_ids"]) == (["a"], ["c"], [[1]])
        assert "prompt" not in kwargs
        assert kwargs["function"] == ["column"]
        assert callable(kwargs["log_extra"])
        return [1.0]

    assert combined(looks, judged).scored[0].total == 1.0


def test_texts_or_messages_are_passed() -> None:
    def looks(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        if isinstance(prompts[0], str):
            return lengths(completions)
        assert prompts[1] == [{"role": "user", "content": "2+2="}]
        assert completions[1] == [{"role": "assistant", "content": "five"}]
        return [-float(len(completion[0]["content"])) for completion in completions]

    assert totals(looks) == [1.0, 4.0, 0.0]
    assert totals(looks, conversational=True) == [-1.0, -4.0, 0.0]
    for wanted, sign in ((False, 1), (True, -1)):  # the setting of the reward takes precedence
        rewards = [WeightedReward("f", looks, conversational=wanted)]
        assert combine_rewards(JUDGED, rewards, conversational=not wanted).scored[1].total == 4.0 * sign


def test_kinds_of_callables_are_accepted() -> None:
    async def later(completions: list[str], **kwargs: Any) -> list[float]:
        await asyncio.sleep(0)
        return lengths(completions)

    def without_kwargs(completions: list[str], answer: list[str]) -> list[float]:
        return [float(len(one) + len(other)) for one, other in zip(completions, answer, strict=True)]

    def of_prompts(prompts: list[str], **kwargs: Any) -> list[float]:
        return [1.0 for _ in prompts]

    def of_ids(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [float(len(ids)) for ids in completion_ids]

    def with_argument(completions: list[str], factor: float, **kwargs: Any) -> list[float]:
        return [factor * length for length in lengths(completions)]

    class Judge:
        def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
            return lengths(completions)

        async def later(self, completions: list[str], **kwargs: Any) -> list[float]:
            return lengths(completions)

    assert totals(later) == [1.0, 4.0, 0.0]
    assert totals(without_kwargs) == [7.0, 5.0, 1.0]
    assert totals(of_prompts) == [1.0] * 3
    assert totals(of_ids) == [2.0, 4.0, 1.0]
    assert totals(partial(with_argument, factor=2.0)) == [2.0, 8.0, 0.0]
    # the argument `answer` of the recipe takes precedence over the column `answer` of the data
    assert totals(partial(with_argument, factor=2.0, answer=0)) == [2.0, 8.0, 0.0]
    given = partial(lambda completions, answer, **kwargs: [answer] * 3, answer=5.0)
    assert totals(given) == [5.0] * 3
    assert totals(Judge()) == [1.0, 4.0, 0.0]
    assert totals(Judge().later) == [1.0, 4.0, 0.0]
    assert not has_trl_signature(lambda completion, problem: 1.0)
    assert not has_trl_signature(max)


# ---------------------------------------------------------------------------------- returned values


@pytest.mark.parametrize(
    "values",
    [[1, 2.0, None], (1, 2.0, None), [np.float32(1), torch.tensor(2.0), None]],
)
def test_list_of_numbers_and_none_is_accepted(values: Any) -> None:
    assert totals(lambda completions, **kwargs: values) == [1.0, 2.0, None]


@pytest.mark.parametrize("values", [np.array([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0])])
def test_array_or_tensor_is_accepted(values: Any) -> None:
    assert totals(lambda completions, **kwargs: values) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0], "must return a list of 3 values, one per completion, not a list of 2"),
        ([1.0] * 4, "not a list of 4"),
        ([], "not a list of 0"),
        (1.0, "not a float"),
        (None, "not a NoneType"),
        ("abc", "not a str"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, "not a dict"),
        (torch.tensor(1.0), "not a float"),
        (np.ones((1, 3)), "not a list of 1"),
        (iter([1.0] * 3), "not a list_iterator"),
    ],
)
def test_wrong_length_or_shape_fails_for_every_completion(values: Any, expected: str) -> None:
    scored = combined(lambda completions, **kwargs: values).scored
    assert [one.total for one in scored] == [None] * 3
    assert all(expected in str(one.failure) for one in scored)
    assert all(one.traceback == "" for one in scored)


def test_invalid_value_fails_for_its_completion_only() -> None:
    for bad in (math.nan, math.inf, "1", [1.0], np.ones(2)):
        scored = combined(lambda completions, bad=bad, **kwargs: [1.0, bad, 3.0]).scored
        assert [one.total for one in scored] == [1.0, None, 3.0]
        assert scored[1].failure is not None
    scored = combined(lambda completions, **kwargs: np.ones((3, 1))).scored
    assert [one.total for one in scored] == [None] * 3


def test_exception_fails_for_every_completion_with_its_traceback() -> None:
    def breaks(completions: list[str], **kwargs: Any) -> list[float]:
        raise KeyError("level")

    async def breaks_later(completions: list[str], ground_truth: list[str]) -> list[float]:
        return [1.0]

    scored = combined(breaks).scored
    assert [one.failure for one in scored] == ["f: KeyError: 'level'"] * 3
    assert "in breaks" in scored[0].traceback
    assert "/trl_signature.py" not in scored[0].traceback
    assert "ground_truth" in str(combined(breaks_later).scored[0].failure)


# ---------------------------------------------------------------------------------- logged values


def test_metrics_and_extras_are_logged() -> None:
    def logs(completions: list[str], log_extra: Any, log_metric: Any, **kwargs: Any) -> list[float]:
        log_metric("share_short", 0.25)
        log_metric("share_short", torch.tensor(0.75))
        log_extra("first", [completion[:1] for completion in completions])
        log_extra("odd", [math.nan, {1: 2}, np.float64(0.5)])
        return lengths(completions)

    scores = combined(logs)
    assert scores.metrics == {"share_short": 0.5}
    assert [dict(one.extras) for one in scores.scored] == [
        {"first": "2", "odd": "nan"},
        {"first": "f", "odd": "{1: 2}"},
        {"first": "", "odd": 0.5},
    ]


@pytest.mark.parametrize("wrong", ["extra", "metric"])
def test_invalid_logged_value_is_a_failure(wrong: str) -> None:
    def logs(completions: list[str], log_extra: Any, log_metric: Any, **kwargs: Any) -> list[float]:
        log_extra("first", [1]) if wrong == "extra" else log_metric("x", math.nan)
        return lengths(completions)

    assert all(one.total is None for one in combined(logs).scored)
    expected = "1 values were given for 3 completions" if wrong == "extra" else "not nan"
    assert expected in str(combined(logs).scored[0].failure)


def test_logged_values_are_written_to_the_files_of_the_run(
    tiny_policy: LanguagePolicy, tmp_path: Any
) -> None:
    steps: list[int] = []

    def logs(completions: list[str], trainer_state: Any, log_extra: Any, log_metric: Any) -> list[float]:
        steps.append(trainer_state.global_step)
        log_metric("share_long", 0.5)
        log_metric("update", 99.0)  # a reserved name
        log_metric("loss", 99.0)
        log_extra("length", [len(completion) for completion in completions])
        log_extra("odd", [math.inf for _ in completions])
        return lengths(completions)

    directory = RunDirectory(tmp_path / "run")
    directory.prepare(resume=False, overwrite=False)
    directory.write_text("recipe.yaml", "seed: 0\n")
    TrainingLoop(
        tiny_policy,
        [Problem("1+1=", "2")],
        TrainingConfig(num_updates=2, learning_rate=1e-3),
        rewards=(WeightedReward("logs", logs),),
        reinforce=ReinforceConfig(problems_per_update=1, episodes_per_problem=3),
        sampling=SamplingConfig(max_new_tokens=3),
        run_directory=directory,
    ).train()
    metrics, episodes = (
        [json.loads(line) for line in (directory.path / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "episodes.jsonl")
    )
    assert [row["update"] for row in metrics] == [1, 2]
    assert [row["share_long"] for row in metrics] == [0.5, 0.5]
    assert all(row["loss"] != 99.0 for row in metrics)
    assert all(row["extras"] == {"length": len(row["completion"]), "odd": "inf"} for row in episodes)
    assert steps == [0, 0, 1]  # the first call is the trial before the first update


# -------------------------------------------------------------------------- reward functions of TRL


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_reward_functions_of_trl_run_unchanged() -> None:
    from trl.rewards import get_soft_overlong_punishment, think_format_reward

    judged = [
        JudgedCompletion(Problem("What is 1+1?", "2"), text, tuple(range(num_tokens)))
        for text, num_tokens in (("<think>\none and one\n</think>\n2", 50), ("2", 95), ("<think>\n2", 101))
    ]
    rewards = [
        WeightedReward("think", think_format_reward),
        WeightedReward(
            "overlong", get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
        ),
    ]
    scores = combine_rewards(judged, rewards, conversational=True).scored
    assert [one.failure for one in scores] == [None] * 3
    assert [one.parts for one in scores] == [
        {"think": 1.0, "overlong": 0.0},
        {"think": 0.0, "overlong": pytest.approx(-0.75)},  # (80 - 95) / 20
        {"think": 0.0, "overlong": -1.0},
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None or importlib.util.find_spec("math_verify") is None,
    reason="trl or math-verify is not installed",
)
def test_accuracy_reward_of_trl_runs_unchanged() -> None:
    from trl.rewards import accuracy_reward

    judged = [
        JudgedCompletion(Problem("What is 1/2 + 1/4?", answer), r"That is \boxed{\frac{3}{4}}.", (1, 2))
        for answer in (r"$\frac{3}{4}$", "$0.5$", "no formula at all")
    ]
    scores = combine_rewards(
        judged, [WeightedReward("accuracy", accuracy_reward)], conversational=True
    ).scored
    assert [one.failure for one in scores] == [None] * 3
    assert [one.total for one in scores] == [1.0, 0.0, None]  # None: the answer cannot be parsed
