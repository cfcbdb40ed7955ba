r"""Answers that are LaTeX or algebra, judged by math-verify in a process of its own, within a hard limit.

A plain number never comes here: `verify` judges it. What is put to math-verify is the slot that our own rules
find, and only after the forms have been refused that it is known to take for equal: several values for one,
relations, one kind of bracket for another, an expression left to work out, the question itself. Its yes is
confirmed beyond rounding (see `algebra_worker.py`).
"""

import re
from functools import lru_cache
from importlib.util import find_spec

from llm_reinforce.errors import InputError
from llm_reinforce.verifier.final_answer import find_final_answer, sentence
from llm_reinforce.verifier.plain_answers import Verdict
from llm_reinforce.workers import WorkerError, WorkerPool, WorkerTimeoutError

TIME_LIMIT = 2.0  # seconds for one comparison
MEMORY_LIMIT = 2_048  # MiB of data that the worker may allocate
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


_WORKER = WorkerPool("llm_reinforce.verifier.algebra_worker", {}, memory_limit=MEMORY_LIMIT)


@lru_cache(maxsize=16_384)
def _compared(answer: str, right: str) -> str:
    """Compare by math-verify: `equal`, `different`, `timed_out` or `crashed`.

    Cached, so that an episode's verdict and its reward agree, after a time-out too.
    """
    (reply,) = _WORKER.ask([{"right": right, "answer": answer}], TIME_LIMIT)
    if isinstance(reply, WorkerTimeoutError):
        return "timed_out"
    if isinstance(reply, WorkerError):
        return "crashed"
    return "equal" if reply["equal"] is True else "different"
