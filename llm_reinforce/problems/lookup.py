"""Lookup of problems by the name of their source, such as a file or a data set on the hub."""

import os
from dataclasses import replace
from pathlib import Path

from llm_reinforce.config import FILE_SUFFIXES
from llm_reinforce.errors import InputError
from llm_reinforce.problems.generators import nearest_name
from llm_reinforce.problems.named_sets import NAMED_SETS, load_named
from llm_reinforce.problems.problem import Problem
from llm_reinforce.problems.sources import load_hub_problems, read_problems
from llm_reinforce.problems.specified import (
    GENERATE,
    REASONING_GYM,
    generated_problems,
    reasoning_gym_problems,
)
from llm_reinforce.verifier.algebra import check_algebra

PLAIN = "{prompt}"


def find_problems(
    data: str,
    *,
    config: str | None = None,
    split: str = "test",
    prompt_column: str | None = None,
    answer_column: str | None = None,
    algebra: bool = False,
    allow_doubtful: bool = False,
) -> tuple[Problem, ...]:
    """Return the problems of a file or data set.

    Args:
        data: path of a file; name from NAMED_SETS; `NAME=PATH` for a local file in the published format of
            the data set NAME; `generate:…` or `reasoning_gym:…`; or `owner/name` on the hub.
        config: configuration of a data set on the hub.
        split: split of a named data set or of a data set on the hub.
        prompt_column: column of the prompts in a file or in a data set on the hub; None looks for the usual
            names.
        answer_column: column of the answers in a file or in a data set on the hub; None looks for the usual
            names.
        algebra: True if answers can be LaTeX or algebra. Some named data sets always have such answers, and
            do not need this argument.
        allow_doubtful: True to accept answers that cannot be correct, such as empty ones, so that an audit
            can report them.

    Raises:
        InputError: if the data does not exist or is invalid, if an argument cannot be used with this kind of
            data, or if math-verify is needed and not installed. For an unknown name, the message contains the
            most similar known names.
    """
    named = None if is_file_name(data) else NAMED_SETS.get(data.partition("=")[0])
    if not algebra and (named is None or not named.algebra):
        return _find(data, config, split, prompt_column, answer_column, allow_doubtful)
    check_algebra()
    found = _find(data, config, split, prompt_column, answer_column, allow_doubtful)
    return tuple(replace(problem, algebra=True) for problem in found)


def _find(
    data: str,
    config: str | None,
    split: str,
    prompt_column: str | None,
    answer_column: str | None,
    allow_doubtful: bool,
) -> tuple[Problem, ...]:
    columns = {"prompt_column": prompt_column, "answer_column": answer_column}
    if is_file_name(data):
        return read_problems(data, **columns, allow_doubtful=allow_doubtful)
    kind, name = kind_of(data)
    if kind == "hub":
        return load_hub_problems(data, config=config, split=split, **columns, allow_doubtful=allow_doubtful)
    if config or prompt_column or answer_column:
        raise InputError(f"{data}: its configuration and columns are fixed; remove these settings")
    if kind == "named":
        _, equals, path = data.partition("=")
        return load_named(name, split=split, path=path if equals else None, allow_doubtful=allow_doubtful)
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
        f"hub, or a path that ends in {' or '.join(FILE_SUFFIXES)} for a file"
    )


def is_file_name(data: str) -> bool:
    """Return True if the text is the path of a data file, even if the file does not exist."""
    if data.partition("=")[0] in NAMED_SETS:
        return False
    path = Path(os.path.expanduser(data))
    is_generated = data.partition(":")[0] in (GENERATE, REASONING_GYM)
    return path.is_file() or (path.suffix.lower() in FILE_SUFFIXES and not is_generated)


def reads_split(data: str) -> bool:
    """Return True if the data has splits, as data sets on the hub do.

    A data set on the hub is given by its id, such as `openai/gsm8k`, or by a name from NAMED_SETS.
    """
    return not is_file_name(data) and kind_of(data)[0] in ("hub", "named") and "=" not in data


def usual_template(data: str) -> str:
    """Return the default prompt template of a data set."""
    named = NAMED_SETS.get(data.partition("=")[0])
    return PLAIN if named is None or is_file_name(data) else named.template


def usual_stop(data: str) -> tuple[str, ...]:
    """Return the strings at which a completion should be cut, because the next question begins there.

    The strings are the text before `{prompt}` in the default template of the data set.

    >>> usual_stop("gsm8k"), usual_stop("problems.jsonl")
    (('Question:',), ())
    """
    head = usual_template(data).partition(PLAIN)[0].strip()
    return (head,) if head else ()


def training_part(data: str) -> str | None:
    """Return the name of a named data set's training split, from which worked examples can be taken.

    Returns None if there is no such data set or no training split.
    """
    named = NAMED_SETS.get(data)
    return "train" if named is not None and "train" in named.splits else None
