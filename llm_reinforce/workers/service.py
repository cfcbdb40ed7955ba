"""The main loop of a worker process, which answers the questions of a `WorkerPool` in the parent process.

Output that the worker's code prints goes to the error stream, so that it cannot be mistaken for an answer.
The process ends when its parent ends or its input is closed. It also ends itself if a question exceeds its
time limit and the parent has not killed the process.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

from llm_reinforce.workers.process_trees import kill_descendants, kill_group

# seconds after the time limit until the process ends itself; usually, the parent kills the process earlier
_GRACE = 2.0

Answer = Callable[[Any], object]


def serve(prepare: Callable[[Any], tuple[dict[str, Any], Answer]]) -> None:
    """Answer questions from the standard input until the input is closed or the parent process ends.

    Args:
        prepare: function that takes the pool's settings and returns a greeting, which is a dict, and the
            function that answers a question. If `prepare` raises an exception, the pool raises a
            `WorkerSettingsError` with the same message.
    """
    questions, answers = _own_pipes()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    first_message = json.loads(questions.readline())
    try:
        limit_memory(first_message["memory_limit"])
        greeting, answer = prepare(first_message["settings"])
    except Exception as error:
        _write(answers, {"fault": str(error)})
        return
    _write(answers, greeting)
    nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the process lives
    for line in questions:
        message = json.loads(line)
        # this ends the process even if C code blocks the interpreter and the parent no longer exists
        faulthandler.dump_traceback_later(message["time_limit"] + _GRACE, exit=True, file=nowhere)
        _write(answers, {"number": message["number"], "answer": answer(message["question"])})
        faulthandler.cancel_dump_traceback_later()
    _end_all()


def limit_memory(mebibytes: int | None) -> None:
    """Limit the memory that this process can allocate, if the system supports limits.

    Args:
        mebibytes: limit in MiB; None for no limit.
    """
    if mebibytes is None:
        return
    with suppress(ImportError, ValueError, OSError):  # Windows has no limits
        import resource

        # RLIMIT_DATA counts private data only, and not mapped libraries, such as the large libraries of CUDA
        resource.setrlimit(resource.RLIMIT_DATA, (mebibytes * 2**20, mebibytes * 2**20))


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return the pipes for questions and answers, after redirecting standard input and output.

    The worker's code then reads an empty standard input, and prints to the error stream.
    """
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - open as long as the process lives
    return questions, answers


def _write(answers: BinaryIO, message: object) -> None:
    answers.write(json.dumps(message, default=str).encode() + b"\n")
    answers.flush()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent and (os.name != "nt" or _exists(parent)):
        time.sleep(1.0)
    _end_all()


def _exists(pid: int) -> bool:
    """Return True if a process exists.

    Windows needs this check, because `os.getppid` returns the same id after the parent has ended.
    """
    import psutil

    return bool(psutil.pid_exists(pid))


def _end_all() -> None:
    """Kill this process and all of its child processes."""
    kill_descendants(os.getpid())
    kill_group(0)
    os._exit(1)
