"""Messages on stderr, and the consoles of the commands."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from llm_reinforce.errors import without_secrets

FILE_WIDTH = 130  # characters per line of output that is not a terminal
RECORDED = ("CI", "JPY_PARENT_PID")  # environment variables of CI jobs and of a notebook's child processes


def print_error(message: str) -> None:
    """Print an error message on stderr, without wrapping. On a terminal, the message is red."""
    _print_on_stderr(Text(without_secrets(message), style="red"))


def note(message: str) -> None:
    """Print a note on stderr. Control characters are escaped, since the text may come from a data set."""
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in message
    )
    _print_on_stderr(Text(shown, style="dim"))


@contextmanager
def messages_above_bar(console: Console) -> Iterator[None]:
    """Print notes and errors on this console within the context, so that they appear above a progress bar."""
    _consoles.append(console)
    try:
        yield
    finally:
        _consoles.remove(console)


_consoles: list[Console] = []


def _print_on_stderr(text: Text) -> None:
    console = _consoles[-1] if _consoles else Console(stderr=True)
    console.print(text, soft_wrap=True, highlight=False)


def terminal_console() -> Console:
    """Return a console that prints to the current `sys.stdout`, even if a test or caller has replaced it."""
    return Console(file=sys.stdout, highlight=False)


def wide_console() -> Console:
    """Return a console for wide tables that prints to the current `sys.stdout`.

    If the output is a file or a pipe, lines may have up to FILE_WIDTH characters, instead of rich's default
    of 80 characters.
    """
    console = terminal_console()
    if not console.is_terminal:
        console.width = max(console.width, FILE_WIDTH)
    return console


def is_live(console: Console) -> bool:
    """Return True if the console is live: lines that it has printed can be overwritten.

    A terminal is live, except for a dumb terminal, a pseudo-terminal of a CI job, and the pseudo-terminal of
    a notebook's `!command`. With the environment variable TTY_INTERACTIVE=1, these pseudo-terminals are live.
    With TTY_INTERACTIVE=0, no terminal is live. FORCE_COLOR does not make a pipe live.
    """
    if not (console.is_interactive and console.is_terminal and not console.is_dumb_terminal):
        return False
    if os.environ.get("TTY_INTERACTIVE") == "1":
        return True
    is_recorded = any(os.environ.get(name, "").lower() not in ("", "0", "false") for name in RECORDED)
    return console.file.isatty() and not is_recorded


def is_interactive() -> bool:
    """Return True if stdout is a terminal or a notebook, where progress is shown by default."""
    console = Console()
    return console.is_jupyter or is_live(console)
