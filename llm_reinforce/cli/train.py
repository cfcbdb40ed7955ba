"""`llm-reinforce train RECIPE`: run a fine-tuning recipe."""

import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from llm_reinforce.cli.common import (
    DebugOption,
    quieten,
    reported_failures,
)
from llm_reinforce.cli.interruption import received_signals, stopped_by_signals
from llm_reinforce.console.evaluation_tables import comparison_table
from llm_reinforce.console.messages import terminal_console
from llm_reinforce.console.run_tables import (
    before_and_after,
    better_before,
    episode_lines,
    named_values,
    preview_table,
)
from llm_reinforce.errors import InputError
from llm_reinforce.processes import (
    check_launch,
    is_main_process,
    num_machines,
    num_processes,
    repeated_launch,
)

if TYPE_CHECKING:
    from llm_reinforce.config import Config
    from llm_reinforce.console.run_display import RunDisplay
    from llm_reinforce.runs import RunDirectory
    from llm_reinforce.training import TrainingResult


def train(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or name of a built-in recipe.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting; repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in output_dir from its last checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run in output_dir and start a new one.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Load everything and show a few episodes, without training or writing files."
        ),
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Run a fine-tuning recipe.

    Ctrl-C stops after the current update and saves a checkpoint. Press Ctrl-C
    again to quit immediately.
    """
    progress: list[_Run] = []  # the run, as soon as its directory is known

    def advice() -> str:
        return progress[0].how_to_continue() if progress else ""

    with reported_failures("the run", debug=debug, advice=advice):
        if resume and overwrite:
            raise InputError(
                "--resume and --overwrite: one continues the run and the other replaces it; give only one"
            )
        check_launch()
        if is_main_process():  # printed before the slow imports, such as torch
            print(f"{Path(recipe).stem}: loading libraries, problems and the policy", flush=True)
        from llm_reinforce.config import load_config

        loaded = load_config(recipe, overrides or [])
        quieten(debug=debug)
        from llm_reinforce.runs import RunDirectory

        directory = RunDirectory(Path(loaded.output_dir).expanduser())
        if is_main_process() and not dry_run:
            directory.check(resume=resume, overwrite=overwrite)
            if overwrite:
                _confirm_overwrite(directory)
        if dry_run:
            _dry_run(loaded, directory, resume=resume, overwrite=overwrite)
            return
        if resume:
            from llm_reinforce.training import check_same_run

            check_same_run(directory, loaded)  # checked early, because loading the policy takes time
        run = _Run(directory, resume_command(recipe, overrides or []), _written_at(directory))
        progress.append(run)
        try:
            _train(loaded, Path(recipe).stem, run, resume=resume, overwrite=overwrite)
        except OSError as error:  # the error for a full disk does not name a file
            error.filename = error.filename or str(directory.path)
            raise


@dataclass(frozen=True, slots=True)
class _Run:
    """The run that the command `train` starts or resumes.

    Attributes:
        directory: directory of the run.
        command: command that resumes the run.
        written_before: time of the last change of `recipe.yaml` when the command started, in nanoseconds
            since 1970; None if the file did not exist.
    """

    directory: "RunDirectory"
    command: str
    written_before: int | None

    def how_to_continue(self) -> str:
        """Return a sentence that says what is saved and how to continue.

        The sentence is empty if this command has not started or resumed the run yet.
        """
        if _written_at(self.directory) in (None, self.written_before):
            return ""
        from llm_reinforce.checkpoint_files import find_checkpoint

        checkpoint, _ = find_checkpoint(self.directory.checkpoints)
        where = f" on each of the {num_machines()} machines" if num_machines() > 1 else ""
        if checkpoint is None:
            return f"there is no checkpoint yet; start again from the beginning{where} with: {self.command}"
        return f"a checkpoint is saved, {checkpoint}; continue{where} with: {self.command}"


def _written_at(directory: "RunDirectory") -> int | None:
    file = directory.path / "recipe.yaml"
    return file.stat().st_mtime_ns if file.is_file() else None


def resume_command(recipe: str, overrides: Sequence[str]) -> str:
    """Return the command that resumes a run, quoted for a shell."""
    settings = [word for override in overrides for word in ("--set", override)]
    arguments = ["train", recipe, *settings, "--resume"]
    if num_processes() > 1:
        return repeated_launch(["-m", "llm_reinforce", *arguments])
    return shlex.join(["llm-reinforce", *arguments])


def _dry_run(recipe: "Config", directory: "RunDirectory", *, resume: bool, overwrite: bool) -> None:
    """Print a summary of the run and a few episodes.

    Raises:
        InputError: if the run could not be started, for example because a reward function fails, because the
            settings differ from those of the run to resume, or because the output directory contains files
            not written by a run.
    """
    from llm_reinforce.training import ReinforceTrainer, check_same_run, with_recorded_date

    if resume:
        check_same_run(directory, recipe)
        recipe = with_recorded_date(directory, recipe)
    preview = ReinforceTrainer(config=recipe).preview()
    if not is_main_process():
        return
    console = terminal_console()
    console.print(preview_table(recipe, preview))
    for episode in preview.episodes:
        for line in episode_lines(episode):
            console.print(line, soft_wrap=True)
    console.print("\ndry run: nothing was trained, and no files were written")
    if recipe.training.warm_start is not None:
        console.print("the warm start was skipped, so the episodes are those of the untrained policy")
    if resume:
        console.print("no checkpoint was loaded, so the episodes are those of the initial policy")
    errors = [error for error in (preview.reward_error, preview.server_error) if error]
    if not (resume or overwrite) and (directory.path / "recipe.yaml").is_file():
        resume = True  # a dry run writes nothing, so it is no error if the directory contains a run
        hint = "continue this run with --resume, replace it with --overwrite, or choose another output_dir"
        console.print(Text(f"{directory.path} contains a run; {hint}"), soft_wrap=True)
    try:
        directory.check(resume=resume, overwrite=overwrite)
    except InputError as error:
        errors.append(str(error))
    if errors:
        raise InputError("\n".join(errors))


def _confirm_overwrite(directory: "RunDirectory") -> None:
    """On a terminal, ask the user to confirm that the run will be replaced, by typing its name.

    Raises:
        InputError: if the user does not type the name of the run.
    """
    if not (directory.path.exists() and sys.stdin.isatty() and sys.stdout.isatty()):
        return
    name = directory.path.absolute().name
    try:
        question = f"{directory.path} will be deleted and replaced. Type its name ({name}) to continue"
        answer = typer.prompt(question, default="", show_default=False)
    except typer.Abort:  # end of the input
        answer = ""
    if answer.strip() != name:
        raise InputError(f"{directory.path}: the run was not replaced, because the answer was not {name!r}")


def _train(recipe: "Config", name: str, run: _Run, *, resume: bool, overwrite: bool) -> None:
    from llm_reinforce.training import ReinforceTrainer

    display = _display(recipe, name, run.directory)
    trainer = ReinforceTrainer(config=recipe, progress=display)
    with stopped_by_signals(trainer.stop, display):
        result = trainer.train(resume=resume, overwrite=overwrite)
    if is_main_process():
        _print_result(run, result)
    if not result.is_over:  # if this process received no signal, another process of the run received one
        raise typer.Exit(128 + next(iter(received_signals()), signal.SIGTERM))


def _display(recipe: "Config", name: str, directory: "RunDirectory") -> "RunDisplay":
    from llm_reinforce.console.live_view import display_for
    from llm_reinforce.console.run_display import Silent

    if not is_main_process():
        return Silent()
    policy = recipe.policy.name_or_path or "random weights"
    adapter = f" with LoRA {recipe.policy.lora.rank}" if recipe.policy.lora else ""
    title = f"{name} · {policy}{adapter} · {directory.path}"
    return display_for(terminal_console(), title, num_tokens=recipe.training.num_tokens)


def _print_result(run: _Run, result: "TrainingResult") -> None:
    """Print the accuracy and the reward before and after training, and the paths of the results."""
    from llm_reinforce.console.text import duration

    console, state, directory = terminal_console(), result.state, run.directory
    for sentence in result.warnings:
        console.print(Text(f"warning: {sentence}"), soft_wrap=True)
    if not result.is_over:
        sentence = f"stopped after update {state.num_updates}; {run.how_to_continue()}"
        console.print(Text(sentence), soft_wrap=True)
        return
    rows = directory.rows("evaluations.jsonl")
    if rows:
        console.print(before_and_after(rows, directory.rows("metrics.jsonl")))
        for sentence in better_before(rows, state):
            console.print(Text(sentence, style="dim"))
        for decoding, both in result.comparisons.items():
            console.print(
                Text(
                    f"\n{decoding} answers before and after the policy-gradient updates, compared problem by "
                    "problem:",
                    style="dim",
                )
            )
            for comparison in both.values():
                console.print(comparison_table(comparison))
        console.print()
    logs = ("metrics.jsonl", "evaluations.jsonl", "answers.jsonl", "episodes.jsonl")
    console.print(
        named_values(
            {
                "done in": duration(state.seconds),
                "policy": str(directory.policy),
                "logs": ", ".join(name for name in logs if (directory.path / name).is_file()),
                "try it": shlex.join(
                    ["llm-reinforce", "sample", "--policy", str(directory.path), "a prompt"]
                ),
            }
        )
    )
