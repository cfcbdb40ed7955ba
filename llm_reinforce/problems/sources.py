"""Read problems from files and from the hub, and write problems to files.

The prompt and the answer of a row are in columns with common names, such as `prompt` and `answer`, or in
columns named by the caller. If an answer contains `####`, as in GSM8K, the text after the last `####` is the
reference answer. The whole text is then the worked solution, which warm starts and worked examples use.
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

from llm_reinforce.errors import InputError, short_repr
from llm_reinforce.hub import hub_answers
from llm_reinforce.problems.problem import Problem
from llm_reinforce.problems.splits import ProblemSplit, divide_groups, folded_prompt
from llm_reinforce.verifier import split_at_mark

PROMPT_COLUMNS = ("prompt", "question")
ANSWER_COLUMNS = ("answer", "solution", "ground_truth")
_NUMBER = re.compile(r"[-+]?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?%?")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a data set.

    Attributes:
        place: location of the row for messages, such as 'sums.jsonl, line 3'.
        default_id: id of the problem if the row does not contain an id.
        values: content of the row. If the row is valid, this is a mapping from column names to values.
    """

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
    """Read the problems of a JSONL file or of a JSON list.

    A JSONL file has one object per line; blank lines are skipped. Answers that are numbers are converted to
    text; for example, 5.0 becomes "5". A list with a single value is read as this value. The id of a problem
    is taken from the column `id`. If there is none, the id is `<file stem>-<number>`, with the number of the
    line in a JSONL file or of the row in a JSON list. All other columns are kept in `Problem.columns`. The
    column of the answers is also kept there if the answer contains `####`.

    Args:
        path: path of the file.
        prompt_column: column of the prompts; None looks for PROMPT_COLUMNS.
        answer_column: column of the answers; None looks for ANSWER_COLUMNS.
        allow_doubtful: True to accept answers that are empty or null (both become ""), and answers that are
            not numbers although they should be, so that an audit can report them.

    Raises:
        InputError: if the file is missing, empty, not UTF-8 or not JSON, or if a row is not an object, lacks
            a column, has an empty prompt or answer, or repeats an id. The message names the file and the
            line.
    """
    rows = read_rows(path)
    return problems_of_rows(str(path), rows, prompt_column, answer_column, allow_doubtful=allow_doubtful)


def read_rows(path: str | PathLike[str]) -> Iterator[Row]:
    """Return an iterator over the rows of a JSONL file or of a JSON list.

    Raises:
        InputError: if the file is missing, not UTF-8 or not JSON.
    """
    path = Path(os.path.expanduser(path))
    text = read_text(path)
    return _list_rows(path, text) if text.lstrip().startswith("[") else _line_rows(path, text)


