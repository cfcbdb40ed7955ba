"""Problems from files and from the hub, and back to a file.

A row's prompt and answer are found under their usual names, or under the names that the caller gives.
Where an answer holds `####`, as in GSM8K, the final answer is what follows the last one, and the whole is the
worked solution: what a warm start shows, and a worked example, has its answer.
"""

import difflib
import json
import math
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NoReturn

from llm_reinforce.errors import InputError
from llm_reinforce.hub import hub_answers
from llm_reinforce.problems.problem import Problem
from llm_reinforce.problems.splits import ProblemSplit, divide_groups, folded_prompt
from llm_reinforce.verifier import split_at_mark
from llm_reinforce.verifier.percentages import is_in_per_cent

PROMPT_COLUMNS = ("prompt", "question")
ANSWER_COLUMNS = ("answer", "solution", "ground_truth")
_NUMBER = re.compile(r"[-+]?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?%?")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data set, where it stands ('sums.jsonl, line 3'), and its id if it gives none."""

    place: str
    default_id: str
    values: object


def read_problems(
    path: str | PathLike[str],
    *,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    allow_doubtful: bool = False,
) -> tuple[Problem, ...]:
    """The problems of a JSONL file (one object a line, blank lines skipped) or of a JSON list.

    Numbers become text, 5.0 as "5"; a list of one value is that value. The id is the `id` column's, or
    `<file stem>-<line>` (the row's number in a JSON list); all further columns are kept in
    `Problem.columns`, and so is an answer that holds `####`, as it is.

    Args:
        allow_doubtful: take answers as well that are empty or missing (both are ""), or no number where one
            is wanted; an audit tells of them.

    Raises:
        InputError: the file is missing, empty, not UTF-8 or not JSON; a row is no object, lacks a
            column, has an empty prompt or answer, or repeats an id. The message names file and line.
    """
    rows = read_rows(path)
    return problems_of_rows(str(path), rows, prompt_column, answer_column, allow_doubtful=allow_doubtful)


def read_rows(path: str | PathLike[str]) -> Iterator[Row]:
    """The rows of a JSONL file or of a JSON list.

    Raises:
        InputError: the file is missing, not UTF-8 or not JSON.
    """
    path = Path(os.path.expanduser(path))
    text = read_text(path)
    return _list_rows(path, text) if text.lstrip().startswith("[") else _line_rows(path, text)


def read_text(path: Path) -> str:
    """A file's text, a byte order mark left out.

    Raises:
        InputError: the file is missing, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file{_nearest_file(path)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from error


def load_hub_problems(
    name: str,
    *,
    config: str | None,
    split: str,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    allow_doubtful: bool = False,
) -> tuple[Problem, ...]:
    """The problems of a data set that `datasets.load_dataset(name, config, split=split)` finds.

    Rows are read as by `read_problems`; ids without an `id` column are `<name>-<split>-<row>`.

    Raises:
        InputError: there is no such data set, configuration or split, there is no network, or a row
            can't be used.
    """
    rows = hub_rows(name, config=config, split=split)
    return problems_of_rows(name, rows, prompt_column, answer_column, allow_doubtful=allow_doubtful)


def hub_rows(name: str, *, config: str | None, split: str, data_files: str | None = None) -> Iterator[Row]:
    """The rows of a data set on the hub; `data_files` names the one file of it that is meant.

    Raises:
        InputError: there is no such data set, configuration or split, or there is no network.
    """
    try:
        # Here, since importing it takes seconds.
        from datasets import config as settings  # type: ignore[import-untyped,unused-ignore]
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(f"data set {name!r}: `pip install datasets`, or give a local file's path") from error
    arguments = {"data_files": data_files} if data_files else {}
    if not hub_answers():  # `datasets` would go on asking for half a minute; what is cached is found
        settings.HF_HUB_OFFLINE = True
    try:
        table: Iterable[object] = load_dataset(name, config, split=split, **arguments)
    # Any exception: what is raised for a missing name or network changes from release to release.
    except Exception as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"data set {name!r} (config {config!r}, split {split!r}): not found, or no network ({cause}). "
            "Check the three names, or give the path of a local JSONL file instead"
        ) from error
    stem = f"{name.rstrip('/').rsplit('/', 1)[-1]}-{split}"
    return (Row(f"{name}, row {number}", f"{stem}-{number}", row) for number, row in enumerate(table, 1))


def split_problems(problems: Sequence[Problem], num_held_out: int, seed: int) -> ProblemSplit:
    """Hold out `num_held_out` problems, drawn by `seed`; both sides keep the given order.

    All copies of a prompt (the same but for case and white space) lie on one side. Where the held-out
    side is full before a prompt's last copy, the remaining copies are used nowhere.

    Raises:
        InputError: a negative number, or one that leaves nothing to train on.
    """
    groups: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        groups.setdefault(folded_prompt(problem.prompt), []).append(index)
    if num_held_out < 0:
        raise InputError(f"num_held_out must not be negative, as {num_held_out} is")
    generator = random.Random(f"{seed} split_problems")
    train, held_out = divide_groups(groups, num_held_out, generator)
    if not train:
        raise InputError(
            f"num_held_out is {num_held_out:,}, which leaves none of {len(problems):,} problems "
            f"({len(groups):,} different prompts) to train on: ask for fewer"
        )
    return ProblemSplit(
        train=tuple(problems[index] for index in sorted(train)),
        held_out=tuple(problems[index] for index in sorted(held_out)),
    )


def write_problems(path: str | PathLike[str], problems: Iterable[Problem]) -> None:
    """Write JSONL that `read_problems` reads back: id, prompt, answer, the solution if any, and columns.

    Missing folders are made.

    Raises:
        InputError: a column's value is nothing that JSON can hold, or the file can't be written.
    """
    path = Path(path)
    lines = [_line(problem) for problem in problems]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A lone surrogate is no UTF-8; backslashreplace writes it as \udXXX, which is its JSON escape.
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.writelines(lines)
    except OSError as error:
        raise InputError(f"{path}: can't be written: {error.strerror}") from error


def _line(problem: Problem) -> str:
    row: dict[str, object] = {"id": problem.id, "prompt": problem.prompt, "answer": problem.answer}
    raw = problem.columns.get("answer")
    if isinstance(raw, str) and raw.strip() == problem.solution and split_at_mark(raw)[1] == problem.answer:
        row["answer"] = raw  # as GSM8K has it: the worked solution with its answer after ####
    elif problem.solution is not None:
        row["solution"] = problem.solution
    row |= {name: value for name, value in problem.columns.items() if name not in row}
    try:
        return json.dumps(row, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"problem {problem.id!r}: a column can't be written as JSON: {error}") from error


def _line_rows(path: Path, text: str) -> Iterator[Row]:
    # Split at \n alone: JSON text may hold U+2028 and other characters that splitlines() cuts at.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{path}, line {number}"
            yield Row(place, f"{path.stem}-{number}", _parsed(place, line))


def _list_rows(path: Path, text: str) -> Iterator[Row]:
    rows = _parsed(str(path), text)
    assert isinstance(rows, list), "the text starts with ["
    for number, row in enumerate(rows, 1):
        yield Row(f"{path}, row {number}", f"{path.stem}-{number}", row)


def _parsed(place: str, text: str) -> object:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON number")

    try:
        value: object = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        # An error inside a line is located by the line; one inside a list by the error itself.
        line = f", line {error.lineno}" if "\n" in text.strip() else ""
        raise InputError(f"{place}{line}: broken JSON at column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: JSON that can't be used: {error}") from error
    return value


def problems_of_rows(
    source: str,
    rows: Iterable[Row],
    prompt_column: str | None = None,
    answer_column: str | None = None,
    *,
    is_numeric: bool = False,
    allow_doubtful: bool = False,
) -> tuple[Problem, ...]:
    """A problem a row, by its columns; with `is_numeric` each answer has to be a number.

    Raises:
        InputError: as `read_problems` does.
    """
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for row in rows:
        if not isinstance(row.values, Mapping):
            kind = type(row.values).__name__
            raise InputError(
                f"{row.place}: a JSON object with a prompt and an answer is wanted, not a {kind}"
            )
        # The first row settles the names; all others are held to them.
        prompt_column = _column(row.values, prompt_column, PROMPT_COLUMNS, "prompt", row.place)
        answer_column = _column(row.values, answer_column, ANSWER_COLUMNS, "answer", row.place)
        problem = _problem(
            row,
            row.values,
            prompt_column,
            answer_column,
            is_numeric=is_numeric,
            allow_doubtful=allow_doubtful,
        )
        if problem.id in places:
            raise InputError(f"{row.place}: id {problem.id!r} was used before, at {places[problem.id]}")
        places[problem.id] = row.place
        problems.append(problem)
    if not problems:
        raise InputError(f"{source}: empty; one JSON object a line with a prompt and an answer is wanted")
    return tuple(problems)


def _problem(
    row: Row,
    values: Mapping[str, object],
    prompt_column: str,
    answer_column: str,
    *,
    is_numeric: bool,
    allow_doubtful: bool,
) -> Problem:
    used = {prompt_column, answer_column, "id"}
    prompt = values[prompt_column]
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(
            f"{row.place}: column {prompt_column!r} must be text that isn't empty, not {_shown(prompt)}"
        )
    given = values[answer_column]
    answer = "" if allow_doubtful and given is None else _as_text(given, row.place, answer_column)
    solution: str | None = None
    marked = split_at_mark(answer)[1]
    if marked is not None:
        used.discard(answer_column)  # kept as it is, for reward functions that read it so
        solution, answer = answer, marked
        is_numeric = True
    elif answer_column != "solution" and isinstance(values.get("solution"), str):
        solution = str(values["solution"])
        used.add("solution")
    if not answer and not allow_doubtful:
        raise InputError(f"{row.place}: column {answer_column!r} gives an empty answer")
    if is_numeric and not allow_doubtful and not _NUMBER.fullmatch(answer):
        raise InputError(
            f"{row.place}: column {answer_column!r} gives no number where one is wanted, but {_shown(answer)}"
        )
    given_id = values.get("id")
    return Problem(
        prompt=prompt,
        answer=answer,
        solution=solution,
        in_per_cent=is_in_per_cent(prompt, answer, solution),
        id=row.default_id if given_id in (None, "") else _as_text(given_id, row.place, "id"),
        columns={name: value for name, value in values.items() if name not in used},
    )


def _column(
    values: Mapping[str, object], given: str | None, usual: Sequence[str], role: str, place: str
) -> str:
    """The name of the column that plays a role: the given one, or the first usual one that is there."""
    wanted = usual if given is None else (given,)
    for name in wanted:
        if name in values:
            return name
    by_lower_case = {name.lower(): name for name in values}
    nearest = [
        by_lower_case[match]
        for name in wanted
        for match in difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    ]
    hint = f"; nearest is {nearest[0]!r}" if nearest else ""
    looked_for = " or ".join(repr(name) for name in wanted)
    columns = ", ".join(repr(name) for name in values) or "none"
    raise InputError(
        f"{place}: no {role} column {looked_for}. Columns there: {columns}{hint}. Name it with {role}_column"
    )


def _as_text(value: object, place: str, column: str) -> str:
    """A cell as text: 5.0 as '5', true as 'true', [39.0] as '39'."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    raise InputError(f"{place}: column {column!r} must be text or a number, not {_shown(value)}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest_file(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f" (nor is there a folder {path.parent})"
    nearest = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / nearest[0]}?" if nearest else ""
