"""The answering side: the main loop of a worker process.

What a worker's code prints goes to the error stream, so that it cannot be mistaken for an answer. The process
ends with its parent, at the end of its input, and some time after a question's time limit if the parent did
not kill it.
"""

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

_GRACE = 2.0  # seconds beyond the time limit, which the parent enforces as a rule

Answer = Callable[[Any], object]


def serve(prepare: Callable[[Any], tuple[dict[str, Any], Answer]]) -> None:
    """Answer questions from the standard input until it ends or the parent process has ended.

    Args:
        prepare: takes the pool's settings and returns a greeting and the function that answers a question.
            An exception that it raises is reported to the pool; its message must say what is wrong.
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
    nowhere = open(os.devnull, "w")  # noqa: SIM115 - open as long as the process lives
    for line in questions:
        message = json.loads(line)
        # ends this process even while C code holds the interpreter and the parent is gone
        faulthandler.dump_traceback_later(message["time_limit"] + _GRACE, exit=True, file=nowhere)
        _write(answers, {"number": message["number"], "answer": answer(message["question"])})
        faulthandler.cancel_dump_traceback_later()
    _end_all()


def limit_memory(mebibytes: int | None) -> None:
    """Limit what this process may allocate, where the system can; None: no limit."""
    if mebibytes is None:
        return
    with suppress(ImportError, ValueError, OSError):  # not on Windows
        import resource

        # private data only: mapped libraries, such as CUDA's large ones, do not count
        resource.setrlimit(resource.RLIMIT_DATA, (mebibytes * 2**20, mebibytes * 2**20))


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep the pipes to the parent; the worker's code sees an empty input and prints to the error stream."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdin = open(os.devnull)  # noqa: SIM115 - open as long as the process lives
    return questions, answers


def _write(answers: BinaryIO, message: object) -> None:
    answers.write(json.dumps(message, default=str).encode() + b"\n")
    answers.flush()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    _end_all()


def _end_all() -> None:
    """End this process and every process that it has started."""
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
