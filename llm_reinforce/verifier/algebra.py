r"""Answers that are LaTeX or algebra, judged by math-verify in a process of its own, within a hard limit.

A plain number never comes here: `verify` judges it. What is put to math-verify is the slot that our own rules
find, and only after the forms have been refused that it is known to take for equal: several values for one,
relations, one kind of bracket for another, an expression left to work out, the question itself. Its yes is
confirmed beyond rounding (see `algebra_worker.py`).
"""

import atexit
import json
import os
import re
import subprocess
import sys
import threading
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from llm_reinforce.errors import InputError
from llm_reinforce.verifier.final_answer import find_final_answer, sentence
from llm_reinforce.verifier.plain_answers import Verdict

TIME_LIMIT = 2.0  # seconds for one comparison
START_LIMIT = 120.0  # seconds until the worker has imported its libraries
_MAX_ANSWER = 1_024  # characters of an answer that is compared as algebra


def verify_algebra(completion: str, answer: str, prompt: str = "") -> Verdict:
    """Compare a completion's final answer with the right one, which is LaTeX or algebra and no plain number.

    Reasons beyond those of plain answers: `timed_out` if the comparison takes longer than `TIME_LIMIT`
    seconds, `crashed` if it ends its worker (out of memory, say). Works from any thread; never raises.

    Args:
        prompt: the question; a completion that repeats a part of it has not evaluated it.
    """
    final = find_final_answer(completion)
    slot = final.slot if final.slot is not None else sentence(final.line or "") or _last_line(final.text)
    given = _undressed(slot)
    if not given:
        return Verdict(False, None, "no_answer")
    reason = "several_values" if final.is_several else _refusal(given, _undressed(answer), prompt)
    return Verdict(reason == "equal", given, reason)


def check_algebra() -> None:
    """Check that math-verify, which compares algebra, is installed.

    Raises:
        InputError: it isn't.
    """
    if find_spec("math_verify") is None:
        raise InputError(
            "algebra: true needs math-verify, which isn't installed: `pip install 'llm-reinforce[algebra]'`, "
            "or leave algebra out where the answers are plain numbers"
        )


# --- what is refused before math-verify sees it -------------------------------------------------------

_DRESS = re.compile(
    r"\\(?:displaystyle|left|right|big[lr]?|Big[lr]?|,|;|!|:|quad)(?![A-Za-z])|\\\(|\\\)|\\\[|\\\]"
)
_TEXT = re.compile(r"\\text\{\s{0,4}(or|and)\s{0,4}\}")
_RELATION = re.compile(
    r"[<>≤≥≠≈∈±]|\\(?:neq?|leq?|geq?|lt|gt|approx|sim|simeq|leqslant|geqslant|in|pm|mp|equiv|cong|not)(?![A-Za-z])"
    r"|\b(?:not|at least|at most|more than|less than)\b"
)
_OPERATION = re.compile(
    r"\\(?:int|sum|prod|lim|binom|dbinom|det|gcd|max|min|operatorname)(?![A-Za-z])|!|\\frac\{d\}|\\bmod|\\pmod"
)
_LABEL = re.compile(r"\\?[A-Za-z](?:_\{?\w{1,8}\}?)?'{0,2}(?:\([A-Za-z, ]{1,12}\))?")
_OPENING, _CLOSING = "([{", ")]}"


def _refusal(answer: str, right: str, prompt: str) -> str:
    """`equal`, or the reason why not."""
    if len(answer) > _MAX_ANSWER:
        return "not_a_number"
    if _RELATION.search(answer) and not _RELATION.search(right):
        return "relation"
    if _OPERATION.search(answer) and not _OPERATION.search(right):
        return "not_evaluated"
    if _squeezed(answer) != _squeezed(right) and len(answer) > 2 and _squeezed(answer) in _squeezed(prompt):
        return "not_evaluated"  # the question, or a part of it
    *labels, value = _parts(answer, "=") if "=" not in right else [answer]
    if len(_parts(value, ",")) > 1 and len(_parts(right, ",")) == 1:
        return "several_values"
    if _brackets(value) != _brackets(right):
        return "different"
    for label in labels[-3:]:
        if _LABEL.fullmatch(label):
            if re.search(rf"(?<![A-Za-z\\]){re.escape(label)}(?![A-Za-z])", value):
                return "relation"  # x = 5x
        elif (reason := _compared(label, right)) != "equal":
            return "several_values" if reason == "different" else reason
    return _compared(value, right)


