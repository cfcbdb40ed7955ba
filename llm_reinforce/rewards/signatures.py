"""Match the parameters of a reward function with the values that are available for them.

A reward function is called once per completion or, with TRL's signature, once per batch. A parameter receives
the value that has the same name. The order of the parameters does not matter.
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from llm_reinforce.errors import InputError, nearest

PER_BATCH = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Values that a function with TRL's signature can receive, besides the columns of the data."""
OLD_NAMES = {"completions_ids": "completion_ids"}  # as in the documentation of earlier releases of TRL
ONLY_PER_COMPLETION = ("completion", "prompt", "problem", "verdict")
PER_COMPLETION = (*ONLY_PER_COMPLETION, "answer", "solution", "completion_ids", "trainer_state")
"""Values that a function called once per completion can receive, besides the columns of the data."""
NEED_ANSWERS = ("answer", "solution", "verdict")  # values that exist only if problems have reference answers

_NAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)


@dataclass(frozen=True, slots=True)
class Requirements:
    """Values without which a reward function cannot be called.

    Attributes:
        is_batched: True if the function has TRL's signature and is called once per batch.
        names: names of the parameters that need a value: parameters without a default, and `verdict`, because
            a function that uses the verdict needs reference answers.
    """

    is_batched: bool
    names: tuple[str, ...]

    def check(self, reward: str, columns: Iterable[str], *, has_answers: bool) -> None:
        """Check that a value is available for every parameter in `names`.

        Args:
            reward: name of the reward, for messages.
            columns: names of the columns of the data.
            has_answers: True if all problems have reference answers.

        Raises:
            InputError: if there is no value for a parameter. The message lists the available values.
        """
        columns = [name for name in columns if not self.is_batched or name not in ("prompt", "completion")]
        given = PER_BATCH if self.is_batched else PER_COMPLETION
        extra = ("answer", "solution") if self.is_batched else ()
        known = [name for name in (*given, *extra) if has_answers or name not in NEED_ANSWERS]
        for name in self.names:
            if value_name(name, {*known, *columns}) is not None:
                continue
            if not has_answers and name.lstrip("_") in NEED_ANSWERS:
                raise InputError(
                    f"reward {reward!r}: needs reference answers (parameter {name!r}), but the problems have "
                    f"none; columns of the data: {_listed(columns)}; set answer_column, or remove this reward"
                )
            how = "once per batch, with TRL's signature," if self.is_batched else "once per completion"
            raise InputError(
                f"reward {reward!r}: no value is available for the parameter {name!r}"
                f"{nearest(name, [*known, *columns])}; a function that is called {how} can have the "
                f"parameters {', '.join(known)} and the columns of the data: {_listed(columns)}; rename the "
                "parameter, give it a default, or set it in `arguments`"
            )


@dataclass(frozen=True, slots=True)
class RewardSignature:
    """Parameters of a reward function.

    Attributes:
        signature: the parameters, by name.
        bound: names of parameters whose values the recipe has set.
        is_batched: True if the function has TRL's signature and is called once per batch.
        by_keyword: True if all values are passed by keyword.
    """

    signature: inspect.Signature
    bound: frozenset[str]
    is_batched: bool
    by_keyword: bool

    def requirements(self) -> Requirements:
        """Return the values without which the function cannot be called."""
        parameters = self.named()
        needed = [
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty or (name == "verdict" and not self.is_batched)
        ]
        return Requirements(self.is_batched, tuple(needed))

    def named(self) -> dict[str, inspect.Parameter]:
        """Return the parameters except `*args`, `**kwargs`, and parameters that the recipe has set."""
        return {
            name: parameter
            for name, parameter in self.signature.parameters.items()
            if parameter.kind in _NAMED and name not in self.bound
        }

    def takes(self, kind: Any) -> bool:
        """Return True if the function has a parameter of this kind, such as `**kwargs`."""
        return any(parameter.kind is kind for parameter in self.signature.parameters.values())

    def arguments(self, values: Mapping[str, object]) -> tuple[tuple[object, ...], dict[str, object]]:
        """Return the positional and the keyword arguments of a call.

        Args:
            values: the available values, by name.

        Raises:
            TypeError: if there is no value for a parameter without a default.
        """
        found: dict[str, object] = {}
        for name, parameter in self.named().items():
            key = value_name(name, values)
            if key is not None:
                found[name] = values[key] if key else None
            elif parameter.default is parameter.empty:
                raise TypeError(
                    f"no value is available for the parameter {name!r}; available values: {', '.join(values)}"
                )
        rest = {}
        if self.takes(inspect.Parameter.VAR_KEYWORD):
            rest = {name: values[name] for name in values if name not in found and name not in self.bound}
        if self.by_keyword:
            return (), {**found, **rest}
        call = inspect.BoundArguments(self.signature, found)  # type: ignore[arg-type]
        more: tuple[object, ...] = ()
        if not self.is_batched and self.takes(inspect.Parameter.VAR_POSITIONAL):
            more = tuple(values[name] for name in ("completion", "problem") if name not in found)
        return (*call.args, *more), {**call.kwargs, **rest}