def read_text(path: Path) -> str:
    """Return the text of a file without its byte order mark.

    Raises:
        InputError: if the file is missing, not readable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file{_nearest_file(path)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def load_hub_problems(
    name: str,
    *,
    config: str | None,
    split: str,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    allow_doubtful: bool = False,
) -> tuple[Problem, ...]:
    """Load the problems of a data set with `datasets.load_dataset(name, config, split=split)`.

    Rows are read as in `read_problems`. If there is no column `id`, the ids are `<name>-<split>-<row>`.

    Raises:
        InputError: if there is no such data set, configuration or split, if there is no network, or if a row
            is invalid.
    """
    rows = hub_rows(name, config=config, split=split)
    return problems_of_rows(name, rows, prompt_column, answer_column, allow_doubtful=allow_doubtful)


def hub_rows(name: str, *, config: str | None, split: str, data_files: str | None = None) -> Iterator[Row]:
    """Return an iterator over the rows of a data set on the hub.

    Args:
        name: id of the data set.
        config: configuration of the data set; None for its default configuration.
        split: split of the data set.
        data_files: path of the only file to load from the repository; None loads the files of the
            configuration.

    Raises:
        InputError: if there is no such data set, configuration or split, or if there is no network.
    """
    try:
        # imported here, because the import takes seconds
        from datasets import config as settings  # type: ignore[import-untyped,unused-ignore]
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(
            f"data set {name!r}: the package datasets is not installed; run `pip install datasets`, or give "
            "the path of a local file"
        ) from error
    arguments = {"data_files": data_files} if data_files else {}
    if not hub_answers():  # `datasets` would retry for half a minute; offline mode uses the local cache
        settings.HF_HUB_OFFLINE = True
    try:
        table: Iterable[object] = load_dataset(name, config, split=split, **arguments)
    # the types of these exceptions depend on the release of `datasets`
    except Exception as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"data set {name!r} (config {config!r}, split {split!r}): not found, or no network ({cause}); "
            "check the three names, or give the path of a local JSONL file"
        ) from error
    stem = f"{name.rstrip('/').rsplit('/', 1)[-1]}-{split}"
    return (Row(f"{name}, row {number}", f"{stem}-{number}", row) for number, row in enumerate(table, 1))


def split_problems(problems: Sequence[Problem], num_held_out: int, seed: int) -> ProblemSplit:
    """Divide problems at random into training problems and `num_held_out` held-out problems.

    Both parts keep the order of `problems`. Problems whose prompts are equal, ignoring case and white space,
    are in the same part. If only some of them are needed to reach `num_held_out`, the others are not used.

    Raises:
        InputError: if `num_held_out` is negative, or if no training problem is left.
    """
    groups: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        groups.setdefault(folded_prompt(problem.prompt), []).append(index)
    if num_held_out < 0:
        raise InputError(f"num_held_out must be at least 0, not {num_held_out}")
    generator = random.Random(f"{seed} split_problems")
    train, held_out = divide_groups(groups, num_held_out, generator)
    if not train:
        raise InputError(
            f"num_held_out is {num_held_out:,}, which leaves none of {len(problems):,} problems "
            f"({len(groups):,} different prompts) to train on; reduce it"
        )
    return ProblemSplit(
        train=tuple(problems[index] for index in sorted(train)),
        held_out=tuple(problems[index] for index in sorted(held_out)),
    )


def write_problems(path: str | PathLike[str], problems: Iterable[Problem]) -> None:
    """Write problems to a JSONL file that `read_problems` can read.

    A row contains the id, the prompt, the answer, the worked solution if there is one, and all other columns.
    Missing folders are created.

    Raises:
        InputError: if a value cannot be written as JSON, or if the file cannot be written.
    """
    path = Path(path)
    lines = [_line(problem) for problem in problems]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # UTF-8 cannot encode a lone surrogate; backslashreplace writes it as \udXXX, its escape in JSON
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.writelines(lines)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _line(problem: Problem) -> str:
    row: dict[str, object] = {"id": problem.id, "prompt": problem.prompt, "answer": problem.answer}
    raw = problem.columns.get("answer")
    if isinstance(raw, str) and raw.strip() == problem.solution and split_at_mark(raw)[1] == problem.answer:
        row["answer"] = raw  # the worked solution and the answer after ####, as in GSM8K
    elif problem.solution is not None:
        row["solution"] = problem.solution
    row |= {name: value for name, value in problem.columns.items() if name not in row}
    try:
        return json.dumps(row, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"problem {problem.id!r}: a column cannot be written as JSON: {error}") from error


def _line_rows(path: Path, text: str) -> Iterator[Row]:
    # not splitlines(), which would also split at U+2028 and other characters that JSON text can contain
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
        raise ValueError(f"{constant} is not a JSON number")

    try:
        value: object = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        # for JSONL, `place` contains the number of the line; for a JSON list, the error contains it
        line = f", line {error.lineno}" if "\n" in text.strip() else ""
        raise InputError(f"{place}{line}: invalid JSON at column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: invalid JSON: {error}") from error
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
    """Convert rows to problems.

    Args:
        source: name of the source, for messages.
        rows: rows of the source.
        prompt_column: column of the prompts; None looks for PROMPT_COLUMNS.
        answer_column: column of the answers; None looks for ANSWER_COLUMNS.
        is_numeric: True if every answer must be a number.
        allow_doubtful: True to accept invalid answers, as in `read_problems`.

    Raises:
        InputError: if a row is invalid (see `read_problems`), or if there are no rows.
    """
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for row in rows:
        if not isinstance(row.values, Mapping):
            kind = type(row.values).__name__
            raise InputError(
                f"{row.place}: should be a JSON object with a prompt and an answer, not a {kind}"
            )
        # the first row determines the names of the columns for all rows
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
            raise InputError(f"{row.place}: id {problem.id!r} is already used at {places[problem.id]}")
        places[problem.id] = row.place
        problems.append(problem)
    if not problems:
        raise InputError(f"{source}: is empty; write one JSON object with a prompt and an answer per line")
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
            f"{row.place}: column {prompt_column!r} must be non-empty text, not {short_repr(prompt)}"
        )
    given = values[answer_column]
    answer = "" if allow_doubtful and given is None else _as_text(given, row.place, answer_column)
    solution: str | None = None
    marked = split_at_mark(answer)[1]
    if marked is not None:
        used.discard(answer_column)  # keeps the column in `Problem.columns`, for reward functions
        solution, answer = answer, marked
        is_numeric = True
    elif answer_column != "solution" and isinstance(values.get("solution"), str):
        solution = str(values["solution"])
        used.add("solution")
    if not answer and not allow_doubtful:
        raise InputError(f"{row.place}: column {answer_column!r} contains an empty answer")
    if is_numeric and not allow_doubtful and not _NUMBER.fullmatch(answer):
        raise InputError(
            f"{row.place}: column {answer_column!r} must contain a number, not {short_repr(answer)}"
        )
    given_id = values.get("id")
    return Problem(
        prompt=prompt,
        answer=answer,
        solution=solution,
        id=row.default_id if given_id in (None, "") else _as_text(given_id, row.place, "id"),
        columns={name: value for name, value in values.items() if name not in used},
    )


def _column(
    values: Mapping[str, object], given: str | None, usual: Sequence[str], role: str, place: str
) -> str:
    """Return the name of the prompt or answer column of a row.

    This is the name given by the caller, or the first name in PROMPT_COLUMNS or ANSWER_COLUMNS that is a
    column of the row.

    Raises:
        InputError: if there is no such column.
    """
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
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    looked_for = " or ".join(repr(name) for name in wanted)
    columns = ", ".join(repr(name) for name in values) or "none"
    raise InputError(
        f"{place}: no {role} column {looked_for}{hint}; columns: {columns}; every problem needs a prompt "
        f"and an answer: add the column, or set {role}_column to one of these"
    )


def _as_text(value: object, place: str, column: str) -> str:
    """Return the value of a column as text: '5' for 5.0, 'true' for true, '39' for [39.0]."""
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
    raise InputError(f"{place}: column {column!r} must be text or a number, not {short_repr(value)}")


def _nearest_file(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"; the folder {path.parent} does not exist"
    nearest = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / nearest[0]}?" if nearest else ""
