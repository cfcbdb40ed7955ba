"""Convert rows of data to problems, and write problems to files.

The prompt and the answer of a row are in columns with common names, such as `prompt` and `answer`, or in
columns named by the caller. The answer may be a whole solution. The reference answer is then the text after
the last `####`, as in GSM8K, or the content of the last `\\boxed{…}`; see `final_answer`. The whole text is
kept as the worked solution, which warm starts and worked examples use.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from llm_reinforce.errors import InputError, short_repr
from llm_reinforce.problems.data_files import Row, folder_rows, hub_rows, read_rows
from llm_reinforce.problems.layouts import (
    ANSWER_COLUMNS,
    NUMBER,
    PROMPT_COLUMNS,
    as_text,
    final_answer,
    find_column,
    no_column,
    read_messages,
    similar_columns,
    value_of,
)
from llm_reinforce.problems.problem import Message, Problem, chat_text
from llm_reinforce.problems.splits import ProblemSplit, divide_groups, folded_prompt

# a column name that is more similar than this to a usual name may be misspelled, such as `anwser`
MISSPELLED = 0.8
MAX_ANSWER = 200  # in characters; a longer answer is reported, because it may be a whole solution


def ignore(sentence: str) -> None:
    """Ignore a message. This function is the default of `say`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Options for converting rows to problems.

    Attributes:
        prompt_column: column of the prompts. None: the first column of PROMPT_COLUMNS that exists.
        answer_column: column of the answers. None: the first column of ANSWER_COLUMNS that exists.
        needs_answers: False to accept data without any answers.
        is_numeric: True if every answer must be a number.
        allow_doubtful: True to accept invalid answers, so that an audit can report them. Invalid answers are
            empty, null (both become ""), or not numbers where a number is required.
        say: function that is called with messages about the data.
    """

    prompt_column: str | None = None
    answer_column: str | None = None
    needs_answers: bool = True
    is_numeric: bool = False
    allow_doubtful: bool = False
    say: Callable[[str], None] = ignore


def read_problems(
    path: str | PathLike[str], *, split: str | None = None, reading: Reading | None = None, **options: Any
) -> tuple[Problem, ...]:
    """Read the problems of a file; see `read_rows` for the formats.

    Blank lines of a JSONL file are skipped. Answers that are numbers are converted to text; for example, 5.0
    becomes "5". A list with a single value is read as this value. The id of a problem is taken from the
    column `id`. Without this column, the id is `<file stem>-<number>`, with the number of the line in a JSONL
    file or of the row in other files.

    All columns are kept in `Problem.columns`, with these exceptions: a column `prompt` that contains the
    prompts, and columns `id`, `answer` and `solution` that are empty or equal the attribute with the same
    name. A column `answer` is therefore kept if it contains whole solutions.

    Args:
        path: path of the file.
        split: name of the list to read if the file is a JSON object with several lists.
        reading: options for converting rows to problems.
        options: attributes of `Reading`, given instead of `reading`.

    Raises:
        InputError: if the file is missing, empty or not in its format, or if a row is not an object, lacks a
            column, has an empty prompt or answer, or repeats an id. The message names the file and the line.
    """
    return problems_of_rows(str(path), read_rows(path, split), reading or Reading(**options))


def load_hub_problems(
    name: str, *, config: str | None, split: str, reading: Reading | None = None, **options: Any
) -> tuple[Problem, ...]:
    """Load the problems of a data set with `datasets.load_dataset(name, config, split=split)`.

    Rows are read as in `read_problems`, with the same options. If there is no column `id`, the ids are
    `<name>-<split>-<row>`. A path of a folder is also accepted; see `folder_rows`.

    Raises:
        InputError: if there is no such data set, configuration or split, if there is no network and the data
            set is not in the cache, or if a row is invalid.
    """
    folder = Path(name).expanduser()
    rows = (
        folder_rows(folder, config=config, split=split)
        if folder.is_dir()
        else hub_rows(name, config=config, split=split)
    )
    return problems_of_rows(name, rows, reading or Reading(**options))


def split_problems(problems: Sequence[Problem], num_held_out: int, seed: int) -> ProblemSplit:
    """Divide problems at random into training problems and `num_held_out` held-out problems.

    Both parts keep the order of `problems`. Problems whose prompts are equal, ignoring case and white space,
    are in the same part. If several problems have the last held-out prompt, those that would exceed
    `num_held_out` are not used.

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
            f"num_held_out is {num_held_out:,}, which leaves none of the {len(problems):,} problems "
            f"({len(groups):,} different prompts) to train on; reduce num_held_out"
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
        raise InputError(f"{path}: cannot be written ({error.strerror}); give another path") from error


