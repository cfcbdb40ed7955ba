r"""Find the number that a text states as its answer.

The text *commits to* this number. The result is the number, or the reason why the text does not state exactly
one number as its answer.

The rules are applied to the tokens of a normalized text, so emphasis, `$` and LaTeX do not affect them:

- *Chain*: numbers joined by operators or "=" are one chain. `47+85=132` commits to its last side, because
  this side is one number. `132 = 47+85` commits to its first side, because this side is one number and the
  other side has no variable. All sides that are numbers must be equal. If no side is one number, the chain is
  `not_evaluated`.
- *Beside a number*: `context.py` has the rules on the tokens before and after a chain.
- *Correction*: "42, no, 43" commits to 43, the number after the correction word "no".
- *Slot* (a text that should contain only the answer, such as the content of a box): the text must have
  exactly one chain, and no condition or variable beside this chain.
- *Sentence* after "answer is": the sentence commits to its first number if nothing precedes this number, and
  otherwise to its last number.
- *Text* without a box, a `####` or another mark: the text commits to its last number or, in the cases of
  `main_number`, to an earlier number. Numbers in dates, times, versions and names do not count.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from llm_reinforce.verifier import context
from llm_reinforce.verifier.context import END
from llm_reinforce.verifier.lexicon import COMMITTING, COPULAS, NO_UNITS, words
from llm_reinforce.verifier.phrases import MAX_NUMBER, Phrase, find_phrases
from llm_reinforce.verifier.tokens import PADDING, WORD, Token, any_of, tags_of, tokenize

_MAX_SLOT = 400  # maximum number of characters of a value with its label and unit
_MAX_TOKENS = 128  # maximum number of tokens of a value with its label and unit
_MAX_NUMBERS = 24  # maximum number of numbers in a slot
# number of tokens that are read before the last number of a text or after the first number of a sentence
_NEAR = 32
_CONTEXT = 12  # number of tokens before or after a number that can change its meaning
_SILENT = frozenset(("compound", "ordinal"))  # kinds of tokens that are skipped in a text without a mark
_NUMERIC = frozenset(("number", "malformed"))
_ENDS = frozenset(("close", "stop", "newline", "end", "separator", "currency"))
_LABELS = frozenset(("word", "letter", "function"))
_PREPOSITIONS = words("in for over after during within on")
_COMMITS = re.compile(rf"\s(?:[,;=]|{any_of(COMMITTING)})")
_CLAUSE = re.compile(rf"(?:\s\S+){{0,4}}?\s(?:than(?!\S)|to\s(?!{any_of(NO_UNITS)}))")
_NESTED = re.compile(
    rf"(?:\s{WORD})+\s(?:of\s0\s{WORD}{END}|(?:of|with|weighing|containing|holding)\s0(?:\s(?!each|apiece|in\s){WORD}){{0,3}}"
    r"\s(?:each|apiece|in\s(?:them|it|each))(?!\S))"
)
"""Pattern of the tags after the first number of "3 bags of 10 ounces each" or "5 boxes with 8 pens each"."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A number read from a text, or the reason why no number could be read."""

    text: str | None  # text that was read as the answer, whether it is a number or not
    value: Fraction | None = None  # the number, where 50% is 1/2
    reason: str = ""  # reason why no number was read, as in `Verdict.reason`
    is_percent: bool = False
    unit: tuple[str, ...] = ()  # names of the unit
    label: str = ""  # letter on the other side of the equation, such as x in "x = 5"


