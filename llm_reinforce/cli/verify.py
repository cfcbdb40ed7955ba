"""`llm-reinforce verify DATA`: check that the verifier accepts the reference answers of a data set."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.table import Table
from rich.text import Text

from llm_reinforce.cli.common import FAILED, DebugOption, quieten, reported_failures
from llm_reinforce.cli.options import (
    DATA_OPTIONS,
    AlgebraOption,
    AnswerColumnOption,
    ConfigOption,
    JsonPerDataSetOption,
    PromptColumnOption,
    SplitOption,
)
from llm_reinforce.console.messages import terminal_console
from llm_reinforce.console.progress import progress
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.verifier.audit import AnsweredQuestion, Audit

NUM_SHOWN = 40  # maximum number of rejected answers in the table; --json lists all


def verify(
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA…", help="JSONL files, names of data sets, or hub ids."),
    ],
    split: SplitOption = None,
    config: ConfigOption = None,
    prompt_column: PromptColumnOption = None,
    answer_column: AnswerColumnOption = None,
    num_problems: Annotated[
        int | None, typer.Option(min=1, help="Check only the first N answers of each data set.")
    ] = None,
    algebra: AlgebraOption = False,
    as_json: JsonPerDataSetOption = False,
    debug: DebugOption = False,
) -> None:
    r"""Check that the verifier accepts the reference answers of data sets.

    Each answer is compared with itself, first unchanged, and then in forms that
    completions often use, such as \boxed{…}. The exit code is 0 if all answers
    are accepted. Otherwise the exit code is 1, and the rejected answers are
    listed. Equations, mixed numbers, letters after digits and whole solutions
    are listed too, because part of such an answer may be lost when it is read.
    Answers of these kinds do not change the exit code.
    """
    with reported_failures("the check", debug=debug, options=DATA_OPTIONS):
        quieten(debug=debug)
        from llm_reinforce.problems import find_problems, reads_split
        from llm_reinforce.verifier.audit import audit_answers

        if (split or config) and not any(map(reads_split, data)):
            raise InputError(
                "--split and --config select a part of a data set on the hub, but no DATA is read from the "
                "hub; omit these options"
            )
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
            with progress(name, len(problems)) as show:
                audit = audit_answers(cast("Sequence[AnsweredQuestion]", problems), show)
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
    losses = [
        {"id": loss.problem.id, "answer": loss.problem.answer, "kind": loss.kind, "read_as": loss.reading}
        for loss in audit.losses
    ]
    return json.dumps(row | {"latex_compared_as_text": audit.num_latex_as_text, "losses": losses})


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
    console.print(f"  kinds of answers: {kinds}")
    if audit.num_latex_as_text:
        console.print(
            f"  answers in LaTeX or algebra that are compared as text: {audit.num_latex_as_text:,}; "
            "use --algebra (in a recipe: algebra: true) to compare them as expressions"
        )
    if audit.kinds.get("percentage"):
        console.print(
            f"  answers that are percentages: {audit.kinds['percentage']:,} (50%, 50 and 0.5 are all "
            "accepted for the answer 50%)"
        )
    if audit.doubts:
        console.print(f"  reasons for the rejections: {_counted(audit)}")
        console.print(_table(audit))
        if len(audit.doubts) > NUM_SHOWN:
            console.print(f"  … and {len(audit.doubts) - NUM_SHOWN:,} more; --json lists them all")
    if audit.losses:
        num_losses = Counter(loss.kind for loss in audit.losses)
        shown = ", ".join(f"{count:,} {kind}" for kind, count in num_losses.most_common())
        console.print(f"  answers that may be read only in part: {shown}; check how they are read")
        console.print(_losses(audit))
        if len(audit.losses) > NUM_SHOWN:
            console.print(f"  … and {len(audit.losses) - NUM_SHOWN:,} more; --json lists them all")


def _counted(audit: "Audit") -> str:
    reasons = Counter(doubt.reason for doubt in audit.doubts)
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())


def _losses(audit: "Audit") -> Table:
    from llm_reinforce.console.text import visible

    table = Table(box=None, padding=(0, 2, 0, 2), header_style="dim")
    for name in ("row", "answer", "kind", "read as"):
        table.add_column(name, overflow="fold")
    for loss in audit.losses[:NUM_SHOWN]:
        table.add_row(
            Text(visible(loss.problem.id, 40)),
            Text(visible(loss.problem.answer, 80), style="bold"),
            Text(loss.kind, style="yellow"),
            Text(visible(loss.reading, 80)),
        )
    return table


def _table(audit: "Audit") -> Table:
    from llm_reinforce.console.text import visible

    table = Table(box=None, padding=(0, 2, 0, 2), header_style="dim")
    table.add_column("row", no_wrap=True)
    table.add_column("answer", overflow="fold")
    table.add_column("rejected form", overflow="fold")
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
