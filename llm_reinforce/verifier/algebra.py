r"""Comparison of answers that are LaTeX or algebra, with math-verify's parser in worker processes.

`final_answer.py` finds the final answer of a completion. Answers that are plain numbers are compared by
`verify_plain`, not by this module. This module splits an answer into parts, and `algebra_worker.py` compares
the parts. The rules are:

- *Equation*: two equations are equal if they differ only by a nonzero factor or have swapped sides.
  `y = 2x+1` and `2x+1` are also equal, because y only names the value.
- *Label*: `AB = `, `f(x) = `, `|z| = `, `(x,y) = ` and `x \in ` are names of the value that follows.
- *List*: values are separated by commas, semicolons, "or" or "and", and their order does not matter.
  `\pm` stands for two values.
- *Unit*: a `\text{…}` at the end is a unit, which must agree if both answers have one.
- *Base*: numbers with a base are compared as text.
- *Rejected*: relations, operations that are not evaluated, and repetitions of the question.
"""

import os
import queue
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import accumulate

from llm_reinforce.errors import InputError
from llm_reinforce.verifier.final_answer import find_final_answer, sentence
from llm_reinforce.verifier.phrases import same_unit, unit_names
from llm_reinforce.verifier.plain_answers import Verdict
from llm_reinforce.workers import WorkerError, WorkerPool, WorkerTimeoutError

TIME_LIMIT = 2.0  # seconds per comparison
MEMORY_LIMIT = 2_048  # MiB of data that each worker can allocate
NUM_WORKERS = max(
    2, min(8, os.cpu_count() or 1)
)  # maximum number of comparisons at a time; each worker starts when needed
_MAX_ANSWER = 1_024  # maximum characters of an answer that is compared as algebra
_MAX_VALUES = 32  # maximum number of values in a list


def verify_algebra(completion: str, answer: str, prompt: str = "", *, truncated: bool = False) -> Verdict:
    """Compare the final answer of a completion with a reference answer that is LaTeX or algebra.

    The reason for the verdict is `timed_out` if the comparison takes longer than `TIME_LIMIT` seconds, and
    `crashed` if the worker process ends, for example because it is out of memory. All other reasons are
    listed in `Verdict`. This function can be called from any thread and never raises an exception. Up to
    `NUM_WORKERS` threads compare answers at the same time.

    Args:
        completion: the completion to verify.
        answer: the reference answer, which is not a plain number.
        prompt: the question. An answer that only repeats a part of the question is rejected.
        truncated: True if the completion ended at the token budget; see `verify`.
    """
    final = find_final_answer(completion, truncated=truncated)
    slot = final.slot if final.slot is not None else sentence(final.line or "") or _last_line(final.text)
    given = _undressed(slot)
    if not given:
        return Verdict(False, None, "no_answer")
    reason = _refusal(given, _undressed(answer), prompt)
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


# --- the parts of an answer ---------------------------------------------------------------------------

