"""Numbers with their signs, fractions, scales, percent signs and units, read from tokens.

A *phrase* is one written number with everything that belongs to it, such as `-$1,042.50`, `5 1/2`, `50%`,
`1.5 million dollars` or `15 km/h`. Its value is an exact fraction. The rules on the text before and after a
phrase are in `context.py`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from llm_reinforce.verifier import lexicon
from llm_reinforce.verifier.lexicon import ATTACHED_LETTERS, COPULAS, PER_CENT, SCALES, UNITS
from llm_reinforce.verifier.tokens import WORD, Token, any_of

MAX_NUMBER = 400  # maximum number of characters of a number; the limit of Python's int(text) is higher
_MAX_EXPONENT = 400
_NUMBERS = frozenset(("number", "malformed", "compound", "ordinal"))
_OPERANDS = _NUMBERS | {"close", "percent", "letter", "degree", "factorial", "function", "operator"}
_POWER = re.compile(r"([^\W\d_]+)[ ]*(?:\^?\(?(-?[1-9])\)?)?")
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3"}
_NO_UNITS = lexicon.NO_UNITS | lexicon.HEDGES_AFTER | lexicon.OPERATIONS_AFTER
_BESIDE_NAME = _NO_UNITS | lexicon.HEDGES | lexicon.NEGATIONS | lexicon.WRONG_AFTER
_LETTER = rf"@(?:{'|'.join(unit for unit in UNITS if len(unit) == 1 and unit.isalpha())})(?:\^\S*)?(?!\S)"
_NAME = rf"\s(?!{any_of(_NO_UNITS)})(?:{WORD}|{_LETTER})(?!\s=)"
_PER = rf"\s(?:per|/)\s(?:{WORD}|@\S+)"
_MEASURE = rf"\s0(?:\s-)?\s{any_of(unit for unit in UNITS if len(unit) > 2)}(?={_NAME})"  # 24 8-dollar toys
_UNIT = re.compile(
    rf"\s\$(?!\s\d)|\s°(?:\s@[CF](?!\S))?|\s/\s(?:{WORD}|@\S+)|(?:\t-(?=\s[^\W\d_])|{_MEASURE})?{_NAME}(?:{_PER}|{_NAME}){{0,2}}"
    rf"|\s\((?!(?<=\t\()\s@)(?:\s(?!{any_of(_BESIDE_NAME)})(?:{WORD}|@\S+)){{1,3}}\s\)"
)
"""Tags of a unit, such as those of `$`, `°C`, `/h`, `km per hour`, `-year` and `(apples)`."""


@dataclass(slots=True)
class Phrase:
    """A number in a text, with everything that belongs to the number, such as its sign and its unit."""

    first: int  # index of the first token of the phrase
    last: int  # index after the last token of the phrase
    number: int  # index of the token with the digits
    value: Fraction | None = None  # for a percentage, the number before the percent sign
    reason: str = ""  # reason why there is no value, as in `Verdict.reason`
    is_percent: bool = False
    unit: tuple[str, ...] = ()  # names of the units or nouns after the number, or of the currency before it


def find_phrases(
    tokens: Sequence[Token], tags: Sequence[str], *, leads: bool, is_reference: bool = False
) -> list[Phrase]:
    """Return the phrases (numbers with their signs and units) of a text in order.

    Args:
        tokens: tokens of the text, with `PADDING` at the end.
        tags: tags of the tokens.
        leads: True if the text begins with the answer. A "- 5" at the start of the text is then -5, and not
            an item of a list.
        is_reference: True if the text is a reference answer. In a reference answer, a division is evaluated,
            and a letter directly after the digits is a variable.
    """
    phrases: list[Phrase] = []
    last = 0
    for index, token in enumerate(tokens):
        if token.kind not in _NUMBERS or index < last:
            continue
        phrase = Phrase(index, index + 1, index, reason="not_a_number")
        if token.kind == "number" and len(token.text) <= MAX_NUMBER:
            _read_value(tokens, phrase, may_divide=is_reference)
            _read_scale(tokens, phrase)
            _read_sign(tokens, phrase, leads=leads)
            _read_unit(tokens, tags, phrase, is_reference=is_reference)
        last = phrase.last
        phrases.append(phrase)
    return phrases


def _read_value(tokens: Sequence[Token], phrase: Phrase, *, may_divide: bool) -> None:
    """Read `42`, `3/4` or `5 1/2`.

    A fraction that equals a whole number, such as 8/4, is not evaluated, unless `may_divide` is True or its
    denominator is 1.
    """
    index = phrase.number
    whole = _integer(tokens[index])
    if whole and tokens[index + 1].start > tokens[index].end and (parts := _fraction_at(tokens, index + 1)):
        phrase.last = index + 4
        if parts[0] < parts[1]:
            phrase.value = int(whole) + Fraction(*parts)
    elif parts := _fraction_at(tokens, index):
        phrase.last = index + 3
        phrase.value = Fraction(*parts) if parts[1] else None
        if phrase.value is not None and phrase.value.denominator == 1 != parts[1] and not may_divide:
            phrase.value, phrase.reason = None, "not_evaluated"
    else:
        phrase.value = _decimal(tokens[index].text)
    phrase.reason = phrase.reason if phrase.value is None else ""


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
    """Read words such as "million" or "dozen" after a number, and then a percent sign."""
    while scale := SCALES.get(tokens[phrase.last].word.removesuffix("s")):
        phrase.value = phrase.value * scale if phrase.value is not None else None
        phrase.last += 1
    word, after = tokens[phrase.last].word, tokens[phrase.last + 1].word
    phrase.is_percent = word in PER_CENT or (word, after) == ("per", "cent")
    phrase.last += phrase.is_percent * (1 + (word == "per"))


def _read_sign(tokens: Sequence[Token], phrase: Phrase, *, leads: bool) -> None:
    """Read the currency and the sign before a number, in either order."""
    has_sign = False
    for _ in range(2):
        before, token = tokens[phrase.first - 2], tokens[phrase.first - 1]
        is_word = token.word in ("minus", "negative")
        if token.kind == "currency" and not phrase.unit:
            phrase.unit = unit_names([token.text])
        elif (is_word or token.text in ("-", "+")) and before.kind not in _OPERANDS and not has_sign:
            has_sign = is_word or token.end == tokens[phrase.first].start
            has_sign = has_sign or before.kind in ("equals", "open", "relation", "colon", "currency")
            has_sign = has_sign or before.word in COPULAS or (before.kind == "end" and leads)
            if not has_sign:  # a list marker or a dash
                return
            if token.text != "+" and phrase.value is not None:
                phrase.value = -phrase.value
        else:
            return
        phrase.first -= 1


# --- units --------------------------------------------------------------------------------------------


def _read_unit(tokens: Sequence[Token], tags: Sequence[str], phrase: Phrase, *, is_reference: bool) -> None:
    """Read the unit after a number, or reject the number if a variable follows it."""
    token = tokens[phrase.last + (tags[phrase.last : phrase.last + 1] == ["\t-"])]
    if token.kind in ("word", "letter", "function"):
        is_attached = token is tokens[phrase.last] and token.start == tokens[phrase.last - 1].end
        reason = _attached(token, is_reference=is_reference) if is_attached else _spaced(token)
        phrase.reason = phrase.reason or reason
    unit = _UNIT.match("".join(tags[phrase.last : phrase.last + 8]))
    if phrase.reason:
        phrase.value = None
    elif unit:
        names = tokens[phrase.last : phrase.last + len(re.findall(r"\s", unit[0]))]
        phrase.last += len(names)
        skipped = 3 if names[0].kind == "number" else 0
        written = [
            name.text
            for name in names[skipped:]
            if name.kind not in ("open", "close", "operator") or name.text == "/"
        ]
        phrase.unit = phrase.unit or unit_names(written)


def _attached(token: Token, *, is_reference: bool) -> str:
    """Return a reason to reject letters directly after the digits, or "" if the letters are a known unit."""
    found = _POWER.fullmatch(token.text)
    if not token.text.isascii() and token.kind == "word":
        return "not_a_number" if "\ufffd" in token.text else ""
    if token.kind == "function" or found is None or found[1] not in UNITS:
        return "not_a_number"
    is_letter = found[1] in ATTACHED_LETTERS and not is_reference and (not found[2] or found[1] == "m")
    return "" if is_letter or len(found[1]) > 1 else "not_a_number"


def _spaced(token: Token) -> str:
    """Return the reason to reject a number because of the word after it; "" if there is none.

    A number is rejected if the word is, for example, a function, an operation or a variable, because the
    number is then a part of an expression.
    """
    found, word = _POWER.fullmatch(token.text), token.word
    if token.kind == "function" or "\ufffd" in word:
        return "not_a_number"
    if word in lexicon.OPERATIONS_AFTER:
        return "not_evaluated"
    base = found[1] if found else word
    if word in ("a", "i") or word in lexicon.NO_UNITS or word in _POWERS or not token.text.isascii():
        return ""
    is_variable = len(base) <= 2 or "_" in base or (len(base) == 3 and not set(base.lower()) & set("aeiou"))
    return "not_a_number" if is_variable and base not in UNITS and word not in UNITS else ""


def unit_names(words: Iterable[str]) -> tuple[str, ...]:
    """Return one name for all spellings of each unit, and the singular of other nouns.

    >>> unit_names(["square", "meters", "per", "Hour"])
    ('m^2', '/', 'h')
    """
    names, power = [], ""
    for word in words:
        found = _POWER.fullmatch(word)
        base = found[1] if found else word
        lower = base.lower()
        if lower in _POWERS:
            power = _POWERS[lower]
            continue
        noun = lower[:-1] if lower.endswith("s") and not lower.endswith("ss") else lower
        name = "/" if lower == "per" else UNITS.get(base) or UNITS.get(lower) or noun
        names.append(name + (f"^{found[2]}" if found and found[2] else power))
        power = ""
    return tuple(names)


def same_unit(mine: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    """Return True if two units agree, that is, if one unit is missing or both units name the same thing.

    >>> same_unit(("red", "apple"), ("apple",)), same_unit(("m",), ("cm",))
    (True, False)
    """
    if not mine or not theirs or mine == theirs:
        return True
    is_measured = any(name.partition("^")[0] in _MEASURES for name in (*mine, *theirs))
    return bool(set(mine) & set(theirs) - {"/"}) and not is_measured


_MEASURES = frozenset(UNITS.values())
