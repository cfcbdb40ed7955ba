"""`llm-reinforce report RUN…`: write a run, or several runs, as one HTML file."""

import time
from pathlib import Path
from typing import Annotated

import typer

from llm_reinforce.cli.common import DebugOption, reported_failures


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN…", help="Directories of runs, or directories that contain runs."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", help="File to write. Default: report.html in the first directory."),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    is_live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Serve the page on this machine until Ctrl-C is pressed, and keep it up to date while the "
            "runs continue.",
        ),
    ] = False,
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, help="Port of the page with --live; 0 chooses a free port."),
    ] = 0,
    debug: DebugOption = False,
) -> None:
    """Write the report of a run: its curves, its episodes token by token, and how its answers changed.

    If there are several runs, or a directory written by `compare`, the charts show the curves of all runs.
    """
    with reported_failures("the report", debug=debug):
        from llm_reinforce.reports import live_report
        from llm_reinforce.reports import report as write_report

        if not is_live:
            typer.echo(write_report(*runs, output=output, open_browser=open_browser))
            return
        with live_report(*runs, port=port) as address:
            typer.echo(f"{address} shows the report on this machine; press Ctrl-C to stop")
            if open_browser:
                typer.launch(address)
            while True:
                time.sleep(3600)