_DRESS = re.compile(
    r"\\(?:displaystyle|textstyle|left|right|big[lr]?|Big[lr]?|,|;|!|:|quad|qquad)(?![A-Za-z])"
    r"|\\\(|\\\)|\\\[|\\\]|\*\*"
)
_UNDRESSED = (
    (_DRESS, ""),
    (re.compile(r"\\(?:text)?color\s?\{[^{}]{0,32}\}\s?(?:\{([^{}]*+)\})?"), r"\1"),
    (re.compile(r"\{\s?([0-9A-Z]++)\s?\}(?=\s?_)"), r"\1"),  # a number with a base
    (re.compile(r"(?<=[0-9}])~(?=\s?[\\A-Za-z])|\s+"), " "),
    (re.compile(r"\\(?:text|textbf|mathrm|mbox|textrm)\s?\{\s{0,4}(or|and)\s{0,4}\}"), r" \1 "),
    (re.compile(r"\$"), ""),
)
_UNIT = re.compile(
    r"(?<=[^\s(,=])\s*(?:\\ )?\\(?:text|mathrm|mbox|textrm)\s?\{([A-Za-z. /]{1,40})\}(?:\^\{?([2-9])\}?)?$"
)
_HEDGE = re.compile(
    r"[<>≤≥≠≈]|\\(?:neq?|leq?|geq?|lt|gt|approx|sim|simeq|leqslant|geqslant|equiv|cong|not)(?![A-Za-z])"
    r"|(?<![A-Za-z\\])(?:not|at least|at most|more than|less than|about|approximately|roughly|if|unless)\b|~"
)
_SIGNS = re.compile(r"±|∓|\\(?:pm|mp)(?![A-Za-z])")
_MEMBER = re.compile(r"∈|\\in(?![A-Za-z])")
_OPERATION = re.compile(
    r"\\begin\{[vV]matrix\}|\\(?:int|sum|prod|lim|binom|dbinom|det|gcd|max|min|operatorname)(?![A-Za-z])|!|\\frac\{d\}|\\bmod|\\pmod"
)
_BASE = re.compile(r"(?:\\text\{)?([0-9A-Z]++)\}?_\{?\s?([0-9]{1,3})\s?\}?")
_NAME = re.compile(
    r"\|?(?:\\[A-Za-z]+\s?)?\{?([A-Za-z]{1,8}|\\[A-Za-z]+)\}?(?:_\{?\w{1,8}\}?)?'{0,2}(?:\([^()=]{1,12}\))?\|?"
    r"|\(\s?[A-Za-z](?:_\w)?(?:\s?,\s?[A-Za-z](?:_\w)?){1,3}\s?\)"
)
_VARIABLE = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_OTHER_COMMAND = re.compile(
    r"\\(?!alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|rho|sigma|tau|[A-Z])[A-Za-z]+|\{(?:array|[bpv]?matrix)\}"
)
_WORDS_ONLY = re.compile(r"(?:\\[a-z]{4,8}\s?\{)?[A-Za-z]{3,}(?:[ -][A-Za-z]{1,})*\}?")
_OPENING, _CLOSING = "([{", ")]}"
_COMMA = re.compile(r"[()\[\]{}]|(?:,\s*)?\b(?:or|and)\b|[,;]")
_EQUALS = re.compile(r"[()\[\]{}]|=")


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer without its labels and unit: values in any order, or the two sides of an equation."""

    values: tuple[str, ...]
    equation: tuple[str, str] | None = None  # the two sides, if the answer has exactly one equals sign
    is_named: bool = False  # True if the left side of the equation only names the value
    others: tuple[str, ...] = ()  # further sides of `a = b = c`, which must have the same value
    unit: tuple[str, ...] = ()
    has_signs: bool = False
    reason: str = ""


def _refusal(given: str, reference: str, prompt: str) -> str:
    """Return "equal" if `given` equals the reference answer, or the reason to reject `given`."""
    if len(given) > _MAX_ANSWER or not _is_well_formed(given):
        return "not_a_number"
    if _HEDGE.search(given) and not _HEDGE.search(reference):
        return "relation"
    if _OPERATION.search(given) and not _OPERATION.search(reference):
        return "not_evaluated"
    if _squeezed(given) != _squeezed(reference) and len(given) > 2 and _squeezed(given) in _squeezed(prompt):
        return "not_evaluated"  # the answer repeats the question or a part of it
    if _WORDS_ONLY.fullmatch(reference) and len(reference) > 3:
        return "different"  # equal texts have already been accepted
    mine, theirs = _taken_apart(given), _taken_apart(reference)
    if mine.reason:
        return mine.reason
    if not same_unit(mine.unit, theirs.unit):
        return "different"
    if theirs.equation is not None and not (theirs.is_named and mine.equation is None):
        return _compare_equations(mine, theirs)
    return _compare_values(mine, theirs)


def _compare_equations(mine: _Answer, theirs: _Answer) -> str:
    if mine.equation is None or theirs.equation is None:
        return "different"
    names = [side.equation[0] for side in (mine, theirs) if side.equation and side.is_named]
    if len(names) == 2 and (_squeezed(names[0]) == _squeezed(names[1]) or any("(" in name for name in names)):
        return _compare_values(mine, theirs)
    return compare_parts(mine.equation, theirs.equation, is_equation=True)


def _compare_values(mine: _Answer, theirs: _Answer) -> str:
    if mine.equation is not None and not mine.is_named and not mine.others:
        left, value = map(_letters, mine.equation)
        if not left or left & value:  # `x+y = 3` names its value, but `x = 5x` does not
            return "different"
    values, reference = mine.values, theirs.values
    if mine.has_signs and len(reference) == 1:
        return "relation"
    if len(values) != len(reference):
        return "several_values" if len(values) > len(reference) else "different"
    if any(_brackets(value) not in {_brackets(one) for one in reference} for value in values):
        return "different"
    for other in mine.others:
        if (reason := compare_parts((other,), reference)) != "equal":
            return "several_values" if reason == "different" else reason
    return compare_parts(values, reference)


@lru_cache(maxsize=4_096)
def _taken_apart(text: str) -> _Answer:
    unit = _UNIT.search(text)
    names: tuple[str, ...] = ()
    if unit and not _NAME.fullmatch(text):
        names = unit_names((unit[1] + (f"^{unit[2]}" if unit[2] else "")).split())
        text = text[: unit.start()].strip()
    items = _parts(_without_member(text), ",")
    if len(items) == 1 and "=" not in text and items[0].startswith(r"\{") and items[0].endswith(r"\}"):
        items = _parts(items[0][2:-2], ",")
    sides = [_parts(item, "=") for item in items]
    if len(items) > _MAX_VALUES:
        return _Answer((text,), reason="not_a_number")
    if len(items) == 1:
        return _one_item(sides[0], names)
    labels = {_squeezed(side) for item in sides for side in item[:-1]}
    if len(labels) > 1 or any(not _is_label(side, item[-1]) for item in sides for side in item[:-1]):
        return _Answer(tuple(items), unit=names, reason="several_values")
    return _Answer(_signed([item[-1] for item in sides]), unit=names)


def _one_item(sides: list[str], unit: tuple[str, ...]) -> _Answer:
    *labels, value = sides
    value = _without_member(value)
    values = _signed([value])
    if not labels:
        return _Answer(values, unit=unit, has_signs=len(values) > 1)
    if re.search(rf"(?<![A-Za-z\\]){re.escape(labels[-1])}(?![A-Za-z])", value) and len(labels[-1]) == 1:
        return _Answer(values, unit=unit, reason="relation")  # x = 5x
    others = tuple(label for label in labels if not _is_label(label, value))
    is_named = not others
    if len(labels) > 1:
        return _Answer(values, others=others, unit=unit)
    return _Answer(values, (labels[0], value), is_named, () if _letters(labels[0]) else others, unit)


def _without_member(text: str) -> str:
    r"""Return `[1,2)` for a text such as `x \in [1,2)`. Return other texts unchanged."""
    member = _MEMBER.search(text)
    return (
        text[member.end() :].strip() if member and _NAME.fullmatch(text[: member.start()].strip()) else text
    )


def _letters(text: str) -> set[str]:
    """Return the variables of an expression."""
    return set(_VARIABLE.findall(_OTHER_COMMAND.sub(" ", text)))


def _is_label(side: str, value: str) -> bool:
    """Return True if `side` is a name that does not occur in `value`, the last side of the same equation."""
    name = _NAME.fullmatch(side.strip())
    if name is None or (name[1] and len(name[1]) > 1 and name[1].islower()):  # xy is a product
        return False
    return name[1] is None or not re.search(rf"(?<![A-Za-z\\]){re.escape(name[1])}(?![A-Za-z])", value)


def _signed(values: list[str]) -> tuple[str, ...]:
    r"""Replace each value that contains `\pm` with two values, one with a plus and one with a minus sign."""
    signed: list[str] = []
    for value in values:
        if len(_SIGNS.findall(value)) == 1:
            signed += [_SIGNS.sub(" + ", value).strip().removeprefix("+"), _SIGNS.sub(" - ", value)]
        else:
            signed.append(value)
    return tuple(value.strip() for value in signed)


def _is_well_formed(text: str) -> bool:
    depths = list(accumulate({"{": 1, "}": -1}.get(brace, 0) for brace in re.findall(r"\\[\\{}]|[{}]", text)))
    is_balanced = not depths or (min(depths) >= 0 and depths[-1] == 0)
    return is_balanced and text.count(r"\begin") == text.count(r"\end")


def _undressed(text: str) -> str:
    for pattern, replacement in _UNDRESSED:
        text = pattern.sub(replacement, text)
    return text.strip(" .;:")


def _squeezed(text: str) -> str:
    return re.sub(r"[\s$]+", "", _DRESS.sub("", text))


def _parts(text: str, separator: str) -> list[str]:
    """Split a text at each separator that is outside brackets.

    If the separator is a comma, the text is also split at ';', 'or' and 'and'.
    """
    parts, start, depth = [], 0, 0
    for found in (_COMMA if separator == "," else _EQUALS).finditer(text):
        depth += (found[0] in _OPENING) - (found[0] in _CLOSING)
        if depth <= 0 and found[0] not in _OPENING + _CLOSING:
            parts.append(text[start : found.start()].strip())
            start = found.end()
    return [*parts, text[start:].strip()]


def _brackets(text: str) -> str:
    """Return the brackets around a list of values, such as '[)' for '[1,2)'.

    The result is "" if there is a single value, if there are no brackets, or if the brackets are the braces
    of a set.
    """
    text = text.replace(r"\{", "{").replace(r"\}", "}").strip()
    if len(text) < 2 or text[0] not in _OPENING or text[-1] not in _CLOSING:
        return ""
    around = text[0] + text[-1]
    return around if around != "{}" and len(_parts(text[1:-1], ",")) > 1 else ""


def _last_line(text: str) -> str:
    return text[-_MAX_ANSWER:].strip().rpartition("\n")[2]


# --- the workers --------------------------------------------------------------------------------------


_idle: "queue.LifoQueue[WorkerPool]"  # last in, first out: a single thread uses only one worker


def _renew_workers() -> None:
    global _idle
    _idle = queue.LifoQueue()
    for _ in range(NUM_WORKERS):
        _idle.put(WorkerPool("llm_reinforce.verifier.algebra_worker", {}, memory_limit=MEMORY_LIMIT))


_renew_workers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_workers)


@lru_cache(maxsize=16_384)
def compare_parts(answer: tuple[str, ...], reference: tuple[str, ...], *, is_equation: bool = False) -> str:
    """Compare an answer with the reference answer in a worker process.

    Values are compared as lists whose order does not matter. Equations are equal if they differ only by a
    constant factor that is not zero.

    The result is `equal`, `different`, `timed_out` or `crashed`. It is cached, so that the verdict and the
    reward of an episode agree even after a time-out.

    Args:
        answer: the values of the answer, or the two sides of its equation.
        reference: the values of the reference answer, or the two sides of its equation.
        is_equation: True if `answer` and `reference` are the sides of equations.
    """
    if any(map(_BASE.fullmatch, (*answer, *reference))):
        return "equal" if _in_base(answer) == _in_base(reference) else "different"
    idle = _idle
    worker = idle.get()
    try:
        question = {"reference": reference, "answer": answer, "is_equation": is_equation}
        (reply,) = worker.ask([question], TIME_LIMIT)
    finally:
        idle.put(worker)
    if isinstance(reply, WorkerTimeoutError):
        return "timed_out"
    if isinstance(reply, WorkerError):
        return "crashed"
    return "equal" if reply["equal"] is True else "different"


def _in_base(values: tuple[str, ...]) -> list[tuple[str, ...] | str]:
    found = [_BASE.fullmatch(value) for value in values]
    return [base.groups() if base else value for base, value in zip(found, values, strict=True)]
