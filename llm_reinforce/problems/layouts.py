"""Find the prompt and the answer in a row of a data set that has one of the usual layouts.

A column is identified by its name. A column within another column is identified by a dotted name, such as
`reward_model.ground_truth`.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from llm_reinforce.errors import InputError, short_repr
from llm_reinforce.problems.problem import Message
from llm_reinforce.verifier import split_at_mark

PROMPT_COLUMNS = ("prompt", "question", "problem", "messages", "conversations")
ANSWER_COLUMNS = ("answer", "ground_truth", "final_answer", "reward_model.ground_truth", "solution")
MAX_ROW = 300  # maximum number of characters of a row in a message

NUMBER = re.compile(r"[-+]?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?%?")
_ROLES = {"human": "user", "gpt": "assistant"}  # the names of roles in conversations of ShareGPT
_BOXES = (r"\boxed", r"\fbox")
_ABSENT = object()


def value_of(values: Mapping[str, object], name: str) -> object:
    """Return the value of a column, which may lie within another column.

    If the outer column contains JSON text, as in a CSV file, the text is decoded.

    Raises:
        KeyError: if there is no such column.
    """
    found = _value(values, name)
    if found is _ABSENT:
        raise KeyError(name)
    return found


def _value(values: Mapping[str, object], name: str) -> object:
    if name in values:
        return values[name]
    found: object = values
    for part in name.split("."):
        if isinstance(found, str) and found.lstrip().startswith(("{", "[")):
            found = _decoded(found)
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, Sequence) and not isinstance(found, str) and part.isdecimal():
            found = found[int(part)] if int(part) < len(found) else _ABSENT
        else:
            return _ABSENT
    return found


def _decoded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def find_column(values: Mapping[str, object], given: str | None, usual: Sequence[str]) -> str | None:
    """Return the name of the column that contains a prompt or an answer, or None if there is no such column.

    This is the column `given` or, if `given` is None, the first column in `usual` that the row has.
    """
    wanted = usual if given is None else (given,)
    return next((name for name in wanted if _value(values, name) is not _ABSENT), None)


def no_column(
    values: Mapping[str, object], given: str | None, usual: Sequence[str], role: str, place: str
) -> InputError:
    """Return the error for a row without a prompt or without an answer.

    The message contains the columns and the content of the row, and says which setting to change.
    """
    wanted = usual if given is None else (given,)
    others = PROMPT_COLUMNS if role == "answer" else ANSWER_COLUMNS
    candidates = {name: value for name, value in values.items() if name not in others}
    nearest = similar_columns(candidates, wanted)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    looked_for = " or ".join(filter(None, [", ".join(map(repr, wanted[:-1])), repr(wanted[-1])]))
    columns = ", ".join(repr(name) for name in values) or "none"
    example = nearest[0] if nearest else next(iter(candidates or values), "x")
    row = repr(dict(values))
    row = row if len(row) <= MAX_ROW else row[: MAX_ROW - 3] + "..."
    return InputError(
        f"{place}: no {role} column {looked_for}{hint}; columns: {columns}; row: {row}; set {role}_column to "
        f"the column of the {role}s, such as {role}_column: {example}"
    )


def similar_columns(values: Mapping[str, object], wanted: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Return the columns of a row whose names are similar to one of the wanted names.

    Args:
        values: the row.
        wanted: the wanted names.
        cutoff: minimum similarity in 0..1.
    """
    by_lower_case = {name.lower(): name for name in _dotted(values)}
    return [
        by_lower_case[match]
        for name in wanted
        for match in difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=cutoff)
    ]


def _dotted(values: Mapping[str, object], prefix: str = "") -> Iterable[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from (each for each in _dotted(value, f"{prefix}{name}.") if each.count(".") < 3)


# --- prompts ------------------------------------------------------------------------------------------


def read_messages(value: object, place: str, column: str) -> tuple[Message, ...]:
    """Return the chat messages in a column, or () if the column contains no chat messages.

    A message has the keys `role` and `content` or, as in ShareGPT, `from` and `value`. Other keys of a
    message are kept. JSON text is decoded.

    Raises:
        InputError: if a message has no text, or if no message is from a user.
    """
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        value = _decoded(value)
    if (
        not isinstance(value, list | tuple)
        or not value
        or not all(isinstance(each, Mapping) for each in value)
    ):
        return ()
    if not all({"role", "content"} <= each.keys() or {"from", "value"} <= each.keys() for each in value):
        return ()
    messages = tuple(
        _message(each, f"{place}: column {column!r}, message {number}")
        for number, each in enumerate(value, 1)
    )
    if all(message["role"] != "user" for message in messages):
        roles = ", ".join(str(message["role"]) for message in messages)
        raise InputError(
            f"{place}: column {column!r} has no message of a user (roles: {roles}); at least one message "
            "must have the role 'user'"
        )
    return messages


def _message(given: Mapping[str, Any], where: str) -> Message:
    role = given.get("role", given.get("from"))
    content = given.get("content", given.get("value"))
    if isinstance(content, list | tuple) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content
    ):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str) or not isinstance(role, str):
        raise InputError(f"{where}: the role and the content should be text, not {short_repr(dict(given))}")
    others = {
        name: value
        for name, value in given.items()
        if name not in ("role", "content", "from", "value") and value is not None
    }
    return {"role": _ROLES.get(role, role), "content": content, **others}


# --- answers ------------------------------------------------------------------------------------------


def as_text(value: object, place: str, column: str) -> str:
    """Return the value of a column as text: '5' for 5.0, 'true' for true, '39' for [39.0].

    Raises:
        InputError: if the value is neither text nor a finite number, and is not a list with one such value.
    """
    if isinstance(value, str) and value.startswith('["') and isinstance(listed := _decoded(value), list):
        value = listed if len(listed) == 1 else value
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a scalar of NumPy or torch
        value = value.item()
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | Fraction):
        return str(value)
    if isinstance(value, float | Decimal) and math.isfinite(value):
        if value == int(value):
            return str(int(value))
        return repr(value) if isinstance(value, float) else format(value, "f")
    raise InputError(f"{place}: column {column!r} must be text or a number, not {short_repr(value)}")


def final_answer(text: str) -> tuple[str, str]:
    r"""Return the final answer of a whole solution, and where it was found: "####", "box" or "".

    A text without `####` and without a box is itself the answer. In a solution with a box, `####` may begin a
    Markdown heading, so the text after `####` is the answer only if it is a number.

    >>> final_answer("2+2000 = 2002\n#### 2,002"), final_answer(r"so $\boxed{x}$"), final_answer("x")
    (('2002', '####'), ('x', 'box'), ('x', ''))
    """
    marked, boxed = split_at_mark(text)[1], last_box(text)
    if marked is not None and (boxed is None or NUMBER.fullmatch(marked)):
        return marked, "####"
    return (text, "") if boxed is None else (boxed, "box")


def last_box(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}` or `\fbox{…}` of a text, or None if there is none.

    >>> last_box(r"so \boxed{\frac{1}{2}}."), last_box(r"\boxed 7$"), last_box("7")
    ('\\frac{1}{2}', '7', None)
    """
    start = max(text.rfind(box) for box in _BOXES)
    if start < 0:
        return None
    rest = text[start:].partition("ox")[2].removeprefix("ed").lstrip()
    if not rest.startswith("{"):
        return rest.split("$")[0].split(maxsplit=1)[0] if rest.split("$")[0].strip() else ""
    depth = 0
    for place, character in enumerate(rest):
        is_escaped = rest[place - 1 : place] == "\\"
        depth += 0 if is_escaped else {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[1:place].strip()
    return None
