"""`llm-reinforce verify DATA`: a data set's answers put to the verifier."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from llm_reinforce.cli.common import FAILED, DebugOption, quieten, reported_failures
from llm_reinforce.console.messages import terminal_console
from llm_reinforce.console.progress import progress
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.verifier.audit import Audit

NUM_SHOWN = 40  # doubtful answers that the table lists; --json has all


def verify(
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA…", help="A JSONL file, a data set by name, or one of the hub."),
    ],
    split: Annotated[str | None, typer.Option(help="The hub data sets' split; test by default.")] = None,
    config: Annotated[str | None, typer.Option(help="The hub data sets' configuration.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="The prompts' column; found by default.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="The answers' column; found by default.")] = None,
    num_problems: Annotated[int | None, typer.Option(min=1, help="Look at the first N of each only.")] = None,
    algebra: Annotated[
        bool, typer.Option("--algebra", help="Answers may be LaTeX or algebra, judged by math-verify.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a data set on stdout.")] = False,
    debug: DebugOption = False,
) -> None:
    """Audit data sets: would the verifier accept their own answers?

    Every answer is judged against itself, plain and as a completion may write it. Exit code 0: all are
    accepted; 1: some are doubtful and listed.
    """
    with reported_failures("the audit", debug=debug):
        quieten(debug=debug)
        from llm_reinforce.problems import find_problems, reads_split
        from llm_reinforce.verifier.audit import audit_answers

        if (split or config) and not any(map(reads_split, data)):
            raise InputError("--split and --config are read for data sets of the hub, and all DATA are files")
        sets = [
            find_problems(
                name,
                config=config,
                split=split or "test",
                prompt_column=prompt_column,
                answer_column=answer_column,
                algebra=algebra,
                allow_doubtful=True,
            )[:num_problems]
            for name in data
        ]
        has_doubts = False
        for name, problems in zip(data, sets, strict=True):
            with progress(name, len(problems)) as told:
                audit = audit_answers(problems, told)
            has_doubts = has_doubts or bool(audit.doubts)
            if as_json:
                typer.echo(_as_json(name, audit))
            else:
                _print_audit(name, audit)
        if has_doubts:
            raise typer.Exit(FAILED)


def _as_json(name: str, audit: "Audit") -> str:
    doubts = [
        {
            "id": doubt.problem.id,
            "answer": doubt.problem.answer,
            "wrapping": doubt.wrapping,
            "reason": doubt.reason,
        }
        for doubt in audit.doubts
    ]
    row = {"data": name, "total": audit.total, "kinds": audit.kinds, "doubtful": doubts}
    return json.dumps(row | {"latex_compared_as_text": audit.num_latex_as_text})


def _print_audit(name: str, audit: "Audit") -> None:
    from llm_reinforce.console.text import visible

    console = terminal_console()
    num_accepted = audit.total - len(audit.doubts)
    kinds = ", ".join(
        f"{count:,} {kind}" for kind, count in sorted(audit.kinds.items(), key=lambda kv: -kv[1])
    )
    style = "bold yellow" if audit.doubts else "bold green"
    console.print(
        Text(f"{visible(name)}: {num_accepted:,} of {audit.total:,} answers accepted", style=style),
        soft_wrap=True,
    )
    console.print(f"  kinds: {kinds}")
    if audit.num_latex_as_text:
        console.print(
            f"  {audit.num_latex_as_text:,} look like LaTeX or algebra and are compared as text; "
            "try --algebra (in a recipe: algebra: true)"
        )
    if audit.kinds.get("percentage"):
        console.print(
            f"  {audit.kinds['percentage']:,} are percentages: 50% is 0.5, and a completion's 50 isn't 50%"
        )
    if audit.doubts:
        console.print(f"  reasons: {_counted(audit)}")
        console.print(_table(audit))
        if len(audit.doubts) > NUM_SHOWN:
            console.print(f"  … and {len(audit.doubts) - NUM_SHOWN:,} more; --json lists them all")


def _counted(audit: "Audit") -> str:
    reasons = Counter(doubt.reason for doubt in audit.doubts)
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())


def _table(audit: "Audit") -> Table:
    from llm_reinforce.console.text import visible

    table = Table(box=None, padding=(0, 2, 0, 2), header_style="dim")
    table.add_column("row", no_wrap=True)
    table.add_column("answer", overflow="fold")
    table.add_column("refused when written", overflow="fold")
    table.add_column("reason", no_wrap=True)
    for doubt in audit.doubts[:NUM_SHOWN]:
        written = (
            doubt.wrapping % "…" if doubt.wrapping not in ("", "%s") else "plain" if doubt.wrapping else ""
        )
        table.add_row(
            Text(visible(doubt.problem.id, 40)),
            Text(visible(doubt.problem.answer, 80), style="bold"),
            Text(visible(written)),
            Text(doubt.reason, style="yellow"),
        )
    return table
