r"""What a text commits to: one number, or the reason why it does not state exactly one.

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
from llm_reinforce.verifier.tokens import Token, tokenize

_MAX_SLOT = 640  # maximum characters of a value with its label and unit
_MAX_NUMBERS = 64  # maximum numbers in a slot
_NEAR = 96  # tokens before the last number of a text, or after the first one of a sentence, that are read
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
_CHOICES = frozenset("ABCDEFGHabcdefgh")
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


def read_slot(slot: str) -> Reading:
    """Read a text that contains an answer and no reasoning, such as '$1,042.', 'x = 15' or '15 apples'.

    Args:
        slot: content of the slot, as normalized text.
    """
    shown = slot.strip()[:MAX_NUMBER] or None
    if len(slot) > _MAX_SLOT:
        return Reading(shown, reason="not_a_number")
    tokens = tokenize(slot)
    if sum(token.kind == "number" for token in tokens) > _MAX_NUMBERS:
        return Reading(shown, reason="not_evaluated")
    text = _Text(slot, tokens, leads=True, is_slot=True)
    if not text.phrases:
        return Reading(shown, reason=text.reason_without_number())
    return text.read_only(shown)


def read_reference(answer: str) -> Reading:
    """Read a reference answer, of which no part may be lost: a number, with a label and a unit at most.

    Args:
        answer: reference answer, as normalized text.
    """
    shown = answer.strip()[:MAX_NUMBER] or None
    if len(answer) > _MAX_SLOT:
        return Reading(shown, reason="not_a_number")
    text = _Text(answer, tokenize(answer)[:_NEAR], leads=True, is_slot=True, is_reference=True)
    if not text.phrases or not text.is_whole():
        return Reading(shown, reason="not_a_number")
    return text.read_only(shown)


def read_sentence(sentence: str) -> Reading | None:
    """Read the rest of a line after "answer is". Returns None if there is no number."""
    tokens = tokenize(sentence)
    first = next((index for index, token in enumerate(tokens) if token.kind in _NUMERIC | _SILENT), None)
    if first is None:
        return None
    leads = all(_is_lead(tokens, index) for index in range(first))
    return _Text(sentence, tokens[: first + _NEAR] if leads else tokens[-_NEAR:], leads=True).read_lead(leads)


def read_last_number(part: str) -> Reading | None:
    """Read the last number of a text. Numbers in names, dates, times and versions are skipped.

    Returns None if there is no number.
    """
    tokens = tokenize(part)
    last = next((i for i in range(len(tokens) - 1, -1, -1) if tokens[i].kind in _NUMERIC - _SILENT), 0)
    text = _Text(part, tokens[max(0, last - _NEAR) :], leads=False)
    loud = [index for index, phrase in enumerate(text.phrases) if text.kind(phrase) not in _SILENT]
    if not loud:
        return None
    main = text.main_number(loud)
    if main is None:
        return Reading(tokens[last].text[:MAX_NUMBER], reason="several_values")
    return text.read_chain(text.chain_of(main))


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
        self.text, self.tokens, self.is_slot, self.leads = text, tokens, is_slot, leads
        self.phrases = find_phrases(self.tokens, leads=leads, is_reference=is_reference)
        self._ends = {phrase.last: phrase for phrase in self.phrases}

    # --- the three kinds of texts -----------------------------------------------------------------------

    def read_only(self, shown: str | None) -> Reading:
        """Read the only chain of a slot."""
        chains = self._chains()
        corrected = next((i for i in range(len(chains) - 1, 0, -1) if self._is_corrected(chains, i)), 0)
        chains = chains[corrected:]
        readings = [self.read_chain(chain, shown) for chain in chains]
        valid = [chain for chain in chains if self.kind(chain[0]) not in _SILENT]
        if len(chains) > 1 and len(valid) != 1:
            refused = next((one for one in readings if one.reason == "relation"), None)
            return refused or Reading(shown, reason="several_values")
        reading = readings[chains.index(valid[0])] if valid else readings[0]
        if reading.value is not None and (reason := self._condition(valid[0])):
            return Reading(shown, reason=reason)
        return reading

    def read_lead(self, leads: bool) -> Reading:
        """Read the first number if the text begins with it, otherwise the last one."""
        chains = self._chains()
        first = chains[0]
        corrected = next((i for i in range(len(chains) - 1, 0, -1) if self._is_corrected(chains, i)), None)
        if corrected is not None:
            return self.read_chain(chains[corrected])
        if not leads:
            first = chains[-1]
            loud = [chain for chain in chains if self.kind(chain[-1]) not in _SILENT]
            first = loud[-1] if loud else first
        return self.read_chain(first)

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
        because = next((i for i in range(begin, end) if self.tokens[i].text.lower() == "because"), None)
        if because is not None:
            earlier = [i for i in loud if begin <= self.phrases[i].first < because]
            return earlier[-1] if earlier else last
        sentence = [i for i in loud if self.phrases[i].first >= begin]
        brackets = [i for i in range(begin, end) if self.tokens[i].kind in ("open", "close")]
        if brackets and self.tokens[brackets[-1]].text == "(":
            outside = [i for i in sentence if self.phrases[i].last <= brackets[-1]]
            return outside[-1] if outside else last
        prices = [i for i in sentence if "$" in self.phrases[i].unit]
        before = self.tokens[end - 1].text.lower() if end else ""
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
        texts = [token.text.lower() for token in clause]
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
        rest = [token.text.lower() for token in self.tokens[inner.last : inner.last + 2]]
        is_each = rest[:1] in (["each"], ["apiece"]) or rest in (["in", "them"], ["in", "it"], ["in", "each"])
        is_noun = len(between) > 1 and all(token.kind == "word" for token in between)
        return is_each and is_noun and between[-1].text.lower() in _CONTAINING

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
        start = equals[-1] + 1 if phrase is chain[-1] and equals else phrase.first
        span = self._shown(phrase)
        number = self.tokens[phrase.number]
        shown = shown or span[:MAX_NUMBER] or number.text[:MAX_NUMBER]
        reason = self._before(phrase.first) or phrase.reason
        reason = reason or ("not_evaluated" if self._is_absolute(phrase) else "")
        if phrase is chain[-1] or not equals:
            reason = reason or self._after(phrase)
        if not reason and any(self._side(chain, phrase, equals)):
            reason = "several_values"
        if reason:
            return Reading(shown, reason=reason)
        value = phrase.value
        if value is not None and phrase.is_percent:
            value /= 100
        label = self._label(equals[0] - 1 if equals else start - 2)
        return Reading(shown, value, "", phrase.is_percent, phrase.unit, label)

    def _shown(self, phrase: Phrase) -> str:
        return self.text[self.tokens[phrase.first].start : self.tokens[phrase.last - 1].end].strip()

    def reason_without_number(self) -> str:
        kinds = {token.kind for token in self.tokens}
        return "not_a_number" if any("0" <= c <= "9" for c in self.text) and kinds else "no_answer"

    def is_whole(self) -> bool:
        """Return True if a text is one number with nothing else than a label, a unit and punctuation."""
        first, last = self.phrases[0], self.phrases[-1]
        if len(self._chains()) > 1:
            return False
        before = self.tokens[: first.first]
        while before and before[0].kind in _OPENERS and before[0].kind != "bar":
            before = before[1:]
        while before and before[-1].kind in ("open", "currency"):
            before = before[:-1]
        if before:
            has_sign = before[-1].kind in ("equals", "colon") or before[-1].text.lower() in COPULAS
            names = before[:-1]
            is_name = len(names) == 1 or all(name.kind == "word" for name in names)
            is_name = is_name and not any(_is_product(name) for name in names)
            if not (
                has_sign and is_name and all(name.kind in _LABELS and "^" not in name.text for name in names)
            ):
                return False
        if len(self.phrases) > 1 and any(token.kind in _LABELS for token in self.tokens):
            return False  # an equation with variables
        rest = self.tokens[last.last :]
        return all(token.kind in ("close", "stop", "newline", "separator", "currency") for token in rest)

    # --- chains -----------------------------------------------------------------------------------------

    def kind(self, phrase: Phrase) -> str:
        return self.tokens[phrase.number].kind

    def _chains(self) -> list[list[Phrase]]:
        chains = [[self.phrases[0]]]
        for before, phrase in zip(self.phrases, self.phrases[1:], strict=False):
            if self._are_joined(before, phrase):
                chains[-1].append(phrase)
            else:
                chains.append([phrase])
        return chains

    def chain_of(self, index: int) -> list[Phrase]:
        first = index
        while first and self._are_joined(self.phrases[first - 1], self.phrases[first]):
            first -= 1
        return self.phrases[first : index + 1]

    def _are_joined(self, before: Phrase, phrase: Phrase) -> bool:
        """Return True if only operators, equals signs, brackets and letters are between two numbers."""
        has_operator = False
        for token in self.tokens[before.last : phrase.first]:
            is_named = token.kind == "word" and token.text.lower() in OPERATIONS - {"to"} | {"by"}
            if is_named or token.kind in ("operator", "equals") or token.text in ("x", "X"):
                has_operator = True
            elif token.kind not in ("open", "close", "function", "letter", "currency", "degree", "factorial"):
                return False
        return has_operator

    def _swapped(self, chain: list[Phrase], equals: int) -> Phrase | None:
        """Return the first side of `132 = 47+85`, or None if the other sides have variables."""
        sides = self.tokens[equals : chain[-1].last]
        is_alone = chain[0].last == equals and not self._before(chain[0].first)
        is_plain = not any(token.kind in ("letter", "function", "word") for token in sides)
        is_done = not self._after(chain[-1])
        return chain[0] if is_alone and is_plain and is_done else None

    def _side(self, chain: list[Phrase], phrase: Phrase, equals: list[int]) -> list[bool]:
        """Return, for each other side of an equation that is a number, whether it contradicts the value."""
        ends = [one.last for one in chain]
        contradictions = []
        for index, end in enumerate(equals):
            if end not in ends:
                continue
            other = chain[ends.index(end)]
            begins = other.first - 1 == equals[index - 1] if index else not self._before(other.first)
            begins = begins and (not other.first or self.tokens[other.first - 1].kind != "operator")
            is_division = other.last - other.first == 3 and " " in self._shown(other)  # 11 / 9 = 1
            if begins and other is not phrase and not other.reason and not is_division:
                same = other.value == phrase.value and other.is_percent == phrase.is_percent
                contradictions.append(not same)
        return contradictions

    def _label(self, index: int) -> str:
        is_label = 0 <= index < len(self.tokens) - 1 and self.tokens[index].kind == "letter"
        if not is_label or self.tokens[index + 1].kind not in ("equals", "colon"):
            return ""
        is_alone = index == 0 or self.tokens[index - 1].kind not in (
            "operator",
            "number",
            "letter",
            "function",
        )
        return self.tokens[index].text if is_alone else ""

    def _is_corrected(self, chains: list[list[Phrase]], index: int) -> bool:
        """Return True if a word such as "no" or "wait" is between two chains."""
        between = self.tokens[chains[index - 1][-1].last : chains[index][0].first]
        for place, token in enumerate(between):
            if token.kind == "word" and token.text.lower() in CORRECTIONS:
                after = between[place + 1].text.lower() if place + 1 < len(between) else ""
                if after not in ("than", "doubt", "matter", "problem", "more", "less"):
                    return True
        return False

    # --- what is around a number ------------------------------------------------------------------------

    def _before(self, index: int) -> str:
        """Return why the tokens before a number make something else of it, or ""."""
        inner = index
        while index and self.tokens[index - 1].kind in _OPENERS:
            index -= 1
        if not index:
            return ""
        token = self.tokens[index - 1]
        is_close = inner > index or token.end == self.tokens[inner].start
        before = self.tokens[index - 2] if index > 1 else None
        match token.kind:
            case "operator" | "factorial":
                return self._operator_before(index - 1)
            case "relation":
                return "relation"
            case "function" | "degree":
                return "not_evaluated"
            case "close" if is_close and not self._is_choice(index - 1):
                return "not_evaluated"
            case "letter" if self._is_factor(index - 1, inner):
                return "not_evaluated" if token.text.lower() == "x" else "not_a_number"
            case "number" | "percent" | "malformed" if token.kind != "percent" or before is not None:
                return "several_values"
            case "separator":
                return self._list_before(index - 1) or self._hedge_before_comma(index - 1)
            case "colon" if before is not None and before.kind == "number" and before.end < token.start:
                return "not_a_number"  # the ratio 3 : 4
            case "stop" if before is not None and before.text.lower() in HEDGES:
                return "relation"  # approx. 42
            case "word" | "letter":
                return self._words_before(index)
        return ""

    def _operator_before(self, index: int) -> str:
        token, before = self.tokens[index], self.tokens[index - 1] if index else None
        is_spaced = token.end < self.tokens[index + 1].start
        if token.text in "-+*" and is_spaced and (before is None or before.kind == "newline"):
            # an item of a list; at the beginning of an answer, only "+" would not be a sign
            return "not_evaluated" if self.leads and token.text == "*" and self.is_slot else ""
        is_dash = token.text in ("-", "*") and before is not None and is_spaced and before.end < token.start
        if is_dash and before is not None and before.kind in ("word", "stop", "colon") and token.text == "-":
            return ""
        return "not_evaluated" if token.kind == "operator" else ""

    def _is_choice(self, index: int) -> bool:
        """Return True if the bracket closed at an index is around a letter, as in "(B) 42"."""
        return (
            index > 1
            and self.tokens[index - 1].text in _CHOICES
            and self.tokens[index - 2].text in ("(", "[")
        )

    def _is_factor(self, index: int, inner: int) -> bool:
        """Return True if a letter before a number is multiplied with it or an operator: π 2, 3 x 4, f(2)."""
        token = self.tokens[index]
        is_called = token.end == self.tokens[index + 1].start
        is_between = token.text in ("x", "X") and index and self.tokens[index - 1].kind in ("number", "close")
        return bool(is_called or not token.text.isascii() or is_between or "^" in token.text) or (
            inner > index + 1 and self.tokens[index + 1].kind == "open" and is_called
        )

    def _list_before(self, index: int) -> str:
        """Return `several_values` if a number before a comma or semicolon begins a list of values."""
        is_semicolon = self.tokens[index].text == ";"
        while (item := self._ends.get(index)) is not None:
            before = self.tokens[item.first - 1] if item.first else None
            begins = before is None or before.kind in ("equals", "open", "colon", "newline")
            if begins or is_semicolon or (before and before.text.lower() in COPULAS | {"either", "answers"}):
                return "several_values"
            if before is None or before.kind != "separator":
                break
            index = item.first - 1
        return ""

    def _hedge_before_comma(self, index: int) -> str:
        """Return `relation` for the words between commas in "The answer is, more or less, 42."."""
        start = index
        while start and self.tokens[start - 1].kind == "word" and index - start < 4:
            start -= 1
        words = [token.text.lower() for token in self.tokens[start:index]]
        is_inserted = words and (not start or self.tokens[start - 1].kind == "separator")
        is_hedge = is_inserted and set(words) & (HEDGES | HEDGES_AFTER | {"less", "take"})
        return "relation" if is_hedge else ""

    def _words_before(self, end: int) -> str:
        """Check the words before a number, the nearest first."""
        start = end
        while start and end - start < _LOOK_BACK and self.tokens[start - 1].kind in ("word", "letter"):
            start -= 1
        words = [token.text.lower() for token in self.tokens[start:end][::-1]]
        follows = self.tokens[start - 1] if start else None
        if words[0] in MULTIPLIERS:
            return "not_evaluated"
        if words[0] == "of":
            others = [word for word in words[1:4] if word not in ("the", "a", "an")]
            is_part = others[:1] and others[0] in PARTS
            is_number = len(words) == 1 and follows is not None and follows.kind in ("number", "percent")
            if is_part or is_number:
                return "not_evaluated"
        if words[0] in OPERATIONS - {"to"} or (words[0] == "by" and bool(set(words[1:4]) & _MULTIPLYING)):
            return "not_a_number" if words[0] == "base" else "not_evaluated"
        if words[:2] in (["adding", "by"], ["subtracting", "by"]):
            return "not_evaluated"
        if words == ["by"] and follows is not None and follows.kind == "number":
            return "not_evaluated"  # 6 by 7
        return _hedged(words) or self._alternative_before(end)

    def _alternative_before(self, end: int) -> str:
        """Return `several_values` if another value with "or", "and" or "to" precedes the number."""
        index = end - 1
        while index >= 0 and (
            self.tokens[index].text.lower() in ADVERBS or self.tokens[index].kind in ("letter", "equals")
        ):
            index -= 1
        if index < 0 or self.tokens[index].text.lower() not in ALTERNATIVES:
            return ""
        joint = self.tokens[index].text.lower()
        if index and self.tokens[index - 1].kind == "separator":
            index -= 1
        start = index
        while start and index - start < 4 and start not in self._ends:
            start -= 1
            if self.tokens[start].text.lower() in NUMBER_WORDS and joint != "to":
                return "several_values"
            if self.tokens[start].kind not in ("word", "letter", "degree", "close"):
                return "several_values" if self.tokens[start].kind in _NUMERIC else ""
        other = self._ends.get(start)
        is_from = (
            not self.leads and other and other.first and self.tokens[other.first - 1].text.lower() == "from"
        )
        return "" if not other or (joint == "to" and (is_from or index - start > 1)) else "several_values"

    def _after(self, phrase: Phrase) -> str:
        """Return why the tokens after a number make something else of it, or ""."""
        index = phrase.last
        while index < len(self.tokens) and self.tokens[index].kind in ("close", "bar", "currency"):
            index += 1
            if index < len(self.tokens) and self.tokens[index - 1].kind == "close" and self._opens(index):
                return "not_evaluated"  # (8)(1)
        token = self.tokens[index] if index < len(self.tokens) else None
        if token is None:
            return ""
        after = self.tokens[index + 1] if index + 1 < len(self.tokens) else None
        match token.kind:
            case "operator":
                return self._operator_after(index)
            case "factorial":
                return self._factorial(index, phrase)
            case "relation":
                is_end = token.text in "<>" and (after is None or after.kind in ("newline", "stop"))
                return "" if is_end else "relation"
            case "equals":
                return self._equals_after(index)
            case "function":
                return "not_a_number"
            case "number" | "malformed" | "compound" if self.tokens[index - 1].kind != "newline":
                return "several_values"
            case "other" if token.text == "‰":
                return "not_a_number"
            case "separator" | "word" | "open" | "letter" | "other":
                return self._words_after(index, has_unit=bool(phrase.unit))
            case "stop" if token.text == "?" or self._is_ellipsis(index, phrase):
                return "relation"
            case "colon" if after is not None and after.kind in _NUMERIC:
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
        while first >= 0 and last < len(self.tokens) and self.tokens[first].text in ("{", "("):
            first, last = first - 1, last + 1
        if first < 0 or last >= len(self.tokens) or phrase.value is None or phrase.value >= 0:
            return False
        left, right = self.tokens[first], self.tokens[last]
        return left.text == right.text == "|" and left.end == self.tokens[first + 1].start

    def _opens(self, index: int) -> bool:
        token = self.tokens[index]
        return token.kind == "open" and token.start == self.tokens[index - 1].end

    def _operator_after(self, index: int) -> str:
        token = self.tokens[index]
        after = self.tokens[index + 1] if index + 1 < len(self.tokens) else None
        is_end = after is None or after.kind == "newline"
        if token.text == "-" and not is_end and after is not None and after.kind in ("word", "newline"):
            return ""  # a dash, or a compound such as 15-year
        return "not_evaluated"

    def _factorial(self, index: int, phrase: Phrase) -> str:
        """Tell a factorial from an exclamation mark, which ends a sentence of words."""
        after = self.tokens[index + 1] if index + 1 < len(self.tokens) else None
        is_end = after is None or after.kind in ("newline", "word")
        has_words = self.leads or any(token.kind == "word" for token in self.tokens[: phrase.first])
        return "" if is_end and has_words and not self.is_slot else "not_evaluated"

    def _equals_after(self, index: int) -> str:
        """Accept `42 = x`; refuse `42 =` and `42 = x + 1`."""
        after = self.tokens[index + 1] if index + 1 < len(self.tokens) else None
        if after is None or after.kind == "newline":
            return "not_evaluated"
        last = self.tokens[index + 2] if index + 2 < len(self.tokens) else None
        is_label = after.kind in ("letter", "word") and (
            last is None or last.kind in ("newline", "stop", "close")
        )
        return "" if is_label else "not_evaluated"

    def _words_after(self, index: int, *, has_unit: bool) -> str:
        """Check the words after a number and its unit, the nearest first."""
        is_listed = self.tokens[index].kind == "separator"
        is_open = self.tokens[index].kind == "open"
        is_called = is_open and self._opens(index)
        start = index + (is_listed or is_open or self.tokens[index].kind == "other")
        rest = self.tokens[start : start + 6]
        words = [token.text.lower() for token in rest]
        if not rest:
            return ""
        follows = rest[1].kind if len(rest) > 1 else "stop"
        joint = words[0] in ALTERNATIVES or words[0] == "and/or"
        skipped = int(joint)
        while skipped < len(words) and (joint or is_listed) and words[skipped] in ADVERBS | {"or", "and"}:
            skipped += 1
        following = rest[skipped:]
        if is_called and following[:1] and following[0].kind in ("number", "letter", "function"):
            return "not_evaluated"  # 8(1)
        if (joint or is_listed) and self._has_value(following, any_words=words[0] == "or"):
            return "several_values"
        if joint and words[1:2] and words[1] in BOUNDS_AFTER | HEDGES_AFTER:
            return "relation"
        is_ended = follows in ("close", "stop", "newline") or words[1:2] == ["speaking"]
        if (words[0] in HEDGES_AFTER and (is_ended or not is_open)) or words[:2] in (
            ["at", "least"],
            ["at", "most"],
            ["more", "or"],
        ):
            return "relation"
        if words[0] in BOUNDS_AFTER and words[1:2] == ["than"]:
            return "not_evaluated"  # 42 more than 10
        if (is_open or is_listed) and words[0] in HEDGES and is_ended:
            return "relation"
        if is_listed and words[0] in (".", "…"):
            return "several_values"
        if (is_open or is_listed) and words[0] == "not" and follows in ("number", "currency"):
            return ""  # 42, not 41
        if words[0] in CONDITIONS and self.leads:
            return "relation"
        if words[0] == "base" or (words[0] in ("in", "to") and words[1:2] and words[1] in _BASES):
            return "not_a_number"
        is_divided = words[0] == "over" and not has_unit
        is_part = words[0] in ("of", "by") or is_divided or words[:2] == ["out", "of"]
        if is_part and any(token.kind == "number" for token in rest[1 : 2 + (words[0] == "out")]):
            return "not_evaluated"
        return self._denied_after(rest, words)

    def _denied_after(self, rest: Sequence[Token], words: Sequence[str]) -> str:
        """Check for "42 is wrong", "42 R 2" and "42 to the fourth power"."""
        is_verb = words[0] in COPULAS or words[0].endswith("n't")
        if words[0].endswith("n't") or words[0] in ("remainder", "rem"):
            return "relation" if words[0].endswith("n't") else "several_values"
        if is_verb and any(word in WRONG_AFTER or word.endswith("n't") for word in words[1:3]):
            return "relation"
        if words[:2] == ["to", "the"] and any(word in ("power", "fourth", "fifth") for word in words[2:5]):
            return "not_evaluated"
        if rest[0].kind == "open" or words[0] in WRONG_AFTER:
            return "relation" if words[0] in WRONG_AFTER else ""
        return ""

    def _has_value(self, tokens: Sequence[Token], *, any_words: bool) -> bool:
        """Return True if tokens begin with a number, after a label or, if `any_words`, up to three words."""
        for place, token in enumerate(tokens):
            if token.kind in _NUMERIC or token.kind == "function" or token.text.lower() in NUMBER_WORDS:
                return True
            if token.kind in ("currency", "open", "equals", "letter") or token.text in ("-", "+"):
                continue
            if token.kind != "word" or not any_words or place > 3:
                return False
        return False

    def _condition(self, chain: list[Phrase]) -> str:
        """Return why a slot does not commit to its only number: a condition, a variable or a relation."""
        first, last = chain[0].first, chain[-1].last
        for index, token in enumerate(self.tokens):
            if first <= index < last:
                continue
            word = token.text.lower()
            if token.kind == "relation" or word in CONDITIONS or word in NEGATIONS - {"without"}:
                return "relation"
            if word.endswith("n't"):
                return "relation"
            after = self.tokens[index + 1] if index + 1 < len(self.tokens) else None
            is_label = index < first and (
                (
                    after is not None
                    and after.kind in ("equals", "colon", "close", "open", "separator", "letter")
                )
                or self._equals_between(index, first)
            )
            is_name = word in ("a", "i", "r") or not token.text.isascii()
            if token.kind == "letter" and not is_label and not is_name and index >= last:
                if index >= 1 and self.tokens[index - 1].kind == "equals":
                    continue  # 42 = x
                return "not_a_number"
            if index >= last and word == "or":
                return "several_values"
        return ""

    def _equals_between(self, index: int, end: int) -> bool:
        return any(token.kind == "equals" for token in self.tokens[index:end])


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
    follows = tokens[index + 1].kind if index + 1 < len(tokens) else ""
    is_name = token.kind in _LABELS and (follows in ("equals", "colon", "close") or token.kind == "letter")
    is_sign = token.text in ("-", "+") or token.text.lower() in ("minus", "negative")
    return (
        is_name
        or is_sign
        or token.kind in ("open", "close", "equals", "colon", "other", "currency", "newline")
    )


def _is_product(token: Token) -> bool:
    """Return True if a word is a product of variables, such as xy, and no name, such as AB or total."""
    word = token.text
    return word.islower() and (len(word) == 2 or (len(word) == 3 and not set(word) & set("aeiou")))
