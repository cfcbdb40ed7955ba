"""A pool of worker processes that are started when needed and killed if they take too long.

Questions and answers are lines of JSON, sent over a pair of pipes. The worker process runs `serve` from
`service.py`. Each question has its own thread, which writes to and reads from the pipes. If a pipe blocks,
only this thread waits, and the caller continues at the question's deadline. No signals are used, so questions
can be sent from any thread.
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

from llm_reinforce.workers.process_trees import kill_descendants, kill_group

START_LIMIT = 120.0  # seconds until a worker must be ready; importing its modules can take a while
MAX_LINE = 64 * 2**20  # maximum number of bytes of an answer
_CHUNK = 2**18  # maximum number of bytes that are read or written at once
_TIME_TO_END = 0.5  # seconds to wait for the exit code of a process that has closed its pipe


class WorkerError(Exception):
    """Raised or returned when a worker did not answer. The message gives the reason, such as a crash."""


class WorkerTimeoutError(WorkerError):
    """Returned when a worker was ready, but did not answer a question within the time limit."""


class WorkerSettingsError(WorkerError):
    """Raised or returned when a worker rejected its settings. The message comes from the worker."""


class WorkerPool:
    """A pool of processes that run the same module and answer questions in parallel.

    A process is started when a question needs it. If a question takes too long or fails, its process and all
    child processes are killed, and the next question starts a new process. All processes are killed when the
    pool is closed or garbage-collected, and when the interpreter exits. A forked child does not use the
    processes of its parent, but starts its own processes.

    Args:
        module: name of a module that calls `serve`.
        settings: settings sent to each process when it starts; must be serializable as JSON.
        num_workers: maximum number of processes.
        memory_limit: MiB of data that each process can allocate, on systems that enforce a limit, such as
            Linux; None for no limit.
        start_limit: seconds after which a process that is not ready is killed.
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
        """Process ids of the running workers."""
        processes = [worker.process for worker in self._workers if worker.process is not None]
        return tuple(process.pid for process in processes if process.poll() is None)

    def greeting(self) -> dict[str, Any]:
        """Start the first worker if it is not running, and return the worker's greeting; see `serve`.

        Raises:
            WorkerSettingsError: if the worker rejects its settings.
            WorkerError: if the process crashes or is not ready in time.
        """
        with self._lock:
            (greeting,) = self._run([_GREET], time_limit=START_LIMIT)
        if isinstance(greeting, WorkerError):
            raise greeting
        return dict(greeting)

    def ask(self, questions: Sequence[object], time_limit: float) -> list[dict[str, Any] | WorkerError]:
        """Return one answer or error per question, in the order of the questions.

        Calls from several threads are executed one after another.

        Args:
            questions: questions to send to the workers; each must be serializable as JSON.
            time_limit: time limit of each question, in seconds. It does not include the start of a process.
        """
        with self._lock:
            return self._run(questions, time_limit)

    def close(self) -> None:
        """Kill all processes. A later call of `ask` starts new processes."""
        _kill_all(self._workers)

    def forget(self) -> None:
        """Close the pipes to the processes without killing the processes.

        A forked child calls this method, because the processes belong to the parent, which continues to use
        them.
        """
        self._lock = threading.Lock()  # a thread of the parent may have held the lock during the fork
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
            # after an interruption, such as Ctrl-C, the answer to an old question must not reach a new one
            _kill_all(busy)
        return answers


_GREET = object()  # used instead of a question to start a process without sending a question
_POOLS: "weakref.WeakSet[WorkerPool]" = weakref.WeakSet()