def _undressed(text: str) -> str:
    text = _TEXT.sub(lambda word: f" {word[1]} ", _DRESS.sub("", text))
    return re.sub(r"\s+", " ", text.replace("$", "")).strip(" .;:*")


def _squeezed(text: str) -> str:
    return re.sub(r"[\s$]+", "", _DRESS.sub("", text))


def _parts(text: str, separator: str) -> list[str]:
    """The text cut where the separator (for a comma: 'or' and 'and' too) stands outside all brackets."""
    words = re.compile(r"\bor\b|\band\b|[,;]" if separator == "," else re.escape(separator))
    parts, start, depth, index = [], 0, 0, 0
    while index < len(text):
        depth += (text[index] in _OPENING) - (text[index] in _CLOSING)
        found = words.match(text, index) if depth <= 0 else None
        if found:
            parts.append(text[start:index].strip())
            start = found.end()
        index = found.end() if found else index + 1
    return [*parts, text[start:].strip()]


def _brackets(text: str) -> str:
    """The brackets around a list: '[)' of '[1,2)'. A set's braces count as none, a lone value has none."""
    text = text.replace(r"\{", "{").replace(r"\}", "}").strip()
    if len(text) < 2 or text[0] not in _OPENING or text[-1] not in _CLOSING:
        return ""
    around = text[0] + text[-1]
    return around if around != "{}" and len(_parts(text[1:-1], ",")) > 1 else ""


def _last_line(text: str) -> str:
    return text[-_MAX_ANSWER:].strip().rpartition("\n")[2]


# --- the worker ---------------------------------------------------------------------------------------


class AlgebraWorker:
    """A process that compares, started when it is first asked and again after it was killed.

    One of them serves all threads, in turn. A forked child starts its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._was_killed = False

    def compare(self, answer: str, right: str, limit: float) -> str:
        """`equal`, `different`, `timed_out` (after `limit` seconds) or `crashed`."""
        with self._lock:
            is_dead = self._process is None or self._process.poll() is not None
            if is_dead and self._ask(None, START_LIMIT) is None:
                return "crashed"
            request = {"right": right, "answer": answer, "limit": limit}
            reply = self._ask(request, limit)
        if reply is None:
            return "timed_out" if self._was_killed else "crashed"
        return "equal" if reply.get("equal") is True else "different"

    def _ask(self, request: dict[str, object] | None, limit: float) -> dict[str, object] | None:
        """One line to the process and one from it; killed after `limit` seconds. None: start it."""
        process = self._start() if request is None else self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        self._was_killed = False
        timer = threading.Timer(limit, self._kill)
        timer.daemon = True
        timer.start()
        try:
            if request is not None:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
            reply: dict[str, object] | None = json.loads(line) if line else None
        except (OSError, ValueError):
            reply = None
        finally:
            timer.cancel()
        if reply is None:
            self.stop()
        return reply

    def _start(self) -> subprocess.Popen[str]:
        file = Path(__file__).with_name("algebra_worker.py")
        # -P: the worker's own folder, where a numbers.py lies, must not come before the standard library
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        return self._process

    def _kill(self) -> None:
        self._was_killed = True
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """End the process; the next comparison starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            self._close(process)

    def forget(self) -> None:
        """In a forked child: the parent's process is not ours to use, nor to keep alive."""
        process, self._process = self._process, None
        self._lock = threading.Lock()
        if process is not None:
            self._close(process)
            process.returncode = 0  # nor to wait for

    @staticmethod
    def _close(process: "subprocess.Popen[str]") -> None:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue  # a request that was never read


_WORKER = AlgebraWorker()
atexit.register(_WORKER.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_WORKER.forget)


@lru_cache(maxsize=16_384)
def _compared(answer: str, right: str) -> str:
    """Remembered, so that an episode's verdict and its reward agree, a time-out included."""
    return _WORKER.compare(answer, right, TIME_LIMIT)
