"""Call reward functions that were written for the library TRL, without changing them.

TRL's signature is

    f(prompts, completions, completion_ids, **columns, trainer_state, log_extra, log_metric)
        -> list[float | None]

Source: TRL's documentation of custom reward functions for GRPO and RLOO.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm_reinforce.problems import Problem
from llm_reinforce.rewards.calls import (
    JudgedCompletion,
    Progress,
    RewardResult,
    RewardResults,
    call_guarded,
    checked_result,
    columns_of,
    number,
    short_repr,
)
from llm_reinforce.rewards.signatures import PER_BATCH, read_signature


def has_trl_signature(function: Callable[..., Any]) -> bool:
    """Return True if the function has TRL's signature, so that it is called once per batch.

    This is the case for two kinds of functions:

    - functions with a parameter `completions` or `prompts`;
    - functions with another parameter of TRL or with `**kwargs`, but without a parameter `completion`,
      `prompt`, `problem` or `verdict`.
    """
    signature = read_signature(function)
    return signature is not None and signature.is_batched


def call_on_batch(
    function: Callable[..., Any],
    judged: Sequence[JudgedCompletion],
    *,
    conversational: bool,
    progress: Progress,
) -> RewardResults:
    """Call a function with TRL's signature on a batch of completions and return the checked results.

    If the function raises an exception, the exception is the result of every completion of the batch.

    Args:
        function: the reward function.
        judged: the completions.
        conversational: if True, prompts and completions are passed as lists of messages instead of texts.
        progress: progress of the run, which the function receives as `trainer_state`.
    """
    metrics: dict[str, list[float]] = {}
    extras: dict[str, Sequence[object]] = {}

    def log_metric(name: str, value: float) -> None:
        checked = number(value)
        metrics.setdefault(str(name), []).append(checked)

    def log_extra(name: str, values: Sequence[object]) -> None:
        if len(values) != len(judged):
            raise ValueError(
                f"log_extra({name!r}): {len(values)} values were given for {len(judged)} completions; give "
                "one value per completion"
            )
        extras[str(name)] = [_as_json(value) for value in values]

    arguments = {
        "prompts": [_prompt(one.problem, conversational) for one in judged],
        "completions": [_as_messages("assistant", one.completion, conversational) for one in judged],
        "completion_ids": [list(one.token_ids) for one in judged],
        **_columns(judged),
        "trainer_state": progress,
        "log_extra": log_extra,
        "log_metric": log_metric,
    }
    returned = _called(function, arguments)
    if inspect.isawaitable(returned):
        from llm_reinforce.rewards.coroutines import await_all  # imports asyncio

        (returned,) = await_all([returned])
    return RewardResults(
        _outcomes(returned, judged),
        {name: sum(values) / len(values) for name, values in metrics.items()},
        extras,
    )


def _as_json(value: object) -> object:
    """Convert a value for JSON: numbers other than ints become floats, and unsupported values become text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    try:
        return number(value)
    except Exception:  # not a number, or a method of the user's object raises
        return short_repr(value)


def _prompt(problem: Problem, conversational: bool) -> object:
    if conversational and problem.messages:
        return [dict(message) for message in problem.messages]
    return _as_messages("user", problem.prompt, conversational)


def _as_messages(role: str, text: str, conversational: bool) -> object:
    return [{"role": role, "content": text}] if conversational else text


def _called(function: Callable[..., Any], arguments: Mapping[str, object]) -> object:
    """Call `function` with those `arguments` that it accepts, and return its result or its error."""
    signature = read_signature(function)
    if signature is None:
        return call_guarded(function, **arguments)
    try:
        positional, named = signature.arguments(arguments)
    except TypeError as error:  # there is no value for a parameter
        return error.with_traceback(None)
    return call_guarded(function, *positional, **named)


def _columns(judged: Sequence[JudgedCompletion]) -> dict[str, list[object]]:
    """Return one list per column of the data, except the columns `prompt` and `completion`, as in TRL.

    If the data has no columns `id`, `answer` and `solution`, these lists are created from the attributes of
    the problems. `answer` and `solution` are not created if no problem has a reference answer.
    """
    rows = [
        {"answer": problem.answer, "solution": problem.solution or problem.answer, **columns_of(problem)}
        if problem.answer is not None
        else columns_of(problem)
        for problem in (one.problem for one in judged)
    ]
    left_out = {*PER_BATCH, "prompt", "completion"}
    names = dict.fromkeys(name for row in rows for name in row if name not in left_out)
    return {name: [row.get(name) for row in rows] for name in names}


def _outcomes(returned: object, judged: Sequence[JudgedCompletion]) -> list[RewardResult]:
    is_error = isinstance(returned, BaseException)
    values = returned if is_error else call_guarded(_as_list, returned, len(judged))
    if isinstance(values, list):
        return [checked_result(value, one) for value, one in zip(values, judged, strict=True)]
    return [checked_result(values, one) for one in judged]


def _as_list(returned: Any, count: int) -> list[object]:
    values = returned.tolist() if hasattr(returned, "tolist") else returned  # tensors and arrays
    if isinstance(values, list | tuple) and len(values) == count:
        return list(values)
    shape = f"a list of {len(values)}" if isinstance(values, list | tuple) else f"a {type(values).__name__}"
    raise ValueError(f"the function must return a list of {count} values, one per completion, not {shape}")