def _line(problem: Problem) -> str:
    row: dict[str, object] = {"id": problem.id, "prompt": list(problem.messages) or problem.prompt}
    if problem.answer is not None:
        row["answer"] = problem.answer
    if problem.solution is not None:
        row["solution"] = problem.solution
    raw = problem.columns.get("answer")
    if raw is not None and _is_read_as(raw, problem):  # a number, or a solution with #### as in GSM8K
        row["answer"] = raw
        if final_answer(str(raw))[1]:
            row.pop("solution", None)
    row |= {name: value for name, value in problem.columns.items() if name not in row}
    try:
        return json.dumps(row, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"problem {problem.id!r}: a column cannot be written as JSON: {error}") from error


def _is_read_as(raw: object, problem: Problem) -> bool:
    """Return True if `read_problems` would read the answer and the solution of `problem` from `raw`."""
    try:
        text = as_text(raw, "", "answer")
    except InputError:
        return False
    answer, where = final_answer(text)
    return answer == problem.answer and (not where or text == problem.solution)


def problems_of_rows(source: str, rows: Iterable[Row], reading: Reading | None = None) -> tuple[Problem, ...]:
    """Convert rows to problems.

    Args:
        source: name of the source, for messages.
        rows: rows of the source.
        reading: options.

    Raises:
        InputError: if a row is invalid (see `read_problems`), or if there are no rows.
    """
    reading = reading or Reading()
    problems: list[Problem] = []
    places: dict[str, str] = {}
    converted: _Converter | None = None
    for row in rows:
        if not isinstance(row.values, Mapping):
            kind = type(row.values).__name__
            raise InputError(
                f"{row.place}: should be a JSON object with a prompt and an answer, not a {kind}"
            )
        # the first row determines the names of the columns for all rows
        converted = converted or _Converter.of_first_row(row.place, row.values, reading)
        problem = converted.problem(row, row.values)
        if problem.id in places:
            raise InputError(
                f"{row.place}: id {problem.id!r} is already used at {places[problem.id]}; give each problem "
                "a different id"
            )
        places[problem.id] = row.place
        problems.append(problem)
    if converted is None:
        raise InputError(f"{source}: is empty; write one JSON object with a prompt and an answer per line")
    converted.report(source, problems)
    return tuple(problems)


