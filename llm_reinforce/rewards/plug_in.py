"""Load the reward functions that a recipe names: built-in functions, or functions of a package or a file."""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from llm_reinforce.errors import InputError, nearest
from llm_reinforce.problems import Problem, have_answers
from llm_reinforce.rewards.built_in import BUILT_IN
from llm_reinforce.rewards.calls import RewardFunction, columns_of
from llm_reinforce.rewards.combination import WeightedReward
from llm_reinforce.rewards.isolation import IsolatedFunction, Isolation
from llm_reinforce.rewards.signatures import (
    NEED_ANSWERS,
    ONLY_PER_COMPLETION,
    PER_BATCH,
    PER_COMPLETION,
    read_signature,
    requirements_of,
    value_name,
)
from llm_reinforce.rewards.trl_signature import has_trl_signature

if TYPE_CHECKING:
    from llm_reinforce.config import RewardConfig

ONLY_IN_PYTHON = "python"
"""Prefix of the recorded name of a function that was passed in Python and cannot be loaded by name."""

_loading: list[Path] = []  # reward files that are currently being loaded


def file_being_loaded() -> Path | None:
    """Return the reward file that is currently being loaded, or None."""
    return _loading[-1] if _loading else None


def reward_from_config(settings: "RewardConfig") -> WeightedReward:
    """Load the reward function that these settings describe.

    Raises:
        InputError: under the conditions listed for `load_reward`.
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
    """Load a reward function by name.

    Args:
        function: a built-in name, `package.module:function`, or `path/to/file.py:function`. Modules are also
            searched for in the current directory, and relative paths start there. Loading a file executes it.
        weight: factor of the reward in the weighted sum.
        arguments: keyword arguments of the function, such as `max_tokens` of the built-in `conciseness`. For
            a user's function, these are parameters for which the trainer passes no value.
        conversational: if True, a function with TRL's signature receives lists of messages instead of texts.
            If None, the function receives messages only if the policy has a chat template.
        isolation: settings of the worker processes that run the function. None runs the function in this
            process.

    Raises:
        InputError: if the function does not exist or does not accept the arguments, or if none of its
            parameters has the name of a value that the trainer passes.
    """
    name = function.rpartition(":")[2]
    if isolation is not None:
        isolated = IsolatedFunction(function, arguments or {}, isolation)
        return WeightedReward(name, isolated, weight, conversational)
    loaded = load_function(function, arguments or {})
    if conversational is not None and not has_trl_signature(loaded):
        raise InputError(
            f"reward {function!r}: `conversational` is used only for functions with TRL's signature; remove "
            "this setting"
        )
    return WeightedReward(name, loaded, weight, conversational)


def load_function(function: str, arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """Load a function into this process and bind its arguments; see `load_reward`."""
    if ":" not in function:
        return _built_in(function, arguments)
    where, _, name = function.rpartition(":")
    if where == ONLY_IN_PYTHON:
        raise InputError(
            f"reward {name!r}: the run was started from Python with a function that cannot be named in a "
            "recipe (a lambda, a nested function, or a function of a notebook); resume the run from Python "
            "with this function: ReinforceTrainer(…, output_dir=…).train(resume=True)"
        )
    if where.lower().endswith(".py"):
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
    """Check that a reward function can be called, and that it accepts the given keyword arguments.

    Parameters that may name a column are checked later, when the data is known; see `check_rewards`.

    Raises:
        InputError: if the function does not accept one of the arguments, or if none of its parameters has the
            name of a value that the trainer passes.
    """
    if (signature := read_signature(found)) is None:
        return
    given = PER_BATCH if signature.is_batched else (*ONLY_PER_COMPLETION, "completion_ids")
    parameters = signature.named()
    for name in arguments:
        if name in given and not (name == "prompt" and name in parameters):
            raise InputError(
                f"reward {function!r}: {name!r} is passed by the trainer; remove it from `arguments`"
            )
        if name not in parameters and not signature.takes(inspect.Parameter.VAR_KEYWORD):
            hint = nearest(name, parameters)
            raise InputError(f"reward {function!r}: the function has no parameter {name!r}{hint}")
    known = {*(PER_BATCH if signature.is_batched else PER_COMPLETION), *NEED_ANSWERS}
    takes_others = any(
        map(signature.takes, (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL))
    )
    if not takes_others and not any(value_name(name, known) for name in parameters if name not in arguments):
        raise InputError(
            f"reward {function!r}: none of the function's parameters has a name of the values that reward "
            f"functions receive (parameters: {', '.join(parameters) or 'none'}); write a function such as "
            f"f(completion, problem), with some of the parameters {', '.join(PER_COMPLETION)}, or a function "
            "with TRL's signature, f(prompts, completions, **columns)"
        )


def check_rewards(rewards: Sequence[WeightedReward], problems: Sequence[Problem]) -> None:
    """Check that the problems have a value for every required parameter of the reward functions.

    Raises:
        InputError: if there is no value for a parameter without a default, or if a function needs reference
            answers and the problems have none. The message lists the available values.
    """
    columns = dict.fromkeys(name for problem in problems for name in columns_of(problem))
    has_answers = have_answers(problems)
    for reward in rewards:
        needed = (
            reward.function.requirements
            if isinstance(reward.function, IsolatedFunction)
            else requirements_of(reward.function)
        )
        needed.check(reward.name, columns, has_answers=has_answers)


def _built_in(name: str, arguments: Mapping[str, Any]) -> RewardFunction:
    if name not in BUILT_IN:
        raise InputError(
            f"unknown reward {name!r}{nearest(name, list(BUILT_IN))}; built-in rewards are "
            f"{', '.join(BUILT_IN)}; to use your own function, write path/to/file.py:function or "
            "package.module:function"
        )
    try:
        return BUILT_IN[name](**arguments)
    except TypeError as error:
        raise InputError(f"reward {name!r}: invalid arguments: {error}") from error


def _module_from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"reward file {path}: no such file (relative paths start at {Path.cwd()})")
    # a unique name in sys.modules, where dataclasses and pickle look up the module
    name = f"reward_file_{hashlib.blake2b(str(path.resolve()).encode(), digest_size=8).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # always true for a .py file
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _loading.append(path)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(
            f"reward file {path}: the file raises an error when loaded: {type(error).__name__}: {error}"
        ) from error
    finally:
        _loading.pop()
    return module


def _module_by_name(name: str, function: str) -> ModuleType:
    before, here = sys.path.copy(), str(Path.cwd())
    if here not in before:  # `python -m` adds the current directory, a console script does not
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        sys.path[:] = before
        raise InputError(
            f"reward {function!r}: cannot import {name}: {type(error).__name__}: {error}"
        ) from error
