"""Files that are whole or not there, whatever comes in between: a kill, a full disk, a power cut.

A rename is the only step that others see, and all that it stands for is on the disk before it.
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

PARTIAL = ".partial"  # what is being written ends so, and is removed when it is found again


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """A directory to write files into; it becomes `target` once they are on the disk, or is removed.

    Raises:
        OSError: what the file system raises; `target` is then as it was.
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
    """What the file system said to safetensors, which has it in words alone."""
    if found := re.search(r"os error (\d+)", str(error)):
        number = int(found[1])
        return OSError(number, os.strerror(number), str(target))
    return OSError(f"{target}: {error}")


def write_whole(file: Path, text: str) -> None:
    """Write a text file, so that a reader sees the old one or the new one and no half."""
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
    """Wait until a file, or the names in a directory, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no directory
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finite(value: Any) -> Any:
    """The same numbers, lists and mappings for JSON, which has no infinity and no NaN: those are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value
