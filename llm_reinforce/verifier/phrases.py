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
_NO_UNITS_IN_BRACKETS = HEDGES | HEDGES_AFTER | NEGATIONS | WRONG_AFTER | NO_UNITS
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
        tokens: tokens of the text, with `PADDING` at the end.
        leads: True if the text begins with the answer, so that "- 5" is -5 and not an item of a list.
        is_reference: True if the text is a reference answer: a division is evaluated, and a letter directly
            after the digits is a variable.
    """
    phrases: list[Phrase] = []
    last = 0
    for index, token in enumerate(tokens):
        if token.kind in _NUMBERS and index >= last:
            phrases.append(_phrase(tokens, index, leads=leads, is_reference=is_reference))
            last = phrases[-1].last
    return phrases


def _phrase(tokens: Sequence[Token], index: int, *, leads: bool, is_reference: bool) -> Phrase:
    phrase = Phrase(index, index + 1, index, reason="not_a_number")
    if tokens[index].kind == "number" and len(tokens[index].text) <= MAX_NUMBER:
        _read_value(tokens, phrase, may_divide=is_reference)
        _read_scale(tokens, phrase)
        _read_sign(tokens, phrase, leads=leads)
        unit, phrase.last, reason = _read_unit(tokens, phrase.last, is_reference=is_reference)
        phrase.unit = phrase.unit or unit
        phrase.reason = phrase.reason or reason
        if phrase.reason:
            phrase.value = None
    return phrase


def _read_value(tokens: Sequence[Token], phrase: Phrase, *, may_divide: bool) -> None:
    """Read `42`, `3/4` or `5 1/2`.

    A fraction that equals a whole number, such as 8/4, is not evaluated, unless its denominator is 1.
    """
    index = phrase.number
    whole = _integer(tokens[index])
    is_spaced = tokens[index + 1].start > tokens[index].end
    if whole and is_spaced and (parts := _fraction_at(tokens, index + 1)):
        phrase.last = index + 4
        if parts[0] < parts[1]:
            phrase.value, phrase.reason = int(whole) + Fraction(*parts), ""
    elif parts := _fraction_at(tokens, index):
        phrase.last = index + 3
        if parts[1]:
            phrase.value = Fraction(*parts)
            is_undone = phrase.value.denominator == 1 != parts[1] and not may_divide
            phrase.reason = "not_evaluated" if is_undone else ""
    else:
        phrase.value = _decimal(tokens[index].text)
        phrase.reason = "" if phrase.value is not None else "not_a_number"


def _fraction_at(tokens: Sequence[Token], index: int) -> tuple[int, int] | None:
    if tokens[index + 1].text != "/" or tokens[index + 2].start - tokens[index].end > 3:
        return None
    numerator, denominator = _integer(tokens[index]), _integer(tokens[index + 2])
    is_chain = tokens[index + 3].text == "/" and tokens[index + 4].kind in _NUMBERS  # 14 / 15 / 16
    return (int(numerator), int(denominator)) if numerator and denominator and not is_chain else None


def _integer(token: Token) -> str:
    is_integer = token.kind == "number" and len(token.text) <= MAX_NUMBER and token.text.isdecimal()
    return token.text if is_integer else ""


def _decimal(text: str) -> Fraction | None:
    mantissa, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) > _MAX_EXPONENT:
        return None
    digits = mantissa if mantissa.isdecimal() else re.sub("[, _']", "", mantissa)
    value = Fraction(int(digits) if digits.isdecimal() else digits)
    return value * Fraction(10) ** int(exponent) if exponent else value


def _read_scale(tokens: Sequence[Token], phrase: Phrase) -> None:
    """Read "million", "dozen" and the like, and a percent sign."""
    while True:
        word = tokens[phrase.last].word
        is_per_cent = word == "per" and tokens[phrase.last + 1].word == "cent"
        if word == "%" or word in PER_CENT or is_per_cent:
            phrase.is_percent = True
            phrase.last += 1 + is_per_cent
            return
        scale = SCALES.get(word) or SCALES.get(word.removesuffix("s"))
        if scale is None:
            return
        phrase.value = phrase.value * scale if phrase.value is not None else None
        phrase.last += 1


def _read_sign(tokens: Sequence[Token], phrase: Phrase, *, leads: bool) -> None:
    """Read the currency and the sign before a number, in either order."""
    index = phrase.number - 1
    sign = ""
    if tokens[index].text in ("-", "+") and tokens[index - 1].kind == "currency":
        sign = tokens[index].text
        index -= 1
    if tokens[index].kind == "currency":
        phrase.unit = _names(tokens[index].text)
        phrase.first = index
        index -= 1
    if not sign:
        sign = _sign(tokens, index, leads=leads)
        phrase.first -= bool(sign)
    if sign == "-" and phrase.value is not None:
        phrase.value = -phrase.value


def _sign(tokens: Sequence[Token], index: int, *, leads: bool) -> str:
    """Return the sign at an index, or "" if the token is an operator, a list marker, a dash or no sign."""
    before, token = tokens[index - 1], tokens[index]
    is_word = token.word in ("minus", "negative")
    is_sign = is_word or token.text in ("-", "+")
    if not is_sign or before.kind in _OPERANDS or before.kind == "operator":
        return ""
    is_value = before.kind in ("equals", "open", "relation", "colon") or before.word in COPULAS
    is_value = is_value or (before.kind == "end" and leads)
    is_attached = is_word or token.end == tokens[index + 1].start
    return ("+" if token.text == "+" else "-") if is_attached or is_value else ""


# --- units --------------------------------------------------------------------------------------------


def _read_unit(
    tokens: Sequence[Token], index: int, *, is_reference: bool
) -> tuple[tuple[str, ...], int, str]:
    """Return the names of the unit after a number, the index after it, and a reason to refuse the number."""
    token, after = tokens[index], tokens[index + 1]
    is_attached = token.start == tokens[index - 1].end
    match token.kind:
        case "currency" if after.kind not in _NUMBERS:  # not the next price
            return _names(token.text), index + 1, ""
        case "degree":
            has_scale = after.text in ("C", "F")
            return _names(after.text if has_scale else "°"), index + 1 + has_scale, ""
        case "open":
            names, index = _unit_in_brackets(tokens, index)
            return names, index, ""
        case "operator" if token.text == "-" and is_attached and after.kind == "word":
            if reason := _not_a_unit(after):
                return (), index + 1, reason
            return *_unit_words(tokens, index + 1), ""  # a 15-year plan
        case "operator" if token.text == "/" and after.kind in ("word", "letter"):
            return ("/", *_names(after.text)), index + 2, ""
        case "number" if not is_attached and (noun := _noun_after_measure(tokens, index)):
            return *_unit_words(tokens, noun), ""  # 24 8 dollar toys
        case "word" | "letter" | "function":
            reason = _attached(token, is_reference=is_reference) if is_attached else _not_a_unit(token)
            return ((), index, reason) if reason else (*_unit_words(tokens, index), "")
    return (), index, ""


def _noun_after_measure(tokens: Sequence[Token], index: int) -> int:
    """Return the index of the noun after a number and its unit, as in "8 dollar toys", or 0."""
    unit = index + 1 + (tokens[index + 1].text == "-")
    is_unit = tokens[unit].word in UNITS and len(tokens[unit].text) > 1
    return unit + 1 if is_unit and not _ends_unit(tokens, unit + 1) else 0


def _attached(token: Token, *, is_reference: bool) -> str:
    """Return a reason to refuse letters directly after the digits: they are variables, except known units."""
    found = _UNIT.fullmatch(token.text)
    if not token.text.isascii() and token.kind == "word":
        return "not_a_number" if "\ufffd" in token.text else ""
    if token.kind == "function" or found is None or found[1] not in UNITS:
        return "" if found is not None and "-" in token.text else "not_a_number"
    is_letter = found[1] in ATTACHED_LETTERS and not is_reference and (not found[2] or found[1] == "m")
    return "" if is_letter or len(found[1]) > 1 else "not_a_number"


def _not_a_unit(token: Token) -> str:
    """Return a reason to refuse a number because of the word after it, which cannot be its unit."""
    found, word = _UNIT.fullmatch(token.text), token.word
    if token.kind == "function" or "\ufffd" in word:
        return "not_a_number"
    if word in OPERATIONS_AFTER:
        return "not_evaluated"
    base = found[1] if found else word
    is_word = word in ("a", "i") or word in NO_UNITS or word in _BY_POWER or not token.text.isascii()
    if is_word or base in UNITS or word in UNITS or (base == "in" and found and found[2]):
        return ""
    is_variable = len(base) <= 2 or (len(base) == 3 and not _VOWEL.search(base)) or "_" in base
    return "not_a_number" if is_variable else ""


def _unit_in_brackets(tokens: Sequence[Token], index: int) -> tuple[tuple[str, ...], int]:
    """Read the unit of `9 (apples)`."""
    end = index + 1
    while tokens[end].kind in ("word", "letter") and end - index <= _UNIT_WORDS:
        end += 1
    inner = tokens[index + 1 : end]
    is_called = len(inner) == 1 == len(inner[0].text) and tokens[index].start == tokens[index - 1].end
    is_unit = bool(inner) and tokens[end].kind == "close" and not is_called
    if not is_unit or any(token.word in _NO_UNITS_IN_BRACKETS for token in inner):
        return (), index
    return tuple(name for token in inner for name in _names(token.text)), end + 1


def _unit_words(tokens: Sequence[Token], index: int) -> tuple[tuple[str, ...], int]:
    names: list[str] = []
    while True:
        after = tokens[index + 1]
        if tokens[index].word in ("/", "per") and names and after.kind in ("word", "letter"):
            names.append("/")
        elif _ends_unit(tokens, index):
            break
        else:
            names += _names(tokens[index].text)
        index += 1
        if len(names) >= _UNIT_WORDS and names[-1] != "/":
            break
    return tuple(names), index


def _ends_unit(tokens: Sequence[Token], index: int) -> bool:
    """Return True if a token is no part of a unit, or the label of the next equation."""
    token = tokens[index]
    if token.kind not in ("word", "letter") or tokens[index + 1].kind == "equals":
        return True
    is_variable = token.kind == "letter" and token.text.partition("^")[0].strip() not in UNITS
    return (
        is_variable or token.word in NO_UNITS or token.word in HEDGES_AFTER or token.word in OPERATIONS_AFTER
    )


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
