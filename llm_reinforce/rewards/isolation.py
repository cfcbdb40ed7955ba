"""Reward functions in worker processes: whatever they do there, the run goes on.

A worker is asked over a pipe, one JSON line a question. One that does not answer within its time is killed,
with all that it started, and another takes its place; so it holds from any thread, without signals.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from llm_reinforce.errors import InputError
from llm_reinforce.rewards.calls import JudgedCompletion, Progress, RewardResult, RewardResults, StepRewards
from llm_reinforce.seeds import seed_of

MAX_START = 120.0  # seconds: a user's module may import much
MAX_LINE = 64 * 2**20  # bytes of an answer
CHUNK = 2**18  # bytes read or written at once
TIME_TO_END = 0.5  # seconds that a process is given to end by itself once it has closed its pipe


@dataclass(frozen=True, slots=True)
class Isolation:
    """How a function is kept apart.

    Attributes:
        num_workers: processes that answer side by side.
        time_limit: seconds that one call may take.
        memory_limit: MiB of data that a worker may have, where the system enforces that (Linux does); None:
            no limit.
    """

    num_workers: int = 2
    time_limit: float = 10.0
    memory_limit: int | None = 4096


class WorkerError(Exception):
    """A worker did not answer as it should; the message says what it did instead."""


class IsolatedFunction:
    """A function of the user's that runs in worker processes.

    Args:
        name: as a recipe names it, and as the worker finds it.
        arguments: its keyword arguments, as JSON holds them.

    Raises:
        InputError: it can't be loaded there.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any], isolation: Isolation) -> None:
        self.name = name
        settings = {"function": name, "arguments": dict(arguments), **asdict(isolation)}
        self._lock = threading.Lock()
        self._workers = [_Worker(settings) for _ in range(isolation.num_workers)]
        # also where nobody closes it; a worker whose parent is gone ends by itself
        self.close = weakref.finalize(self, _kill_all, self._workers)
        first = self._workers[0]
        try:
            first.start()
            while (greeting := first.answer()) is None:
                _wait([first])
        except WorkerError as fault:
            self.close()
            raise InputError(f"reward {name!r}: its worker process failed as it started: {fault}") from fault
        if "fault" in greeting:
            self.close()
            raise InputError(greeting["fault"])
        self.has_trl_signature = bool(greeting["has_trl_signature"])

    def ask(
        self, asked: Sequence[JudgedCompletion], *, conversational: bool, progress: Progress
    ) -> RewardResults:
        """Ask of each completion, or of all at once where the function has TRL's signature."""
        together = {"conversational": conversational, "progress": asdict(progress)}
        batches = [asked] if self.has_trl_signature else [[one] for one in asked]
        questions = [
            # whichever worker it goes to, and whatever that was asked before
            {
                "asked": [_as_json(one) for one in batch],
                "seed": seed_of("reward", progress.seed, index),
                **together,
            }
            for index, batch in enumerate(batches)
        ]
        with self._lock:
            answers = self._run(questions)
        outcomes: list[RewardResult] = []
        for batch, answer in zip(batches, answers, strict=True):
            if isinstance(answer, WorkerError):
                outcomes += [RewardResult(failure=str(answer)) for _ in batch]
            else:
                outcomes += [_outcome(each) for each in answer["outcomes"]]
        told = [answer for answer in answers if not isinstance(answer, WorkerError)]
        # only a function with TRL's signature logs, and that is asked once
        return RewardResults(outcomes, *((told[0]["metrics"], told[0]["extras"]) if told else ()))

    def _run(self, questions: Sequence[object]) -> list[Any]:
        """The workers' answers, or their faults, in the order of the questions."""
        answers: list[Any] = [None] * len(questions)
        waiting = list(reversed(range(len(questions))))
        busy: dict[_Worker, int] = {}
        try:
            while waiting or busy:
                for worker in self._workers:
                    if waiting and worker not in busy:
                        busy[worker] = waiting.pop()
                        worker.ask(questions[busy[worker]])
                for worker, answer in _next_answers(busy):
                    answers[busy.pop(worker)] = answer
        finally:
            _kill_all(busy)  # interrupted: what they answer now is to no later question
        return answers


