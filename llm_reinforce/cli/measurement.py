"""What `variance` and `claims` share: options, and showing the result as a table or JSON."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from llm_reinforce.cli.common import check_one_process, quieten, reported_failures
from llm_reinforce.console.messages import note, wide_console

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe's file, a run's directory, or a built-in recipe's name.")
]
MeasuredPolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="Measure at the weights of this run, directory or named model. Default: the weights of the "
        "recipe's first update.",
    ),
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the recipe; repeatable."),
]
OutputOption = Annotated[Path | None, typer.Option(help="Directory for the result as JSON, and the plot.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def measuring(command: str, *, debug: bool) -> Iterator[None]:
    """Report failures of a measurement, and run it in one process only."""
    with reported_failures("the measurement", debug=debug):
        check_one_process(command)
        quieten(debug=debug)
        yield


def show_measurement(
    name: str, result: object, table: RenderableType, output: Path | None, *, as_json: bool
) -> None:
    """Print the table or JSON, and the files that were written.

    Args:
        name: the name of the files.
        result: as for `analysis.as_json`.
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
    note(f"written: {written}" + ("" if has_plot else "; for the plot: pip install 'llm-reinforce[plots]'"))
