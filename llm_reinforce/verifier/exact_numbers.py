r"""Reading of a single exact number from a text.

The text must be the result of `notation.plain`. Numbers become fractions, never floats. A text that does not
state exactly one value is rejected, with a reason: for example, if it contains several values, a relation, an
interval, or an expression that is not evaluated.

The running time of each pattern is linear in the length of the text, because each of its repetitions
is bounded, is possessive, or cannot overlap another repetition.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_NUMBER = 400  # maximum characters of a number; the limit of Python's int(text) is higher
_MAX_EXPONENT = 400
NUM_ATTEMPTS = 2
_WINDOWS = (512, 2_048)  # characters before the last digit that each attempt searches
_AFTER = 128  # characters after the last digit
_MAX_SLOT = 1_024  # maximum characters of a value with its label and unit
_DIGIT = re.compile(r"\d")
_CUT_TOKEN = re.compile(r"[0-9A-Za-z_.,/:+-]*+")


@dataclass(frozen=True, slots=True)
class Reading:
    """A number read from text, or the reason why there is none.

    Attributes:
        text: text that was read as the answer, whether it is a number or not; None if there is no answer.
        value: the number; None if no number was read.
        reason: reason why no number was read, as in `Verdict.reason`; "" if a number was read.
    """

    text: str | None
    value: Fraction | None = None
    reason: str = ""


_CURRENCY = (
    r"(?:(?:US|CA|AU|NZ|HK|C|A)?[$]|[£€¥₹₩₽₺₪₱]|(?:USD|EUR|GBP|JPY|INR|CNY|CAD|AUD|CHF|Rs\.?)(?=[ ]?[0-9.]))"
)
_NUMBER = rf"""
    (?P<sign> (?<! [A-Za-z0-9_)\]}}%] ) [-+] )?
    (?: {_CURRENCY} [ ]? )?
    (?:
        (?: (?P<whole> [0-9]{{1,9}} ) [ ] (?! 0 ) )?
        (?P<numerator> [0-9]++ ) [ ]?/[ ]? (?P<denominator> [0-9]++ ) (?! [.,_']?[0-9] | [ ]?/[ ]?[0-9] )
      | (?P<decimal>
            (?: [1-9][0-9]{{0,2}} (?: (?: ,[0-9]{{3}} )++ | (?: [ ][0-9]{{3}} )++ | (?: _[0-9]{{3}} )++
                                   | (?: '[0-9]{{3}} )++ ) (?! [0-9] )
              | [0-9]++ ) (?: \.[0-9]++ )?+
          | (?<! [A-Za-z0-9_).] ) \.[0-9]++
        )
        (?: [eE] (?P<exponent> [-+]?[0-9]{{1,4}} ) (?! [0-9] ) )?
        (?! [.,_']?[0-9] )
    )
    (?: [ ]? (?P<percent> % | (?: percent | per[ ]cent | pct )\b ) )?
    (?: [ ] (?P<scale> hundred | thousand | million | billion | trillion ) s?\b )?
"""
_NUMBER_HERE = re.compile(_NUMBER, re.VERBOSE)
# the order of the alternatives matters: the first that matches a whole run of digits consumes it
_TOKEN = re.compile(
    rf"""
    (?P<name> (?! {_CURRENCY} [ ]?[0-9.] )
        [A-Za-z_\ufffd][A-Za-z0-9_\ufffd]*+ (?: -[A-Za-z0-9_]++ )*+ (?: (?<=[0-9]) (?: \.[0-9]++ )++ )? )
  | (?P<compound>
        [0-9]++ (?: (?: \.[0-9]++ ){{2,}}+ | (?: /[0-9]++ ){{2,}}+ | (?: -[0-9]++ ){{2,}}+ | (?: :[0-9]++ )++
                  | (?: st|nd|rd|th )\b ) )
  | (?P<number> {_NUMBER} )
  | (?P<malformed> [0-9][0-9.,_']*+ )
    """,
    re.VERBOSE,
)
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PLAIN = re.compile(r"[-+]?[0-9][0-9,]*+(?:\.[0-9]++)?")

# --- text before or after a number which shows that the number alone is not the stated value ------------

_OPENING = r"[ \t]{0,3}[$£€({\[]{0,3}[-+]?"
_OPERAND_BEFORE = re.compile(
    r"(?: \w[ \t]{0,3}[+×÷·^]\{? | [0-9)%][ \t]{0,3}[-*/] | [0-9]\*\* | √ | (?<![A-Za-z])[a-z][ \t]{0,3}[-*/]"
    r"  | [0-9][ ](?:plus|minus|times|over|multiplied[ ]by|divided[ ]by|x)\b )" + _OPENING + "$ | [-+]{2}$",
    re.VERBOSE,
)
_OPERATOR_AFTER = re.compile(
    r"""[ \t]{0,3}(?:
        (?: [-+*/×÷·^x] | \*\* | plus\b | minus\b | times\b | divided[ ]by\b | multiplied[ ]by\b )
            [ \t]{0,3}[$£€({]{0,3}-?[0-9]
      | [+×÷^] | [π√] | [=/·][ \t]*(?:\n|$)
    ) | -[ \t]*(?:\n|$) | \([0-9] | \([a-z][-+*/^)]""",
    re.VERBOSE,
)
_STARS_AFTER = re.compile(r"[ \t]{0,3}\*++[ \t]*(?:\n|$)")
_RELATION_BEFORE = re.compile(
    r"(?: [<>≤≥≠≈∼≲≳≃≅±∓∈] =? | [!~]= | (?:^|[\s(])~ )" + _OPENING + "$"
    r"| (?:\b(?:more|less|fewer|greater|larger|smaller|bigger|higher|lower)[ ]than(?:[ ]or[ ]equal[ ]to)?"
    r"    | \bat[ ](?:least|most) | \b(?:not|never|cannot)(?:[ ](?:equal(?:s|[ ]to)?|be|exactly|just))?"
    r"    | n't(?:[ ](?:equal(?:[ ]to)?|be|exactly))? )[ ]" + _OPENING + "$",
    re.VERBOSE | re.IGNORECASE,
)
_RELATION_AFTER = re.compile(r"[ \t]{0,3}(?:[≤≥≠≈∼±∓∈]|[<>]=?[ \t]{0,3}[-$£€({]{0,3}[0-9A-Za-z]|[!~]=)")
_EQUALS_AFTER = re.compile(r"[ \t]{0,3}=")
_OR_MORE = re.compile(
    r"[ ](?:or|and)[ ](?:more|less|fewer|above|below|over|under|up|greater)\b", re.IGNORECASE
)
_ALTERNATIVE_BEFORE = re.compile(
    r"""(?: [0-9]%? (?:[ ][A-Za-z]{1,20}){0,3} ,?[ ] (?:and/)? or
              (?:[ ](?:maybe|perhaps|possibly|even|else|is|it|be|it's|rather)){0,3}[ ] (?:[A-Za-z][ ]?=[ ]?)?
          | [0-9]%?,?[ ]and[ ] | [0-9][ ]?;[ ]?
          | (?<!from[ ])(?<![0-9.,])[0-9]++ (?:[.,][0-9]++)?+ %? [ ]to[ ]
          | (?:^|[=:\[({\n]|\bis|\bare|\bbe|\beither)[ ]?
              [-$£€]? [0-9][0-9./]*+ (?:,[ ]?[-$£€]?[0-9][0-9./]*+)*+ ,[ ]?
        )"""
    + _OPENING
    + "$",
    re.VERBOSE | re.IGNORECASE,
)
_ALTERNATIVE_AFTER = re.compile(
    r"""[ \t]{0,3} (?: (?: [,;] | \(?(?:or|and|to)\b ) [ \t]{0,3} (?:or\b|and\b)? [ \t]{0,3}
          (?:(?:maybe|perhaps|possibly|even|else)[ ])? [$£€({]{0,3}-?[0-9]
      | (?:[A-Za-z]{1,20}[ ]){0,3} ,?[ ]? \(?or[ ](?:maybe[ ]|perhaps[ ]|possibly[ ])? [$£€]?-?[0-9] )""",
    re.IGNORECASE | re.VERBOSE,
)
# A letter directly after the digits is a variable, unless it is a common unit. U+FFFD stands for a token that
# has no text, or for a part of a character, so the number that it touches is unknown.
_VARIABLE_AFTER = re.compile(r"(?![gmshlLWVNJAC])[A-Za-z](?![A-Za-z])|[A-Za-z][0-9]|\ufffd")

# --- a slot -------------------------------------------------------------------------------------------

_EDGE = " \t\r\n*_`'\"()[]{}"
_LABEL = re.compile(r"[A-Za-z' ]{0,80}(?::|\b(?:is|are|has|have|was|equals)\b)\s{0,8}")
_RELATION = re.compile(
    r"[<>≤≥≠≈∼≲≳≃≅±∓∈]|[!~]=|^[ ]*~|\b(?:not|cannot|at[ ]least|at[ ]most)\b|n't\b"
    r"|\b(?:more|less|fewer|greater|larger|smaller)[ ]than\b",
    re.IGNORECASE,
)
_NEXT_EQUATION = re.compile(r"[0-9][^=,;]{0,40}(?:[,;]|\bor\b|\band\b)[^=,;]{0,20}[A-Za-z]\w{0,20}\s{0,4}$")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])[ ]?\^(?:-?[1-4](?![0-9])|\{-?[1-4]\})")
_UNIT_DIGIT = re.compile(r"\b(?:mm|cm|dm|km|m|in|ft|yd|mi)[23]\b")
_NO_UNIT = re.compile(
    r"[\\^=<>+*×÷|{}_π√‰!∞\ufffd]|(?<![A-Za-z$£€%°])/|(?:^|\s)-|\b(?:plus|minus|times)\b", re.IGNORECASE
)
_MORE_VALUES = re.compile(r"[0-9]|\b(?:or|and|to)\b", re.IGNORECASE)


def read_slot(slot: str, *, may_divide: bool = False) -> Reading:
    """Read the value of a slot, which is a text that contains an answer and no reasoning.

    Examples of slots are '$1,042.', 'x = 15' and '15 apples'. A completion marks its slot with `####` or
    `\\boxed{…}`, for example.

    Args:
        slot: content of the slot, as plain text.
        may_divide: True to accept a division whose result is a whole number, so that the reference answer
            '8/4' is read as 2.
    """
    shown = slot.strip()[:MAX_NUMBER] or None
    if len(slot) > _MAX_SLOT:
        return Reading(shown, reason="not_a_number")
    if _RELATION.search(slot):
        return Reading(shown, reason="relation" if _has_digit(slot) else "no_answer")
    *sides, text = _without_powers(slot).split("=")
    text = text.strip(_EDGE)
    label = _LABEL.match(text)
    text = text[label.end() :].lstrip(_EDGE) if label else text
    if text.startswith("-"):
        text = "-" + text[1:].lstrip()
    number = _NUMBER_HERE.match(text)
    if number is None and _has_digit(slot):
        is_left_undone = (sides and not text) or text.lstrip("-").startswith("√")
        return Reading(shown, reason="not_evaluated" if is_left_undone else "not_a_number")
    if number is None:
        return Reading(shown, reason="no_answer")
    rest = text[number.end() :]
    if _OPERATOR_AFTER.match(rest):
        return Reading(shown, reason="not_evaluated")
    if _MORE_VALUES.search(rest) or any(_NEXT_EQUATION.search(side) for side in sides):
        return Reading(shown, reason="several_values")
    unit = rest.strip(_EDGE + ".,;:?$£€¥₹")
    # a single letter is a variable, unless it is a common unit
    is_variable = len(unit) == 1 and unit.isascii() and unit.isalpha() and unit not in "gmshlLWVNJACFK"
    if is_variable or _VARIABLE_AFTER.match(rest) or _NO_UNIT.search(unit):
        return Reading(shown, reason="not_evaluated" if unit == "!" else "not_a_number")
    return _agreeing(_reading(number, shown, may_divide=may_divide), sides)


def read_phrase(sentence: str) -> Reading | None:
    """Read the answer from the rest of a sentence after "answer is".

    Usually, the answer is the number at the beginning. If the text does not begin with a number, or begins
    with an equation or an expression, the answer is the last number. Returns None if there is no number.
    """
    text = _without_powers(sentence).lstrip(_EDGE)
    if text.startswith("- "):
        text = "-" + text[1:].lstrip()
    number = _NUMBER_HERE.match(text)
    if number is None or _EQUALS_AFTER.match(text, number.end()):
        return read_last_number(text)  # 'the sum, 132'; '132 = 47+85'
    reason = _uncommitted_after(text, number.end())
    if reason == "not_evaluated":
        return read_last_number(text)  # '47+85=132'
    return Reading(text[:MAX_NUMBER], reason=reason) if reason else _reading(number, number[0].strip())


def read_last_number(text: str) -> Reading | None:
    """Read the last number of a text. Numbers in names, dates, times and versions are skipped.

    Returns None if there is no number.
    """
    text = _without_powers(text)
    last: re.Match[str] | None = None
    for token in _TOKEN.finditer(text):
        if token.lastgroup not in ("name", "compound"):
            last = token
    if last is None:
        return None
    shown = last[0].strip()[:MAX_NUMBER]
    if last["number"] is None:
        return Reading(shown, reason="not_a_number")
    # including the sign: in '5 -3' the minus is an operator
    before = text[max(0, last.start() - 96) : last.start() + len(last["sign"] or "")]
    reason = _uncommitted_before(before) or _uncommitted_after(text, last.end())
    line = text[text.rfind("\n", 0, last.start()) + 1 : last.end()]
    if _STARS_AFTER.match(text, last.end()) and "*" not in line:
        reason = "not_evaluated"  # "8*"; but "**8**" is 8 in bold
    if reason:
        return Reading(shown, reason=reason)
    *sides, _ = line.split("=")
    return _agreeing(_reading(last, shown), sides)


def around_last_digit(text: str, attempt: int) -> str | None:
    """Return the text around the last digit, in which the last number is searched.

    Args:
        text: text of any length.
        attempt: 0 for the first attempt; 1 for the second one, which returns a longer part.

    Returns:
        The part of the text; None if there is no digit, or if the first attempt already returned the whole
        text before the last digit.
    """
    end = max(text.rfind(digit) for digit in "0123456789")
    if not text.isascii():
        other = _DIGIT.search(text[end + 1 :][::-1])  # digits of other scripts
        end = end if other is None else len(text) - other.end()
    if end < 0 or (attempt and end <= _WINDOWS[attempt - 1]):
        return None
    start = end - _WINDOWS[attempt]
    if start <= 0:
        return text[: end + _AFTER]
    return _CUT_TOKEN.sub("", text[start : end + _AFTER], count=1)


def _without_powers(text: str) -> str:
    """Remove powers of units from a text: the ^2 of 'cm^2', and 'm3' as a whole."""
    return _UNIT_DIGIT.sub("", _UNIT_POWER.sub("", text))


def _has_digit(text: str) -> bool:
    return any(digit in text for digit in "0123456789")


def _uncommitted_before(text: str) -> str:
    if _OPERAND_BEFORE.search(text):
        return "not_evaluated"
    if _RELATION_BEFORE.search(text):
        return "relation"
    return "several_values" if _ALTERNATIVE_BEFORE.search(text) else ""


def _uncommitted_after(text: str, end: int) -> str:
    if _OPERATOR_AFTER.match(text, end):
        return "not_evaluated"
    if _RELATION_AFTER.match(text, end) or _OR_MORE.match(text, end):
        return "relation"
    if _ALTERNATIVE_AFTER.match(text, end):
        return "several_values"
    return "not_a_number" if _VARIABLE_AFTER.match(text, end) else ""


def _agreeing(reading: Reading, sides: list[str]) -> Reading:
    """Return the reading, or reject it if another side of its equation is a different number.

    For example, '6=6' is read as 6, and '5=6' is rejected.
    """
    for side in sides if reading.value is not None else ():
        side = side.strip(_EDGE)[:MAX_NUMBER]
        if _PLAIN.fullmatch(side) and Fraction(side.replace(",", "")) != reading.value:
            return Reading(reading.text, reason="several_values")
    return reading


def _reading(number: re.Match[str], shown: str | None, *, may_divide: bool = False) -> Reading:
    """Convert a match of _NUMBER to a reading with its exact value.

    A fraction that equals a whole number, such as 8/4, is rejected as not evaluated unless `may_divide` is
    True.
    """
    refused = Reading(shown, reason="not_a_number")
    if len(number[0]) > MAX_NUMBER or abs(int(number["exponent"] or 0)) > _MAX_EXPONENT:
        return refused
    if number["decimal"] is not None:
        digits = re.sub("[, _']", "", number["decimal"])
        value = Fraction(int(digits) if digits.isdecimal() else digits)
        if number["exponent"]:
            value *= Fraction(10) ** int(number["exponent"])
    else:
        numerator, denominator = int(number["numerator"]), int(number["denominator"])
        if denominator == 0 or (number["whole"] and numerator >= denominator):
            return refused
        if numerator % denominator == 0 and not may_divide and not number["whole"]:
            return Reading(shown, reason="not_evaluated")
        value = Fraction(numerator, denominator) + int(number["whole"] or 0)
    # only if needed, because operations on fractions are slow and most numbers have no scale, % or minus
    if number["scale"]:
        value *= _SCALES.get(number["scale"], 1)
    if number["percent"]:
        value /= 100
    return Reading(shown, value=-value if number["sign"] == "-" else value)
