"""Names of data files and defaults of data sets.

They are used by the settings and by `problems/`, which does not import the settings: importing pydantic would
double the time in which a worker process of a reward function starts.
"""

from pathlib import PurePath

DEFAULT_SPLIT = "train"
MAX_HELD_OUT = 200  # default number of held-out problems
# names with these suffixes, and a suffix of compression after them, are files, not data sets on the hub
FILE_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz")


def without_compression(name: str) -> str:
    """Return the name of a file without a suffix of compression, such as `a.jsonl` for `a.jsonl.gz`."""
    return name[: -len(PurePath(name).suffix)] if name.lower().endswith(COMPRESSED_SUFFIXES) else name


def has_file_suffix(name: str) -> bool:
    """Return True if a name ends like the name of a data file."""
    return PurePath(without_compression(name)).suffix.lower() in FILE_SUFFIXES
