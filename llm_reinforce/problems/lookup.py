"""What a data set's name means: a file, a published set, problems made on the spot, or a set on the hub."""

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
    """The problems that a name stands for.

    Args:
        data: a file's path; a name of NAMED_SETS, or `NAME=PATH` for its published file; `generate:…` or
            `reasoning_gym:…`; or `owner/name` on the hub.
        config, split: of a set on the hub; a named set has splits of its own.
        prompt_column, answer_column: of a file, or a set on the hub that has no name here.
        algebra: the answers may be LaTeX or algebra, as those of some named sets are in any case.
        allow_doubtful: take answers as well that can't be right as they stand; an audit tells of them.

    Raises:
        InputError: there is no such thing (the message has the nearest names), it can't be read, an
            argument has nothing to act on, or the answers are algebra and math-verify isn't installed.
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
        raise InputError(f"{data}: its configuration and columns are known; leave them out")
    if kind == "named":
        _, equals, path = data.partition("=")
        return load_named(name, split=split, path=path if equals else None, allow_doubtful=allow_doubtful)
    settings = data.partition(":")[2]
    return generated_problems(settings) if kind == GENERATE else reasoning_gym_problems(settings)


def kind_of(data: str) -> tuple[str, str]:
    """What kind of name this is, no file's, and the part of it that names: `('named', 'gsm8k')`.

    Raises:
        InputError: it can't be a name of any kind.
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
        f"no data set is called {data!r}{nearest_name(prefix.partition('=')[0], known, 2)}: there are "
        f"{', '.join(NAMED_SETS)}, generate:… and reasoning_gym:…; a set on the hub reads owner/name, a file "
        f"ends in {' or '.join(FILE_SUFFIXES)}"
    )


def is_file_name(data: str) -> bool:
    """Whether this names a file of rows, there or not, and nothing else."""
    if data.partition("=")[0] in NAMED_SETS:
        return False
    path = Path(os.path.expanduser(data))
    return path.is_file() or (path.suffix.lower() in FILE_SUFFIXES and ":" not in data)


def reads_split(data: str) -> bool:
    """Whether a split has something to act on: a set on the hub, by its id or by a name."""
    return not is_file_name(data) and kind_of(data)[0] in ("hub", "named") and "=" not in data


def usual_template(data: str) -> str:
    """How a data set is asked where nobody says otherwise: in its own words if it has a name."""
    named = NAMED_SETS.get(data.partition("=")[0])
    return PLAIN if named is None or is_file_name(data) else named.template


def usual_stop(data: str) -> tuple[str, ...]:
    """Where an answer ends if the policy goes on to the next question by itself: at that question's head.

    >>> usual_stop("gsm8k"), usual_stop("problems.jsonl")
    (('Question:',), ())
    """
    head = usual_template(data).partition(PLAIN)[0].strip()
    return (head,) if head else ()


def training_part(data: str) -> str | None:
    """The split of the same set that is there to learn from, for examples; None where there is none."""
    named = NAMED_SETS.get(data)
    return "train" if named is not None and "train" in named.splits else None
