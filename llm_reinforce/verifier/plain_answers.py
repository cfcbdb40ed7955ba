r"""Exact comparison of answers that are numbers or plain text.

`final_answer.py` finds the final answer of a completion, `notation.py` removes LaTeX and typographic
characters, and `commitment.py` reads the number that the answer states. This module compares the number with
the reference answer. Its functions raise no exceptions and are fast for every text.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from llm_reinforce.verifier.commitment import Reading, read_last_number, read_sentence, read_slot
from llm_reinforce.verifier.final_answer import MAX_SLOT, FinalAnswer, find_final_answer, sentence
from llm_reinforce.verifier.notation import plain
from llm_reinforce.verifier.phrases import same_unit

REMEMBERED_LENGTH = 256  # maximum number of characters of a completion whose reading is cached

WRONG = frozenset({"different", "several_values", "relation", "not_evaluated"})
"""Reasons for rejecting a completion from which an answer was read."""
UNPARSEABLE = frozenset({"no_answer", "not_a_number", "timed_out", "crashed"})
"""Reasons for rejecting a completion from which no answer could be read."""
_CHOICE_BEFORE = re.compile(r"\s*(?:[(\[]([A-Ha-h])[)\]]|([A-H])[).:])\s+(?=\S)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict on the final answer of a completion.

    `reason` is one of:

    - `equal`: the number of the reference answer, or its text if the reference answer is not a number
    - `different`: another number or text, or the number of the reference answer with another unit
    - `several_values`: more than one value ("15 or 16", an interval, or "5=6")
    - `relation`: a bound, a negation or an approximation instead of a value ("> 41", "not 42", "about 42")
    - `not_evaluated`: an expression instead of its value ("23*47", "8/4", "8+", "5!", "twice 21")
    - `no_answer`: no number was found, the slot for the answer is empty, or the reasoning block is not closed
    - `not_a_number`: text that is not a valid number ("1,04", "3/0", "2x", "3:30", "nan", more than 400
      characters)
    - `timed_out`, `crashed`: the process that compares an algebraic answer timed out or crashed (see
      `verify_algebra`)
    """

    correct: bool
    """True if the final answer is correct."""
    extracted: str | None
    """The final answer as text; None if there is no answer."""
    reason: str
    """Reason for the verdict; the values are listed above."""

    @property
    def is_unparseable(self) -> bool:
        """True if no answer could be read from the completion; see `UNPARSEABLE`."""
        return self.reason in UNPARSEABLE


def verify_plain(completion: str, answer: str, *, algebra: bool = False, truncated: bool = False) -> Verdict:
    """Compare the final answer with a reference answer that is a number or text; see `verify`."""
    reference = read_answer(answer)
    if reference.value is None:
        return _verify_text(find_final_answer(completion, truncated=truncated), answer, algebra=algebra)
    is_cached = len(completion) <= REMEMBERED_LENGTH
    reading = (read_cached if is_cached else read_completion)(completion, truncated)
    if reading.value is None:
        return Verdict(False, reading.text, reading.reason)
    is_equal = reading.value == reference.value
    if reading.is_percent != reference.is_percent:  # 20% equals 20 and 0.2, but 20% and 0.2% differ
        is_equal = (
            is_equal or reading.value * (100 if reading.is_percent else Fraction(1, 100)) == reference.value
        )
    is_other_label = reading.label and reference.label and reading.label != reference.label
    is_equal = is_equal and same_unit(reading.unit, reference.unit) and not is_other_label
    return Verdict(is_equal, reading.text, "equal" if is_equal else "different")


def read_completion(completion: str, truncated: bool = False) -> Reading:
    """Read the number that a completion states as its final answer."""
    return _read_number(find_final_answer(completion, truncated=truncated))


# cached, because the verdict and the rewards of an episode use the same text, and short answers are repeated
read_cached: Callable[..., Reading] = lru_cache(maxsize=16_384)(read_completion)


@lru_cache(maxsize=16_384)
def read_answer(answer: str) -> Reading:
    """Read the number in a text that contains only an answer, such as a reference answer.

    If the text is not one number with at most a label and a unit, the `value` of the result is None.

    >>> read_answer("1,042.50").value
    Fraction(2085, 2)
    """
    return read_slot(plain(answer[:MAX_SLOT]), is_reference=True)


def extract_answer(completion: str) -> str | None:
    """Return the final answer of a completion as text, or None if there is no answer.

    `final_answer.py` describes how the final answer is found.

    >>> extract_answer("12+3 is fifteen, so \\\\boxed{15}")
    '15'
    """
    final = find_final_answer(completion)
    if final.slot is not None:
        return plain(final.slot).strip() or None
    return _read_number(final).text or plain(final.line or "").strip() or None


def _read_number(final: FinalAnswer) -> Reading:
    if final.slot is not None:
        slot = plain(final.slot)
        if final.is_several:
            return Reading(slot.strip() or None, reason="several_values")
        choice = _CHOICE_BEFORE.match(slot)
        return read_slot(slot[choice.end() :] if choice else slot)
    reading = None if final.line is None else read_sentence(sentence(plain(final.line)))
    end = _last_digit(final.text)
    for before, window in zip((0, *_WINDOWS), _WINDOWS, strict=False):
        if reading is not None or end < before:
            break
        part = final.text[max(0, end - window) : end + _AFTER]
        reading = read_last_number(plain(_CUT_TOKEN.sub("", part, count=1) if end > window else part))
    return reading or Reading(None, reason="no_answer")


