"""Atomic and durable writes of files and directories.

Everything is written under a temporary name, synced to disk, and then renamed. If the process is killed, the
disk is full or the power fails during a write, no half-written file or directory has the final name.
"""

import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

PARTIAL = ".partial"  # suffix of files and directories that are being written


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary directory, which is renamed to `target` at the end of the `with` block.

    An existing `target` is deleted just before the renaming, so the replacement is not atomic. If the block
    raises an exception, the temporary directory is removed, and `target` is unchanged.

    Raises:
        OSError: if the file system reports an error.
    """
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in [*sorted(partial.rglob("*")), partial]:
            sync(path)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, SafetensorError):
            raise _as_os_error(error, target) from error
        raise
    sync(target.parent)


def _as_os_error(error: SafetensorError, target: Path) -> OSError:
    """Convert a safetensors error to the OSError that caused it.

    A safetensors error has no `errno` attribute. The error number is only in the text of its message.
    """
    if found := re.search(r"os error (\d+)", str(error)):
        number = int(found[1])
        return OSError(number, os.strerror(number), str(target))
    return OSError(f"{target}: {error}")


def write_whole(file: Path, text: str) -> None:
    """Write a text file atomically: readers see either the old content or the new content."""
    partial = file.with_name(file.name + PARTIAL)
    try:
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(file.parent)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the list of entries of a directory, is on the disk (fsync)."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open directories
        return
    # Windows can sync only files that are open for writing
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finite(value: Any) -> Any:
    """Return a copy of nested lists and mappings in which NaN and infinity are None, as JSON requires."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value
