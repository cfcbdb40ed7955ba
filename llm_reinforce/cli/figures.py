"""How the laboratory's commands tell their figures: a table or JSON on stdout, files below `--output`."""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from llm_reinforce.cli.common import check_one_process, reported_failures
from llm_reinforce.console.messages import note, wide_console
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.analysis import Measured

OutputOption = Annotated[Path | None, typer.Option(help="Directory for the figures as JSON and the plot.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The figures as JSON on stdout.")]


def check_directory(output: Path) -> Path:
    """A directory that is there or can be made, `~` written out.

    Raises:
        InputError: it can't be written to.
    """
    output = output.expanduser()
    nearest = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise InputError(f"--output {output}: {nearest} is a file; name a directory")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"--output {output}: can't be written to; name another directory")
    return output


def check_output(output: Path | None, name: str) -> Path | None:
    """The directory that figures of this name can be written to; asked before anything is measured.

    Raises:
        InputError: it can't be written to, or holds such figures already.
    """
    if output is None:
        return None
    output = check_directory(output)
    for file in (output / f"{name}.{suffix}" for suffix in ("json", "png", "svg")):
        if file.exists():
            raise InputError(f"--output {output}: {file.name} is there already; remove it, or name another")
    return output


@contextmanager
def measuring(command: str, name: str, output: Path | None, *, debug: bool) -> Iterator[Path | None]:
    """What every measurement begins with and is guarded by; gives what `check_output` does.

    Args:
        command: what is said to be for one process only.
        name: that of the figures.
    """
    with reported_failures("the measurement", debug=debug):
        check_one_process(command)
        yield check_output(output, name)


def tell_figures(
    name: str,
    figures: object,
    table: RenderableType,
    output: Path | None,
    draw: Callable[[Path], list[Path]],
    *,
    as_json: bool,
) -> None:
    """Write the figures and their plot, where there is an output; print the table, or the figures.

    Args:
        figures: what JSON can say; a number that isn't finite is null.
        output: as `check_output` gave it.
        draw: writes the plot into a folder; it may lack matplotlib.
    """
    from llm_reinforce.durable_files import finite, write_whole

    text = json.dumps(finite(figures), indent=1, ensure_ascii=False, allow_nan=False)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_whole(output / f"{name}.json", text + "\n")
    if as_json:
        typer.echo(text)
    else:
        wide_console().print(table)
    if output is None:
        return
    try:
        note("written: " + ", ".join(map(str, [output / f"{name}.json", *draw(output)])))
    except ModuleNotFoundError:
        note(f"written: {output / f'{name}.json'}; for the plot: pip install 'llm-reinforce[plots]'")


def cell(measured: "Measured", predicted: float | None = None, digits: int = 3) -> Text:
    """A figure above its interval, and above what was predicted, where something was."""
    low, high = number(measured.low, digits), number(measured.high, digits)
    lines = Text.assemble(number(measured.value), (f"\n{low} – {high}", "dim"))
    return lines if predicted is None else lines.append(f"\n≈ {number(predicted)}", "italic")


def number(value: float, digits: int = 3) -> str:
    """So many digits; thousands are written out, from a hundred of them on as k."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if abs(value) >= 1e5:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