# --- the last number of a text ------------------------------------------------------------------------

# a number is searched for in 160 characters before the last digit and, if none is found, in 448 characters
_WINDOWS = (160, 448)
_AFTER = 40  # number of characters that are read after the last digit
_OTHER_DIGITS = 4_096  # digits other than 0 to 9 are searched for in this many characters at the end
_DIGIT = re.compile(r"\d")
_CUT_TOKEN = re.compile(r"[0-9A-Za-z_.,/:+-]*+")


def _last_digit(text: str) -> int:
    """Return the index of the last digit, or -1."""
    end = max(text.rfind(digit) for digit in "0123456789½¼¾")
    if not text.isascii():  # digits of other scripts
        other = _DIGIT.search(text[max(end + 1, len(text) - _OTHER_DIGITS) :][::-1])
        end = end if other is None else len(text) - other.end()
    return end


# --- text ---------------------------------------------------------------------------------------------

_NO_VALUES = frozenset({"nan", "inf", "infinity", "∞"})
_PUNCTUATION = " .,;:!?$*_`'\""
_INNER_SPACE = re.compile(r"(?<=[^\w\s])\s+(?=\S)|(?<=\w)\s+(?=[^\w\s])")
_IN_BRACKETS = re.compile(r"[(\[{]([^()\[\]{},]*+)[)\]}]")
_CHOICE = re.compile(r"[(\[]?([A-H])[)\]]?[.:]?")
_OPTION = re.compile(r"^\s*(?:option|choice)\s+(?=\S)", re.IGNORECASE)
_WORDS = re.compile(r"[A-Za-z]{3}|^\s*(?:no|No|NO)\s*$")
_OTHER_CHOICE = re.compile(r"\b(?:or|and)\b|[(\[][A-Ha-h][)\]]", re.IGNORECASE)
_LETTERS = re.compile(r"(?![A-H]$)[A-Za-z]([A-Za-z])?")  # a variable, or a product of two
# text that only algebra contains: a command, or a letter beside digits or operators; in algebra, upper and
# lower case differ
_ALGEBRA = re.compile(
    r"\\[A-Za-z]|(?<![A-Za-z])[A-Za-z](?![A-Za-z'])\s?[-+*/^_=<>!(\[]|[-+*/^=<>)\]0-9]\s?[A-Za-z](?![A-Za-z])"
    r"|[0-9]!|\)!|\|\s?[A-Za-z]\s?\||[\u0370-\u03ff]"
)
_NAME = re.compile(r"[A-Za-z\u0370-\u03ff](?:_\w{1,8})?'{0,2}(?:\([A-Za-z, ]{1,12}\))?")


def _verify_text(final: FinalAnswer, answer: str, *, algebra: bool) -> Verdict:
    given = final.text if final.line is None else final.line
    given = plain((given if final.slot is None else final.slot).strip()[: MAX_SLOT + 1]).strip()
    # a period may be part of the answer: "St. Louis"
    candidates = [given] if final.line is None else [sentence(given), given]
    reference = plain(answer[: MAX_SLOT + 1]).strip()
    if not given:
        return Verdict(False, None, "no_answer")
    if _folded(reference, is_algebra=False).lstrip("+-") in _NO_VALUES:
        return Verdict(False, given, "not_a_number")
    is_equal = bool(reference) and any(is_same_text(one, reference, algebra=algebra) for one in candidates)
    return Verdict(is_equal, candidates[0], "equal" if is_equal else "different")


def is_same_text(text: str, reference: str, *, algebra: bool) -> bool:
    """Return True if two normalized texts are equal as words, as a choice such as (B), or as algebra.

    Case and signs are significant only in algebra.
    """
    letters = _LETTERS.fullmatch(reference)
    is_algebra = bool(_ALGEBRA.search(reference)) or (letters is not None and (algebra or not letters[1]))
    is_algebra = is_algebra or (algebra and not _WORDS.search(reference) and not _CHOICE.fullmatch(reference))
    if not is_algebra and (choice := _CHOICE.match(reference)):
        rest = reference[choice.end() :]
        text = _OPTION.sub("", text)
        given = _CHOICE_BEFORE.match(text)
        is_alone = not rest and given and not _OTHER_CHOICE.search(text, given.end())
        if is_alone and given and (given[1] or given[2]).upper() == choice[1]:
            return True
    mine, theirs = (_folded(side, is_algebra=is_algebra) for side in (text, reference))
    if mine == theirs:
        return True
    left, equals, value = theirs.partition("=")
    return is_algebra and bool(equals) and "=" not in value and mine == f"{value}={left}"  # swapped sides


def _folded(text: str, *, is_algebra: bool) -> str:
    if is_algebra:
        return re.sub(r"\s+", "", text).replace("⦃", "{").replace("⦄", "}").rstrip(".,;:")
    folded = " ".join(text.casefold().split())
    folded = _INNER_SPACE.sub("", folded).strip(_PUNCTUATION)
    inner = _IN_BRACKETS.fullmatch(folded)  # "(B)" equals "B", but "[1,2)" does not equal "(1,2)"
    return (inner[1].strip(_PUNCTUATION) if inner else folded) or text.strip()