def read_slot(slot: str, *, is_reference: bool = False) -> Reading:
    """Read a text that contains an answer and no reasoning, such as '$1,042.', 'x = 15' or '15 apples'.

    Args:
        slot: content of the slot, as normalized text.
        is_reference: True if the text is a reference answer. No part of a reference answer may be lost, so
            the text must be one number with at most a label and a unit.
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
    """Read the number in the rest of a line after "answer is". Return None if there is no number."""
    if not any(digit in sentence for digit in "0123456789"):
        return None
    tokens = tokenize(sentence, 2 * _NEAR)
    first = next((i for i, token in enumerate(tokens) if token.kind in _NUMERIC | _SILENT), _NEAR)
    if first < _NEAR and context.LEAD.fullmatch("".join(tags_of(tokens[: first + 1])[:first])):
        return _Text(sentence, tokens[: first + _NEAR], leads=True).read_lead(True)
    if len(tokens) == 2 * _NEAR:
        tokens = tokenize(sentence)
    last = _last(tokens, _NUMERIC | _SILENT)
    text = _Text(sentence, tokens[max(0, last - _NEAR) :], leads=True)
    return text.read_lead(False) if text.phrases else None


def read_last_number(part: str) -> Reading | None:
    """Read the number that a text without a mark states as its answer, which is usually the last number.

    Numbers in names, dates, times and versions are skipped. Return None if there is no number.
    """
    tokens = tokenize(part)
    last = _last(tokens, _NUMERIC)
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
        self.tags = tags_of(tokens)
        self.phrases = find_phrases(self.tokens, self.tags, leads=leads, is_reference=is_reference)

    def is_silent(self, phrase: Phrase) -> bool:
        return self.tokens[phrase.number].kind in _SILENT

    def _between(self, begin: int, end: int) -> str:
        return "".join(self.tags[begin:end])

    # --- the three kinds of texts -----------------------------------------------------------------------

    def read_only(self, shown: str | None) -> Reading:
        """Read a slot that has one number, or one chain of numbers joined by operators and "=".

        If the slot has several numbers or chains, the result has no value, and its `reason` is
        `several_values` or `relation`.
        """
        chains, _ = self._chains()
        readings = [self.read_chain(chain, shown) for chain in chains]
        valid = [index for index, chain in enumerate(chains) if not self.is_silent(chain[0])]
        if len(chains) > 1 and len(valid) != 1:
            refused = next((one for one in readings if one.reason == "relation"), None)
            return refused or Reading(shown, reason="several_values")
        index = valid[0] if valid else 0
        if readings[index].value is not None:
            rest = self._between(chains[index][-1].last, len(self.tags))
            if context.BESIDE.search(self._between(0, chains[index][0].first) + rest):
                return Reading(shown, reason="relation")
            if found := context.REST.search(rest):
                return Reading(shown, reason="several_values" if found[0][1:] == "or" else "not_a_number")
        return readings[index]

    def read_lead(self, leads: bool) -> Reading:
        """Read the first number of the text if `leads` is True, and otherwise the last number.

        If the text corrects itself, the first number after the last correction word is read in both cases:
        43 in "42, no, 43".
        """
        chains, is_corrected = self._chains()
        if leads or is_corrected:
            return self.read_chain(chains[0])
        loud = [chain for chain in chains if not self.is_silent(chain[-1])]
        return self.read_chain(loud[-1] if loud else chains[-1])

    def main_number(self, loud: list[int]) -> int | None:
        """Return the index of the number that is the answer, or None.

        The answer is the last number, or an earlier number in the last sentence. An earlier number is the
        answer in these cases:

        - the number precedes "because", as in "It costs $57, because 41 + 16 = 57";
        - the number precedes brackets, as in "42 apples (6 per bag)";
        - the number is the only price of the sentence, as in "Tina makes $990 in 5 days";
        - the number is the result of a calculation and precedes a phrase without a verb, as in "it takes
          8 * 2 = 16 dogs for the 5 cats";
        - the number precedes an infinitive or "than", as in "She needs 3 cows to make 25 liters".

        The result is None if it is not clear which number is the answer, as in "3 bags of 10 ounces each" and
        "8 * 2 = 16 dogs and 5 cats".
        """
        last = self.phrases[loud[-1]]
        begin = 1 + _last(self.tokens[: last.first], frozenset(("newline", "stop")))
        tags = [tag[1:] for tag in self.tags[begin : last.first]]
        sentence = [i for i in loud if self.phrases[i].first >= begin]
        cuts = [begin + i for i, tag in enumerate(tags) if tag in ("because", "(", ")")]
        if cuts and self.tokens[cuts[-1]].text in ("because", "("):
            earlier = [i for i in sentence if self.phrases[i].last <= cuts[-1]]
            return earlier[-1] if earlier else loud[-1]
        if tags and tags[-1] in _PREPOSITIONS:
            prices = [i for i in sentence if "$" in self.phrases[i].unit]
            if prices and prices == sentence[-2:-1]:
                return prices[0]
        if len(sentence) > 1 and _NESTED.match(
            self._between(self.phrases[loud[-2]].number + 1, last.last + 2)
        ):
            return None
        equals = [begin + i for i, tag in enumerate(tags) if tag == "="]
        main = next((i for i in sentence if equals and self.phrases[i].first > equals[-1]), sentence[0])
        clause = self._between(self.phrases[main].last, last.first)
        if main == loud[-1] or _COMMITS.search(clause):
            return loud[-1]
        if equals:
            is_separate = len(equals) == 1 or re.search(r"\s[,;]", self._between(equals[0], equals[-1]))
            return main if is_separate and " and" not in clause else None
        return main if len(sentence) == 2 and _CLAUSE.match(clause) else loud[-1]

    def read_chain(self, chain: list[Phrase], shown: str | None = None) -> Reading:
        """Read the number that a chain states, such as 132 for the chain 47+85=132."""
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
        has_label = context.LABEL.fullmatch(self._between(max(0, phrase.first - 3), phrase.first))
        label = self.tokens[phrase.first - 2].text if has_label else ""
        return Reading(shown, value, "", phrase.is_percent, phrase.unit, label)

    def is_whole(self) -> bool:
        """Return True if a text consists of one number and, at most, a label, a unit and punctuation."""
        before = self.tokens[: self.phrases[0].first]
        names = [token for token in before if token.kind not in ("open", "currency")]
        if names:
            *names, sign = names
            has_sign = sign.kind in ("equals", "colon") or sign.word in COPULAS
            is_name = len(names) == 1 or all(name.kind == "word" for name in names)
            if not (has_sign and is_name and all(map(_is_label, names))):
                return False
        if len(self.phrases) > 1 and any(token.kind in _LABELS for token in self.tokens):
            return False  # an equation with variables
        rest = self.tokens[self.phrases[-1].last :]
        return all(token.kind in _ENDS for token in rest) and len(self._chains()[0]) == 1

    # --- chains -----------------------------------------------------------------------------------------

    def _written(self, phrase: Phrase) -> str:
        return self.text[self.tokens[phrase.first].start : self.tokens[phrase.last - 1].end].strip()

    def _chains(self) -> tuple[list[list[Phrase]], bool]:
        """Return the chains of the text, and True if the text corrects itself.

        If the text corrects itself, the result has only the chains after the last correction word (for
        example "no").
        """
        chains, is_corrected = [[self.phrases[0]]], False
        for before, phrase in pairwise(self.phrases):
            between = self._between(before.last, phrase.first)
            if context.JOINED.fullmatch(between):
                chains[-1].append(phrase)
                continue
            if context.CORRECTED.search(between):
                chains, is_corrected = [], True
            chains.append([phrase])
        return chains, is_corrected

    def chain_of(self, index: int) -> list[Phrase]:
        first = index
        while first and context.JOINED.fullmatch(
            self._between(self.phrases[first - 1].last, self.phrases[first].first)
        ):
            first -= 1
        return self.phrases[first : index + 1]

    def _swapped(self, chain: list[Phrase], equals: int) -> Phrase | None:
        """Return the first side of a chain such as `132 = 47+85`, or None if it cannot be the answer.

        The first side must be a single number, and the other sides must not have variables.
        """
        sides = self.tokens[equals : chain[-1].last]
        is_alone = chain[0].last == equals and not self._before(chain[0].first)
        is_plain = not any(token.kind in _LABELS for token in sides)
        return chain[0] if is_alone and is_plain and not self._after(chain[-1]) else None

    def _is_contradicted(self, chain: list[Phrase], phrase: Phrase, equals: list[int]) -> bool:
        """Return True if a side of the chain is a number whose value differs from that of `phrase`."""
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

    # --- beside a number --------------------------------------------------------------------------------

    def _before(self, index: int) -> str:
        """Return the reason to reject a number because of the tokens before it; "" if there is none."""
        nearest = range(index - 1, max(-1, index - 1 - _CONTEXT), -1)
        line = "".join(self.tags[i + 1][0] + self.tags[i][1:] for i in nearest)
        if index <= _CONTEXT and not self.is_slot:
            line += " ¶"
        matches, reasons = context.BEFORE
        found = matches(line)
        reason = reasons[found.lastindex - 1] if found and found.lastindex else ""
        return ("several_values" if self.leads else "") if reason == context.RANGE else reason

    def _after(self, phrase: Phrase) -> str:
        """Return the reason to reject a number because of the tokens after it; "" if there is none."""
        index = phrase.last
        line = self._between(index, index + _CONTEXT)
        is_decimal = "." in self.tokens[phrase.number].text
        if (self.is_slot or is_decimal) and re.match(r"(?:\s\))*\s(?:…|\.\s\.\s\.)", line):
            return "relation"  # 0.333…
        if found := re.match(rf"(?:\s\))*\s!(?P<is_end>\s¶|\Z|\s{WORD})?", line):
            has_words = self.leads or any(one.kind == "word" for one in self.tokens[: phrase.first])
            return "" if has_words and not self.is_slot and found["is_end"] is not None else "not_evaluated"
        matches, reasons = context.AFTER
        found = matches(line)
        reason = reasons[found.lastindex - 1] if found and found.lastindex else ""
        if reason == context.CONDITION:
            return "relation" if self.leads else ""
        return ("" if phrase.unit else "not_evaluated") if reason == context.OVER else reason

    def _is_absolute(self, phrase: Phrase) -> bool:
        """Return True if a negative number is between two vertical bars, as in |-42|."""
        before, after = self._between(0, phrase.first), self._between(phrase.last, phrase.last + _CONTEXT)
        is_negative = phrase.value is not None and phrase.value < 0
        return is_negative and bool(re.search(r"\|(?:\s\()*\Z", before) and re.match(r"(?:\s\))*\s\|", after))


def _is_label(token: Token) -> bool:
    """Return True for a name such as x, AB or total, but not for a product of variables.

    Two lower-case letters, such as xy, are a product, and so are three without a vowel, such as xyz.
    """
    word = token.text
    is_product = word.islower() and (len(word) == 2 or (len(word) == 3 and not set(word) & set("aeiou")))
    return token.kind in _LABELS and "^" not in word and not is_product
