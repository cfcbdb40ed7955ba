"""`llm-reinforce doctor [RUN]`: show what is wrong with a run, or check the installation."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from llm_reinforce.cli.common import FAILED, DebugOption, quieten, reported_failures
from llm_reinforce.console.messages import terminal_console
from llm_reinforce.console.text import visible

if TYPE_CHECKING:
    from llm_reinforce.reports import Check, Finding

STYLES = {"severe": "bold red", "moderate": "yellow", "minor": "cyan"}
STATES = {"ok": "green", "missing": "dim", "failed": "bold red"}


def doctor(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="Directory of the run to diagnose. Without this argument, the installation is checked.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    debug: DebugOption = False,
) -> None:
    """Show what is wrong with a run, with evidence and advice. The most severe symptom comes first.

    Without a run, versions, devices, caches, permissions, disk space and optional packages are checked. The
    exit code is 1 if one of these checks fails.
    """
    with reported_failures("the diagnosis", debug=debug):
        if run is not None:
            from llm_reinforce.reports import diagnose, headline, read_one_run

            recorded = read_one_run(run)
            findings = diagnose(recorded)
            if as_json:
                typer.echo(json.dumps([asdict(each) for each in findings], indent=2, ensure_ascii=False))
            else:
                _print_findings(headline(recorded).text, findings)
            return
        quieten(debug=debug)
        from llm_reinforce.reports import check_installation

        checks = check_installation()
        if as_json:
            typer.echo(json.dumps([asdict(each) for each in checks], indent=2, ensure_ascii=False))
        else:
            _print_checks(checks)
        if any(each.state == "failed" for each in checks):
            raise typer.Exit(FAILED)


def _print_findings(headline: str, findings: "Sequence[Finding]") -> None:
    console = terminal_console()
    console.print(Text(headline), soft_wrap=True)
    if not findings:
        console.print("no symptom found")
    for found in findings:
        console.print()
        title = Text(f"{found.severity}: ", style=STYLES[found.severity])
        console.print(title.append(visible(found.sentence), style="not bold default"), soft_wrap=True)
        for line in found.evidence:
            console.print(Text(f"  - {visible(line)}"), soft_wrap=True)
        if found.example is not None:
            console.print(Text(f"  example: {visible(found.example)}"), soft_wrap=True)
        console.print(Text(f"  what to do: {visible(found.advice)}"), soft_wrap=True)


def _print_checks(checks: "Sequence[Check]") -> None:
    console, table = terminal_console(), Table.grid(padding=(0, 2))
    for check in checks:
        value = Text(visible(check.value), overflow="fold")
        if check.advice:
            value.append(f"; {check.advice}")
        table.add_row(Text(check.state, style=STATES[check.state]), check.name, value)
    console.print(table)
