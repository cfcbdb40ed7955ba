"""Processes that train a run and may be killed, for kills.py, damage.py and full_disk.py.

A life is one such process of a run. It is forked from a parent that has imported everything and computed
nothing, so it starts immediately. Through a pipe, the life reports when it enters or leaves a place, such as
saving or sampling. The parent can therefore kill the life at this place.
"""

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import peft  # noqa: F401  (imported in the parent, because imports take most of a short run)
import scipy.stats  # noqa: F401
import torch

import llm_reinforce.cli.interruption as interruption_module
import llm_reinforce.console.live_view  # noqa: F401
from llm_reinforce.checkpoint_files import find_checkpoint
from llm_reinforce.cli import main
from llm_reinforce.cli.interruption import ASKING
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.runs import RunDirectory
from llm_reinforce.training import batch_sampler, loop, run_checkpoints, run_evaluations
from llm_reinforce.training.metrics import TIMES

SETTINGS: dict[str, object] = {
    "policy.random_init.num_layers": 1,
    "policy.random_init.num_heads": 2,
    "policy.random_init.hidden_size": 32,
    "policy.random_init.intermediate_size": 32,
    "problems.num_held_out": 10,
    "problems.generate.digits": "[1]",
    "reinforce.problems_per_update": 8,
    "reinforce.baseline": "moving_average",
    "training.num_updates": 30,
    "training.checkpoint_every": 1,
    "training.num_warmup_updates": 2,
    "training.warm_start.num_updates": 2,
    "training.warm_start.num_warmup_updates": 0,
    "evaluation.every": 5,
}
PLACES = (
    (run_checkpoints, "save_checkpoint", "saving"),
    (batch_sampler, "sample_completions", "sampling"),
    (run_evaluations, "answer_problems", "evaluating"),
    (loop, "warm_start", "starting warm"),
    (run_checkpoints, "load_checkpoint", "resuming"),
    (RunDirectory, "cut_logs", "resuming"),
    (RunDirectory, "append", "logging"),
    (LanguagePolicy, "save", "saving the policy"),
)
_trace = -1  # file descriptor to which a life reports


@dataclass
class Life:
    """One process of a run.

    Attributes:
        process: process id.
        pipe: file descriptor from which the reports of the process are read.
        events: reports so far. A report consists of a time in seconds, "+" if the process entered a place or
            "-" if it left the place, and the name of the place.
        has_ended: True if the process has closed the pipe.
    """

    process: int
    pipe: int
    events: list[tuple[float, str, str]] = field(default_factory=list)
    has_ended: bool = False
    _rest: bytes = b""

    def listen(self, seconds: float | None) -> bool:
        """Read the next reports. Return False if none comes within `seconds`, or if the process has ended."""
        if self.has_ended or not select.select([self.pipe], [], [], seconds)[0]:
            return False
        received = os.read(self.pipe, 65536)
        self.has_ended = not received
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            moment, sign, place = line.decode().split(" ", 2)
            self.events.append((float(moment), sign, place))
        return bool(received)

    def wait_for(self, place: str, times: int) -> None:
        """Wait until the process has entered the place `times` times, or has ended."""
        while sum((sign, where) == ("+", place) for _, sign, where in self.events) < times:
            if not self.listen(None):
                return

    def kill(self, number: int) -> None:
        """Send a signal to the process. If the process has ended, nothing happens."""
        os.kill(self.process, number)

    def wait(self) -> int:
        """Wait until the process ends, and return its exit code, or -N if signal N ended the process."""
        while self.listen(None):
            pass
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def place(self) -> str:
        """Return the innermost place that the process had entered and not left."""
        entered: list[str] = []
        for _, sign, place in self.events:
            if sign == "+":
                entered.append(place)
            else:
                entered.pop()
        return entered[-1] if entered else "something else"

    def durations(self) -> dict[str, float]:
        """Return the mean duration of the stays in each place, in seconds."""
        begun: list[float] = []
        found: dict[str, list[float]] = {}
        for moment, sign, place in self.events:
            if sign == "+":
                begun.append(moment)
            else:
                found.setdefault(place, []).append(moment - begun.pop())
        return {place: sum(each) / len(each) for place, each in found.items()}


def start(directory: Path, output: Path, settings: dict[str, object], *, resume: bool) -> Life:
    """Fork a process that trains in the directory, and append its output to the file `output`."""
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    arguments = ["train", "quickstart", *options, "--set", f"output_dir={directory}"]
    output.touch()
    reader, writer = os.pipe()
    # the child starts in a copy of the parent's code, where a signal must not raise an exception
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    process = os.fork()
    if process == 0:
        os.close(reader)
        _live([*arguments, *(["--resume"] if resume else [])], writer, output)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    os.close(writer)
    return Life(process, reader)


def _live(arguments: list[str], writer: int, output: Path) -> NoReturn:
    """Run the command line in the child process, and exit without returning to the parent's code."""
    global _trace
    _trace, code = writer, 128 + signal.SIGINT  # the exit code if a second SIGINT comes outside of `main`
    try:
        opened = os.open(output, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore SIGINT in background jobs
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
        sys.argv = ["llm-reinforce", *arguments]
        main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except Exception:
        traceback.print_exc()
        code = 1
    finally:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def make_traced() -> None:
    """Make all lives report the places that they enter and leave, and accept a second signal immediately."""
    torch.set_num_threads(1)
    for module, name, place in PLACES:
        setattr(module, name, _traced(getattr(module, name), place))
    interruption_module.SAME_KEYPRESS = 0.0


def _traced(call: Callable[..., Any], place: str) -> Callable[..., Any]:
    def around(*arguments: Any, **more: Any) -> Any:
        os.write(_trace, f"{time.monotonic()} + {place}\n".encode())
        try:
            return call(*arguments, **more)
        finally:
            os.write(_trace, f"{time.monotonic()} - {place}\n".encode())

    return around


def outcome(directory: Path) -> dict[str, Any]:
    """Return everything that a finished run has written, except times.

    The digests of the checkpoint cover the weights and the optimizer.
    """
    newest, _ = find_checkpoint(directory / "checkpoints")
    assert newest is not None, "a finished run has a checkpoint"
    logs = ("metrics.jsonl", "evaluations.jsonl", "episodes.jsonl", "answers.jsonl")
    digests = json.loads((newest / "manifest.json").read_text())
    del digests["state.json"]  # it contains the duration of the run
    numbers = json.loads((newest / "state.json").read_text())
    del numbers["state"]["seconds"]
    return {
        "files": sorted(str(file.relative_to(directory)) for file in directory.rglob("*")),
        "digests": digests,
        "state": numbers,
        "policy": (directory / "policy" / "model.safetensors").read_bytes(),
        **{name: list(_timeless_rows(directory / name)) for name in logs},
    }


def _timeless_rows(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text("utf-8").split("\n")[:-1]:
        yield {key: value for key, value in json.loads(line).items() if key not in TIMES}
