"""Problems passed as Python objects: a name, a list of dicts or of Problems, or a table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

from llm_reinforce.errors import InputError, repr_with_type
from llm_reinforce.problems.data_files import Row
from llm_reinforce.problems.lookup import find_problems
from llm_reinforce.problems.problem import Problem
from llm_reinforce.problems.sources import Reading, problems_of_rows
from llm_reinforce.verifier import check_algebra

WANTED = "a data set's name, a file's path, a list of dicts or Problems, or a datasets.Dataset"


def problems_from(source: Any, *, name: str = "problems", **options: Any) -> tuple[Problem, ...]:
    """Return the problems of a data set, a file or a Python object.

    Args:
        source: name of a data set, path of a file or folder, list of dicts, list of Problems,
            `datasets.Dataset` or pandas `DataFrame`. A dict is read like a row of a file; see PROMPT_COLUMNS
            and ANSWER_COLUMNS for the usual keys.
        name: name of the caller's argument, used in messages and ids. A problem without an id gets the id
            `<name>-<number>`.
        options: keyword arguments of `find_problems`. For a list, a `datasets.Dataset` or a pandas
            `DataFrame`, only the keyword arguments of `Reading` are used.

    Raises:
        InputError: if `source` has none of these types, is empty, or contains an invalid row.
    """
    if isinstance(source, str | PathLike):
        return find_problems(str(source), **options)
    if hasattr(source, "to_dict") and hasattr(source, "iterrows"):  # a DataFrame of pandas
        source = source.to_dict("records")
    if isinstance(source, Problem):
        raise InputError(f"{name}: a single Problem is not a list of problems; pass a list of Problems")
    if isinstance(source, Mapping):
        hint = "choose a split" if hasattr(source, "column_names") else "pass a list of dicts"
        raise InputError(f"{name}: a {type(source).__name__} is not a list of problems; {hint}")
    if not (isinstance(source, Sequence) or hasattr(source, "column_names")):
        raise InputError(f"{name}: {repr_with_type(source)} is not a list of problems; pass {WANTED}")
    if not hasattr(source, "__len__"):
        raise InputError(
            f"{name}: a {type(source).__name__} has no length; pass a part of it as a list, such as "
            "list(dataset.take(1000))"
        )
    if len(source) == 0:
        raise InputError(f"{name}: is empty; pass {WANTED}")
    reading = Reading(
        **{key: value for key, value in options.items() if key not in ("config", "split", "algebra")}
    )
    if all(isinstance(each, Problem) for each in source):
        return _checked(source, name, needs_answers=reading.needs_answers)
    rows = (
        Row(f"{name}[{number - 1}]", f"{name}-{number}", each) for number, each in _numbered(source, name)
    )
    return problems_of_rows(name, rows, reading)


def _numbered(source: Iterable[Any], name: str) -> Iterable[tuple[int, Mapping[str, object]]]:
    for number, each in enumerate(source, 1):
        if not isinstance(each, Mapping):
            raise InputError(
                f"{name}[{number - 1}]: should be a dict with a prompt and an answer, not "
                f"{repr_with_type(each)}; a list of problems must contain only dicts or only Problems"
            )
        yield number, each


def _checked(problems: Iterable[Problem], name: str, *, needs_answers: bool) -> tuple[Problem, ...]:
    """Check the problems and return them, with ids added to problems that have no id."""
    found: list[Problem] = []
    places: dict[str, int] = {}
    for index, problem in enumerate(problems):
        for field in ("prompt", "answer"):
            value = getattr(problem, field)
            if field == "answer" and value is None and not needs_answers:
                continue
            if not isinstance(value, str) or not value.strip():
                raise InputError(
                    f"{name}[{index}]: {field} should be non-empty text, not {repr_with_type(value)}"
                )
        if not problem.id:
            problem = replace(problem, id=f"{name}-{index + 1}")
        if problem.id in places:
            raise InputError(
                f"{name}[{index}]: id {problem.id!r} is already used by {name}[{places[problem.id]}]; "
                "give each problem a different id"
            )
        places[problem.id] = index
        found.append(problem)
    if any(problem.algebra for problem in found):
        check_algebra()
    return tuple(found)
