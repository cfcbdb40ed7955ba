"""Suffixes of data files, and default settings of data sets.

These constants are used by the settings classes and by `problems/`. They have a module of their own, so that
`problems/` need not import the settings classes and, with them, pydantic. The import of pydantic would double
the start-up time of the worker processes that run reward functions.
"""

from pathlib import PurePath

DEFAULT_SPLIT = "train"
MAX_HELD_OUT = 200  # default number of held-out problems
# suffixes of the names of data files; one of `COMPRESSED_SUFFIXES` may follow
FILE_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz")


def without_compression(name: str) -> str:
    """Return the name of a file without its compression suffix, such as `a.jsonl` for `a.jsonl.gz`."""
    return name[: -len(PurePath(name).suffix)] if name.lower().endswith(COMPRESSED_SUFFIXES) else name


def has_file_suffix(name: str) -> bool:
    """Return True if a name has the suffix of a data file, such as `.jsonl` or `.csv.gz`."""
    return PurePath(without_compression(name)).suffix.lower() in FILE_SUFFIXES
