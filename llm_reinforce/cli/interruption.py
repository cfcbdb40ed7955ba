"""SIGINT and SIGTERM from a command's start to its end: it exits with 130 or 143, or normally.

An exception raised by a signal comes out wherever the code happens to be, and now and then a library makes
one of its own of it: pydantic a SchemaError, a class that is being made a RuntimeError. So who was signalled
is remembered here, and the exit code does not depend on what the exception has become.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, Protocol

from llm_reinforce.errors import LeaveAtOnce

ASKING = (signal.SIGINT, signal.SIGTERM)  # the signals that ask a command to end
SAME_KEYPRESS = (
    0.5  # seconds: a launcher passes on signals that the terminal has sent to its processes already
)
_left_by: list[int] = []  # the signals that end the command at once
_received: list[int] = []  # the signals that stopped a run


class StopDisplay(Protocol):
    """A display that can show that the run was asked to stop."""

    def stopping(self, sentence: str) -> None: ...


@contextmanager
def stopped_by_signals(stop: Callable[[], None], display: StopDisplay) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM call `stop`, and a second one end the command at once."""
    _received.clear()
    first_at = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if _received:
            if time.monotonic() - first_at > SAME_KEYPRESS:
                leave_at_once(number)
            return
        _received.append(number)
        first_at = time.monotonic()
        stop()
        display.stopping("stopping after this update; again to leave at once")

    before = {number: signal.signal(number, handle) for number in ASKING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def received_signals() -> list[int]:
    """Return the signals that the last `stopped_by_signals` received."""
    return list(_received)


def leave_at_once(number: int, frame: FrameType | None = None) -> NoReturn:
    """A signal's handler: whatever runs ends here, tidying up on its way out."""
    _left_by.append(number)
    raise LeaveAtOnce(128 + number)


def is_leaving() -> bool:
    """Whether a signal ends this command, so that whatever else seems to have gone wrong is its doing."""
    return bool(_left_by)


def run_interruptibly(command: Callable[[], object]) -> object:
    """Run a command that leaves by SystemExit, with an exit code of 128 + N where signal N ended it.

    Returns:
        the code that it leaves with, as SystemExit has it; from then on a signal ends the process in
        the system's own way, since nothing is left to be saved or told.
    """
    _left_by.clear()
    try:
        try:
            _handle(leave_at_once)
            command()
            return 0
        finally:
            _end_output()
            _handle(signal.SIG_DFL)
    except SystemExit as leaving:
        return leaving.code if leaving.code in (None, 0) else _code(leaving.code)
    except BaseException:
        if not is_leaving():
            raise
        return _code(1)


def _code(code: object) -> object:
    return 128 + _left_by[-1] if is_leaving() else code


def _handle(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    """Have it handle the signals, but those that whoever started the process has it ignore."""
    with suppress(ValueError):  # not the main thread, which alone may say so
        for number in ASKING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


def _end_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
