"""The decorator that `shared_setup.py` puts around every function of a module with tensors.

The checks take more time than the functions themselves with the tiny models of these tests. Therefore, only
the first calls of each function in a test are checked.
"""

import inspect
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, no_type_check

from beartype import BeartypeConf, beartype

MAX_CHECKS = 2  # calls of a function that are checked in each test

known: dict[tuple[str, str, str], Any] = {}
functions: dict[tuple[str, str], Any] = {}  # checked functions of modules and classes by module and name
num_checks: Counter[tuple[str, str]] = Counter()  # in the current test


def checked(function: Callable[..., Any]) -> Any:
    """Check the annotations of a function with tensors; an int is accepted where a float is annotated.

    jaxtyping passes a function without a body, so functions with the same name and signature can share the
    result. Otherwise a function that is defined within another one would be prepared again in each call.
    """
    if not has_tensors(function):
        return function
    name = (function.__module__, function.__qualname__)
    key = (*name, str(inspect.signature(function)))
    if key not in known:
        check = beartype(conf=BeartypeConf(is_pep484_tower=True))(function)

        def counted(*arguments: Any, **named: Any) -> Any:
            num_checks[name] += 1
            if num_checks[name] >= 2 * MAX_CHECKS and name in functions:  # arguments and result
                no_type_check(functions[name])
            return check(*arguments, **named)

        known[key] = counted
    return known[key]


def has_tensors(function: Callable[..., Any]) -> bool:
    """Return True if an annotation of a parameter or of the result contains a tensor."""
    signature = inspect.signature(function)
    annotations = [each.annotation for each in signature.parameters.values()]
    return any(
        re.search(r"\bTensor\b|jaxtyping", f"{each} {getattr(each, '__module__', '')}")
        for each in (*annotations, signature.return_annotation)
    )


def start_counting() -> None:
    """Check the functions again that have been called more than `MAX_CHECKS` times."""
    for name, number in num_checks.items():
        if number >= 2 * MAX_CHECKS and name in functions:
            functions[name].__no_type_check__ = False
    num_checks.clear()
