"""Exact comparison of answers that are numbers or plain text.

`final_answer.py` finds the final answer of a completion, `notation.py` removes LaTeX and typographic
characters, and `exact_numbers.py` reads an exact number. This module compares the number, or a text that is
not a number, with the reference answer. The comparison never raises an exception and is fast for every text.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from llm_reinforce.verifier.exact_numbers import (
    MAX_NUMBER,
    NUM_ATTEMPTS,
    Reading,
    around_last_digit,
    read_last_number,
    read_phrase,
    read_slot,
)
from llm_reinforce.verifier.final_answer import MAX_SLOT, FinalAnswer, find_final_answer, sentence
from llm_reinforce.verifier.notation import plain

REMEMBERED_LENGTH = 256  # maximum characters of completions whose readings are cached

WRONG = frozenset({"different", "several_values", "relation", "not_evaluated"})
"""Reasons for rejecting a completion whose answer was read and is wrong."""
UNPARSEABLE = frozenset({"no_answer", "not_a_number", "timed_out", "crashed"})
"""Reasons for rejecting a completion from which no answer could be read."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on the final answer of a completion.

    `reason` is one of:

    - `equal`: the same number, or the same text if the reference answer is not a number
    - `different`: another number or text
    - `several_values`: more than one value ("15 or 16", an interval, "5=6")
    - `relation`: a bound, a negation or an approximation instead of a value ("> 41", "not 42", "≈ 42", "±5")
    - `not_evaluated`: an expression instead of its value ("23*47", "8/4", "8+", "5!")
    - `no_answer`: no number was found, the slot for the answer is empty or not closed, or the reasoning block
      is not closed
    - `not_a_number`: text that is not a valid number ("1,04", "3/0", "2x", "nan", more than 400 characters)
    - `timed_out`, `crashed`: the process that compares an algebraic answer timed out or crashed (see
      `verify_algebra`)
    """

    correct: bool
    """True if the final answer is correct."""
    extracted: str | None
    """The final answer as text; None if there is no answer."""
    reason: str
    """Reason of the verdict; the values are listed above."""

    @property
    def is_unparseable(self) -> bool:
        """True if no answer could be read from the completion; see `UNPARSEABLE`."""
        return self.reason in UNPARSEABLE


def verify_plain(completion: str, answer: str) -> Verdict:
    """Compare the final answer of a completion with the reference answer.

    >>> verify_plain("47+85=132", "132")
    Verdict(correct=True, extracted='132', reason='equal')
    >>> verify_plain("The answer is 15 or 16.", "15").reason
    'several_values'

    Percentages are divided by 100 in both answers: "50%" equals "0.5", and "5%" does not equal "5". If the
    reference answer is not a number, the answers are compared as text, ignoring case, white space and
    surrounding punctuation. The text compared is what `\\boxed{…}`, `####`, `<answer>` or "answer is" marks
    as the answer; without such a mark, it is the whole completion. NaN and infinities equal nothing.
    """
    right = read_answer(answer)
    if right.value is None:
        return _verify_text(find_final_answer(completion), answer)
    read: Callable[[str], Reading] = read_cached if len(completion) <= REMEMBERED_LENGTH else read_completion
    return _compared(read(completion), right.value)


def read_completion(completion: str) -> Reading:
    if is_bare_number(completion):  # fast path for the most common completion of a trained policy
        return Reading(completion, Fraction(int(completion)))
    return _read_number(find_final_answer(completion))


def is_bare_number(text: str) -> bool:
    """Return True if the text consists of digits only."""
    return len(text) <= MAX_NUMBER and text.isascii() and text.isdecimal()


def _compared(reading: Reading, right: Fraction) -> Verdict:
    if reading.value is None:
        return Verdict(False, reading.text, reading.reason)
    equal = reading.value == right
    return Verdict(equal, reading.text, "equal" if equal else "different")


# cached, because the verdict and the rewards of an episode use the same text, and short answers are repeated
read_cached = lru_cache(maxsize=16_384)(read_completion)


@lru_cache(maxsize=16_384)
def read_answer(answer: str) -> Reading:
    """Read an answer without other text, such as a reference answer, as a number.

    The `value` of the result is None if the answer is not a number.

    >>> read_answer("1,042.50").value
    Fraction(2085, 2)
    """
    return read_slot(plain(answer[:MAX_SLOT]), may_divide=True)


def extract_answer(completion: str) -> str | None:
    """Return the final answer of a completion as text, or None if there is no answer.

    `final_answer.py` describes how the final answer is found.

    >>> extract_answer("12+3 is fifteen, so \\\\boxed{15}")
    '15'
    """
    final = find_final_answer(completion)
    if final.slot is not None:
        return plain(final.slot).strip() or None
    reading = _read_number(final)
    return reading.text or (None if final.line is None else plain(final.line).strip() or None)


def _read_number(final: FinalAnswer) -> Reading:
    if final.slot is not None:
        slot = plain(final.slot)
        if final.is_several:
            return Reading(slot.strip() or None, reason="several_values")
        return read_slot(slot)
    if final.line is not None:
        reading = read_phrase(sentence(plain(final.line)))
        if reading is not None:
            return reading
    for attempt in range(NUM_ATTEMPTS):
        window = around_last_digit(final.text, attempt)
        if window is None:
            break
        reading = read_last_number(plain(window))
        if reading is not None:
            return reading
    return Reading(None, reason="no_answer")


_NO_VALUES = frozenset({"nan", "inf", "infinity", "∞"})
_PUNCTUATION = " .,;:!?$*_`'\""
_INNER_SPACE = re.compile(r"(?<=[^\w\s])\s+(?=\S)|(?<=\w)\s+(?=[^\w\s])")
_IN_BRACKETS = re.compile(r"[(\[{]([^()\[\]{},]*+)[)\]}]")


def _verify_text(final: FinalAnswer, answer: str) -> Verdict:
    if final.slot is not None:
        candidates = [final.slot]
    elif final.line is not None:
        candidates = [sentence(final.line), final.line]  # a period may be part of the answer: "St. Louis"
    else:
        candidates = [final.text.strip()]
    candidates = [plain(candidate[: MAX_SLOT + 1]).strip() for candidate in candidates]
    if not candidates[0]:
        return Verdict(False, None, "no_answer")
    right = _folded(plain(answer))
    if right.lstrip("+-") in _NO_VALUES:
        return Verdict(False, candidates[0], "not_a_number")
    for candidate in candidates:
        if right and not final.is_several and _folded(candidate) == right:
            return Verdict(True, candidate, "equal")
    return Verdict(False, candidates[0], "different")


def _folded(text: str) -> str:
    folded = " ".join(text.casefold().split())
    folded = _INNER_SPACE.sub("", folded).strip(_PUNCTUATION)
    inner = _IN_BRACKETS.fullmatch(folded)  # "(B)" equals "B", but "[1,2)" does not equal "(1,2)"
    return (inner[1].strip(_PUNCTUATION) if inner else folded) or text.strip()
