"""Read the rows of data files and folders, and of data sets on the hub.

JSONL, JSON, CSV and TSV files are read without importing a large library. Parquet and Arrow files, folders
and data sets on the hub are read by pyarrow and `datasets`.
"""

import bz2
import csv
import difflib
import gzip
import io
import json
import lzma
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from llm_reinforce.data_sets import COMPRESSED_SUFFIXES, without_compression
from llm_reinforce.errors import InputError
from llm_reinforce.hub import hub_answers

FORMATS = "JSONL, JSON, CSV, TSV, Parquet and Arrow files"
MAX_CELL = 2**31 - 1  # maximum number of characters in a cell of a CSV file
_OPEN: Mapping[str, Callable[..., Any]] = dict(
    zip(COMPRESSED_SUFFIXES, (gzip.open, bz2.open, lzma.open), strict=True)
)


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


# --- files --------------------------------------------------------------------------------------------


def read_rows(path: str | PathLike[str], split: str | None = None) -> Iterator[Row]:
    """Return an iterator over the rows of a file.

    The suffix of the name determines the format: `.csv`, `.tsv`, `.parquet` or `.arrow`. Files with other
    names contain one JSON object per line, a JSON list, or a JSON object with one or several lists.

    Args:
        path: path of the file. A compressed file has a further suffix, such as `.jsonl.gz`.
        split: name of the list to read if the file is a JSON object with several lists.

    Raises:
        InputError: if the file is missing, cannot be read, or is not in the format that its name indicates.
    """
    path = Path(os.path.expanduser(path))
    suffix = Path(without_compression(path.name)).suffix.lower()
    if suffix in (".parquet", ".arrow"):
        return _table_rows(path, suffix)
    text = read_text(path)
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path, text, "\t" if suffix == ".tsv" else None)
    if text.lstrip().startswith("["):
        return _list_rows(path, _parsed(str(path), text))
    if (lists := _lists_of_object(text)) is not None:
        return _list_rows(path, _chosen(str(path), lists, split))
    return _line_rows(path, text)


def read_text(path: Path) -> str:
    """Return the text of a file without its byte order mark. A compressed file is decompressed.

    Raises:
        InputError: if the file is missing, not readable or not UTF-8.
    """
    try:
        if path.suffix.lower() in _OPEN and path.is_file():
            with _OPEN[path.suffix.lower()](path, "rb") as file:
                return str(file.read().decode("utf-8-sig"))
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such file{'' if path.suffix else ' or folder'}{_nearest_file(path)}"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 text (the first invalid byte is at position {error.start}); save the "
            f"file as UTF-8 text, or use another format ({FORMATS} can be read)"
        ) from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        cause = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {cause}") from error


def file_splits(path: Path) -> tuple[str, ...]:
    """Return the names of the lists if a file is a JSON object with several lists, and otherwise ()."""
    if Path(without_compression(path.name)).suffix.lower() != ".json" or not path.is_file():
        return ()
    lists = _lists_of_object(read_text(path))
    return tuple(lists) if lists is not None and len(lists) > 1 else ()


def _line_rows(path: Path, text: str) -> Iterator[Row]:
    # splitlines() would also split at U+2028 and at other characters that JSON text can contain
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{path}, line {number}"
            yield Row(place, f"{_stem(path)}-{number}", _parsed(place, line))


def _list_rows(path: Path, rows: object) -> Iterator[Row]:
    assert isinstance(rows, list), "the text starts with ["
    for number, row in enumerate(rows, 1):
        yield Row(f"{path}, row {number}", f"{_stem(path)}-{number}", row)


def _lists_of_object(text: str) -> Mapping[str, list[object]] | None:
    """Return a mapping with the entries of a JSON object that are lists of objects.

    Lists of chat messages are left out, because an object that contains a chat is a single row and not a
    whole data set. The result is None if the text is not a single JSON object, or if no lists are found.
    """
    if not text.lstrip().startswith("{"):
        return None
    first_line = text.lstrip().partition("\n")[0]
    if text.strip() != first_line.strip() and _is_json(first_line):
        return None  # one object per line
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return None  # the error is reported when the lines are read
    lists = {
        name: value
        for name, value in whole.items()
        if isinstance(value, list)
        and value
        and all(isinstance(each, dict) and not {"role", "from"} & each.keys() for each in value)
    }
    return lists or None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _chosen(place: str, lists: Mapping[str, list[object]], split: str | None) -> list[object]:
    if len(lists) == 1:
        return next(iter(lists.values()))
    if split in lists:
        return lists[str(split)]
    raise InputError(
        f"{place}: contains the lists {', '.join(map(repr, lists))}, but no list called {split!r}; set "
        "split to the name of one of these lists"
    )


