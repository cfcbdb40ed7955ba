"""The command line interface, `llm-reinforce`.

Each command imports torch and other slow modules only when it runs, so that help texts, the recipe commands
and errors in recipes appear without delay.
"""

import os
import sys
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from llm_reinforce.cli.claims import claims
from llm_reinforce.cli.compare import compare
from llm_reinforce.cli.doctor import doctor
from llm_reinforce.cli.evaluate import evaluate
from llm_reinforce.cli.fetch import fetch
from llm_reinforce.cli.help_texts import App
from llm_reinforce.cli.interruption import run_interruptibly
from llm_reinforce.cli.recipes import recipes
from llm_reinforce.cli.report import report
from llm_reinforce.cli.runs import runs
from llm_reinforce.cli.sample import sample
from llm_reinforce.cli.serve import serve
from llm_reinforce.cli.train import train
from llm_reinforce.cli.variance import variance
from llm_reinforce.cli.verify import verify
from llm_reinforce.processes import num_processes

app = App(
    name="llm-reinforce",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command()(evaluate)
app.command()(compare)
app.command()(sample)
app.command()(serve)
app.command()(report)
app.command()(doctor)
app.command()(variance)
app.add_typer(claims, name="claims")
app.add_typer(recipes, name="recipes")
app.add_typer(runs, name="runs")
app.command()(verify)
app.command()(fetch)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        import llm_reinforce

        typer.echo(llm_reinforce.__version__)
        raise typer.Exit


@app.callback()
def llm_reinforce_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune a small causal language model by policy gradient on problems with verifiable answers."""


def main() -> None:
    """Run the command line interface and exit the process."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a stream that was replaced may have no method `reconfigure`
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    code = run_interruptibly(app)
    if num_processes() > 1:
        _exit_without_cleanup(code)
    raise SystemExit(code)


def _exit_without_cleanup(code: object) -> NoReturn:
    """Exit this process without the cleanup of the Python interpreter.

    This function is used if several processes train together. With torch 2.13, the threads of a gloo process
    group sometimes outlive the interpreter and then abort the process. Destroying the process group before
    the exit can cause a deadlock, because the call waits for a thread that itself waits for the global
    interpreter lock.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
