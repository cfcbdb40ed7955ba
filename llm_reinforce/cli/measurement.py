"""Options and output shared by the commands `variance` and `claims`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from llm_reinforce.cli.common import check_one_process, quieten, reported_failures
from llm_reinforce.console.messages import note, wide_console

RecipeArgument = Annotated[
    str, typer.Argument(help="Name of a built-in recipe, a recipe file, or the directory of a run.")
]
MeasuredPolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="Run, model directory or model name whose weights are measured. Default: the recipe's initial "
        "weights, after its warm start.",
    ),
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the recipe; repeatable."),
]
OutputOption = Annotated[Path | None, typer.Option(help="Directory for the result as JSON and the plot.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def measuring(command: str, *, debug: bool) -> Iterator[None]:
    """Check that the measurement runs in a single process, then report the errors that it raises."""
    with reported_failures("the measurement", debug=debug):
        check_one_process(command)
        quieten(debug=debug)
        yield


def show_measurement(
    name: str, result: object, table: RenderableType, output: Path | None, *, as_json: bool
) -> None:
    """Print the result as a table or as JSON, and the names of the written files.

    Args:
        name: name of the measurement, and the names of its files without their suffixes.
        result: the result, as for `analysis.as_json`.
        table: the result as a table.
        output: directory of the files, or None.
        as_json: if True, print JSON instead of the table.
    """
    from llm_reinforce import analysis

    if as_json:
        typer.echo(analysis.as_json(result))
    else:
        wide_console().print(table)
    if output is None:
        return
    files = analysis.measurement_files(output, name)
    written = ", ".join(map(str, files))
    has_plot = len(files) > 1
    missing = "; no plot, because matplotlib is not installed: pip install 'llm-reinforce[plots]'"
    note(f"written: {written}" + ("" if has_plot else missing))
