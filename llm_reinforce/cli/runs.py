"""`llm-reinforce runs list`: list recorded runs."""

import time
from typing import Annotated

import typer

from llm_reinforce.cli.common import DebugOption, reported_failures
from llm_reinforce.cli.help_texts import App
from llm_reinforce.console.messages import terminal_console

runs = App(help="List recorded runs.", no_args_is_help=True)


@runs.callback()
def _group() -> None:
    """List recorded runs."""


@runs.command("list")
def list_them(
    directory: Annotated[str, typer.Argument(help="Directory that contains the runs.")] = "runs",
    debug: DebugOption = False,
) -> None:
    """List the runs in a directory with their state and their accuracy before and after the updates."""
    with reported_failures(debug=debug):
        from llm_reinforce.console.run_tables import runs_table
        from llm_reinforce.runs import list_runs

        found = list_runs(directory)
        console = terminal_console()
        console.print(runs_table(found, time.time()) if found else f"there are no runs in {directory}")
