"""A signal at any moment of a command: it exits 130 or 143, or as if the signal had not come."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llm_reinforce.cli import app, interruption
from llm_reinforce.cli.common import reported_failures
from llm_reinforce.cli.interruption import ASKING, run_interruptibly
from llm_reinforce.errors import InputError

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
# the byte is told once Python itself has started: what comes before is not ours
TELLING = "import os, runpy; os.write(1, b'!'); runpy.run_module('llm_reinforce', run_name='__main__')"


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Python's own handlers at first, pytest's at last; and no other test is taken for interrupted."""
    monkeypatch.setattr(interruption, "_left_by", [])
    before = {number: signal.getsignal(number) for number in ASKING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signalled(number: int, turned_into: Callable[[BaseException], BaseException] | None) -> None:
    """A command within which a signal comes, and what comes of it is turned into something else."""
    try:
        os.kill(os.getpid(), number)
    except BaseException as left:
        if turned_into is None:  # as a destructor does, or a weak reference's callback
            return
        raise turned_into(left) from left


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize(
    "turned_into",
    [
        lambda left: left,
        lambda left: RuntimeError("Error calling __set_name__"),  # as Python 3.11 does as a class is made
        lambda left: ImportError("initialization failed"),
        lambda left: SystemExit(1),
        lambda left: KeyboardInterrupt(),
        lambda left: BaseExceptionGroup("while it was tidied up", [left, OSError()]),
    ],
    ids=["nothing", "RuntimeError", "ImportError", "SystemExit", "KeyboardInterrupt", "a group"],
)
def test_whatever_becomes_of_the_exception(
    number: int,
    code: int,
    turned_into: Callable[[BaseException], BaseException],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command() -> None:
        with reported_failures():
            signalled(number, turned_into)

    try:
        left = run_interruptibly(lambda: _as_a_typer_app(command))
    finally:
        assert [signal.getsignal(each) for each in ASKING] == [signal.SIG_DFL, signal.SIG_DFL]
    assert left == code
    assert "failed" not in capsys.readouterr().err


def _as_a_typer_app(command: Callable[[], None]) -> None:
    one = typer.Typer(pretty_exceptions_enable=False)
    one.command()(command)
    one([])


def test_without_a_signal_the_code_is_the_commands() -> None:
    def refuse() -> None:
        with reported_failures():
            raise InputError("no")

    assert run_interruptibly(lambda: _as_a_typer_app(refuse)) == 2
    assert run_interruptibly(lambda: _as_a_typer_app(lambda: None)) == 0
    assert run_interruptibly(lambda: signalled(signal.SIGINT, None)) == 0
    with pytest.raises(ZeroDivisionError):
        run_interruptibly(lambda: 1 / 0)


def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it runs in the background
    assert run_interruptibly(lambda: os.kill(os.getpid(), signal.SIGINT)) == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_interrupted_is_all_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(sys.modules["llm_reinforce.cli.train"], "load_config", interrupted)
    signal.signal(signal.SIGINT, interruption.leave_at_once)
    result = CliRunner().invoke(app, ["train", "quickstart"])
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1, 0.2])
def test_a_command_that_is_signalled_as_it_starts(seconds: float, number: int, code: int) -> None:
    arguments = [sys.executable, "-c", TELLING, "recipes", "list"]
    started = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    assert started.stdout is not None
    assert started.stdout.read(1) == b"!"
    time.sleep(seconds)
    started.send_signal(number)
    _, told = started.communicate()
    assert started.returncode in (0, code, -number), told
    assert b"Error" not in told
