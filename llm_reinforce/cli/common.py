"""Functions shared by the commands: error messages, exit codes, process ranks, and settings of libraries."""

import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from llm_reinforce.cli.interruption import is_leaving
from llm_reinforce.console.messages import note, print_error
from llm_reinforce.errors import (
    InputError,
    LeaveAtOnce,
    ProcessLostError,
    RunStoppedError,
    without_secrets,
)
from llm_reinforce.processes import is_main_process, num_processes, process_index, why_lost

USAGE, FAILED, INTERRUPTED = 2, 1, 130  # exit codes
WAIT_FOR_MAIN = 5.0  # seconds that a process with a user error waits for the error of the main process

DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and warnings of libraries.")]


def start_in_one_process(command: str) -> None:
    """Check that this command, which supports only one process, was not started in several processes.

    On a terminal, the function also prints a line, because the imports that follow take seconds.

    Raises:
        InputError: if this process is one of several that were started together.
    """
    if num_processes() > 1:
        raise InputError(
            f"{command} runs in one process only; start it without torchrun, accelerate launch or mpirun"
        )
    if sys.stderr.isatty():
        note(f"{command}: loading libraries, data and the policy")


@contextmanager
def reported_failures(
    what: str = "the command",
    *,
    debug: bool = False,
    advice: Callable[[], str] = str,
    options: Sequence[str] = (),
) -> Iterator[None]:
    """Report an exception of a `with` block on stderr, and exit with the exit code of the failure.

    Warnings are printed as notes, without the file and line of the code that issued them.

    The exit code is 2 for a user error (InputError), 130 (Ctrl-C) or 143 (SIGTERM) for an interruption, and 1
    for other errors. Errors of typer and errors of closed pipes are raised unchanged, because typer handles
    them.

    Args:
        what: name of the action, for the message "{what} failed: …" about an unexpected error.
        debug: if True, print a traceback instead of a message.
        advice: function that returns a sentence for the user, or an empty string. The sentence is printed
            after the message about an interruption or an error. It is not printed after a user error, or if
            the run cannot be resumed.
        options: settings that the command offers as options. In messages about user errors, the name of the
            setting is replaced by that of the option, such as `prompt_column` by `--prompt-column`.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_as_note
            yield
    except (typer.Exit, typer.TyperException, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        print_error("interrupted")
        _print_advice(advice)
        raise typer.Exit(INTERRUPTED) from None
    except LeaveAtOnce:
        print_error("interrupted")
        _print_advice(advice)
        raise
    except InputError as error:
        if debug:
            _print_traceback()
        elif is_main_process():
            print_error(_with_options(str(error), options))
        elif not _main_process_fails_too():
            _print_own_error(_with_options(str(error), options))
        raise typer.Exit(USAGE) from None
    except Exception as error:
        if debug:
            _print_traceback()
        elif is_leaving():
            print_error("interrupted")
        elif isinstance(error, ProcessLostError):
            _print_own_error(str(error))
        elif isinstance(error, RunStoppedError):
            if is_main_process():  # all processes raise this error, so only one of them reports it
                print_error(str(error))
        else:
            _print_own_error(f"{what} failed: {_in_one_line(error)} (add --debug to see the traceback)")
        if not isinstance(error, RunStoppedError) or error.can_resume:
            # if a process was lost, it may be the main process, so any process prints the advice
            _print_advice(advice, is_needed=isinstance(error, ProcessLostError))
        raise typer.Exit(FAILED) from None


def _with_options(message: str, settings: Sequence[str]) -> str:
    """Return a message in which settings are replaced by options, such as `algebra: true` by `--algebra`."""
    for setting in settings:
        option = f"--{setting.partition(':')[0].replace('_', '-')}"
        message = re.sub(rf"(?<!['\w-]){setting}(?!['\w]):?", option, message)
    return message


def _print_advice(advice: Callable[[], str], *, is_needed: bool = False) -> None:
    """Print advice in the main process or, if `is_needed` is True, in any process."""
    if (is_needed or is_main_process()) and (sentence := advice()):
        print_error(sentence)


def _main_process_fails_too() -> bool:
    """Wait a few seconds, and return True if the launcher sends this process a signal to end meanwhile.

    Usually all processes raise the same user error. The main process reports it and fails, and the launcher
    then ends the other processes. But an error may also occur only here, for example because a file is
    missing on this machine. In that case, the launcher does not end this process, which then reports the
    error.
    """
    try:
        time.sleep(WAIT_FOR_MAIN)
    except LeaveAtOnce:
        return True
    return False


def _print_own_error(message: str) -> None:
    """Print an error message, after the index of this process if there are several processes."""
    print_error(f"process {process_index()}: {message}" if num_processes() > 1 else message)


def _show_as_note(message: Warning | str, *_: Any, **__: Any) -> None:
    if is_main_process():
        note(str(message))


def _print_traceback() -> None:
    sys.stderr.write(without_secrets(traceback.format_exc()))


def quieten(*, debug: bool) -> None:
    """Disable the progress bars of libraries and, if `debug` is False, the warnings of libraries.

    Most of these settings are environment variables, which the libraries read when they are imported. This
    function therefore imports no library. Environment variables that the user has set keep their values.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        os.environ.setdefault("DATASETS_VERBOSITY", "error")
        for library in ("httpx", "httpx2"):
            logging.getLogger(library).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)


def _in_one_line(error: Exception) -> str:
    if lost := why_lost(error):
        return lost
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    lines = str(error).strip().splitlines()
    if type(error).__name__ == "OutOfMemoryError":
        keys = "sampling.batch_size, training.micro_batch_tokens or evaluation.batch_size"
        return f"out of memory; reduce {keys}"
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