def with_all_columns(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """Return the problems with all columns of the data, so that reward functions can use every column.

    A column that a problem lacks gets the value None.
    """
    own = ("prompt", "answer", "solution", "id")  # columns with the names of attributes of Problem
    names = dict.fromkeys(name for each in problems for name in each.columns if name not in own)
    return tuple(
        each
        if names.keys() <= each.columns.keys()
        else replace(each, columns={**dict.fromkeys(names), **each.columns})
        for each in problems
    )


class _Converter:
    """Conversion of the rows of one source to problems.

    Attributes:
        prompt_column: column of the prompts.
        answer_column: column of the answers. None if the last message of a chat is the solution, or if there
            are no answers.
    """

    def __init__(self, prompt_column: str, answer_column: str | None, reading: Reading) -> None:
        self.prompt_column, self.answer_column, self._reading = prompt_column, answer_column, reading
        self._found: Counter[str] = Counter()  # number of answers found after "####" and in a "box"

    @classmethod
    def of_first_row(cls, place: str, values: Mapping[str, object], reading: Reading) -> "_Converter":
        """Return a converter whose prompt and answer columns are those found in the first row.

        Raises:
            InputError: if there is no column of prompts or answers.
        """
        prompt = find_column(values, reading.prompt_column, PROMPT_COLUMNS)
        if prompt is None:
            raise no_column(values, reading.prompt_column, PROMPT_COLUMNS, "prompt", place)
        others = {name: value for name, value in values.items() if name != prompt}
        answer = find_column(others, reading.answer_column, ANSWER_COLUMNS)
        if answer is None and not _reply(read_messages(value_of(values, prompt), place, prompt)):
            is_needed = reading.needs_answers or reading.answer_column is not None
            if is_needed or similar_columns(others, ANSWER_COLUMNS, MISSPELLED):
                raise no_column(values, reading.answer_column, ANSWER_COLUMNS, "answer", place)
        return cls(prompt, answer, reading)

    def problem(self, row: Row, values: Mapping[str, object]) -> Problem:
        """Return the problem of a row.

        Raises:
            InputError: if the row is invalid.
        """
        prompt, messages, reply = self._prompt(row, values)
        answer, solution = self._answer(row, values, reply)
        if solution is None and isinstance(values.get("solution"), str) and self.answer_column != "solution":
            solution = str(values["solution"])
        given_id = values.get("id")
        is_id = given_id not in (None, "") and isinstance(given_id, str | int | float)
        problem_id = as_text(given_id, row.place, "id") if is_id else row.default_id
        own = {"prompt": prompt, "answer": answer, "solution": solution, "id": problem_id}
        return Problem(
            prompt=prompt,
            answer=answer,
            solution=solution or reply,
            messages=messages,
            id=problem_id,
            columns={
                name: value
                for name, value in values.items()
                if not (name == self.prompt_column == "prompt")
                and not (name in own and (value == own[name] or value in (None, "")))
            },
        )

    def _prompt(self, row: Row, values: Mapping[str, object]) -> tuple[str, tuple[Message, ...], str | None]:
        """Split the prompt of a row into the triple (text, messages, reply).

        - If the prompt is a text, the result is (the text, no messages, None).
        - If the prompt is a chat, the reply is the assistant's message at the end of the chat, or None if the
          chat ends with another message. The messages are the chat without the reply, and the text is the
          text of these messages; see `chat_text`.
        """
        column = self.prompt_column
        if find_column(values, column, ()) is None:
            raise no_column(values, column, (), "prompt", row.place)
        given = value_of(values, column)
        messages = read_messages(given, row.place, column)
        reply = _reply(messages)
        if reply is not None and column.endswith("prompt"):
            raise InputError(
                f"{row.place}: column {column!r} ends in a message of the assistant; remove this message, "
                "because the policy has to write it"
            )
        messages = messages[:-1] if reply is not None else messages
        prompt = chat_text(messages) if messages else given
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(
                f"{row.place}: column {column!r} must be non-empty text or a list of chat messages, not "
                f"{short_repr(given)}"
            )
        return prompt, messages, reply

    def _answer(
        self, row: Row, values: Mapping[str, object], reply: str | None
    ) -> tuple[str | None, str | None]:
        """Return the answer of a row, and the solution if the answer was found in a whole solution."""
        is_doubtful, column = self._reading.allow_doubtful, self.answer_column
        if column is None:
            return self._answer_of_reply(row, reply)
        if find_column(values, column, ()) is None:
            raise no_column(values, column, (), "answer", row.place)
        given = value_of(values, column)
        text = "" if is_doubtful and given is None else as_text(given, row.place, column)
        answer, where = final_answer(text)
        self._found[where] += 1
        if is_doubtful:
            return answer, text if where else None
        if not answer:
            raise InputError(
                f"{row.place}: column {column!r} contains an empty answer; fill in the answer, or remove "
                "the row"
            )
        if (self._reading.is_numeric or where == "####") and not NUMBER.fullmatch(answer):
            raise InputError(
                f"{row.place}: column {column!r} must contain a number, not {short_repr(answer)}"
            )
        return answer, text if where else None

    def _answer_of_reply(self, row: Row, reply: str | None) -> tuple[str | None, str | None]:
        """Return the answer in the last message of a chat, and the message as the solution."""
        answer, where = final_answer(reply or "")
        if where and answer:
            self._found[where] += 1
            return answer, reply
        if self._reading.needs_answers:
            raise InputError(
                f"{row.place}: the last message in {self.prompt_column!r} has no final answer in a box "
                "(\\boxed{…}) or after ####; set answer_column"
            )
        return None, reply

    def report(self, source: str, problems: Sequence[Problem]) -> None:
        """Report answers that were taken from whole solutions, or that may be whole solutions."""
        say, column = self._reading.say, self.answer_column or self.prompt_column
        for where, text in (("####", "after ####"), ("box", "in the last box")):
            if num := self._found[where]:
                say(
                    f"{source}: {num:,} of {len(problems):,} values of {column!r} are whole solutions; the "
                    f"reference answer is the text {text}, for example {short_repr(problems[0].answer)}"
                )
        num_long = sum(each.answer is not None and len(each.answer) > MAX_ANSWER for each in problems)
        if num_long:
            say(
                f"{source}: {num_long:,} of {len(problems):,} answers in {column!r} have more than "
                f"{MAX_ANSWER} characters, and no final answer in a box (\\boxed{{…}}) or after ####, so "
                "completions are compared with the whole text; set answer_column if another column contains "
                "the final answers"
            )


def _reply(messages: Sequence[Message]) -> str | None:
    return messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else None
