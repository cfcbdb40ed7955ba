"""`llm-reinforce train RECIPE`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from llm_reinforce.cli.common import (
    DebugOption,
    is_main_process,
    keep_freed_memory,
    num_processes,
    quieten,
    reported_failures,
)
from llm_reinforce.cli.dry_run import show_dry_run
from llm_reinforce.cli.interruption import received_signals, stopped_by_signals
from llm_reinforce.config import Config, load_config
from llm_reinforce.console.evaluation_tables import comparison_table
from llm_reinforce.console.messages import terminal_console
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.console.live_view import LiveDisplay
    from llm_reinforce.console.run_display import PlainDisplay, Silent
    from llm_reinforce.runs import RunDirectory, TrainState
    from llm_reinforce.training import TrainingResult

    AnyDisplay = LiveDisplay | PlainDisplay | Silent


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's file, or a built-in recipe's name.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one of its settings; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in output_dir.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Load everything, show a few episodes, write nothing.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Run a fine-tuning recipe.

    Ctrl-C ends the run after the update in hand and saves a checkpoint; a second one leaves at once.
    """
    with reported_failures("the run", debug=debug):
        if resume and overwrite:
            raise InputError("--resume goes on with a run and --overwrite replaces it: give one of the two")
        loaded = load_config(recipe, overrides or [])
        quieten(debug=debug)
        keep_freed_memory()
        from llm_reinforce.runs import RunDirectory

        directory = RunDirectory(Path(loaded.output_dir).expanduser())
        if dry_run:
            show_dry_run(loaded, directory, resume=resume, overwrite=overwrite)
            return
        if resume:
            from llm_reinforce.training import check_same_run

            check_same_run(directory, loaded)  # before the policy is loaded
        if is_main_process():
            directory.check(resume=resume, overwrite=overwrite)
            if overwrite:
                _confirm_overwrite(directory)
        try:
            _train(loaded, Path(recipe).stem, directory, resume=resume, overwrite=overwrite)
        except OSError as error:  # that of a full disk names no file
            error.filename = error.filename or str(directory.path)
            raise


def _confirm_overwrite(directory: "RunDirectory") -> None:
    """Ask for the run's name before it is replaced, where somebody is there to be asked."""
    if not (directory.path.exists() and sys.stdin.isatty() and sys.stdout.isatty()):
        return
    name = directory.path.absolute().name
    try:
        question = f"{directory.path} will be replaced. Its name, to go on ({name})"
        answer = typer.prompt(question, default="", show_default=False)
    except typer.Abort:  # the input has ended
        answer = ""
    if answer.strip() != name:
        raise InputError(f"{directory.path} stays as it is: {name!r} wasn't the answer")


def _train(recipe: Config, name: str, directory: "RunDirectory", *, resume: bool, overwrite: bool) -> None:
    from llm_reinforce.training import ReinforceTrainer

    display = _display(recipe, name, directory, resume=resume)
    trainer = ReinforceTrainer(config=recipe, progress=display)
    with stopped_by_signals(trainer.stop, display):
        result = trainer.train(resume=resume, overwrite=overwrite)
    if is_main_process():
        _print_end(directory, result)
    if received_signals() and not result.is_over:
        raise typer.Exit(128 + received_signals()[0])


def _display(recipe: Config, name: str, directory: "RunDirectory", *, resume: bool) -> "AnyDisplay":
    from llm_reinforce.console.live_view import display_for
    from llm_reinforce.console.run_display import Silent

    if not is_main_process():
        return Silent()
    policy = recipe.policy.name_or_path or "random weights"
    adapter = f" with LoRA {recipe.policy.lora.rank}" if recipe.policy.lora else ""
    first = {
        row["decoding"]: (row["update"], row["accuracy"])
        for row in reversed(directory.rows("evaluations.jsonl") if resume else [])
    }
    return display_for(
        terminal_console(),
        f"{name} · {policy}{adapter} · {directory.path}",
        num_processes=num_processes(),
        first=first,
    )


def _print_end(directory: "RunDirectory", result: "TrainingResult") -> None:
    """What came of it: accuracy before → after, and where everything is."""
    from llm_reinforce.console.text import duration, visible
    from llm_reinforce.runs.checkpoint import find_checkpoint

    console, state = terminal_console(), result.state
    if not result.is_over:
        is_saved = find_checkpoint(directory.checkpoints)[0] is not None
        goes_on = "a checkpoint is saved, --resume goes on from it"
        anew = "there is no checkpoint yet, --resume starts anew"
        console.print(f"stopped after update {state.num_updates}; {goes_on if is_saved else anew}")
        return
    rows = directory.rows("evaluations.jsonl")
    if rows:
        console.print(_before_and_after(rows))
        console.print("in brackets: the 95% intervals", style="dim")
        for sentence in _better_before(rows, state):
            console.print(Text(sentence, style="dim"))
        for decoding, both in result.comparisons.items():
            console.print(Text(f"\n{decoding}, problem by problem:", style="dim"))
            for comparison in both.values():
                console.print(comparison_table(comparison))
        console.print()
    places = Table.grid(padding=(0, 2))
    places.add_column(style="dim", no_wrap=True)
    places.add_column(overflow="fold")
    places.add_row("done in", duration(result.seconds))
    places.add_row("policy", Text(visible(str(directory.policy))))
    logs = ("metrics.jsonl", "evaluations.jsonl", "answers.jsonl", "episodes.jsonl")
    places.add_row("logs", ", ".join(name for name in logs if (directory.path / name).is_file()))
    places.add_row("try it", Text(visible(f"llm-reinforce sample --policy {directory.path} 'a prompt'")))
    console.print(places)


def _better_before(rows: Sequence[Mapping[str, Any]], state: "TrainState") -> list[str]:
    """Where an earlier evaluation was better than the last: of how much, and when."""
    last = {row["decoding"]: row["accuracy"] for row in rows}
    return [
        f"best {decoding}: {best.accuracy:.1%}, at update {best.update:,}"
        for decoding, best in state.best_evaluation.items()
        if best.accuracy > last.get(decoding, 1.0)
    ]


def _before_and_after(rows: list[dict[str, Any]]) -> Table:
    from llm_reinforce.console.text import accuracy_title, shown_accuracy

    last = {row["decoding"]: row for row in rows}
    first = {decoding: next(row for row in rows if row["decoding"] == decoding) for decoding in last}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(accuracy_title(rows[-1]["data"]))
    begun, ended = next(iter(first.values()))["update"], rows[-1]["update"]
    for title in (f"update {begun:,}", "", f"update {ended:,}", "right"):
        table.add_column(title, no_wrap=True)
    for decoding, before in first.items():
        after = last[decoding]
        table.add_row(
            decoding,
            Text(shown_accuracy(before["accuracy"], before["interval"])),
            "→",
            Text(shown_accuracy(after["accuracy"], after["interval"]), style="bold green"),
            f"{after['correct']:,} of {after['total']:,}",
        )
    return table
