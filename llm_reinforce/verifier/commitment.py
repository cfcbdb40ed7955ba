r"""Commitment of a text: one number, or the reason why the text does not state exactly one.

All rules read the tokens of a normalized text, so that emphasis, `$` and LaTeX cannot switch a check off:

- *Chain*: numbers joined by operators or "=" are one chain. `47+85=132` commits to its last side, if that is
  one number; `132 = 47+85` commits to its first side, if the rest has no variable. Sides that are numbers
  must agree. A chain without a side that is one number is `not_evaluated`.
- *Before a number* (`_before`): operators, "twice", "half of" make an expression of it; "about", "more than",
  "not" a relation; another number with "or", "and", "to", a comma a list of values.
- *After a number* (`_after`): the same, and powers, factorials, bases, variables, "squared", "or more".
- *Correction*: "42, no, 43" commits to what follows the correction.
- *Slot*: the text must have exactly one chain, and no condition or variable beside it.
- *Sentence* after "answer is": the first number if nothing precedes it, otherwise the last one.
- *Text* without a mark: the last number that is not part of a date, a time, a version or a name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from llm_reinforce.verifier.lexicon import (
    ADVERBS,
    ALTERNATIVES,
    BOUNDS_AFTER,
    CONDITIONS,
    COPULAS,
    CORRECTIONS,
    FILLERS,
    HEDGES,
    HEDGES_AFTER,
    MULTIPLIERS,
    NEGATIONS,
    NO_UNITS,
    NUMBER_WORDS,
    OPERATIONS,
    PARTS,
    WRONG_AFTER,
    words,
)
from llm_reinforce.verifier.phrases import MAX_NUMBER, Phrase, find_phrases
from llm_reinforce.verifier.tokens import PADDING, Token, tokenize

_MAX_SLOT = 640  # maximum characters of a value with its label and unit
_MAX_TOKENS = 192  # maximum tokens of such a value
_MAX_NUMBERS = 24  # maximum numbers in a slot
_NEAR = 48  # tokens before the last number of a text, or after the first one of a sentence, that are read
_LOOK_BACK = 6  # words before a number that can negate it or make it a bound
_SILENT = frozenset(("compound", "ordinal"))  # kinds that are skipped in a text without a mark
_LABELS = frozenset(("word", "letter", "function"))
_NUMERIC = frozenset(("number", "malformed", "compound"))
_PREPOSITIONS = words("in for over after during within on")
_BASES = words("base binary octal hexadecimal hex")
_SUMS = words("add adds added adding sum sums summed comes ends ended")  # "adds up to 42"
_COMMITTING = COPULAS - words("has have") | words("so then total answer thus hence which who =")
_CONTAINING = words("of with weighing containing holding")
_MULTIPLYING = words("divided multiplied divide multiply dividing multiplying")
_NO_CORRECTION = words("than doubt matter problem more less")
_JOINING = OPERATIONS - {"to"} | {"by", "x"}
_INSERTED = HEDGES | HEDGES_AFTER | {"less", "take"}
_BOUNDS = frozenset((("at", "least"), ("at", "most"), ("more", "or")))
_CHOICES = frozenset("ABCDEFGHabcdefgh")
_ENDS = frozenset(("close", "stop", "newline", "end"))
_OPENERS = frozenset(("open", "currency", "bar"))


@dataclass(frozen=True, slots=True)
class Reading:
    """A number read from text, or the reason why there is none.

    Attributes:
        text: text that was read as the answer, whether it is a number or not; None if there is no answer.
        value: the number, where 50% is 1/2; None if no number was read.
        reason: reason why no number was read, as in `Verdict.reason`; "" if a number was read.
        is_percent: True if the number is a percentage.
        unit: names of the unit; empty if there is none.
        label: letter on the other side of the equation, such as x in "x = 5"; "" if there is none.
    """

    text: str | None
    value: Fraction | None = None
    reason: str = ""
    is_percent: bool = False
    unit: tuple[str, ...] = ()
    label: str = ""


def read_slot(slot: str, *, is_reference: bool = False) -> Reading:
    """Read a text that contains an answer and no reasoning, such as '$1,042.', 'x = 15' or '15 apples'.

    Args:
        slot: content of the slot, as normalized text.
        is_reference: True if the text is a reference answer, of which no part may be lost: it must be a
            number, with a label and a unit at most.
    """
    shown = slot.strip()[:MAX_NUMBER] or None
    if len(slot) > _MAX_SLOT:
        return Reading(shown, reason="not_a_number")
    tokens = tokenize(slot, _MAX_TOKENS)
    if len(tokens) == _MAX_TOKENS or sum(token.kind == "number" for token in tokens) > _MAX_NUMBERS:
        return Reading(shown, reason="not_evaluated")
    text = _Text(slot, tokens, leads=True, is_slot=True, is_reference=is_reference)
    if not text.phrases or (is_reference and not text.is_whole()):
        has_digit = any("0" <= character <= "9" for character in slot)
        return Reading(shown, reason="not_a_number" if has_digit else "no_answer")
    return text.read_only(shown)


def read_sentence(sentence: str) -> Reading | None:
    """Read the rest of a line after "answer is". Returns None if there is no number."""
    if not any(digit in sentence for digit in "0123456789"):
        return None
    tokens = tokenize(sentence, 2 * _NEAR)
    first = next((index for index, token in enumerate(tokens) if token.kind in _NUMERIC | _SILENT), _NEAR)
    if first < _NEAR and all(_is_lead(tokens, index) for index in range(first)):
        return _Text(sentence, tokens[: first + _NEAR], leads=True).read_lead(True)
    if len(tokens) == 2 * _NEAR:
        tokens = tokenize(sentence)
    last = _last(tokens, _NUMERIC | _SILENT)
    text = _Text(sentence, tokens[max(0, last - _NEAR) :], leads=True)
    return text.read_lead(False) if text.phrases else None


def read_last_number(part: str) -> Reading | None:
    """Read the last number of a text. Numbers in names, dates, times and versions are skipped.

    Returns None if there is no number.
    """
    tokens = tokenize(part)
    last = _last(tokens, _NUMERIC - _SILENT)
    text = _Text(part, tokens[max(0, last - _NEAR) :], leads=False)
    loud = [index for index, phrase in enumerate(text.phrases) if not text.is_silent(phrase)]
    if not loud:
        return None
    main = text.main_number(loud)
    if main is None:
        return Reading(tokens[last].text[:MAX_NUMBER], reason="several_values")
    return text.read_chain(text.chain_of(main))


def _last(tokens: Sequence[Token], kinds: frozenset[str]) -> int:
    return next((i for i in range(len(tokens) - 1, -1, -1) if tokens[i].kind in kinds), -1)


class _Text:
    """The tokens and the numbers of a text."""

    def __init__(
        self,
        text: str,
        tokens: list[Token],
        *,
        leads: bool,
        is_slot: bool = False,
        is_reference: bool = False,
    ) -> None:
        self.text, self.is_slot, self.leads = text, is_slot, leads
        self.tokens = tokens + PADDING
        self.phrases = find_phrases(self.tokens, leads=leads, is_reference=is_reference)
        self._ends = {phrase.last: phrase for phrase in self.phrases}

    # --- the three kinds of texts -----------------------------------------------------------------------

    def read_only(self, shown: str | None) -> Reading:
        """Read the only chain of a slot."""
        chains, _ = self._chains()
        readings = [self.read_chain(chain, shown) for chain in chains]
        valid = [index for index, chain in enumerate(chains) if not self.is_silent(chain[0])]
        if len(chains) > 1 and len(valid) != 1:
            refused = next((one for one in readings if one.reason == "relation"), None)
            return refused or Reading(shown, reason="several_values")
        index = valid[0] if valid else 0
        if readings[index].value is not None and (reason := self._condition(chains[index])):
            return Reading(shown, reason=reason)
        return readings[index]

    def read_lead(self, leads: bool) -> Reading:
        """Read the first number if the text begins with it, otherwise the last one."""
        chains, is_corrected = self._chains()
        if leads or is_corrected:
            return self.read_chain(chains[0])
        loud = [chain for chain in chains if not self.is_silent(chain[-1])]
        return self.read_chain(loud[-1] if loud else chains[-1])

    def main_number(self, loud: list[int]) -> int | None:
        """Return the index of the last number, or of an earlier one of its sentence that it only explains.

        An earlier number is the answer before "because", as in "It costs $57, because 41 + 16 = 57", before
        brackets, as in "42 apples (6 per bag)", if it is the only price of the sentence, as in "Tina makes
        $990 in 5 days", and before a clause, see `_before_clause`. The result is None if the sentence states
        two numbers in one phrase, as in "3 bags of 10 ounces each".
        """
        last = loud[-1]
        end = self.phrases[last].first
        begin = self._sentence_start(end)
        because = next((i for i in range(begin, end) if self.tokens[i].word == "because"), None)
        if because is not None:
            earlier = [i for i in loud if begin <= self.phrases[i].first < because]
            return earlier[-1] if earlier else last
        sentence = [i for i in loud if self.phrases[i].first >= begin]
        brackets = [i for i in range(begin, end) if self.tokens[i].kind in ("open", "close")]
        if brackets and self.tokens[brackets[-1]].text == "(":
            outside = [i for i in sentence if self.phrases[i].last <= brackets[-1]]
            return outside[-1] if outside else last
        prices = [i for i in sentence if "$" in self.phrases[i].unit]
        before = self.tokens[end - 1].word
        if len(prices) == 1 and prices[0] == sentence[-1] - (len(sentence) > 1) and before in _PREPOSITIONS:
            return prices[0]
        return self._before_clause(sentence, begin)

    def _before_clause(self, sentence: list[int], begin: int) -> int | None:
        """Return the index of a number that a clause without a verb of its own follows, or of the last one.

        Such a number is the result of the last equation, as in "it takes 8 * 2 = 16 dogs for the 5 cats", or
        the only number before "than" or "to" and a verb, as in "She needs 3 cows to make 25 liters".
        """
        last = self.phrases[sentence[-1]]
        equals = [i for i in range(begin, last.first) if self.tokens[i].kind == "equals"]
        main = next((i for i in sentence if equals and self.phrases[i].first > equals[-1]), sentence[0])
        clause = self.tokens[self.phrases[main].last : last.first]
        texts = [token.word for token in clause]
        if len(sentence) > 1 and self._is_nested(sentence[-1]):
            return None
        if main == sentence[-1] or set(texts) & _COMMITTING or any(one.kind == "separator" for one in clause):
            return sentence[-1]
        if equals:
            is_separate = any(self.tokens[i].kind == "separator" for i in range(equals[0], equals[-1]))
            return main if "and" not in texts and (len(equals) == 1 or is_separate) else None
        pairs = zip(texts[:5], [*texts[1:], ""], strict=False)
        is_clause = any(one == "than" or (one == "to" and two not in NO_UNITS | {""}) for one, two in pairs)
        return main if is_clause and len(sentence) == 2 else sentence[-1]

    def _is_nested(self, index: int) -> bool:
        """Return True for the last number of "3 bags of 10 ounces each" or "5 boxes with 8 pens in them"."""
        outer, inner = self.phrases[index - 1 : index + 1]
        between = self.tokens[outer.number + 1 : inner.first]
        rest = [token.word for token in self.tokens[inner.last : inner.last + 2]]
        is_each = rest[:1] in (["each"], ["apiece"]) or rest in (["in", "them"], ["in", "it"], ["in", "each"])
        is_noun = len(between) > 1 and all(token.kind == "word" for token in between)
        return is_each and is_noun and between[-1].word in _CONTAINING

    def _sentence_start(self, index: int) -> int:
        while index and self.tokens[index - 1].kind not in ("newline", "stop"):
            index -= 1
        return index

    def read_chain(self, chain: list[Phrase], shown: str | None = None) -> Reading:
        """Read numbers that are joined by operators and equals signs."""
        phrase = chain[-1]
        equals = [i for i in range(chain[0].first, phrase.first) if self.tokens[i].kind == "equals"]
        if equals and sum(one.first > equals[-1] for one in chain) > 1:
            phrase = self._swapped(chain, equals[0]) or phrase
        shown = shown or self._written(phrase)[:MAX_NUMBER]
        reason = self._before(phrase.first) or phrase.reason
        reason = reason or ("not_evaluated" if self._is_absolute(phrase) else "")
        if phrase is chain[-1]:
            reason = reason or self._after(phrase)
        if not reason and self._is_contradicted(chain, phrase, equals):
            reason = "several_values"
        if reason or phrase.value is None:
            return Reading(shown, reason=reason)
        value = phrase.value / 100 if phrase.is_percent else phrase.value
        label = self._label(equals[0] - 1 if equals else phrase.first - 2)
        return Reading(shown, value, "", phrase.is_percent, phrase.unit, label)

    def is_whole(self) -> bool:
        """Return True if a text is one number with nothing else than a label, a unit and punctuation."""
        before = self.tokens[: self.phrases[0].first]
        while before and before[0].kind in ("open", "currency"):
            before = before[1:]
        while before and before[-1].kind in ("open", "currency"):
            before = before[:-1]
        if before:
            *names, sign = before
            has_sign = sign.kind in ("equals", "colon") or sign.word in COPULAS
            is_name = len(names) == 1 or all(name.kind == "word" for name in names)
            if not (has_sign and is_name and all(map(_is_label, names))):
                return False
        if len(self.phrases) > 1 and any(token.kind in _LABELS for token in self.tokens):
            return False  # an equation with variables
        rest = self.tokens[self.phrases[-1].last :]
        is_ended = all(token.kind in _ENDS or token.kind in ("separator", "currency") for token in rest)
        return is_ended and len(self._chains()[0]) == 1

    # --- chains -----------------------------------------------------------------------------------------

    def is_silent(self, phrase: Phrase) -> bool:
        return self.tokens[phrase.number].kind in _SILENT

    def _written(self, phrase: Phrase) -> str:
        return self.text[self.tokens[phrase.first].start : self.tokens[phrase.last - 1].end].strip()

    def _chains(self) -> tuple[list[list[Phrase]], bool]:
        """Return the chains after the last correction, such as "no" or "wait", and True if there is one."""
        chains, is_corrected = [[self.phrases[0]]], False
        for before, phrase in pairwise(self.phrases):
            if self._are_joined(before, phrase):
                chains[-1].append(phrase)
                continue
            for index in range(before.last, phrase.first):
                if (
                    self.tokens[index].word in CORRECTIONS
                    and self.tokens[index + 1].word not in _NO_CORRECTION
                ):
                    chains, is_corrected = [], True
            chains.append([phrase])
        return chains, is_corrected

    def chain_of(self, index: int) -> list[Phrase]:
        first = index
        while first and self._are_joined(self.phrases[first - 1], self.phrases[first]):
            first -= 1
        return self.phrases[first : index + 1]

    def _are_joined(self, before: Phrase, phrase: Phrase) -> bool:
        """Return True if only operators, equals signs, brackets and letters are between two numbers."""
        has_operator = False
        for token in self.tokens[before.last : phrase.first]:
            if token.kind in ("operator", "equals") or token.word in _JOINING:
                has_operator = True
            elif token.kind not in ("open", "close", "function", "letter", "currency", "degree", "factorial"):
                return False
        return has_operator

    def _swapped(self, chain: list[Phrase], equals: int) -> Phrase | None:
        """Return the first side of `132 = 47+85`, or None if the other sides have variables."""
        sides = self.tokens[equals : chain[-1].last]
        is_alone = chain[0].last == equals and not self._before(chain[0].first)
        is_plain = not any(token.kind in _LABELS for token in sides)
        return chain[0] if is_alone and is_plain and not self._after(chain[-1]) else None

    def _is_contradicted(self, chain: list[Phrase], phrase: Phrase, equals: list[int]) -> bool:
        """Return True if another side of the equation is a number with another value."""
        others = {one.last: one for one in chain if one is not phrase and not one.reason}
        for place, end in enumerate(equals):
            other = others.get(end)
            if other is None or (other.last - other.first == 3 and " " in self._written(other)):
                continue  # not a number, or a division such as 11 / 9, which may be rounded
            begin = other.first - 1
            is_first = self.tokens[begin].kind != "operator" and not self._before(other.first)
            is_side = begin == equals[place - 1] if place else is_first
            if is_side and (other.value, other.is_percent) != (phrase.value, phrase.is_percent):
                return True
        return False

    def _label(self, index: int) -> str:
        before, token, sign = (self.tokens[index + place].kind for place in (-1, 0, 1))
        is_alone = before not in ("operator", "number", "letter", "function")
        is_label = token == "letter" and sign in ("equals", "colon") and is_alone
        return self.tokens[index].text if is_label else ""

    # --- before a number --------------------------------------------------------------------------------

    def _before(self, index: int) -> str:
        """Return why the tokens before a number make something else of it, or ""."""
        inner = index
        while self.tokens[index - 1].kind in _OPENERS:
            index -= 1
        before, token = self.tokens[index - 2], self.tokens[index - 1]
        is_close = inner > index or token.end == self.tokens[inner].start
        match token.kind:
            case "operator":
                return self._operator_before(index - 1)
            case "relation":
                return "relation"
            case "function" | "degree":
                return "not_evaluated"
            case "close" if is_close and not self._is_choice(index - 1):
                return "not_evaluated"
            case "letter" if self._is_factor(index - 1):
                return "not_evaluated" if token.word == "x" else "not_a_number"
            case "number" | "malformed":
                return "several_values"
            case "percent" if before.kind != "end":
                return "several_values"
            case "separator":
                return self._list_before(index - 1) or self._hedge_before_comma(index - 1)
            case "colon" if before.kind == "number" and before.end < token.start:
                return "not_a_number"  # the ratio 3 : 4
            case "stop" if before.word in HEDGES:
                return "relation"  # approx. 42
            case "word" | "letter":
                return self._words_before(index)
        return ""

    def _operator_before(self, index: int) -> str:
        before, token = self.tokens[index - 1], self.tokens[index]
        is_spaced = token.end < self.tokens[index + 1].start
        if token.text in "-+*" and is_spaced and before.kind in ("end", "newline"):  # an item of a list
            return "not_evaluated" if self.is_slot and token.text == "*" else ""
        is_dash = token.text == "-" and is_spaced and before.end < token.start
        return "" if is_dash and before.kind in ("word", "stop", "colon") else "not_evaluated"

    def _is_choice(self, index: int) -> bool:
        """Return True if the bracket closed at an index is around a letter, as in "(B) 42"."""
        return self.tokens[index - 1].text in _CHOICES and self.tokens[index - 2].text in ("(", "[")

    def _is_factor(self, index: int) -> bool:
        """Return True if a letter before a number is multiplied with it or an operator: π 2, 3 x 4, f(2)."""
        token = self.tokens[index]
        is_called = token.end == self.tokens[index + 1].start
        is_between = token.word == "x" and self.tokens[index - 1].kind in ("number", "close")
        return is_called or is_between or not token.text.isascii() or "^" in token.text

    def _list_before(self, index: int) -> str:
        """Return `several_values` if a number before a comma or semicolon begins a list of values."""
        is_semicolon = self.tokens[index].text == ";"
        while (item := self._ends.get(index)) is not None:
            before = self.tokens[item.first - 1]
            begins = before.kind in ("end", "equals", "open", "colon", "newline")
            if begins or is_semicolon or before.word in COPULAS or before.word in ("either", "answers"):
                return "several_values"
            if before.kind != "separator":
                break
            index = item.first - 1
        return ""

    def _hedge_before_comma(self, index: int) -> str:
        """Return `relation` for the words between commas in "The answer is, more or less, 42."."""
        start = index
        while self.tokens[start - 1].kind == "word" and index - start < 4:
            start -= 1
        is_hedge = any(token.word in _INSERTED for token in self.tokens[start:index])
        return "relation" if is_hedge and self.tokens[start - 1].kind in ("end", "separator") else ""

    def _words_before(self, end: int) -> str:
        """Check the words before a number, the nearest first."""
        start = end
        while end - start < _LOOK_BACK and self.tokens[start - 1].kind in ("word", "letter"):
            start -= 1
        words = [token.word for token in self.tokens[start:end][::-1]]
        follows = self.tokens[start - 1].kind
        nouns = [word for word in words[1:4] if word not in ("the", "a", "an")]
        is_part = words[0] == "of" and bool(nouns) and nouns[0] in PARTS
        is_share = words == ["of"] and follows in ("number", "percent")
        is_product = words[0] == "by" and bool(_MULTIPLYING & set(words[1:4]))
        is_product = is_product or (words == ["by"] and follows == "number")  # 6 by 7
        is_sum = words[:2] in (["adding", "by"], ["subtracting", "by"])
        if words[0] in MULTIPLIERS or is_part or is_share or is_product or is_sum:
            return "not_evaluated"
        if words[0] in OPERATIONS and words[0] != "to":
            return "not_a_number" if words[0] == "base" else "not_evaluated"
        return _hedged(words) or self._alternative_before(end)

    def _alternative_before(self, end: int) -> str:
        """Return `several_values` if another value with "or", "and" or "to" precedes the number."""
        index = end - 1
        while self.tokens[index].word in ADVERBS or self.tokens[index].kind in ("letter", "equals"):
            index -= 1
        joint = self.tokens[index].word
        if joint not in ALTERNATIVES:
            return ""
        index -= self.tokens[index - 1].kind == "separator"
        start = index
        while start and index - start < 4 and start not in self._ends:
            start -= 1
            if self.tokens[start].word in NUMBER_WORDS and joint != "to":
                return "several_values"
            if self.tokens[start].kind not in ("word", "letter", "degree", "close"):
                return "several_values" if self.tokens[start].kind in _NUMERIC else ""
        other = self._ends.get(start)
        if other is None:
            return ""
        is_from = not self.leads and self.tokens[other.first - 1].word == "from"
        return "" if joint == "to" and (is_from or index - start > 1) else "several_values"

    # --- after a number ---------------------------------------------------------------------------------

    def _after(self, phrase: Phrase) -> str:
        """Return why the tokens after a number make something else of it, or ""."""
        index = phrase.last
        while self.tokens[index].kind in ("close", "bar", "currency"):
            index += 1
            if self.tokens[index - 1].kind == "close" and self._opens(index):
                return "not_evaluated"  # (8)(1)
        token, after, last = self.tokens[index : index + 3]
        is_end = after.kind in ("newline", "end")
        match token.kind:
            case "operator" if token.text != "-" or after.kind != "word":  # a dash, or a 15-year plan
                return "not_evaluated"
            case "factorial":
                has_words = self.leads or any(one.kind == "word" for one in self.tokens[: phrase.first])
                is_mark = has_words and not self.is_slot and (is_end or after.kind == "word")
                return "" if is_mark else "not_evaluated"
            case "relation" if token.text not in "<>" or not (is_end or after.kind == "stop"):
                return "relation"
            case "equals" if after.kind not in ("letter", "word") or last.kind not in _ENDS:
                return "not_evaluated"  # 42 = or 42 = x + 1, but not 42 = x
            case "function":
                return "not_a_number"
            case "number" | "malformed" | "compound":
                return "several_values"
            case "other" if token.text == "‰":
                return "not_a_number"
            case "separator" | "word" | "open" | "letter" | "other":
                return self._words_after(index, has_unit=bool(phrase.unit))
            case "stop" if token.text == "?" or self._is_ellipsis(index, phrase):
                return "relation"
            case "colon" if after.kind in _NUMERIC:
                return "not_a_number"
        return ""

    def _is_ellipsis(self, index: int, phrase: Phrase) -> bool:
        """Return True if dots continue the digits, as in 0.333… or, in a slot, after any number."""
        dots = "".join(token.text for token in self.tokens[index : index + 3])
        is_decimal = "." in self.tokens[phrase.number].text
        return (is_decimal or self.is_slot) and (dots.startswith("…") or dots == "...")

    def _is_absolute(self, phrase: Phrase) -> bool:
        """Return True for |-42|, but not for a cell of a table, which has spaces beside the number."""
        first, last = phrase.first - 1, phrase.last
        while self.tokens[first].text in ("{", "("):
            first, last = first - 1, last + 1
        left, right = self.tokens[first], self.tokens[min(last, len(self.tokens) - 1)]
        is_negative = phrase.value is not None and phrase.value < 0
        return is_negative and left.text == right.text == "|" and left.end == self.tokens[first + 1].start

    def _opens(self, index: int) -> bool:
        token = self.tokens[index]
        return token.kind == "open" and token.start == self.tokens[index - 1].end

    def _words_after(self, index: int, *, has_unit: bool) -> str:
        """Check the words after a number and its unit, the nearest first."""
        mark = self.tokens[index].kind
        is_listed, is_inserted = mark == "separator", mark in ("separator", "open")
        start = index + (is_inserted or mark == "other")
        rest = self.tokens[start : start + 6]
        first, second, *words = (token.word for token in rest)
        is_joint = first in ALTERNATIVES
        skipped = int(is_joint)
        while (
            skipped < len(rest) and (is_joint or is_listed) and rest[skipped].word in ADVERBS | {"or", "and"}
        ):
            skipped += 1
        if mark == "open" and self._opens(index) and rest[0].kind in ("number", "letter", "function"):
            return "not_evaluated"  # 8(1)
        if (is_joint or is_listed) and _has_value(rest[skipped:], any_words=first == "or"):
            return "several_values"
        if is_joint and (second in BOUNDS_AFTER or second in HEDGES_AFTER):
            return "relation"
        is_ended = rest[1].kind in _ENDS or second == "speaking"
        if first in HEDGES_AFTER and (is_ended or mark != "open"):
            return "relation"
        if (first, second) in _BOUNDS or (is_inserted and first in HEDGES and is_ended):
            return "relation"
        if first in BOUNDS_AFTER and second == "than":
            return "not_evaluated"  # 42 more than 10
        if is_listed and first in (".", "…"):
            return "several_values"
        if is_inserted and first == "not" and rest[1].kind in ("number", "currency"):
            return ""  # 42, not 41
        if (first in CONDITIONS and self.leads) or first in WRONG_AFTER or first.endswith("n't"):
            return "relation"
        if first in COPULAS and any(
            word in WRONG_AFTER or word.endswith("n't") for word in (second, *words[:1])
        ):
            return "relation"
        if first in ("remainder", "rem"):
            return "several_values"
        if first == "base" or (first in ("in", "to") and second in _BASES):
            return "not_a_number"
        is_out = (first, second) == ("out", "of")
        is_part = first in ("of", "by") or (first == "over" and not has_unit) or is_out
        if is_part and any(token.kind == "number" for token in rest[1 : 2 + is_out]):
            return "not_evaluated"
        is_power = (first, second) == ("to", "the") and bool({"power", "fourth", "fifth"} & set(words[:3]))
        return "not_evaluated" if is_power else ""

    def _condition(self, chain: list[Phrase]) -> str:
        """Return why a slot does not commit to its only number: a condition, a variable or a relation."""
        first, last = chain[0].first, chain[-1].last
        for index, token in enumerate(self.tokens):
            if first <= index < last:
                continue
            is_negation = token.word in NEGATIONS - {"without"} or token.word.endswith("n't")
            if token.kind == "relation" or token.word in CONDITIONS or is_negation:
                return "relation"
            if index < last:
                continue
            is_name = token.word in ("a", "i", "r") or not token.text.isascii()
            if token.kind == "letter" and not is_name and self.tokens[index - 1].kind != "equals":
                return "not_a_number"  # but 42 = x is 42
            if token.word == "or":
                return "several_values"
        return ""


def _has_value(tokens: Sequence[Token], *, any_words: bool) -> bool:
    """Return True if tokens begin with a number, after a label or, if `any_words`, up to three words."""
    for place, token in enumerate(tokens):
        if token.kind in _NUMERIC or token.kind == "function" or token.word in NUMBER_WORDS:
            return True
        if token.kind in ("currency", "open", "equals", "letter") or token.text in ("-", "+"):
            continue
        if token.kind != "word" or not any_words or place > 3:
            return False
    return False


def _hedged(words: Sequence[str]) -> str:
    """Return `relation` if words, the nearest first, make a bound, an estimate or a negation of a number."""
    for word in words:
        if word in HEDGES or word in NEGATIONS or word.endswith("n't") or word in ("than", "least", "most"):
            is_bound = word not in ("least", "most") or "at" in words
            is_other = word == "up" and (words[0] != "to" or bool(_SUMS & set(words)))
            return "relation" if is_bound and not is_other else ""
        if word not in FILLERS:
            return ""
    return ""


def _is_lead(tokens: Sequence[Token], index: int) -> bool:
    """Return True if a token can stand before the first number of a sentence without changing it."""
    token = tokens[index]
    follows = tokens[index + 1].kind
    is_name = token.kind in _LABELS and (follows in ("equals", "colon", "close") or token.kind == "letter")
    is_sign = token.text in ("-", "+") or token.word in ("minus", "negative")
    return (
        is_name
        or is_sign
        or token.kind in ("open", "close", "equals", "colon", "other", "currency", "newline")
    )


def _is_label(token: Token) -> bool:
    """Return True for a name such as x, AB or total, but not for a product of variables, such as xy."""
    word = token.text
    is_product = word.islower() and (len(word) == 2 or (len(word) == 3 and not set(word) & set("aeiou")))
    return token.kind in _LABELS and "^" not in word and not is_product
