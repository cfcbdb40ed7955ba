"""Signals at any moment of a command: the exit code is 130 or 143, or that of an uninterrupted command."""

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
# writes a byte when Python has started, since signals before that are not handled by llm_reinforce
ANNOUNCE_START = "import os, runpy; os.write(1, b'!'); runpy.run_module('llm_reinforce', run_name='__main__')"


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install Python's default handlers before a test, and restore pytest's handlers after it."""
    monkeypatch.setattr(interruption, "leaving_signals", [])
    before = {number: signal.getsignal(number) for number in ASKING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send_signal(number: int, convert: Callable[[BaseException], BaseException] | None) -> None:
    """Send a signal to this process, and convert the exception that it raises."""
    try:
        os.kill(os.getpid(), number)
    except BaseException as error:
        if convert is None:  # ignored, as in a destructor or the callback of a weak reference
            return
        raise convert(error) from error


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize(
    "convert",
    [
        lambda error: error,
        lambda error: RuntimeError("Error calling __set_name__"),  # Python 3.11, while a class is created
        lambda error: ImportError("initialization failed"),
        lambda error: SystemExit(1),
        lambda error: KeyboardInterrupt(),
        lambda error: BaseExceptionGroup("during cleanup", [error, OSError()]),
    ],
    ids=["nothing", "RuntimeError", "ImportError", "SystemExit", "KeyboardInterrupt", "a group"],
)
def test_exit_code_does_not_depend_on_the_exception(
    number: int,
    code: int,
    convert: Callable[[BaseException], BaseException],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command() -> None:
        with reported_failures():
            send_signal(number, convert)

    try:
        exit_code = run_interruptibly(lambda: _run_as_typer_app(command))
    finally:
        assert [signal.getsignal(each) for each in ASKING] == [signal.SIG_DFL, signal.SIG_DFL]
    assert exit_code == code
    assert "failed" not in capsys.readouterr().err


def _run_as_typer_app(command: Callable[[], None]) -> None:
    one = typer.Typer(pretty_exceptions_enable=False)
    one.command()(command)
    one([])


def test_exit_code_without_a_signal_is_that_of_the_command() -> None:
    def refuse() -> None:
        with reported_failures():
            raise InputError("no")

    assert run_interruptibly(lambda: _run_as_typer_app(refuse)) == 2
    assert run_interruptibly(lambda: _run_as_typer_app(lambda: None)) == 0
    assert run_interruptibly(lambda: send_signal(signal.SIGINT, None)) == 0
    with pytest.raises(ZeroDivisionError):
        run_interruptibly(lambda: 1 / 0)


def test_process_that_has_ended_is_named_as_the_cause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    lost = "[/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:40882: Connection reset by peer. GLHF!"
    for error, shown in ((lost, "the connection to another process was lost"), ("no such op", "no such op")):
        with pytest.raises(typer.Exit), reported_failures("the run"):
            raise RuntimeError(error)
        message = capsys.readouterr().err
        assert message.startswith("process 0: the run failed: ")
        assert shown in message
        assert "GLHF" not in message


def test_ignored_signals_remain_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for background processes
    assert run_interruptibly(lambda: os.kill(os.getpid(), signal.SIGINT)) == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_interrupted_command_prints_one_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("llm_reinforce.config.load_config", interrupted)
    signal.signal(signal.SIGINT, interruption.leave_at_once)
    result = CliRunner().invoke(app, ["train", "quickstart"])
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1, 0.2])
def test_signal_while_a_command_starts(seconds: float, number: int, code: int) -> None:
    arguments = [sys.executable, "-c", ANNOUNCE_START, "recipes", "list"]
    started = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    assert started.stdout is not None
    assert started.stdout.read(1) == b"!"
    time.sleep(seconds)
    started.send_signal(number)
    _, stderr = started.communicate()
    assert started.returncode in (0, code, -number), stderr
    assert b"Error" not in stderr
