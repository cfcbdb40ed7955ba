"""Read demonstrations: prompts with completions, from which a supervised warm start learns."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from llm_reinforce.errors import InputError, short_repr
from llm_reinforce.problems.data_files import Row, folder_rows, read_rows
from llm_reinforce.problems.layouts import read_messages
from llm_reinforce.problems.problem import Message, Problem, chat_text

CHAT_COLUMNS = ("messages", "conversations")


def read_demonstrations(path: str | PathLike[str]) -> tuple[Problem, ...]:
    """Return the demonstrations in a file or folder as problems, whose solutions are the completions.

    A row has one of these forms:

    - `prompt` and `completion`: texts, or lists of chat messages. The completion is a text or one message.
    - `messages`: a chat whose last message, from the assistant, is the completion.

    Args:
        path: a file, in one of the formats of `read_rows`, or a folder.

    Raises:
        InputError: if the file is missing, empty or not readable, or if a row has neither form.
    """
    folder = Path(path).expanduser()
    rows = folder_rows(folder, config=None, split="train") if folder.is_dir() else read_rows(path)
    found = tuple(_demonstration(row) for row in rows)
    if not found:
        raise InputError(f"{path}: is empty; write one JSON object with a prompt and a completion per line")
    return found


def _demonstration(row: Row) -> Problem:
    values = row.values if isinstance(row.values, Mapping) else {}
    column = next((name for name in CHAT_COLUMNS if name in values), None)
    if column is not None:
        messages = read_messages(values[column], row.place, column)
        *before, last = messages or ({"role": "", "content": ""},)
        if last["role"] != "assistant" or not before:
            raise InputError(
                f"{row.place}: column {column!r} should be a chat that ends in a message of the assistant, "
                f"not {short_repr(values[column])}"
            )
        return _problem(row, tuple(before), last["content"])
    if not {"prompt", "completion"} <= values.keys():
        columns = ", ".join(values) or short_repr(row.values)
        raise InputError(
            f"{row.place}: should have the columns prompt and completion, or the column messages, but has "
            f"{columns}"
        )
    prompt: object = read_messages(values["prompt"], row.place, "prompt") or values["prompt"]
    if not isinstance(prompt, str | tuple) or not prompt:
        raise InputError(
            f"{row.place}: column 'prompt' should be text or a list of chat messages, not "
            f"{short_repr(values['prompt'])}"
        )
    return _problem(row, prompt, _completion(row, values["completion"]))


def _completion(row: Row, given: object) -> str:
    text, message = given, given[0] if isinstance(given, list | tuple) and len(given) == 1 else None
    if isinstance(message, Mapping) and message.get("role") == "assistant":
        text = message.get("content")
    if not isinstance(text, str):
        raise InputError(
            f"{row.place}: column 'completion' should be text or one message of the assistant, not "
            f"{short_repr(given)}"
        )
    return text


def _problem(row: Row, prompt: str | tuple[Message, ...], completion: str) -> Problem:
    if isinstance(prompt, str):
        return Problem(prompt, solution=completion, id=row.default_id)
    return Problem(chat_text(prompt), solution=completion, messages=prompt, id=row.default_id)
