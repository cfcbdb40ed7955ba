"""Source text of reward functions, which a run stores in `environment.json`."""

import hashlib
import inspect
from functools import partial
from pathlib import Path
from typing import Any

from llm_reinforce.rewards.isolation import IsolatedFunction


def describe_reward(name: str, function: Any) -> dict[str, Any]:
    """Return the name of a reward function, its source text and the digest of this text.

    For a function of a file or a module, the source text is the text of the whole file, because the function
    may call other functions of the file. For other functions, it is the text of the function itself. A
    built-in reward has only a name, because the version of the toolkit determines its source.

    Args:
        name: name of the function, as in the settings (`RewardConfig.function`).
        function: the function, which may be bound to arguments or run in worker processes.

    Returns:
        dict with the key `function`, and with `file`, `sha256` and `source` as far as they are known.
    """
    found: dict[str, Any] = {"function": name}
    if ":" not in name:
        return found
    file = _file(name, function)
    if file is not None:
        found["file"] = str(file.absolute())
        source: str | None = file.read_text(encoding="utf-8", errors="backslashreplace")
    else:
        source = _own_text(function)
    if source is None:  # a function typed into an interactive Python, or a compiled function
        return found
    return {**found, "sha256": hashlib.sha256(source.encode("utf-8")).hexdigest(), "source": source}


def _file(name: str, function: Any) -> Path | None:
    """Return the file in which a reward function is defined, or None if the file is not known."""
    where = name.rpartition(":")[0]
    if where.lower().endswith(".py"):
        path = Path(where).expanduser()
    elif where == "python" or isinstance(function, IsolatedFunction):
        return None
    else:
        try:
            path = Path(inspect.getsourcefile(_plain(function)) or "")
        except TypeError:
            return None
    return path if path.is_file() else None


def _own_text(function: Any) -> str | None:
    plain = _plain(function)
    for each in (plain, type(plain)):  # an object with `__call__` has the source of its class
        try:
            return inspect.getsource(each)
        except (OSError, TypeError):
            continue
    return None


def _plain(function: Any) -> Any:
    while isinstance(function, partial):
        function = function.func
    return inspect.unwrap(function)
