"""The decorator that `conftest.py` puts around every function of a module with tensors."""

import inspect
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

known: dict[tuple[str, str, str], Any] = {}


def checked(function: Callable[..., Any]) -> Any:
    """Check the annotations of a function; an int is accepted where a float is annotated.

    jaxtyping passes a function without a body, so functions with the same name and signature can share the
    result. Otherwise a function that is defined within another one would be prepared again in each call.
    """
    key = (function.__module__, function.__qualname__, str(inspect.signature(function)))
    if key not in known:
        known[key] = beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
    return known[key]
