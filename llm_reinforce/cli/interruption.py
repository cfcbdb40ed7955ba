"""Handling of SIGINT and SIGTERM: an interrupted command exits with code 130 or 143, respectively.

A signal handler raises an exception at an arbitrary point of the code. Some code converts this exception to
another type. For example, pydantic converts it to a SchemaError, and the creation of a class converts it to a
RuntimeError. This module therefore records the signals, so that the exit code does not depend on the type of
the exception.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, Protocol

from llm_reinforce.errors import LeaveAtOnce
from llm_reinforce.processes import num_processes

ASKING = (signal.SIGINT, signal.SIGTERM)  # signals that request a command to end
# Two signals within this number of seconds count as one. If a launcher started the process, Ctrl-C causes two
# signals, one from the terminal and one from the launcher.
SAME_KEYPRESS = 0.5
leaving_signals: list[int] = []  # received signals that end the command immediately
_received: list[int] = []  # received signals that stop the run after the current update


class StopDisplay(Protocol):
    """Display that can show that the run is about to stop."""

    def stopping(self, sentence: str) -> None: ...


@contextmanager
def stopped_by_signals(stop: Callable[[], None], display: StopDisplay) -> Iterator[None]:
    """In a `with` block, call `stop` at the first signal, and end the command at once at the second signal.

    Args:
        stop: function that stops the run after the current update or during the current evaluation.
        display: display that shows that the run is about to stop.
    """
    _received.clear()
    first_at = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if _received:
            # A second SIGTERM is ignored, because SLURM and a launcher may both send one. The launcher kills
            # processes that take too long to end.
            is_repeated = number == signal.SIGTERM and num_processes() > 1
            if time.monotonic() - first_at > SAME_KEYPRESS and not is_repeated:
                leave_at_once(number)
            return
        _received.append(number)
        first_at = time.monotonic()
        stop()
        # if several processes train together, they stop without completing the batch
        text = "stopping after this update" if num_processes() == 1 else "stopping"
        is_pressed = number == signal.SIGINT
        display.stopping(f"{text}; press Ctrl-C again to quit now" if is_pressed else text)

    before = {number: signal.signal(number, handle) for number in ASKING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def received_signals() -> list[int]:
    """Return the numbers of the signals received in the last `stopped_by_signals` block."""
    return list(_received)


def leave_at_once(number: int, frame: FrameType | None = None) -> NoReturn:
    """Signal handler that ends the command by raising LeaveAtOnce, so that `finally` blocks still run."""
    leaving_signals.append(number)
    raise LeaveAtOnce(128 + number)


def is_leaving() -> bool:
    """Return True if a signal is ending this command. Any exception can then be an effect of the signal."""
    return bool(leaving_signals)


def run_interruptibly(command: Callable[[], object]) -> object:
    """Run a command that ends by raising SystemExit, and return its exit code.

    After the command, the default signal handlers are restored.

    Returns:
        the `code` of the SystemExit, or 128 + N if signal N ended the command.
    """
    leaving_signals.clear()
    try:
        try:
            _handle(leave_at_once)
            command()
            return 0
        finally:
            _flush_output()
            _handle(signal.SIG_DFL)
    except SystemExit as leaving:
        return leaving.code if leaving.code in (None, 0) else _code(leaving.code)
    except BaseException:
        if not is_leaving():
            raise
        return _code(1)


def _code(code: object) -> object:
    return 128 + leaving_signals[-1] if is_leaving() else code


def _handle(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    """Install a handler for the signals in `ASKING`, except for signals that this process ignores."""
    with suppress(ValueError):  # only the main thread can install handlers
        for number in ASKING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
