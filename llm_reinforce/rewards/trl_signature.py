"""Reward functions with TRL's signature, as people have them, run as they are.

    f(prompts, completions, completion_ids, **columns, trainer_state, log_extra, log_metric)
        -> list[float | None]

Source: TRL's documentation of custom reward functions for GRPO and RLOO.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llm_reinforce.rewards.calls import (
    JudgedCompletion,
    Progress,
    RewardResult,
    RewardResults,
    await_all,
    guarded,
    number,
    outcome,
    parameters_of,
    shown,
)

GIVEN = frozenset(
    {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
)  # what each call is given, beside the columns of the data
TAKEN = GIVEN | {"prompt", "completion"}  # no column takes their place


def has_trl_signature(function: Callable[..., Any]) -> bool:
    """Whether it is asked of a batch: a parameter is `completions` or `prompts`, or the first the ids."""
    parameters = parameters_of(function)
    return not {"completions", "prompts"}.isdisjoint(parameters) or [*parameters][:1] == ["completion_ids"]


def call_on_batch(
    function: Callable[..., Any],
    asked: Sequence[JudgedCompletion],
    *,
    conversational: bool,
    progress: Progress,
) -> RewardResults:
    """Ask a function with TRL's signature of a batch; if it fails, so does each of the batch.

    Args:
        conversational: prompts and completions are lists of messages, else texts.
    """
    metrics: dict[str, list[float]] = {}
    extras: dict[str, Sequence[object]] = {}

    def log_metric(name: str, value: float) -> None:
        checked = number(value)
        metrics.setdefault(str(name), []).append(checked)

    def log_extra(name: str, values: Sequence[object]) -> None:
        if len(values) != len(asked):
            raise ValueError(f"log_extra({name!r}): {len(values)} values for {len(asked)} completions")
        extras[str(name)] = [_as_json(value) for value in values]

    arguments = {
        "prompts": [_as_messages("user", one.problem.prompt, conversational) for one in asked],
        "completions": [_as_messages("assistant", one.completion, conversational) for one in asked],
        "completion_ids": [list(one.token_ids) for one in asked],
        **_columns(asked),
        "trainer_state": progress,
        "log_extra": log_extra,
        "log_metric": log_metric,
    }
    answer = guarded(function, **_accepted(function, arguments))
    if inspect.iscoroutine(answer):
        (answer,) = await_all([answer])
    return RewardResults(
        _outcomes(answer, asked),
        {name: sum(values) / len(values) for name, values in metrics.items()},
        extras,
    )


def _as_json(value: object) -> object:
    """As a line of JSON holds it; of what none can hold, what it looks like."""
    if value is None or isinstance(value, str | bool | int):
        return value
    try:
        return number(value)
    except Exception:  # not one, or an object that fails at the question
        return shown(value)


def _as_messages(role: str, text: str, conversational: bool) -> object:
    return [{"role": role, "content": text}] if conversational else text


def _columns(asked: Sequence[JudgedCompletion]) -> dict[str, list[object]]:
    """Every column of the data as a list; `answer` and `solution` are there in any case."""
    rows = [
        {"answer": problem.answer, "solution": problem.solution or problem.answer, **problem.columns}
        for problem in (one.problem for one in asked)
    ]
    names = dict.fromkeys(name for row in rows for name in row if name not in TAKEN)
    return {name: [row.get(name) for row in rows] for name in names}


def _accepted(function: Callable[..., Any], arguments: dict[str, object]) -> dict[str, object]:
    """Those of the arguments that it takes; what a recipe gave it, no column of the data replaces."""
    given = function.keywords if isinstance(function, partial) else {}
    arguments = {name: value for name, value in arguments.items() if name not in given}
    parameters = parameters_of(function)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def _outcomes(answer: object, asked: Sequence[JudgedCompletion]) -> list[RewardResult]:
    values = answer if isinstance(answer, BaseException) else guarded(_listed, answer, len(asked))
    if isinstance(values, list):
        return [outcome(value, one) for value, one in zip(values, asked, strict=True)]
    return [outcome(values, one) for one in asked]


def _listed(answer: Any, count: int) -> list[object]:
    values = answer.tolist() if hasattr(answer, "tolist") else answer  # a tensor's, an array's
    if isinstance(values, list | tuple) and len(values) == count:
        return list(values)
    shape = f"a list of {len(values)}" if isinstance(values, list | tuple) else f"a {type(values).__name__}"
    raise ValueError(f"a list of {count} values is wanted, one a completion, not {shape}")
