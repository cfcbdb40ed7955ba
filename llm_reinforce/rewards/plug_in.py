"""Find the reward function that a recipe names: built in, in a package, or in a user's file."""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from llm_reinforce.config import RewardConfig, nearest
from llm_reinforce.errors import InputError
from llm_reinforce.rewards.built_in import BUILT_IN
from llm_reinforce.rewards.calls import EXTRA_PARAMETERS, RewardFunction
from llm_reinforce.rewards.combination import WeightedReward
from llm_reinforce.rewards.isolation import IsolatedFunction, Isolation
from llm_reinforce.rewards.trl_signature import GIVEN, has_trl_signature

ONLY_IN_PYTHON = "python"
"""The origin, in a run's recipe, of a function that can't be found by name."""

_loading: list[Path] = []  # reward files that are being loaded


def file_being_loaded() -> Path | None:
    """Return the reward file that is being loaded at this moment, if there is one."""
    return _loading[-1] if _loading else None


def reward_from_config(settings: RewardConfig) -> WeightedReward:
    """Return the reward function that these settings name, with its weight.

    Raises:
        InputError: as `load_reward` does.
    """
    isolation = settings.isolation
    return load_reward(
        settings.function,
        weight=settings.weight,
        arguments=settings.arguments,
        conversational=settings.conversational,
        isolation=Isolation(**isolation.model_dump()) if isolation else None,
    )


def load_reward(
    function: str,
    *,
    weight: float = 1.0,
    arguments: Mapping[str, Any] | None = None,
    conversational: bool | None = None,
    isolation: Isolation | None = None,
) -> WeightedReward:
    """The reward function of that name, with its weight.

    Args:
        function: a built-in name; `package.module:function`; or `path/to/file.py:function`, both from
            the current directory too. A file runs because its path stands here.
        arguments: keyword arguments: for a built-in one those of its factory, for a user's function those
            that it takes beside `(completion, problem)`, or beside what TRL gives.
        conversational: whether a function with TRL's signature is given lists of messages instead of
            texts; None: where the policy has a chat template.
        isolation: run it in worker processes; None: in this one.

    Raises:
        InputError: there is no such function, it doesn't take these arguments, or it is called neither
            as `f(completion, problem)` nor as TRL's are.
    """
    name = function.rpartition(":")[2]
    if isolation is not None:
        isolated = IsolatedFunction(function, arguments or {}, isolation)
        return WeightedReward(name, isolated, weight, conversational)
    loaded = load_function(function, arguments or {})
    if conversational is not None and not has_trl_signature(loaded):
        raise InputError(
            f"reward {function!r}: conversational is read only by a function with TRL's signature"
        )
    return WeightedReward(name, loaded, weight, conversational)


def load_function(function: str, arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """The function alone, in this process, with its arguments; see `load_reward`."""
    if ":" not in function:
        return _built_in(function, arguments)
    where, _, name = function.rpartition(":")
    if where == ONLY_IN_PYTHON:
        raise InputError(
            f"reward {name!r}: the run was started from Python with a function that a recipe can't name (a "
            "lambda, a function inside another, or one of a notebook); resume it from Python, or put the "
            "function into a file and name it path/to/file.py:function"
        )
    if where.endswith(".py"):
        module = _module_from_file(Path(os.path.expanduser(where)))
    else:
        module = _module_by_name(where, function)
    found = getattr(module, name, None)
    if not callable(found):
        candidates = [
            key for key, value in vars(module).items() if callable(value) and not key.startswith("_")
        ]
        raise InputError(f"reward {function!r}: no function {name!r} in {where}{nearest(name, candidates)}")
    check_signature(found, arguments, function)
    return partial(found, **arguments) if arguments else found


def check_signature(found: Callable[..., Any], arguments: Mapping[str, Any], function: str) -> None:
    """Check that a reward function can be called in one of the two ways, with these arguments.

    Raises:
        InputError: it can't.
    """
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # written in C, it may have none
        return
    if has_trl_signature(found):
        _check_trl_arguments(signature, arguments, function)
        return
    extras = {name: None for name in EXTRA_PARAMETERS if name in signature.parameters}
    try:
        signature.bind("completion", "problem", **extras, **arguments)
    except TypeError as error:
        raise InputError(
            f"reward {function!r}: it must be callable as f(completion, problem) or, with TRL's signature, "
            f"as f(prompts, completions, **columns): {error}"
        ) from error


def _check_trl_arguments(signature: inspect.Signature, arguments: Mapping[str, Any], function: str) -> None:
    if taken := [name for name in arguments if name in GIVEN]:
        raise InputError(f"reward {function!r}: {taken[0]!r} is given by the trainer and is no argument")
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    foreign = [name for name in arguments if name not in signature.parameters]
    if foreign and inspect.Parameter.VAR_KEYWORD not in kinds:
        hint = nearest(foreign[0], list(signature.parameters))
        raise InputError(f"reward {function!r}: it takes no argument {foreign[0]!r}{hint}")


def _built_in(name: str, arguments: Mapping[str, Any]) -> RewardFunction:
    if name not in BUILT_IN:
        raise InputError(
            f"unknown reward {name!r}{nearest(name, list(BUILT_IN))}; built in are {', '.join(BUILT_IN)}; "
            "a function of your own is named path/to/file.py:function or package.module:function"
        )
    try:
        return BUILT_IN[name](**arguments)
    except TypeError as error:
        raise InputError(f"reward {name!r}: its arguments don't fit: {error}") from error


def _module_from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"reward file {path}: no such file (looked in {Path.cwd()})")
    # a name of its own among the loaded modules, where dataclasses and pickle look for it
    name = f"reward_file_{hashlib.blake2b(str(path.resolve()).encode(), digest_size=8).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file always has one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _loading.append(path)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(f"reward file {path}: loading it fails: {type(error).__name__}: {error}") from error
    finally:
        _loading.pop()
    return module


def _module_by_name(name: str, function: str) -> ModuleType:
    before, here = sys.path.copy(), str(Path.cwd())
    if here not in before:  # `python -m` puts it there, a console script doesn't
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        sys.path[:] = before
        raise InputError(
            f"reward {function!r}: can't import {name}: {type(error).__name__}: {error}"
        ) from error
