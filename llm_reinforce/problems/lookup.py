"""Lookup of problems by the name of their source, such as a file or a data set on the hub."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_reinforce.data_sets import FILE_SUFFIXES, has_file_suffix
from llm_reinforce.errors import InputError
from llm_reinforce.problems.data_files import file_splits, folder_rows, has_splits
from llm_reinforce.problems.generators import nearest_name
from llm_reinforce.problems.named_sets import NAMED_SETS, load_named
from llm_reinforce.problems.problem import Problem
from llm_reinforce.problems.sources import Reading, load_hub_problems, problems_of_rows, read_problems
from llm_reinforce.problems.specified import (
    GENERATE,
    REASONING_GYM,
    generated_problems,
    reasoning_gym_problems,
)
from llm_reinforce.verifier.algebra import check_algebra

PLAIN = "{prompt}"
_LIKE_A_PATH = re.compile(r"[A-Za-z]:|[~./\\]|.*\\", re.DOTALL)


def find_problems(
    data: str,
    *,
    config: str | None = None,
    split: str = "test",
    algebra: bool = False,
    **options: Any,
) -> tuple[Problem, ...]:
    """Return the problems of a file, a folder or a data set.

    Args:
        data: path of a file or folder, name from NAMED_SETS, `owner/name` on the hub, `generate:…` or
            `reasoning_gym:…`. `NAME=PATH` is a local file or folder in the published format of the data set
            NAME.
        config: configuration of a data set on the hub or of a folder.
        split: split of a named data set, of a data set on the hub, of a folder, or of a JSON file that is an
            object with several lists.
        algebra: True if answers can be LaTeX or algebra. Some named data sets always have such answers, and
            do not need this argument.
        options: attributes of `Reading`, such as `prompt_column` and `answer_column`.

    Raises:
        InputError: if the data does not exist or is invalid, if an argument cannot be used with this kind of
            data, or if math-verify is needed and not installed. For an unknown name, the message contains the
            most similar known names.
    """
    named = None if is_file_name(data) else NAMED_SETS.get(data.partition("=")[0])
    if not algebra and (named is None or not named.algebra):
        return _find(data, config, split, Reading(**options))
    check_algebra()
    found = _find(data, config, split, Reading(**options))
    return tuple(replace(problem, algebra=True) for problem in found)


def _find(data: str, config: str | None, split: str, reading: Reading) -> tuple[Problem, ...]:
    if is_file_name(data):
        path = Path(os.path.expanduser(data))
        if not path.is_dir():
            return read_problems(data, split=split, reading=reading)
        return problems_of_rows(data, folder_rows(path, config=config, split=split), reading)
    kind, name = kind_of(data)
    if kind == "hub":
        return load_hub_problems(data, config=config, split=split, reading=reading)
    if config or reading.prompt_column or reading.answer_column:
        raise InputError(
            f"{data}: the configuration and the columns of this data set are fixed; remove the settings "
            "config, prompt_column and answer_column"
        )
    if kind == "named":
        _, equals, path_text = data.partition("=")
        return load_named(
            name, split=split, path=path_text if equals else None, allow_doubtful=reading.allow_doubtful
        )
    settings = data.partition(":")[2]
    return generated_problems(settings) if kind == GENERATE else reasoning_gym_problems(settings)


def kind_of(data: str) -> tuple[str, str]:
    """Return the kind and the name of data that is not a file, such as `('named', 'gsm8k')`.

    The kind is `named`, `generate`, `reasoning_gym` or `hub`.

    Raises:
        InputError: if the text is not a valid name of any kind.
    """
    name = data.partition("=")[0]
    if name in NAMED_SETS:
        return "named", name
    prefix = data.partition(":")[0]
    if prefix in (GENERATE, REASONING_GYM):
        return prefix, prefix
    if "/" in data and "=" not in name and ":" not in name:
        return "hub", data
    known = (*NAMED_SETS, GENERATE, REASONING_GYM)
    raise InputError(
        f"no data set {data!r}{nearest_name(prefix.partition('=')[0], known, 2)}; known names: "
        f"{', '.join(NAMED_SETS)}, generate:… and reasoning_gym:…; write owner/name for a data set on the "
        f"hub, or the path of a folder or of a file ({', '.join(FILE_SUFFIXES)})"
    )


def is_file_name(data: str) -> bool:
    """Return True if the text is the path of a data file or folder, even if it does not exist.

    A text is a path in three cases: a file or folder with this path exists, the text ends with the suffix of
    a data file, or the text looks like a path. A text looks like a path if it begins with `~`, `.`, a slash
    or a drive such as `C:`, or contains a backslash or at least two slashes.

    The name of a named data set, such as `gsm8k`, is not a path. For a folder with this name, write
    `./gsm8k`.
    """
    if not data or data.partition("=")[0] in NAMED_SETS:
        return False
    if Path(os.path.expanduser(data)).exists():
        return True
    if data.partition(":")[0] in (GENERATE, REASONING_GYM):
        return False
    return has_file_suffix(data) or _LIKE_A_PATH.match(data) is not None or data.count("/") > 1


def reads_split(data: str) -> bool:
    """Return True if a split of the data can be selected.

    This is the case for data sets on the hub, for most folders, and for JSON files with several lists. A data
    set on the hub is given by an id, such as `openai/gsm8k`, or by a name from NAMED_SETS.
    """
    name, equals, path_text = data.partition("=")
    is_copy = bool(equals) and name in NAMED_SETS
    path = Path(os.path.expanduser(path_text if is_copy else data))
    if is_copy or is_file_name(data):
        return has_splits(path) if path.is_dir() else bool(file_splits(path))
    return kind_of(data)[0] in ("hub", "named")


def has_columns(data: str) -> bool:
    """Return True if the columns of the data can be selected: for files, folders, and ids on the hub."""
    return is_file_name(data) or kind_of(data)[0] == "hub"


def usual_template(data: str) -> str:
    """Return the default prompt template of a data set."""
    named = NAMED_SETS.get(data.partition("=")[0])
    return PLAIN if named is None or is_file_name(data) else named.template


def usual_stop(data: str) -> tuple[str, ...]:
    """Return the default stop strings of a data set. Completions are cut where one of these strings begins.

    The only stop string is the text before `{prompt}` in the default template of the data set, because a new
    question begins with this text. If there is no such text, the result is empty.

    >>> usual_stop("gsm8k"), usual_stop("problems.jsonl")
    (('Question:',), ())
    """
    head = usual_template(data).partition(PLAIN)[0].strip()
    return (head,) if head else ()


def training_part(data: str) -> str | None:
    """Return the name of a named data set's training split, from which worked examples can be taken.

    The result is None if there is no such data set, or if the data set has no training split.
    """
    named = NAMED_SETS.get(data)
    return "train" if named is not None and "train" in named.splits else None