def _csv_rows(path: Path, text: str, delimiter: str | None) -> Iterator[Row]:
    csv.field_size_limit(MAX_CELL)
    header = text.lstrip("\n").partition("\n")[0]
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter or max(",;\t", key=header.count), strict=True
    )
    names: list[str] | None = None
    number = 0
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = [name.strip() for name in cells]
                if len(set(names)) < len(names):
                    raise InputError(
                        f"{path}: a column name is repeated in the first line ({', '.join(names)}); "
                        "rename one of the columns"
                    )
                continue
            number += 1
            place = f"{path}, line {reader.line_num}"
            if len(cells) != len(names):
                raise InputError(
                    f"{place}: has {len(cells)} cells, but the first line has {len(names)} column names "
                    f"({', '.join(names)}); put cells that contain the delimiter in quotation marks"
                )
            yield Row(place, f"{_stem(path)}-{number}", dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: invalid CSV: {error}") from error


def _table_rows(path: Path, suffix: str) -> Iterator[Row]:
    if not path.is_file():
        raise InputError(f"{path}: no such file{_nearest_file(path)}")
    try:
        if suffix == ".parquet":
            from pyarrow import parquet  # type: ignore[import-untyped,unused-ignore]

            table: Iterable[object] = parquet.read_table(path).to_pylist()
        else:
            from datasets import Dataset

            table = Dataset.from_file(str(path))
    except Exception as error:  # the types of these exceptions depend on the release of pyarrow
        raise InputError(f"{path}: not a valid {suffix[1:]} file: {_first_line(error)}") from error
    return (
        Row(f"{path}, row {number}", f"{_stem(path)}-{number}", row) for number, row in enumerate(table, 1)
    )


def _parsed(place: str, text: str) -> object:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        value: object = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        # for JSONL, `place` contains the number of the line; for a JSON list, the error contains this number
        line = f", line {error.lineno}" if "\n" in text.strip() else ""
        raise InputError(f"{place}{line}: invalid JSON at column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: invalid JSON: {error}") from error
    return value


def _stem(path: Path) -> str:
    return Path(without_compression(path.name)).stem


def _nearest_file(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"; the folder {path.parent} does not exist"
    nearest = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / nearest[0]}?" if nearest else ""


# --- folders and the hub ------------------------------------------------------------------------------


def has_splits(folder: Path) -> bool:
    """Return True if the data set in a folder has splits.

    A data set that `Dataset.save_to_disk` has written has no splits.
    """
    return not (_snapshot(folder) / "state.json").is_file()


def folder_rows(folder: Path, *, config: str | None, split: str) -> Iterator[Row]:
    """Return an iterator over the rows of a folder.

    The folder is a snapshot of a data set on the hub, a folder of data files, or the result of `save_to_disk`
    of a `Dataset` or a `DatasetDict`.

    Raises:
        InputError: if the folder contains no such data, or has no such configuration or split.
    """
    given, folder = folder, _snapshot(folder)
    if not has_splits(folder) or (folder / "dataset_dict.json").is_file():
        return _saved_rows(folder, split)
    return _loaded_rows(str(folder), str(given), config=config, split=split)


def hub_rows(name: str, *, config: str | None, split: str, data_files: str | None = None) -> Iterator[Row]:
    """Return an iterator over the rows of a data set on the hub.

    Without a network connection, the data set is read from the local cache, where `datasets` or
    `huggingface_hub` may have stored it.

    Args:
        name: id of the data set.
        config: configuration of the data set; None for its default configuration.
        split: split of the data set.
        data_files: path of a file in the repository; only this file is loaded. None: load the files of the
            configuration.

    Raises:
        InputError: if there is no such data set, configuration or split, or if there is no network and the
            data set is not in the cache.
    """
    try:
        return _loaded_rows(name, name, config=config, split=split, data_files=data_files)
    except InputError:
        snapshot = _cached_snapshot(name)
        if snapshot is None:
            raise
        return _loaded_rows(snapshot, name, config=config, split=split, data_files=data_files)


def _loaded_rows(
    source: str, name: str, *, config: str | None, split: str, data_files: str | None = None
) -> Iterator[Row]:
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
    is_local = Path(source).is_dir()
    # without a network connection, `datasets` would retry for half a minute; offline mode reads the cache
    if not is_local and not hub_answers():
        settings.HF_HUB_OFFLINE = True
    try:
        table: Iterable[object] = load_dataset(source, config, split=split, **arguments)
    # the types of these exceptions depend on the release of `datasets`
    except Exception as error:
        where = f"data set {name!r} (config {config!r}, split {split!r})"
        cause = _first_line(error)
        if re.search(r"\b(split|config)", cause, re.IGNORECASE):
            raise InputError(
                f"{where}: {cause}; set split or config to one of the names in this message"
            ) from error
        if is_local:
            raise InputError(
                f"{where}: cannot be loaded: {cause}; use a data set in another format ({FORMATS} can be "
                "read)"
            ) from error
        raise InputError(
            f"{where}: not found, or no network ({cause}); check the name, config and split, or give "
            "the path of a local file or folder"
        ) from error
    return _rows_of_table(table, f"{name.rstrip('/').rsplit('/', 1)[-1]}-{split}", name)


def _saved_rows(folder: Path, split: str) -> Iterator[Row]:
    from datasets import load_from_disk

    try:
        table = load_from_disk(str(folder))
    except Exception as error:  # the types of these exceptions depend on the release of `datasets`
        raise InputError(f"{folder}: cannot be loaded: {_first_line(error)}") from error
    stem = folder.name
    if isinstance(table, Mapping):
        if split not in table:
            raise InputError(
                f"{folder}: no split {split!r}; its splits are {', '.join(map(repr, table))}; set split to "
                "one of these"
            )
        table, stem = table[split], f"{stem}-{split}"
    return _rows_of_table(table, stem, str(folder))


def _rows_of_table(table: Iterable[object], stem: str, name: str) -> Iterator[Row]:
    return (Row(f"{name}, row {number}", f"{stem}-{number}", row) for number, row in enumerate(table, 1))


def _snapshot(folder: Path) -> Path:
    """Return the newest snapshot if a folder is a repository in the hub's cache, and otherwise the folder."""
    snapshots = folder / "snapshots"
    if not folder.name.startswith("datasets--") or not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    named = snapshots / main.read_text(encoding="utf-8").strip() if main.is_file() else snapshots
    if named != snapshots and named.is_dir():
        return named
    return max(snapshots.iterdir(), key=lambda each: each.stat().st_mtime, default=folder)


def _cached_snapshot(name: str) -> str | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(name, repo_type="dataset", local_files_only=True))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError):
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
