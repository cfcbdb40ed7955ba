"""Lives of one run, each a process that may be killed: what kills.py, damage.py and full_disk.py share.

A life is forked from a parent that has imported everything and computed nothing, so that it begins at once.
It tells through a pipe what it enters and leaves (saving, sampling, …), so that it can be hit right there.
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

import datasets  # noqa: F401  (most of a short life would be imports)
import peft  # noqa: F401
import scipy.stats  # noqa: F401
import torch

import llm_reinforce.cli.interruption as interruption_module
import llm_reinforce.console.live_view  # noqa: F401
import llm_reinforce.episodes.collect as collect_module
import llm_reinforce.training.loop as trainer_module
from llm_reinforce.cli import main
from llm_reinforce.cli.interruption import ASKING
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.runs import RunDirectory
from llm_reinforce.runs.checkpoint import find_checkpoint
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
    "training.num_warmup_updates": 4,
    "training.warm_start.num_updates": 2,
    "training.warm_start.num_warmup_updates": 0,
    "evaluation.every": 5,
}
PLACES = (
    (trainer_module, "save_checkpoint", "saving"),
    (collect_module, "sample_completions", "sampling"),
    (trainer_module, "measure_accuracy", "evaluating"),
    (trainer_module, "warm_start", "starting warm"),
    (trainer_module, "load_checkpoint", "resuming"),
    (RunDirectory, "cut_logs", "resuming"),
    (RunDirectory, "append", "logging"),
    (LanguagePolicy, "save", "saving the policy"),
)
_trace = -1  # the pipe's end that a life writes to


@dataclass
class Life:
    """A run's process, and what it has told so far: (seconds, "+" or "-", place)."""

    process: int
    pipe: int
    told: list[tuple[float, str, str]] = field(default_factory=list)
    has_ended: bool = False
    _rest: bytes = b""

    def listen(self, seconds: float | None) -> bool:
        """Hear what it tells next, within so many seconds; False where it says nothing, or has ended."""
        if self.has_ended or not select.select([self.pipe], [], [], seconds)[0]:
            return False
        heard = os.read(self.pipe, 65536)
        self.has_ended = not heard
        *lines, self._rest = (self._rest + heard).split(b"\n")
        for line in lines:
            moment, sign, place = line.decode().split(" ", 2)
            self.told.append((float(moment), sign, place))
        return bool(heard)

    def wait_for(self, place: str, times: int) -> None:
        """Until it has entered the place so many times, or has ended."""
        while sum((sign, where) == ("+", place) for _, sign, where in self.told) < times:
            if not self.listen(None):
                return

    def kill(self, number: int) -> None:
        """Send a signal; a process that has ended and was not waited for takes it and does nothing."""
        os.kill(self.process, number)

    def wait(self) -> int:
        """Until it ends: its exit code, or -N where signal N ended it."""
        while self.listen(None):
            pass
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def place(self) -> str:
        """What it was about last: what it had entered and not left, the innermost."""
        entered: list[str] = []
        for _, sign, place in self.told:
            if sign == "+":
                entered.append(place)
            else:
                entered.pop()
        return entered[-1] if entered else "something else"

    def durations(self) -> dict[str, float]:
        """Mean seconds of each place."""
        begun: list[float] = []
        found: dict[str, list[float]] = {}
        for moment, sign, place in self.told:
            if sign == "+":
                begun.append(moment)
            else:
                found.setdefault(place, []).append(moment - begun.pop())
        return {place: sum(each) / len(each) for place, each in found.items()}


def start(directory: Path, output: Path, settings: dict[str, object], *, resume: bool) -> Life:
    """Fork a process that trains there; what it says is added to the file `output`."""
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    arguments = ["train", "quickstart", *options, "--set", f"output_dir={directory}"]
    output.touch()
    reader, writer = os.pipe()
    # a signal to the child must not raise in the parent's code, of which it holds a copy
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    process = os.fork()
    if process == 0:
        os.close(reader)
        _live([*arguments, *(["--resume"] if resume else [])], writer, output)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    os.close(writer)
    return Life(process, reader)


def _live(arguments: list[str], writer: int, output: Path) -> NoReturn:
    """The child's whole life; it never returns into the parent's code."""
    global _trace
    _trace, code = writer, 128 + signal.SIGINT  # which may come twice, and outside of the command line
    try:
        said = os.open(output, os.O_WRONLY | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
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
    """Let the lives tell what they enter and leave. A second signal counts at once there."""
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
    """All that a finished run leaves, times aside.

    The checkpoint's digests are those of weights, optimiser and train state, schedule included.
    """
    newest, _ = find_checkpoint(directory / "checkpoints")
    assert newest is not None, "a finished run has a checkpoint"
    logs = ("metrics.jsonl", "evaluations.jsonl", "episodes.jsonl", "answers.jsonl")
    return {
        "files": sorted(str(file.relative_to(directory)) for file in directory.rglob("*")),
        "digests": json.loads((newest / "manifest.json").read_text()),
        "policy": (directory / "policy" / "model.safetensors").read_bytes(),
        **{name: list(_timeless_rows(directory / name)) for name in logs},
    }


def _timeless_rows(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text("utf-8").split("\n")[:-1]:
        yield {key: value for key, value in json.loads(line).items() if key not in TIMES}