class _Worker:
    """One process, started when it is first asked, and again after it was killed. Nothing here waits."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings, self.directory = settings, Path.cwd()
        self.process: subprocess.Popen[bytes] | None = None
        self.deadline = self._time_limit = 0.0
        self._question: object | None = None  # to be put once the process has said that it is ready
        self._unsent, self._read = memoryview(b""), bytearray()

    def start(self) -> None:
        """Start the process; its first answer says of what kind the function is, or why it isn't loaded."""
        search_path = os.pathsep.join(path or str(self.directory) for path in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "llm_reinforce.rewards.isolated_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": search_path},
            start_new_session=True,  # so that what it starts can be killed with it, and Ctrl-C spares it
        )
        for pipe in self._pipes():
            os.set_blocking(pipe, False)
        self._question, self._read = None, bytearray()
        self._put(self.settings, MAX_START)

    def ask(self, question: object) -> None:
        """Put a question; `answer` has what comes back."""
        if self.process is not None and self.process.poll() is not None:  # it ended since it answered
            self.kill()
        if self.process is None:
            self.start()
            self._question = question
        else:
            self._put(question, self.settings["time_limit"])

    def answer(self) -> dict[str, Any] | None:
        """Write and read what can be at once; the answer if it has come whole, else None.

        Raises:
            WorkerError: the time is over, the process has ended, or what it says is no answer.
        """
        try:
            self._write()
            is_open = self._read_on()
        except OSError:
            is_open = False
        if b"\n" in self._read:
            return self._take_line()
        if not is_open:
            raise WorkerError(f"its worker process ended ({self._ending()})")
        if time.monotonic() < self.deadline:
            return None
        raise WorkerError(f"TimeoutError: no answer within {self._time_limit:g} seconds")

    def register(self, selector: selectors.BaseSelector) -> None:
        """Have the selector wake up when there is something to read, or room to write what is left."""
        questions, answers = self._pipes()
        selector.register(answers, selectors.EVENT_READ)
        if self._unsent:
            selector.register(questions, selectors.EVENT_WRITE)

    def kill(self) -> None:
        """End the process and all that it started."""
        if self.process is None:
            return
        process, self.process = self.process, None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()

    def _pipes(self) -> tuple[int, int]:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin.fileno(), self.process.stdout.fileno()

    def _put(self, message: object, time_limit: float) -> None:
        self._unsent = memoryview(json.dumps(message, default=str).encode() + b"\n")
        self._time_limit, self.deadline = time_limit, time.monotonic() + time_limit
        with suppress(OSError):  # it is gone; `answer` tells
            self._write()

    def _write(self) -> None:
        with suppress(BlockingIOError):
            while self._unsent:
                written = os.write(self._pipes()[0], self._unsent[:CHUNK])
                self._unsent = self._unsent[written:]

    def _read_on(self) -> bool:
        """Read what has come; whether more may come."""
        with suppress(BlockingIOError):
            while part := os.read(self._pipes()[1], CHUNK):
                self._read += part
                if len(self._read) > MAX_LINE:
                    raise WorkerError(f"its answer is longer than {MAX_LINE:,} bytes")
            return False
        return True

    def _take_line(self) -> dict[str, Any] | None:
        line, _, self._read = self._read.partition(b"\n")
        try:
            told: dict[str, Any] = json.loads(line)
        except ValueError:
            raise WorkerError("something else was written to the pipe that answers take") from None
        if self._question is None:
            return told
        if "fault" in told:
            raise WorkerError(told["fault"])
        question, self._question = self._question, None
        self._put(question, self.settings["time_limit"])
        return None

    def _ending(self) -> str:
        assert self.process is not None
        try:
            code = self.process.wait(TIME_TO_END)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        if code < 0:
            with suppress(ValueError):
                return signal.Signals(-code).name
        return f"exit code {code}"


def _wait(workers: Iterable[_Worker]) -> None:
    """Until one can go on, or the first of their deadlines has come."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            worker.register(selector)
        selector.select(max(0.0, min(worker.deadline for worker in workers) - time.monotonic()))


def _next_answers(busy: Mapping[_Worker, int]) -> Iterator[tuple[_Worker, dict[str, Any] | WorkerError]]:
    """Those of the busy workers that have answered, or failed and were killed for it."""
    _wait(busy)
    for worker in list(busy):
        try:
            answer = worker.answer()
        except WorkerError as fault:
            worker.kill()
            yield worker, fault
        else:
            if answer is not None:
                yield worker, answer


def _kill_all(workers: Iterable[_Worker]) -> None:
    for worker in workers:
        worker.kill()


def _as_json(asked: JudgedCompletion) -> dict[str, object]:
    values = {each.name: getattr(asked.problem, each.name) for each in fields(asked.problem)}
    return {
        "completion": asked.completion,
        "token_ids": asked.token_ids,
        "verdict": asdict(asked.verdict) if asked.verdict else None,
        "problem": {**values, "columns": dict(asked.problem.columns)},
    }


def _outcome(told: Mapping[str, Any]) -> RewardResult:
    steps = told.get("steps")
    if steps is None:
        return RewardResult(told.get("value"), told.get("failure"), told.get("traceback", ""))
    spans = [(start, end, value) for start, end, value in steps["spans"]]
    return RewardResult(StepRewards(spans, steps["by_token"]))
