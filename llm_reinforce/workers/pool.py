"""The asking side: processes that are started when needed, and killed when they take too long.

Questions and answers are JSON, one per line, over a pair of pipes; `service.py` is the other side. A thread
per question writes and reads, so the caller waits for a deadline and never for a pipe. No signals are used:
any thread may ask.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

START_LIMIT = 120.0  # seconds until a worker is ready: its libraries, or a user's module, may take long
MAX_LINE = 64 * 2**20  # bytes of an answer
_CHUNK = 2**18  # bytes read or written at once
_TIME_TO_END = 0.5  # seconds that a process has to end by itself once it has closed its pipe


class WorkerError(Exception):
    """A worker did not answer; the message says what it did instead."""


class WorkerTimeoutError(WorkerError):
    """A worker was ready, but did not answer a question within its time limit."""


class WorkerSettingsError(WorkerError):
    """A worker could not use its settings; the message is the worker's own."""


class WorkerPool:
    """Processes that run one module and answer questions side by side.

    A process is started by the first question that needs it. It is killed, with every process that it has
    started, when a question takes too long or fails, and replaced at the next question. All are killed when
    the pool is closed, is garbage-collected, or the interpreter exits. A forked child starts its own.

    Args:
        module: the name of a module that calls `serve`.
        settings: sent to each process when it starts; must be serializable as JSON.
        num_workers: the number of processes.
        memory_limit: MiB of data that a process may allocate, where the system enforces this (Linux does);
            None: no limit.
        start_limit: seconds until a process must be ready.
    """

    def __init__(
        self,
        module: str,
        settings: Mapping[str, Any],
        *,
        num_workers: int = 1,
        memory_limit: int | None = None,
        start_limit: float = START_LIMIT,
    ) -> None:
        first_message = {"settings": dict(settings), "memory_limit": memory_limit}
        self._lock = threading.Lock()
        self._workers = [_Worker(module, first_message, start_limit) for _ in range(num_workers)]
        weakref.finalize(self, _kill_all, self._workers)
        _POOLS.add(self)

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers that are running."""
        processes = [worker.process for worker in self._workers if worker.process is not None]
        return tuple(process.pid for process in processes if process.poll() is None)

    def greeting(self) -> dict[str, Any]:
        """Start the first worker and return what it says of itself when it is ready.

        Raises:
            WorkerSettingsError: the worker could not use its settings.
            WorkerError: the process failed or was not ready in time.
        """
        with self._lock:
            (greeting,) = self._run([_GREET], time_limit=0.0)
        if isinstance(greeting, WorkerError):
            raise greeting
        return dict(greeting)

    def ask(self, questions: Sequence[object], time_limit: float) -> list[dict[str, Any] | WorkerError]:
        """Return the answer to each question, or the error that took its place, in order.

        Calls from several threads wait for each other.

        Args:
            questions: each serializable as JSON.
            time_limit: seconds for one question.
        """
        with self._lock:
            return self._run(questions, time_limit)

    def close(self) -> None:
        """Kill the processes."""
        _kill_all(self._workers)

    def forget(self) -> None:
        """Drop the processes without killing them: in a forked child they belong to the parent."""
        self._lock = threading.Lock()  # another thread of the parent may have held it
        for worker in self._workers:
            worker.forget()

    def _run(self, questions: Sequence[object], time_limit: float) -> list[Any]:
        answers: list[Any] = [None] * len(questions)
        waiting = deque(enumerate(questions))
        busy: dict[_Worker, int] = {}
        inbox: _Inbox = queue.SimpleQueue()
        try:
            while waiting or busy:
                for worker in self._workers:
                    if waiting and worker not in busy:
                        busy[worker], question = waiting.popleft()
                        worker.send(question, time_limit, inbox)
                answered = _next_answer(busy, inbox)
                if answered is not None:
                    worker, answer = answered
                    answers[busy.pop(worker)] = answer
        finally:
            _kill_all(busy)  # after an interruption, a late answer must not reach a later question
        return answers


_GREET = object()  # in place of a question: only start the process
_POOLS: "weakref.WeakSet[WorkerPool]" = weakref.WeakSet()


class _Worker:
    """One process, started by its first question and again after it was killed. Nothing here waits."""

    def __init__(self, module: str, first_message: Mapping[str, Any], start_limit: float) -> None:
        self.module, self.first_message, self.start_limit = module, first_message, start_limit
        self.directory = Path.cwd()
        self.process: subprocess.Popen[bytes] | None = None
        self.deadline = 0.0
        self.late = WorkerError("")  # the error, should the deadline pass

    def send(self, question: object, time_limit: float, inbox: "_Inbox") -> None:
        """Have a thread put the question; the answer, or a `WorkerError`, arrives in the inbox."""
        if self.process is not None and self.process.poll() is not None:  # it ended after its last answer
            self.kill()
        is_new = self.process is None
        process = self.process = self.process or self._start()
        if is_new:
            self._set_deadline(self.start_limit, WorkerError)
        else:
            self._set_deadline(time_limit, WorkerTimeoutError)

        def exchange() -> None:
            answer: dict[str, Any] | WorkerError
            try:
                if is_new:
                    answer = _greeting(process, self.first_message)
                    self._set_deadline(time_limit, WorkerTimeoutError)
                    inbox.put(None)  # the deadline has changed
                if question is not _GREET:
                    answer = _answer(process, question, time_limit)
            except WorkerError as error:
                answer = error
            inbox.put((self, process, answer))

        threading.Thread(target=exchange, daemon=True).start()

    def kill(self) -> None:
        """End the process and every process that it has started."""
        process, self.process = self.process, None
        if process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
        process.wait()
        _close_pipes(process)

    def forget(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            _close_pipes(process)
            process.returncode = 0  # a child of the parent: there is nothing to wait for

    def _start(self) -> "subprocess.Popen[bytes]":
        search_path = os.pathsep.join(path or str(self.directory) for path in sys.path)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": search_path},
            start_new_session=True,  # killed with all its children, and spared by Ctrl-C
        )

    def _set_deadline(self, time_limit: float, error: type[WorkerError]) -> None:
        self.late = error(f"TimeoutError: no answer within {time_limit:g} seconds")
        self.deadline = time.monotonic() + time_limit


_Inbox = queue.SimpleQueue["tuple[_Worker, subprocess.Popen[bytes], dict[str, Any] | WorkerError] | None"]


def _next_answer(
    busy: Mapping[_Worker, int], inbox: _Inbox
) -> tuple[_Worker, dict[str, Any] | WorkerError] | None:
    """Wait for one event: an answer, a changed deadline (None), or a passed deadline.

    A worker that failed or ran out of time is killed.
    """
    first = min(busy, key=lambda worker: worker.deadline)
    try:
        event = inbox.get(timeout=max(0.0, first.deadline - time.monotonic()))
    except queue.Empty:
        if time.monotonic() < first.deadline:  # it was extended while we waited
            return None
        first.kill()
        return first, first.late
    if event is None:
        return None
    worker, process, answer = event
    if worker.process is not process:  # killed before its answer arrived
        return None
    if isinstance(answer, WorkerError):
        worker.kill()
    return worker, answer


def _kill_all(workers: Iterable[_Worker]) -> None:
    for worker in workers:
        worker.kill()


def _forget_all() -> None:
    for pool in list(_POOLS):
        pool.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


# --- one exchange, in a thread of its own -------------------------------------------------------------

_numbers = count(1)


def _greeting(process: "subprocess.Popen[bytes]", first_message: Mapping[str, Any]) -> dict[str, Any]:
    greeting = _exchange(process, first_message)
    if "fault" in greeting:
        raise WorkerSettingsError(greeting["fault"])
    return greeting


def _answer(process: "subprocess.Popen[bytes]", question: object, time_limit: float) -> dict[str, Any]:
    number = next(_numbers)
    reply = _exchange(process, {"number": number, "question": question, "time_limit": time_limit})
    if reply.get("number") != number:
        raise _not_an_answer()
    answer: dict[str, Any] = reply["answer"]
    return answer


def _exchange(process: "subprocess.Popen[bytes]", message: object) -> dict[str, Any]:
    """Write one line and read one.

    Raises:
        WorkerError: the process ended, or what it wrote is not one JSON object on one line.
    """
    line = b""
    with suppress(OSError, ValueError):  # the process ended, or its pipes were closed by `kill`
        _write(process, memoryview(json.dumps(message, default=str).encode() + b"\n"))
        line = _read_line(process)
    if not line.endswith(b"\n"):
        raise WorkerError(f"its worker process ended ({_ending(process)})")
    try:
        answer: dict[str, Any] = json.loads(line)
    except ValueError:
        raise _not_an_answer() from None
    if not isinstance(answer, dict):
        raise _not_an_answer()
    return answer


def _write(process: "subprocess.Popen[bytes]", unsent: memoryview) -> None:
    assert process.stdin is not None
    while unsent:
        unsent = unsent[process.stdin.write(unsent[:_CHUNK]) :]


def _read_line(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    line = bytearray()
    while part := process.stdout.read(_CHUNK):
        line += part
        if part.endswith(b"\n"):
            break
        if len(line) > MAX_LINE:
            raise WorkerError(f"its answer is longer than {MAX_LINE:,} bytes")
    return bytes(line)


def _not_an_answer() -> WorkerError:
    return WorkerError("something else was written to the pipe that answers take")


def _ending(process: "subprocess.Popen[bytes]") -> str:
    try:
        code = process.wait(_TIME_TO_END)
    except subprocess.TimeoutExpired:
        return "it closed its pipe"
    if code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _close_pipes(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(OSError):
            pipe.close()
