"""Options and output shared by the commands `variance` and `claims`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from llm_reinforce.cli.common import quieten, reported_failures, start_in_one_process
from llm_reinforce.console.messages import note, wide_console

RecipeArgument = Annotated[
    str, typer.Argument(help="Name of a built-in recipe, a recipe file, or the directory of a run.")
]
MeasuredPolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="Policy whose gradients are measured: directory of a run, directory of a model, or model name. "
        "Default: the recipe's initial policy, after the warm start if the recipe has one.",
    ),
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the recipe; repeatable."),
]
OutputOption = Annotated[Path | None, typer.Option(help="Directory for the result (JSON) and the plot.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def measuring(command: str, *, debug: bool) -> Iterator[None]:
    """Check that there is a single process, and report errors of the measurement in the `with` block."""
    with reported_failures("the measurement", debug=debug):
        start_in_one_process(command)
        quieten(debug=debug)
        yield


def show_measurement(
    name: str, result: object, table: RenderableType, output: Path | None, *, as_json: bool
) -> None:
    """Print the result as a table or as JSON, and print the names of the written files.

    Args:
        name: name of the measurement. The files are called `name` with a suffix.
        result: result of the measurement, which is a dataclass or a sequence of dataclasses.
        table: the result as a table.
        output: directory of the written files; None if no files were written.
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
    missing = (
        "; no plot was written, because matplotlib is not installed; run `pip install 'llm-reinforce[plots]'`"
    )
    note(f"written: {written}" + ("" if has_plot else missing))