class _Worker:
    """A process that starts with its first request, and starts again with the next request if it was killed.

    `send` does not wait for the answer.
    """

    def __init__(self, module: str, first_message: Mapping[str, Any], start_limit: float) -> None:
        self.module, self.first_message, self.start_limit = module, first_message, start_limit
        try:
            self.directory: Path | None = Path.cwd()
        except OSError:  # the working directory was deleted
            self.directory = None
        self.process: subprocess.Popen[bytes] | None = None
        self.deadline = 0.0
        self.greeting: dict[str, Any] = {}  # greeting of the latest process
        self.late = WorkerError("")  # the answer to the question if the deadline passes

    def send(self, question: object, time_limit: float, inbox: "_Inbox") -> None:
        """Send a question in a new thread, which puts the answer or a `WorkerError` into the inbox."""
        if self.process is not None and self.process.poll() is not None:  # the process has ended
            self.kill()
        is_new = self.process is None
        try:
            process = self.process = self.process or self._start()
        except OSError as error:
            self._set_deadline(self.start_limit, WorkerError)
            inbox.put((self, None, WorkerError(f"the worker process cannot be started: {error}")))
            return
        if is_new:
            self._set_deadline(self.start_limit, WorkerError)
        else:
            self._set_deadline(time_limit, WorkerTimeoutError)

        def exchange() -> None:
            answer: dict[str, Any] | WorkerError
            try:
                if is_new:
                    self.greeting = _greeting(process, self.first_message)
                    if self.process is process:  # the process was not killed during its start
                        self._set_deadline(time_limit, WorkerTimeoutError)
                    inbox.put(None)  # tells `_next_answer` that the deadline has changed
                answer = self.greeting if question is _GREET else _answer(process, question, time_limit)
            except WorkerError as error:
                answer = error
            except Exception as error:  # for example, the question cannot be written as JSON
                answer = WorkerError(f"{type(error).__name__}: {error}")
            inbox.put((self, process, answer))

        threading.Thread(target=exchange, daemon=True).start()

    def kill(self) -> None:
        """Kill the process and all of its child processes."""
        process, self.process = self.process, None
        if process is None:
            return
        kill_descendants(process.pid)
        kill_group(process.pid)
        process.kill()
        process.wait()
        _close_pipes(process)

    def forget(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            _close_pipes(process)
            process.returncode = 0  # only the parent can wait for this process

    def _start(self) -> "subprocess.Popen[bytes]":
        here = self.directory if self.directory is not None and self.directory.is_dir() else None
        search_path = os.pathsep.join(path or str(here or "") for path in sys.path)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=here,
            env={**os.environ, "PYTHONPATH": search_path},
            # a process group that does not receive Ctrl-C; on POSIX, it can be killed as a whole
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )

    def _set_deadline(self, time_limit: float, error: type[WorkerError]) -> None:
        self.late = error(f"TimeoutError: no answer within {time_limit:g} seconds")
        self.deadline = time.monotonic() + time_limit


_Inbox = queue.SimpleQueue[
    "tuple[_Worker, subprocess.Popen[bytes] | None, dict[str, Any] | WorkerError] | None"
]


def _next_answer(
    busy: Mapping[_Worker, int], inbox: _Inbox
) -> tuple[_Worker, dict[str, Any] | WorkerError] | None:
    """Wait for an answer, and return the worker and its answer.

    If a worker failed or did not answer before its deadline, the worker is killed, and a WorkerError is
    returned as its answer. The result is None if the caller has to call this function again.
    """
    first = min(busy, key=lambda worker: worker.deadline)
    try:
        event = inbox.get(timeout=max(0.0, first.deadline - time.monotonic()))
    except queue.Empty:
        if time.monotonic() < first.deadline:  # the deadline was extended during the wait
            return None
        first.kill()
        return first, first.late
    if event is None:
        return None
    worker, process, answer = event
    if worker.process is None and process is not None and worker in busy:
        return worker, WorkerError("the worker process was killed by close()")
    if worker.process is not process:  # the process was killed before its answer arrived
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


# --- one question and its answer, in a separate thread ------------------------------------------------

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
    """Send a message as one line of JSON, and return the reply.

    Raises:
        WorkerError: if the process ends, or if its reply is not a JSON object on a single line.
    """
    line = b""
    encoded = memoryview(json.dumps(message, default=str).encode() + b"\n")
    with suppress(OSError, ValueError):  # raised if the process has ended, or `kill` has closed its pipes
        _write(process, encoded)
        line = _read_line(process)
    if not line.endswith(b"\n"):
        raise WorkerError(f"the worker process ended ({_ending(process)})")
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
            raise WorkerError(f"the answer of the worker process is longer than {MAX_LINE:,} bytes")
    return bytes(line)


def _not_an_answer() -> WorkerError:
    return WorkerError("something other than the answer was written to the worker's answer pipe")


def _ending(process: "subprocess.Popen[bytes]") -> str:
    try:
        code = process.wait(_TIME_TO_END)
    except subprocess.TimeoutExpired:
        return "the process closed its pipe"
    if code < 0:
        with suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _close_pipes(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(OSError):
            pipe.close()
