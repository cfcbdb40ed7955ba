"""What the commands share: how a failure is told, which process speaks, and quiet libraries."""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from llm_reinforce.cli.interruption import is_leaving
from llm_reinforce.errors import InputError, LeaveAtOnce, RunStoppedError, without_secrets

USAGE, FAILED, INTERRUPTED = 2, 1, 130  # exit codes
FILE_WIDTH = 130  # characters

DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' warnings.")]


def is_main_process() -> bool:
    """Whether this is the process that writes and speaks, under `accelerate launch` too."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK"))


def num_processes() -> int:
    """How many train side by side."""
    return max(1, int(os.environ.get("WORLD_SIZE") or 1))


def check_one_process(command: str) -> None:
    """Refuse `accelerate launch` for what is done once.

    Raises:
        InputError: this is one of several processes.
    """
    if num_processes() > 1:
        raise InputError(f"{command} runs in one process; leave accelerate launch out")


@contextmanager
def failures_told(what: str = "the command", *, debug: bool = False) -> Iterator[None]:
    """Turn exceptions into a message on stderr and an exit code; with `debug` into a traceback as well.

    2: the user's to mend (InputError); 130: interrupted; 1: all else. A closed pipe and click's own
    errors are left to click.
    """
    try:
        yield
    except (typer.Exit, typer.TyperException, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        tell("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except LeaveAtOnce:
        tell("interrupted")
        raise
    except InputError as error:
        if debug:
            _print_traceback()
        elif is_main_process():  # the others met the same mistake
            tell(str(error))
        raise typer.Exit(USAGE) from None
    except Exception as error:
        if debug:
            _print_traceback()
        elif is_leaving():
            tell("interrupted")
        elif isinstance(error, RunStoppedError):
            tell(str(error))
        else:
            tell(f"{what} failed: {_in_one_line(error)} (--debug shows where)")
        raise typer.Exit(FAILED) from None


def tell(message: str) -> None:
    """A message on stderr, red on a terminal, never wrapped."""
    _print_on_stderr(Text(without_secrets(message), style="red"))


def _print_traceback() -> None:
    sys.stderr.write(without_secrets(traceback.format_exc()))


def note(message: str) -> None:
    """Something to know, on stderr; the command goes on. It may hold text of a data set."""
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in message
    )
    _print_on_stderr(Text(shown, style="dim"))


@contextmanager
def showing_a_bar(console: Console) -> Iterator[None]:
    """As long as a bar is shown on the console, messages go there too: above the bar, not into it."""
    _consoles.append(console)
    try:
        yield
    finally:
        _consoles.remove(console)


_consoles: list[Console] = []


def _print_on_stderr(text: Text) -> None:
    console = _consoles[-1] if _consoles else Console(stderr=True)
    console.print(text, soft_wrap=True, highlight=False)


def quieten(*, debug: bool) -> None:
    """No progress bars of the libraries; unless debugging, no warnings either. Call it before using them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not debug:
        os.environ.setdefault("DATASETS_VERBOSITY", "error")  # read when datasets is imported, later
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call,unused-ignore]
    if not debug:
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call,unused-ignore]
        for library in ("huggingface_hub", "httpx", "httpx2", "datasets"):
            logging.getLogger(library).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)


def best_device() -> str:
    """The accelerator's name where there is one, else `cpu`."""
    import torch

    accelerator = torch.accelerator.current_accelerator()
    return str(accelerator) if accelerator is not None and torch.accelerator.is_available() else "cpu"


def terminal_console() -> Console:
    """stdout as it is now (a test or a caller may have replaced it)."""
    return Console(file=sys.stdout, highlight=False)


def wide_console() -> Console:
    """The same for tables of many columns: a file has room, and rich would cut the rows at 80 characters."""
    console = terminal_console()
    if not console.is_terminal:
        console.width = max(console.width, FILE_WIDTH)
    return console


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    lines = str(error).strip().splitlines()
    if type(error).__name__ == "OutOfMemoryError":
        keys = "sampling.batch_size, training.micro_batch_tokens or evaluation.batch_size"
        return f"out of memory: lower {keys}"
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
