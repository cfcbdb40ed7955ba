"""Suffixes of data files, and default settings of data sets.

Both the settings classes and `problems/` use these constants. The constants are not part of the settings
classes, because `problems/` would then import pydantic. This import would double the time that a worker
process of a reward function needs to start.
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
