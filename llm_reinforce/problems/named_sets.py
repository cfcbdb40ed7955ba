"""Data sets that can be given by a short name, with their location, splits, row format and prompt template.

`NAME` loads a split of the data set NAME from the hub. `NAME=PATH` reads a local file or folder that has the
published format of the data set. Reading a local file or folder needs no network. A split can be chosen in a
folder and in a JSON file with several lists, but not in other files.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from llm_reinforce.errors import InputError
from llm_reinforce.problems.asdiv import asdiv_rows
from llm_reinforce.problems.data_files import Row, folder_rows, hub_rows, read_rows
from llm_reinforce.problems.problem import Problem
from llm_reinforce.problems.sources import Reading, problems_of_rows

Columns = Mapping[str, object]

QUESTION = "Question: {prompt}\nAnswer:"


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A published data set.

    Attributes:
        repository: id of the repository on the hub.
        splits: names of the splits in this toolkit, mapped to their names on the hub.
        convert: function that converts a row in any of the published formats to a row with the columns
            `prompt` and `answer`.
        config: configuration of the data set on the hub; None for the default configuration.
        data_files: path of the file in the repository, if the data set is a single file.
        template: default prompt template. For GSM8K, it is the template of lm-evaluation-harness.
        is_numeric: True if all answers must be numbers.
        algebra: True if answers can be LaTeX or algebra.
        rows: function that reads the rows of a local file in the published format. Its arguments are the path
            and the split.
    """

    repository: str
    splits: Mapping[str, str]
    convert: Callable[[Columns], Columns]
    config: str | None = None
    data_files: str | None = None
    template: str = QUESTION
    is_numeric: bool = True
    algebra: bool = False
    rows: Callable[[Path, str | None], Iterator[Row]] = read_rows


def _gsm8k(row: Columns) -> Columns:
    return _renamed(row, prompt=("question",), answer=("answer",))


def _svamp(row: Columns) -> Columns:
    """Convert a row of SVAMP. The prompt is the body, with a final period, followed by the question."""
    named = _renamed(row, prompt=("Question", "question"), answer=("Answer", "answer"), id=("ID",))
    return _with_body(_whole(named), row.get("Body"), named.get("prompt"))


def _asdiv(row: Columns) -> Columns:
    """Convert a row of ASDiv. The answer `9 (apples)` becomes `9`. Lists of several numbers are unchanged."""
    named = dict(_renamed(row, prompt=("Question", "question"), answer=("Answer", "answer"), id=("ID",)))
    answer = named.get("answer")
    if isinstance(answer, str) and answer.count("(") == 1:
        named["answer"] = answer.partition("(")[0].strip() or answer
    return _with_body(named, row.get("Body", row.get("body")), named.get("prompt"))


def _mawps(row: Columns) -> Columns:
    """Convert a row of AddSub, SingleEq or MultiArith, whose copies on the hub use different column names."""
    named = _renamed(
        row,
        prompt=("sQuestion", "question", "input", "Question"),
        answer=("lSolutions", "final_ans", "target", "answer", "Answer"),
        id=("iIndex",),
    )
    return _whole(named)


def _math500(row: Columns) -> Columns:
    return _renamed(row, prompt=("problem",), answer=("answer",), id=("unique_id",))


def _renamed(row: Columns, **names: tuple[str, ...]) -> dict[str, object]:
    """Return the row with additional columns, such as `prompt`, that copy columns with other names.

    Args:
        row: row to convert.
        names: mapping from the name of each new column to the names of the columns that it can copy. It
            copies the first of them that the row has.
    """
    named = dict(row)
    for name, candidates in names.items():
        found = next((candidate for candidate in candidates if candidate in row), None)
        if found is not None:
            named[name] = row[found]
    if isinstance(named.get("prompt"), str):
        named["prompt"] = str(named["prompt"]).strip()
    if isinstance(named.get("id"), int | str):
        named["id"] = str(named["id"])
    return named


def _whole(named: Columns) -> Columns:
    """Return the row with an answer such as `51.0` replaced by `51`.

    This is needed because lm-evaluation-harness compares answers as text.
    """
    answer = named.get("answer")
    if isinstance(answer, str) and re.fullmatch(r"-?[0-9]+\.0+", answer.strip()):
        return {**named, "answer": answer.partition(".")[0]}
    return named


def _with_body(named: Columns, body: object, question: object) -> Columns:
    if not (isinstance(body, str) and isinstance(question, str)):
        return named
    body = body.strip()
    gap = " " if not body or body.endswith((".", "!", "?", ",", ":", ";")) else ". "
    return {**named, "prompt": f"{body}{gap}{question.strip()}".strip()}


_TRAIN_AND_TEST = {"train": "train", "test": "test"}
_MATH_TASKS = "HuggingFaceTB/math_tasks"

NAMED_SETS: Mapping[str, NamedSet] = MappingProxyType(
    {
        "gsm8k": NamedSet("openai/gsm8k", _TRAIN_AND_TEST, _gsm8k, config="main"),
        "svamp": NamedSet("ChilleD/SVAMP", _TRAIN_AND_TEST, _svamp),
        "multiarith": NamedSet("ChilleD/MultiArith", _TRAIN_AND_TEST, _mawps),
        # `datasets` calls the only split of a file `train`, but these two data sets are used for evaluation
        "addsub": NamedSet(_MATH_TASKS, {"test": "train"}, _mawps, data_files="data/mawps/addsub.jsonl"),
        "singleeq": NamedSet(_MATH_TASKS, {"test": "train"}, _mawps, data_files="data/mawps/singleeq.jsonl"),
        "asdiv": NamedSet(
            "EleutherAI/asdiv",
            {"test": "validation"},
            _asdiv,
            config="asdiv",
            is_numeric=False,
            rows=lambda path, split: asdiv_rows(path),  # a file of ASDiv has no splits
        ),
        "math500": NamedSet(
            "HuggingFaceH4/MATH-500",
            {"test": "test"},
            _math500,
            template="Problem:\n{prompt}\n\nSolution:",
            is_numeric=False,
            algebra=True,
        ),
    }
)


def load_named(
    name: str, *, split: str = "test", path: str | None = None, allow_doubtful: bool = False
) -> tuple[Problem, ...]:
    """Return the problems of a data set from NAMED_SETS, read from the hub or from a local copy.

    Args:
        name: name of the data set.
        split: split to load from the hub, from a folder, or from a JSON file with several lists; ignored for
            other files.
        path: path of a local file or folder in the published format of the data set. None: the data set is
            loaded from the hub.
        allow_doubtful: True to accept invalid answers; see `Reading`.

    Raises:
        InputError: if the split is unknown, the data cannot be found, or a row is invalid.
    """
    named = NAMED_SETS[name]
    place = Path(path).expanduser() if path is not None else None
    if place is not None and place.is_dir():
        config = named.config if (place / "README.md").is_file() else None
        source, rows = str(path), folder_rows(place, config=config, split=named.splits.get(split, split))
    elif place is not None:
        source, rows = str(path), named.rows(place, split)
    else:
        if split not in named.splits:
            raise InputError(f"data set {name}: no split {split!r}; known splits: {', '.join(named.splits)}")
        source, rows = (
            name,
            hub_rows(
                named.repository, config=named.config, split=named.splits[split], data_files=named.data_files
            ),
        )
    converted = (
        replace(row, values=named.convert(row.values)) if isinstance(row.values, Mapping) else row
        for row in rows
    )
    return problems_of_rows(
        source, converted, Reading(is_numeric=named.is_numeric, allow_doubtful=allow_doubtful)
    )
