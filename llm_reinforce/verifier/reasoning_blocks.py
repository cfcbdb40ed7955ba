r"""Reasoning blocks of a completion, such as `<think>…</think>`. Only text after the blocks is an answer.

Models mark their reasoning with many different tags: `<think>`, `<Thought>`, `[THINK]`, `<|START_THINKING|>`,
`<|begin_of_thought|>`, `<longcat_think>`, `◁think▷`. Each of these tags is a name in brackets. The tag that
closes a block also contains a slash or a word such as "end".
"""

import re

_NAMES = "think(?:ing)?|thoughts?|reasoning|analysis|reflection|scratchpad|rationale|cot"
_STEMS = (*_NAMES.replace("(?:ing)?", "").replace("s?", "").split("|"), "<|channel|>")
_NAME = rf"(?:[A-Za-z]{{1,16}}[:_])?(?:{_NAMES})"
_TAG = re.compile(
    rf"""
    [<\[◁] (?P<slash>/)? (?P<plain>{_NAME}) [>\]▷]
  | <\| (?P<bar_slash>/)? (?: (?P<before>begin|start|end) _ (?:of_)? )? (?P<name>{_NAME})
        (?: _ (?P<after>start|begin|end) )? \|>
  | (?P<channel> <\|channel\|>(?:analysis|(?P<final>final)) )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_MESSAGE = "<|message|>"  # follows the name of a channel


def _unclosed_and_end(text: str) -> tuple[dict[str, int], int]:
    """Return the unclosed blocks of a text, and the index after its last closing tag.

    The blocks are a mapping from the name of a block to the index of its start.
    """
    has_bracket = any(bracket in text for bracket in "<[◁")
    lower = text.lower() if has_bracket else ""
    if not any(stem in lower for stem in _STEMS):
        return {}, 0
    # the set contains each tag once, because a text may repeat a tag thousands of times
    pieces = {f"{bracket}{piece}" for bracket in "<[◁" for piece in set(text.split(bracket)[1:])}
    opened: dict[str, int] = {}
    closed: dict[str, int] = {}
    end = 0
    for tag in filter(None, map(_TAG.match, pieces)):
        start = text.rfind(tag[0])
        words = {(tag[group] or "").lower() for group in ("before", "after")}
        is_closing = bool(tag["slash"] or tag["bar_slash"] or tag["final"] or "end" in words)
        name = "channel" if tag["channel"] else (tag["plain"] or tag["name"]).lower()
        last = closed if is_closing else opened
        last[name] = max(start, last.get(name, 0))
        if is_closing:
            end = max(end, start + len(tag[0]))
    return {name: start for name, start in opened.items() if start > closed.get(name, -1)}, end


def after_reasoning(completion: str) -> str:
    """Return the text after the last reasoning block; empty if the completion ends inside a block."""
    unclosed, end = _unclosed_and_end(completion)
    return "" if unclosed else completion[end:].removeprefix(_MESSAGE)


def open_reasoning(text: str) -> str:
    """Return the unclosed reasoning block at the end of a text, with its tag; "" if all blocks are closed.

    >>> open_reasoning("What is 3 + 4?\\n<think>\\nFirst,")
    '<think>\\nFirst,'
    """
    unclosed, _ = _unclosed_and_end(text)
    return text[min(unclosed.values()) :] if unclosed else ""


def is_reasoning_tag(text: str) -> bool:
    """Return True if a text is a tag of a reasoning block and nothing else."""
    return bool(_TAG.fullmatch(text.removesuffix(_MESSAGE)))
