"""Files of a measurement: the result in NAME.json, and the plot in NAME.png and NAME.svg."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from llm_reinforce.durable_files import finite, write_whole
from llm_reinforce.errors import InputError


def check_directory(output_dir: str | PathLike[str]) -> Path:
    """Return the path of an output directory with `~` expanded, after checking that it can be written to.

    Raises:
        InputError: if the directory can't be written to, or does not exist and can't be created.
    """
    output = Path(output_dir).expanduser()
    nearest = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise InputError(f"output directory {output}: {nearest} is a file; give a directory")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"output directory {output}: can't be written to; give another directory")
    return output


def check_output(output_dir: str | PathLike[str] | None, name: str) -> Path | None:
    """Check, before a measurement starts, that its files can be written to the output directory.

    Returns:
        the path of the directory; None if `output_dir` is None.

    Raises:
        InputError: if the directory can't be written to, or already contains files of this measurement.
    """
    if output_dir is None:
        return None
    output = check_directory(output_dir)
    if found := measurement_files(output, name):
        raise InputError(
            f"output directory {output}: already contains the file {found[0].name}; remove this file, "
            "or give another directory"
        )
    return output


def measurement_files(output_dir: str | PathLike[str], name: str) -> list[Path]:
    """Return the files of the measurement `name` that exist in the output directory."""
    files = [Path(output_dir).expanduser() / f"{name}.{suffix}" for suffix in ("json", "png", "svg")]
    return [file for file in files if file.exists()]


def write_json(output: Path, name: str, result: Any) -> None:
    """Write a result to NAME.json in the output directory, which is created if necessary."""
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / f"{name}.json", as_json(result) + "\n")


def as_json(result: Any) -> str:
    """Return a dataclass or a sequence of dataclasses as JSON text, with null for infinite and NaN values."""
    rows = [asdict(row) for row in result] if isinstance(result, Sequence) else asdict(result)
    return json.dumps(finite(rows), indent=1, ensure_ascii=False, allow_nan=False)
