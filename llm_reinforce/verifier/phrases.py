"""Numbers with their signs, fractions, scales, percent signs and units, read from tokens.

A *phrase* is one written number with everything that belongs to it, such as `-$1,042.50`, `5 1/2`, `50%`,
`1.5 million dollars` or `15 km/h`. Its value is an exact fraction. What stands around a phrase is checked by
`commitment.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from llm_reinforce.verifier.lexicon import (
    ATTACHED_LETTERS,
    COPULAS,
    HEDGES,
    HEDGES_AFTER,
    NEGATIONS,
    NO_UNITS,
    OPERATIONS_AFTER,
    PER_CENT,
    SCALES,
    UNITS,
    WRONG_AFTER,
)
from llm_reinforce.verifier.tokens import Token

MAX_NUMBER = 400  # maximum characters of a number; the limit of Python's int(text) is higher
_MAX_EXPONENT = 400
_NUMBERS = frozenset(("number", "malformed", "compound", "ordinal"))
_OPERANDS = _NUMBERS | {"close", "percent", "letter", "degree", "factorial", "function"}
_UNIT = re.compile(r"([^\W\d_]+)[ ]*(?:\^?\(?(-?[1-9])\)?)?")
_UNIT_WORDS = 3  # maximum words of a unit
_VOWEL = re.compile("[aeiouAEIOU]")
_BY_POWER = {"square": "^2", "sq": "^2", "cubic": "^3", "squared": "^2", "cubed": "^3"}


@dataclass(slots=True)
class Phrase:
    """A written number.

    Attributes:
        first, last: range of its tokens; `last` is the index after its last token.
        number: index of the token with the digits.
        value: value; for a percentage, the number before the percent sign.
        reason: reason why there is no value, as in `Verdict.reason`; "" if there is one.
        is_percent: True if a percent sign belongs to the number.
        unit: names of the units or nouns after the number, or of the currency before it.
    """

    first: int
    last: int
    number: int
    value: Fraction | None = None
    reason: str = ""
    is_percent: bool = False
    unit: tuple[str, ...] = ()


def find_phrases(tokens: Sequence[Token], *, leads: bool, is_reference: bool = False) -> list[Phrase]:
    """Return the phrases of a text in order.

    Args:
        tokens: tokens of the text.
        leads: True if the text begins with the answer, so that "- 5" is -5 and not an item of a list.
        is_reference: True if the text is a reference answer: a division is evaluated, and a letter directly
            after the digits is a variable.
    """
    phrases: list[Phrase] = []
    index = 0
    while index < len(tokens):
        if tokens[index].kind not in _NUMBERS:
            index += 1
            continue
        phrase = _phrase(tokens, index, leads=leads, is_reference=is_reference)
        phrases.append(phrase)
        index = max(index + 1, phrase.last)
    return phrases


def _phrase(tokens: Sequence[Token], index: int, *, leads: bool, is_reference: bool) -> Phrase:
    phrase = Phrase(index, index + 1, index, reason="not_a_number")
    if tokens[index].kind == "number" and tokens[index].end - tokens[index].start <= MAX_NUMBER:
        _read_value(tokens, phrase, may_divide=is_reference)
        _read_scale(tokens, phrase)
        _read_sign(tokens, phrase, leads=leads)
        unit, last, reason = _read_unit(tokens, phrase.last, is_reference=is_reference)
        phrase.unit, phrase.last = phrase.unit or unit, last
        phrase.reason = phrase.reason or reason
        if phrase.reason:
            phrase.value = None
    return phrase


def _read_value(tokens: Sequence[Token], phrase: Phrase, *, may_divide: bool) -> None:
    """Read `42`, `3/4` or `5 1/2`.

    A fraction that equals a whole number, such as 8/4, is not evaluated, unless its denominator is 1.
    """
    index = phrase.number
    whole = _fraction_at(tokens, index + 1) and _integer(tokens, index)
    if whole and tokens[index + 1].start > tokens[index].end:
        numerator, denominator = _fraction_at(tokens, index + 1) or (0, 0)
        phrase.last = index + 4
        phrase.reason = "" if numerator < denominator else "not_a_number"
        phrase.value = int(whole) + Fraction(numerator, max(denominator, 1))
        return
    parts = _fraction_at(tokens, index)
    if parts is None:
        phrase.value = _decimal(tokens[index].text)
        phrase.reason = "" if phrase.value is not None else "not_a_number"
        return
    phrase.last = index + 3
    numerator, denominator = parts
    if denominator == 0:
        return
    phrase.value = Fraction(numerator, denominator)
    is_undone = phrase.value.denominator == 1 and denominator != 1 and not may_divide
    phrase.reason = "not_evaluated" if is_undone else ""


def _fraction_at(tokens: Sequence[Token], index: int) -> tuple[int, int] | None:
    if index + 2 >= len(tokens) or tokens[index + 1].text != "/":
        return None
    numerator, denominator = _integer(tokens, index), _integer(tokens, index + 2)
    is_chain = index + 3 < len(tokens) and tokens[index + 3].text == "/"
    if is_chain and index + 4 < len(tokens) and tokens[index + 4].kind in _NUMBERS:
        return None  # 14 / 15 / 16
    if not numerator or not denominator or tokens[index + 2].start - tokens[index].end > 3:
        return None
    return int(numerator), int(denominator)


def _integer(tokens: Sequence[Token], index: int) -> str | None:
    token = tokens[index]
    is_integer = token.kind == "number" and len(token.text) <= MAX_NUMBER and token.text.isdecimal()
    return token.text if is_integer else None


def _decimal(text: str) -> Fraction | None:
    mantissa, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) > _MAX_EXPONENT:
        return None
    digits = mantissa if mantissa.isdecimal() else re.sub("[, _']", "", mantissa)
    value = Fraction(int(digits) if digits.isdecimal() else digits)
    return value * Fraction(10) ** int(exponent) if exponent else value


def _read_scale(tokens: Sequence[Token], phrase: Phrase) -> None:
    """Read "million", "dozen" and the like, and a percent sign."""
    while phrase.last < len(tokens) and tokens[phrase.last].kind in ("word", "percent"):
        word = tokens[phrase.last].text.lower()
        following = tokens[phrase.last + 1].text.lower() if phrase.last + 1 < len(tokens) else ""
        if word == "%" or word in PER_CENT or (word == "per" and following == "cent"):
            phrase.is_percent = True
            phrase.last += 2 if word == "per" else 1
            return
        scale = SCALES.get(word) or SCALES.get(word.removesuffix("s"))
        if scale is None:
            return
        phrase.value = phrase.value * scale if phrase.value is not None else None
        phrase.last += 1


def _read_sign(tokens: Sequence[Token], phrase: Phrase, *, leads: bool) -> None:
    """Read the currency and the sign before a number, in either order."""
    index = phrase.number - 1
    if index >= 0 and tokens[index].text in "-+" and index and tokens[index - 1].kind == "currency":
        phrase.unit = _names(tokens[index - 1].text)
        phrase.first = index - 1
        negative = tokens[index].text == "-"
    else:
        if index >= 0 and tokens[index].kind == "currency":
            phrase.unit = _names(tokens[index].text)
            phrase.first = index
            index -= 1
        sign = _sign(tokens, index, leads=leads) if index >= 0 else ""
        phrase.first -= bool(sign)
        negative = sign == "-"
    if negative and phrase.value is not None:
        phrase.value = -phrase.value


def _sign(tokens: Sequence[Token], index: int, *, leads: bool) -> str:
    """Return the sign at an index, or "" if the token is an operator, a list marker, a dash or no sign."""
    token, before = tokens[index], tokens[index - 1] if index else None
    is_word = token.kind == "word" and token.text.lower() in ("minus", "negative")
    if token.text not in ("-", "+") and not is_word:
        return ""
    if before is not None and (before.kind in _OPERANDS or before.kind == "operator"):
        return ""
    sign = "+" if token.text == "+" else "-"
    if is_word or token.end == tokens[index + 1].start:
        return sign
    if before is None:
        return sign if leads else ""
    is_value = before.kind in ("equals", "open", "relation", "colon") or before.text.lower() in COPULAS
    return sign if is_value else ""


# --- units --------------------------------------------------------------------------------------------


def _read_unit(
    tokens: Sequence[Token], index: int, *, is_reference: bool
) -> tuple[tuple[str, ...], int, str]:
    """Return the names of the unit after a number, the index after it, and a reason to refuse the number."""
    if index >= len(tokens):
        return (), index, ""
    token, after = tokens[index], tokens[index + 1] if index + 1 < len(tokens) else None
    is_attached = token.start == tokens[index - 1].end
    if token.kind == "currency":
        is_next_price = after is not None and after.kind in _NUMBERS
        return ((), index, "") if is_next_price else (_names(token.text), index + 1, "")
    if token.kind == "degree":
        scale = after is not None and after.text in ("C", "F")
        return _names(after.text if scale and after else "°"), index + 1 + bool(scale), ""
    if token.kind == "open":
        return _unit_in_brackets(tokens, index)
    if token.text == "-" and is_attached and after is not None and after.kind == "word":
        index, token, is_attached = index + 1, after, False  # a 15-year plan
    if token.text == "/" and after is not None and after.kind in ("word", "letter"):
        return ("/", *_names(after.text)), index + 2, ""
    if token.kind == "number" and not is_attached and (noun := _noun_after_measure(tokens, index)):
        return _unit_words(tokens, noun)  # 24 8 dollar toys
    if token.kind not in ("word", "letter", "function"):
        return (), index, ""
    if is_attached and (reason := _attached(token, is_reference=is_reference)):
        return (), index, reason
    if not is_attached and (reason := _not_a_unit(token)):
        return (), index, reason
    return _unit_words(tokens, index)


def _noun_after_measure(tokens: Sequence[Token], index: int) -> int:
    """Return the index of the noun after a number and its unit, as in "8 dollar toys", or 0."""
    unit = index + 1 + (index + 1 < len(tokens) and tokens[index + 1].text == "-")
    if unit + 1 >= len(tokens) or tokens[unit].text.lower() not in UNITS or len(tokens[unit].text) < 2:
        return 0
    return 0 if _ends_unit(tokens[unit + 1], None) else unit + 1


def _attached(token: Token, *, is_reference: bool) -> str:
    """Return a reason to refuse letters directly after the digits: they are variables, except known units."""
    found = _UNIT.fullmatch(token.text)
    if not token.text.isascii() and token.kind == "word":
        return "not_a_number" if "\ufffd" in token.text else ""
    if token.kind == "function" or found is None or found[1] not in UNITS:
        is_slash = found is not None and "-" in token.text
        return "not_a_number" if not is_slash else ""
    if len(found[1]) > 1:
        return ""
    is_unit = found[1] in ATTACHED_LETTERS and not is_reference and (not found[2] or found[1] == "m")
    return "" if is_unit else "not_a_number"


def _not_a_unit(token: Token) -> str:
    """Return a reason to refuse a number because of the word after it, which cannot be its unit."""
    found, word = _UNIT.fullmatch(token.text), token.text.lower()
    if token.kind == "function" or "\ufffd" in word:
        return "not_a_number"
    if word in OPERATIONS_AFTER:
        return "not_evaluated"
    if word in ("a", "i") or word in NO_UNITS or word in _BY_POWER or not token.text.isascii():
        return ""
    if found is not None and (found[1] in UNITS or word in UNITS):
        return ""
    base = found[1] if found else word
    is_variable = len(base) <= 2 or (len(base) == 3 and not _VOWEL.search(base)) or "_" in base
    return "not_a_number" if is_variable and not (base == "in" and found and found[2]) else ""


def _unit_in_brackets(tokens: Sequence[Token], index: int) -> tuple[tuple[str, ...], int, str]:
    """Read the unit of `9 (apples)`."""
    end = index + 1
    while end < len(tokens) and tokens[end].kind in ("word", "letter") and end - index <= _UNIT_WORDS:
        end += 1
    words = [token.text for token in tokens[index + 1 : end]]
    is_closed = bool(words) and end < len(tokens) and tokens[end].kind == "close"
    folded = {word.lower() for word in words}
    if (
        not is_closed
        or folded & (HEDGES | HEDGES_AFTER | NEGATIONS | WRONG_AFTER | NO_UNITS)
        or (len(words) == 1 and len(words[0]) == 1 and tokens[index].start == tokens[index - 1].end)
    ):
        return (), index, ""
    return tuple(name for word in words for name in _names(word)), end + 1, ""


def _unit_words(tokens: Sequence[Token], index: int) -> tuple[tuple[str, ...], int, str]:
    names: list[str] = []
    start = index
    while index < len(tokens) and index - start <= 2 * _UNIT_WORDS:
        token = tokens[index]
        word = token.text.lower()
        after = tokens[index + 1] if index + 1 < len(tokens) else None
        is_link = word in ("/", "per") and names and after is not None and after.kind in ("word", "letter")
        if is_link and after is not None and not after.text[0].isdigit():
            names.append("/")
        elif _ends_unit(token, after):
            break
        else:
            names += _names(token.text)
        index += 1
        if len(names) >= _UNIT_WORDS and names[-1] != "/":
            break
    return tuple(names), index, ""


def _ends_unit(token: Token, after: Token | None) -> bool:
    """Return True if a token is no part of a unit, or the label of the next equation."""
    if token.kind not in ("word", "letter") or (after is not None and after.kind == "equals"):
        return True
    is_variable = token.kind == "letter" and token.text.partition("^")[0].strip() not in UNITS
    return is_variable or token.text.lower() in NO_UNITS | HEDGES_AFTER | OPERATIONS_AFTER


def _names(word: str) -> tuple[str, ...]:
    """Return one name for all spellings of a unit, and the singular of other nouns."""
    found = _UNIT.fullmatch(word)
    base, power = (found[1], found[2]) if found else (word, None)
    lower = base.lower()
    name = UNITS.get(base) or UNITS.get(lower) or _BY_POWER.get(lower)
    if name is None:
        name = lower[:-1] if lower.endswith("s") and not lower.endswith("ss") else lower
    return (f"{name}^{power}" if power else name,)


def unit_names(words: str) -> tuple[str, ...]:
    """Return the names of a unit that is written alone, such as " square cm"."""
    return tuple(name for word in words.split() for name in _names(word))


def same_unit(mine: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    """Return True if two units do not contradict: one is missing, or both name the same thing.

    >>> same_unit(("red", "apple"), ("apple",)), same_unit(("m",), ("cm",))
    (True, False)
    """
    if not mine or not theirs or _sorted(mine) == _sorted(theirs):
        return True
    common = set(mine) & set(theirs) - {"/"}
    is_measured = any(name.partition("^")[0] in _MEASURES for name in (*mine, *theirs))
    return bool(common) and not is_measured


def _sorted(names: tuple[str, ...]) -> list[str]:
    """Return names with powers joined to their units, so that square meters are m^2."""
    joined = list(names)
    for index, name in enumerate(names[:-1]):
        if name in ("^2", "^3"):
            joined[index : index + 2] = ["", names[index + 1] + name]
    return [name for name in joined if name]


_MEASURES = frozenset(UNITS.values())
