r"""Location of the final answer in a completion.

The final answer is the first of these that exists after the last reasoning block:

1. a *slot*: the last `\boxed{…}`, the first line after the last `####`, or the last `<answer>…</answer>`. An
   empty slot is skipped if a slot of the same form precedes it. A slot that is not closed ends with the
   completion, unless the completion was truncated;
2. the text X of the last "answer is X", "answer: X" or "answer = X". X extends to the end of its line;
3. the number that the text states as its answer, usually its last number. Operands, and numbers in dates,
   times, versions and names, are skipped.

Only the end of a long text is read. The search for marks such as `####` starts at the end of the text, and
only a limited number of characters after a mark is read. The running time therefore hardly grows with the
length of the text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llm_reinforce.verifier.reasoning_blocks import after_reasoning

MAX_READ = 16_384  # characters read at the end of a completion
MAX_SLOT = 2_048  # maximum number of characters of a slot
_MAX_LINE = 384
_MAX_TRIES = 64  # maximum number of marks examined, from the last one backwards
_MAX_NESTING = 8

MARK = re.compile(r"[<>\\#aA[◁]|option|choice")  # tags, quotations, boxes, ####, "answer"
_CUT_TOKEN = re.compile(r"[0-9A-Za-z_.,/:+-]*+")
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,2}\{")
_BRACE = re.compile(r"\\[\\{}]|[{}]")
_DEPTHS = {"{": 1, "}": -1}
_CLOSING_TAG = re.compile("</answer>", re.IGNORECASE)
_JOINT = re.compile(
    r"[\s$,;.)]{0,8}(?:\\text\{)?\s{0,4}(?:,|;|or\b|and\b)\s{0,4}\}?[\s$(]{0,8}(?:[A-Za-z]\w?\s?=\s?)?",
    re.IGNORECASE,
)
_CUE = re.compile(
    r"""(?: answers? | option | choice )\b [\s*_"'`]{0,8} (?: (?:to|of|for)\b [^\n.:=]{0,80}? \b (?=is\b) )?
        (?: (?: is | are | was | equals | (?:would|should|will|must)[ ]be | comes[ ](?:out[ ])?to )\b
          | [:=>] )
        (?: [\s:=] | [*_]{1,3}(?=\s) ){0,16}""",
    re.IGNORECASE | re.VERBOSE,
)
_BLANK = re.compile("[\\s\x00\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]*+")
_DIGIT = re.compile(r"\d")
_CUT_TAG = re.compile(r"</?[A-Za-z]{0,8}\s*$")
_WORD = re.compile(r"[\w</]")
_RIGHT = re.compile(r"(?:correct|right|best)\s$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s*+[^\s=+*/^<>-]|\s*+$)(?!\S)")
_QUOTATION = re.compile(r"(?:\A|(?<=\n))[ ]{0,3}(?:>[ ]{1,4})++")
_CORRECTION = re.compile(
    r"[\s$.,;:!?…*-]{0,16}(?:no(?=[,.;:!]|\s+(?:it|that)\b)|(?:nope|wait|sorry|oops|hmm+|actually|correction"
    r"|scratch that)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """The final answer of a completion, as written.

    Attributes:
        text: text after the last reasoning block; empty if the completion ends inside a reasoning block.
        slot: content of the last slot (see the docstring of the module); empty if the slot has no content;
            None if there is no slot.
        line: rest of the line after the last "answer is"; None if there is a slot, or no "answer is".
        is_several: True if there are several boxes next to each other, as in
            "\\boxed{15} or \\boxed{16}", or if the text after the slot corrects it, as in
            "\\boxed{15}. No, 16.". The contents of boxes in `slot` are separated by commas.
    """

    text: str
    slot: str | None = None
    line: str | None = None
    is_several: bool = False


def find_final_answer(completion: str, *, truncated: bool = False) -> FinalAnswer:
    r"""Return the final answer of a completion; see the docstring of the module.

    Args:
        completion: the completion.
        truncated: True if the completion ended at the token budget. In this case, a `\boxed{` or `<answer>`
            that is not closed contains no answer.
    """
    if len(completion) <= _MAX_LINE and not MARK.search(completion):  # the most common case
        return FinalAnswer(completion)
    text = after_reasoning(completion)
    if len(text) > MAX_READ:
        # remove the first token, which may be part of a number that was cut
        text = _CUT_TOKEN.sub("", text[-MAX_READ:], count=1)
    if "> " in text:
        text = _QUOTATION.sub("", text)
    slot, end, is_several = _boxed(text, truncated=truncated)
    if slot is None:
        slot, end = _after_hashes(text)
    if slot is None:
        slot, end = _tagged(text, truncated=truncated)
    if slot and _CORRECTION.match(text, end):
        is_several = is_several or bool(_DIGIT.search(text, end, end + _MAX_LINE))
    line = None if slot is not None else _after_cue(text)
    return FinalAnswer(text, slot, line, is_several)


def sentence(line: str) -> str:
    """Return the first sentence of a line, or the whole line if its rest corrects the first sentence.

    >>> sentence("42. It is even."), sentence("42. No, 43.")
    ('42.', '42. No, 43.')
    """
    end = _SENTENCE_END.search(line)
    return line if end is None or _CORRECTION.match(line, end.end()) else line[: end.end()]


def _after_hashes(text: str) -> tuple[str | None, int]:
    """Return the rest of the line after the last "####" that is followed by text, and the index of its end.

    The first item is "" if no "####" is followed by text, and None if there is no "####".
    """
    slot, end = None, len(text)
    for start in _from_the_end(text, "####"):
        line, end = _line(text, _first(text, start + 4))
        slot = line.strip().strip("#").strip()
        if slot:
            break
    return slot, end


def _first(text: str, start: int) -> int:
    blank = _BLANK.match(text, start)
    return blank.end() if blank else start


def _line(text: str, start: int, limit: int = MAX_SLOT) -> tuple[str, int]:
    r"""Return the line that begins at `start`, and the index of its end.

    Line ends inside `\text{…}` do not count.
    """
    line, _, following = text[start : start + limit].partition("\n")
    if line.count("{") > line.count("}"):
        line = f"{line} {following.partition(chr(10))[0]}"
    return line, start + len(line)


def _boxed(text: str, *, truncated: bool) -> tuple[str | None, int, bool]:
    r"""Return the content and the end of the last outer box, and True if other boxes directly precede it.

    The content is None if there is no box, and "" if the box is empty. The end is an index in the text. In
    "\boxed{15} or \boxed{16}", another box directly precedes the last box. The content then consists of the
    contents of all these boxes, separated by commas.
    """
    boxes: list[str] = []
    begin = end = last = len(text)  # start and end of the box found most recently; end of the last box
    slot: str | None = None
    for start in _from_the_end(text, r"\boxed", r"\fbox"):
        box = _BOX.match(text, start)
        if box is None:
            continue
        closed = _closing_brace(text, box.end())
        if closed is None:
            if truncated or slot or len(text) - box.end() > MAX_SLOT:
                return slot or "", last, len(boxes) > 1
            closed = len(text)
        content = text[box.end() : closed].strip()
        if closed > end:  # this box contains the box that was found before it
            boxes[-1:], begin, end, last = [content], start, closed, closed + 1
        elif not slot or _JOINT.fullmatch(text, closed + 1, begin):
            boxes[:0] = [content] if content.strip(" $\\])") else []
            last = last if slot else closed + 1
            begin, end = start, closed
        else:
            break
        slot = ", ".join(boxes)
        if len(boxes) > _MAX_NESTING:
            break
    return slot, last, len(boxes) > 1


def _from_the_end(text: str, *words: str) -> Iterator[int]:
    """Yield the positions of the given words in a text, starting with the last position."""
    found = {word: text.rfind(word) for word in words}
    for _ in range(_MAX_TRIES):
        word, start = max(found.items(), key=lambda item: item[1])
        if start < 0:
            return
        yield start
        found[word] = text.rfind(word, 0, start)


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for brace in _BRACE.finditer(text, start, start + MAX_SLOT):
        depth += _DEPTHS.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None


def _tagged(text: str, *, truncated: bool) -> tuple[str | None, int]:
    """Return the content of the last `<answer>` that is not empty, and the index of its end.

    The content is None if the text has no `<answer>`.
    """
    slot, end = None, len(text)
    for start in _from_the_end(text, "<answer>", "<Answer>", "<ANSWER>"):
        start += len("<answer>")
        close = _CLOSING_TAG.search(text, start, start + MAX_SLOT)
        if close is None and (truncated or len(text) - start > MAX_SLOT):
            return "", end
        end = close.end() if close else end
        slot = (text[start : close.start()] if close else _CUT_TAG.sub("", text[start:])).strip()
        if slot:
            break
    return slot, end


def _after_cue(text: str) -> str | None:
    for start in _from_the_end(text, "answer", "Answer", "ANSWER", "option", "choice"):
        cue = _CUE.match(text, start)
        if text[start] in "oc" and not _RIGHT.search(text[max(0, start - 9) : start]):
            continue  # only "the correct option is"
        if cue is not None and not (start and _WORD.match(text[start - 1])):
            line, end = _line(text, cue.end(), _MAX_LINE)
            if _CORRECTION.match(text, end):  # "The answer is 42.\nNo, it is 43."
                line = f"{line}. {_line(text, _first(text, end), _MAX_LINE)[0]}"
            if "\n" in cue[0]:
                line = line.strip().removeprefix("- ")  # list marker
            before = text[max(0, start - 64) : start].rpartition("\n")[2]
            return _without_half_emphasis(line.strip(), before) or None
    return None


def _without_half_emphasis(line: str, before: str) -> str:
    """Remove the closing "**" of "**Answer:** 42" or "**Answer: 42**" from `line`, the text after "Answer:".

    `before` is the text before "Answer:", with the opening "**".
    """
    rest = line.lstrip("*_")
    if line[: len(line) - len(rest)] not in rest:
        return rest
    inner = line.rstrip("*_.")
    mark = line[len(inner) :].strip(".")
    return inner if mark and mark in before and mark not in inner else line


def split_at_mark(solution: str) -> tuple[str, str | None]:
    """Split a worked solution into its steps and the answer after the last `####`, as in GSM8K.

    Returns:
        the steps, and the answer without commas; if there is no `####`, the whole solution and None.
    """
    steps, mark, answer = solution.rpartition("####")
    return (steps.rstrip(), answer.replace(",", "").strip()) if mark else (solution, None)
