r"""Comparison of answers that are LaTeX or algebra, with math-verify in a worker process with a time limit.

`final_answer.py` finds the final answer of a completion. Answers that are plain numbers are compared by
`verify_plain` instead. math-verify is known to accept some wrong answers, so these are rejected before
math-verify is called: several values instead of one, relations, other brackets than those of the reference
answer, expressions that are not evaluated, and repetitions of the question. If math-verify says that two
answers are equal, `algebra_worker.py` confirms this with a more precise comparison.
"""

import re
from functools import lru_cache
from importlib.util import find_spec

from llm_reinforce.errors import InputError
from llm_reinforce.verifier.final_answer import find_final_answer, sentence
from llm_reinforce.verifier.plain_answers import Verdict
from llm_reinforce.workers import WorkerError, WorkerPool, WorkerTimeoutError

TIME_LIMIT = 2.0  # seconds per comparison
MEMORY_LIMIT = 2_048  # MiB of data that the worker can allocate
_MAX_ANSWER = 1_024  # maximum characters of an answer that is compared as algebra


def verify_algebra(completion: str, answer: str, prompt: str = "", *, truncated: bool = False) -> Verdict:
    """Compare the final answer of a completion with a reference answer that is LaTeX or algebra.

    The reason of the verdict is `timed_out` if the comparison takes longer than `TIME_LIMIT` seconds, and
    `crashed` if the worker process ends, for example because it is out of memory. Otherwise the reason is one
    of those for plain answers (see `Verdict`). This function can be called from any thread and never raises
    an exception.

    Args:
        completion: the completion to verify.
        answer: the reference answer, which is not a plain number.
        prompt: the question. An answer that only repeats a part of the question is rejected.
    """
    final = find_final_answer(completion, truncated=truncated)
    slot = final.slot if final.slot is not None else sentence(final.line or "") or _last_line(final.text)
    given = _undressed(slot)
    if not given:
        return Verdict(False, None, "no_answer")
    reason = "several_values" if final.is_several else _refusal(given, _undressed(answer), prompt)
    return Verdict(reason == "equal", given, reason)


def check_algebra() -> None:
    """Check that math-verify is installed, which is needed to compare LaTeX and algebra.

    Raises:
        InputError: if math-verify is not installed.
    """
    if find_spec("math_verify") is None:
        raise InputError(
            "algebra: true needs math-verify, which is not installed; run "
            "`pip install 'llm-reinforce[algebra]'`, or remove the setting if all answers are plain numbers"
        )


# --- answers that are rejected before math-verify is called -------------------------------------------

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
    """Return `equal` if an answer equals the reference answer `right`, or the reason why it is rejected."""
    if len(answer) > _MAX_ANSWER:
        return "not_a_number"
    if _RELATION.search(answer) and not _RELATION.search(right):
        return "relation"
    if _OPERATION.search(answer) and not _OPERATION.search(right):
        return "not_evaluated"
    if _squeezed(answer) != _squeezed(right) and len(answer) > 2 and _squeezed(answer) in _squeezed(prompt):
        return "not_evaluated"  # the answer repeats the question or a part of it
    *labels, value = _parts(answer, "=") if "=" not in right else [answer]
    if len(_parts(value, ",")) > 1 and len(_parts(right, ",")) == 1:
        return "several_values"
    if _brackets(value) != _brackets(right):
        return "different"
    for label in labels[-3:]:
        if _LABEL.fullmatch(label):
            if re.search(rf"(?<![A-Za-z\\]){re.escape(label)}(?![A-Za-z])", value):
                return "relation"  # x = 5x
        elif (reason := compare_expressions(label, right)) != "equal":
            return "several_values" if reason == "different" else reason
    return compare_expressions(value, right)


def _undressed(text: str) -> str:
    text = _TEXT.sub(lambda word: f" {word[1]} ", _DRESS.sub("", text))
    return re.sub(r"\s+", " ", text.replace("$", "")).strip(" .;:*")


def _squeezed(text: str) -> str:
    return re.sub(r"[\s$]+", "", _DRESS.sub("", text))


def _parts(text: str, separator: str) -> list[str]:
    """Split a text at a separator outside brackets.

    If the separator is a comma, the text is also split at ';', 'or' and 'and'.
    """
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
    """Return the brackets around a list of values, such as '[)' for '[1,2)'.

    Returns "" if there is a single value, no brackets, or the braces of a set.
    """
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
def compare_expressions(answer: str, right: str) -> str:
    """Compare an answer with the reference answer in the worker process.

    The result is `equal`, `different`, `timed_out` or `crashed`. It is cached, so that the verdict and the
    reward of an episode agree even after a time-out.
    """
    (reply,) = _WORKER.ask([{"right": right, "answer": answer}], TIME_LIMIT)
    if isinstance(reply, WorkerTimeoutError):
        return "timed_out"
    if isinstance(reply, WorkerError):
        return "crashed"
    return "equal" if reply["equal"] is True else "different"