def read_signature(function: Callable[..., Any]) -> RewardSignature | None:
    """Return the parameters of a reward function, or None if Python cannot find them.

    Some functions that are written in C have no known parameters. They are called as
    `f(completion, problem)`.
    """
    try:
        named = inspect.signature(function)
        actual = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None
    # With functools.wraps, a wrapper shows the parameters of the wrapped function. These parameters are used
    # if the wrapper passes on all arguments, by position or by keyword.
    for signature in (named, actual):
        is_batched = _is_batched(signature, _bound(function))
        for by_keyword in (is_batched, not is_batched):
            if _can_be_called(actual, signature, by_keyword=by_keyword):
                return RewardSignature(signature, _bound(function), is_batched, by_keyword)
    return RewardSignature(actual, _bound(function), _is_batched(actual, _bound(function)), False)


def _can_be_called(actual: inspect.Signature, shown: inspect.Signature, *, by_keyword: bool) -> bool:
    """Return True if arguments for the parameters of `shown` fit the parameters of `actual`."""
    names = [name for name, each in shown.parameters.items() if each.kind in _NAMED]
    takes_any = any(each.kind is each.VAR_POSITIONAL for each in actual.parameters.values())
    if not by_keyword and not takes_any and [*actual.parameters] != [*shown.parameters]:
        return False
    call = inspect.BoundArguments(shown, dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        if by_keyword:
            actual.bind(**dict.fromkeys(names))
        else:
            actual.bind(*call.args, **call.kwargs)
    except TypeError:
        return False
    return True


def requirements_of(function: Callable[..., Any]) -> Requirements:
    """Return the values without which a function cannot be called. Empty if its parameters are not known."""
    signature = read_signature(function)
    return Requirements(False, ()) if signature is None else signature.requirements()


def value_name(parameter: str, values: Collection[str]) -> str | None:
    """Return the name of the value for a parameter: "" if the parameter is unused, None if no value fits.

    If no value has the parameter's name, underscores at the start of the name are ignored. A parameter whose
    name consists only of underscores is unused, as in `lambda completion, _: 1.0`.
    """
    plain = parameter.lstrip("_")
    for name in (parameter, OLD_NAMES.get(parameter, parameter), plain):
        if name in values:
            return name
    return None if plain else ""


def _is_batched(signature: inspect.Signature, bound: Collection[str]) -> bool:
    parameters = signature.parameters
    names = {name.lstrip("_") for name, each in parameters.items() if each.kind in _NAMED}
    names = {OLD_NAMES.get(name, name) for name in names - set(bound)}
    if names & {"completions", "prompts"}:
        return True
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return names.isdisjoint(ONLY_PER_COMPLETION) and (takes_any or not names.isdisjoint(PER_BATCH))


def _bound(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(function.keywords) if isinstance(function, partial) else frozenset()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
