"""Rewards that are given in Python as functions, names, a list of these, or a dict with weights."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any

from llm_reinforce.errors import InputError, repr_with_type
from llm_reinforce.rewards.built_in import BUILT_IN
from llm_reinforce.rewards.combination import WeightedReward
from llm_reinforce.rewards.isolation import IsolatedFunction
from llm_reinforce.rewards.plug_in import ONLY_IN_PYTHON, check_signature

EXPECTED = "a function, a name, a list of these, or a dict such as {function: weight}"

Given = tuple[dict[str, Any], WeightedReward | None]
"""Recipe keys of a reward, and the reward as an object. The object is None if the keys suffice to load it."""


def rewards_from(source: Any) -> list[Given]:
    """Convert the argument `rewards` of the trainer to recipe keys and, for functions, to reward objects.

    Args:
        source: a function `f(completion, problem)`, a function with TRL's signature, a built-in name,
            `path/to/file.py:function`, a RewardConfig or a WeightedReward; a list of these; or a dict that
            maps these to weights.

    Returns:
        one pair per reward: the recipe keys, and the reward as an object or None if the keys suffice.

    Raises:
        InputError: if `source` has another type, or if no parameter of a function has the name of a value
            that the trainer passes.
    """
    pairs: list[tuple[Any, float | None]]
    if isinstance(source, Mapping):
        pairs = [(reward, _weight(reward, weight)) for reward, weight in source.items()]
    elif isinstance(source, Sequence) and not isinstance(source, str):
        pairs = [(reward, None) for reward in source]
    else:
        pairs = [(source, None)]
    if not pairs:
        raise InputError(f"rewards: empty; give {EXPECTED}")
    found = [_given(reward, weight, index) for index, (reward, weight) in enumerate(pairs)]
    seen: dict[str, int] = {}
    for keys, given in found:
        # functions that cannot be loaded by name, such as two lambdas, need different names in the recipe
        if given is not None and keys["function"].startswith(f"{ONLY_IN_PYTHON}:"):
            count = seen[keys["function"]] = seen.get(keys["function"], 0) + 1
            keys["function"] += f"_{count}" if count > 1 else ""
    return found


def reward_name(function: Callable[..., Any]) -> str:
    """Return the name by which the rewards of a callable are logged."""
    if isinstance(function, functools.partial):
        return reward_name(function.func)
    qualified = getattr(function, "__qualname__", None) or type(function).__qualname__
    outer, _, inner = qualified.rpartition(".<locals>.")
    # the built-in factories return functions called `reward`
    name = outer.rpartition(".")[2] if inner == "reward" else inner.rpartition(".")[2]
    return str(name.strip("<>") or "reward")


def reward_origin(function: Callable[..., Any]) -> str:
    """Return the name of a function as written in a recipe, such as `package.module:function`.

    For a function of a script, or of a module outside a package, this is `/path/file.py:function`.

    Lambdas, nested functions and functions of a notebook cannot be loaded by name. For such a function, the
    result is `python:NAME`.
    """
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    name = getattr(function, "__qualname__", "")
    if module is None or getattr(module, name, None) is not function:
        return f"{ONLY_IN_PYTHON}:{reward_name(function)}"
    if "." in module.__name__:
        return f"{module.__name__}:{name}"
    file = getattr(module, "__file__", None)  # a script, or a module outside a package
    if file is None or not file.lower().endswith(".py") or not Path(file).is_file():
        return f"{ONLY_IN_PYTHON}:{name}"
    return f"{Path(file).resolve()}:{name}"


def _given(reward: Any, weight: float | None, index: int) -> Given:
    from llm_reinforce.config import RewardConfig  # not imported by the worker processes

    if isinstance(reward, RewardConfig):
        keys = reward.model_dump(mode="json", exclude_unset=True)
        return (keys if weight is None else {**keys, "weight": weight}), None
    weighted = None if weight is None else {"weight": weight}
    if isinstance(reward, str):
        return {"function": reward, **(weighted or {})}, None
    if isinstance(reward, WeightedReward):
        weight = reward.weight if weight is None else weight
        given = WeightedReward(reward.name, reward.function, weight, reward.conversational)
        if isinstance(reward.function, IsolatedFunction):
            return _keys(reward.function.name, given), given
        return _keys(reward_origin(reward.function), given), given
    if not callable(reward):
        raise InputError(f"rewards[{index}]: {repr_with_type(reward)} is not a reward; give {EXPECTED}")
    for name, factory in BUILT_IN.items():
        if reward is factory:
            return {"function": name, **(weighted or {})}, None
    name = reward_name(reward)
    check_signature(reward, {}, name)
    given = WeightedReward(name, reward, 1.0 if weight is None else weight)
    return _keys(reward_origin(reward), given), given


def _keys(origin: str, given: WeightedReward) -> dict[str, Any]:
    keys: dict[str, Any] = {"function": origin, "weight": given.weight}
    return keys if given.conversational is None else {**keys, "conversational": given.conversational}


def _weight(reward: Any, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, Real | Decimal):
        name = reward if isinstance(reward, str) else reward_name(reward)
        raise InputError(
            f"rewards[{name!r}]: a weight must be a number, not {repr_with_type(weight)}; to give functions "
            "without weights, use a list, such as rewards=[my_function, 'answer_format']"
        )
    return float(weight)
