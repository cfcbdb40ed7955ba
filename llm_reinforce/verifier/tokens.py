r"""Tokens of a normalized text, and their tags. One pattern with linear running time finds the tokens.

The *tag* of a token is one of `0` (a number), `0:0` (a date, time, ratio or version), `@x` (the letter x),
`\f` (a function), `$`, `(`, `)`, `=`, `≈` (a relation), `¶` (a line end) and `"` (another character). The tag
of any other token is the token itself. Each tag is preceded by a space, or by a tab character if nothing
separates the token from the previous token. The rules of `context.py` are patterns on the tags.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from llm_reinforce.verifier.lexicon import FUNCTIONS


class Token(NamedTuple):
    """A token of a text.

    Kinds are `number` (42, 1,042.5, 1.5e3), `malformed` (1,04, 12_8), `compound` (a date, time, ratio or
    version such as 3:30), `ordinal` (1st), `word`, `letter` (x, π), `function` (sqrt, an unknown LaTeX
    command), `operator`, `factorial`, `equals`, `relation`, `separator` (, ;), `open`, `close`, `currency`,
    `percent`, `degree`, `stop` (. ? …), `colon`, `bar`, `newline`, `other`, and `end` in `PADDING`.
    The attribute `word` is the text in lower case.
    """

    kind: str
    text: str
    start: int
    end: int
    word: str


PADDING = [Token("end", "", -1, -1, "")] * 8
"""Tokens appended to the tokens of a text, so that rules can read tokens beyond both ends of the text.

With a negative index, Python reads these tokens as if they preceded the first token.
"""


_PATTERN = re.compile(
    r"""
    [ \t]*+ (?:
    (?P<word> [^\W\d\u0370-\u03ff] [\w\ufffd]*+ (?: ['-][^\W_][\w\ufffd]*+ )*+
              (?: (?<=[0-9]) (?: \.[0-9]++ )++ )?+
              (?: [ ]{0,2} \^ \(?-?[1-9]\)? (?! [0-9] ) )?
            | \ufffd [\w\ufffd]*+ )
  | (?P<newline> \n\s*+ )
  | (?P<integer> [0-9]++ (?! [\w.,'/:\ufffd-] | [ ][0-9] ) )  # most numbers
  | (?P<compound>
        [0-9]++ (?: (?: \.[0-9]++ ){2,} | (?: /[0-9]++ ){2,} | (?: -[0-9]++ ){2,} | (?: :[0-9]++ )++ )
        (?: [.,:/_'-]?[0-9]++ )*+ )
  | (?P<ordinal> [0-9]++ (?: ,[0-9]{3} )*+ (?: st|nd|rd|th )\b )
  | (?P<number>
        (?: (?: [1-9][0-9]{0,2} (?: (?: ,[0-9]{3} )++ | (?: [ ][0-9]{3} )++ | (?: _[0-9]{3} )++
                                  | (?: '[0-9]{3} )++ ) (?! [0-9] )
            | [0-9]++ ) (?: \.[0-9]++ )?+
          | (?<! [\w).] ) \.[0-9]++ )
        (?: [eE] [-+]?[0-9]{1,4} (?! [0-9] ) )?
        (?! [.,_']?[0-9] | [.,]?\ufffd ) )
  | (?P<malformed> [0-9] [0-9.,_'\ufffd]*+ | '[0-9]++ )
  | (?P<function> \\[A-Za-z]++ (?: _\w++ )?+ )
  | (?P<letter> [\u0370-\u03ff] )
  | (?P<mark> \*\* | [<>]=? | != | ={1,3} | . ) )
    """,
    re.VERBOSE | re.DOTALL,
)
_MARKS = {
    **dict.fromkeys(("**", *"-+*/×÷·^√"), "operator"),
    **dict.fromkeys(("<=", ">=", "!=", *"<>≤≥≠≈≲≳±∓∈~≡"), "relation"),
    **dict.fromkeys(("=", "==", "==="), "equals"),
    **dict.fromkeys(",;", "separator"),
    **dict.fromkeys("([{⦃", "open"),
    **dict.fromkeys(")]}⦄", "close"),
    **dict.fromkeys("$£€¥₹₩₽₺₪₱¢", "currency"),
    **dict.fromkeys(".?…", "stop"),
    **{"!": "factorial", "%": "percent", "°": "degree", ":": "colon", "|": "bar"},
}
_LETTER = re.compile(r"[A-Za-z](?:_\w{1,8}|'|\^\(?-?[1-9]\)?)?")


def tokenize(text: str, limit: int | None = None) -> list[Token]:
    """Return the first `limit` tokens of a normalized text. White space is left out, except line ends."""
    tokens = []
    for found in islice(_PATTERN.finditer(text.rstrip(" \t")), limit):
        kind, written = found.lastgroup or "", found[found.lastindex or 0]
        word = written.lower()
        if kind == "integer":
            kind = "number"
        elif kind == "mark":
            kind = _MARKS.get(written, "other")
        elif kind == "word":
            is_decorated = 1 < len(word) <= 10 and word[1] in "_'^ "
            if (len(word) == 1 or is_decorated) and _LETTER.fullmatch(written):
                kind = "letter"
            elif word in FUNCTIONS or word.startswith(("log_", "sqrt_")):
                kind = "function"
        end = found.end()
        tokens.append(Token(kind, written, end - len(written), end, word))
    return tokens


# --- tags -----------------------------------------------------------------------------------------------

_TAGS = {
    **{"number": "0", "malformed": "0", "compound": "0:0", "function": r"\f", "currency": "$", "open": "("},
    **{"close": ")", "equals": "=", "relation": "≈", "newline": "¶", "other": '"'},
}
_SPECIAL = frozenset("<>‰")
WORD = r"[^\W\d_]\S*+"
"""Pattern of the tag of a word."""


def tags_of(tokens: Sequence[Token]) -> list[str]:
    """Return the tags of tokens, each with a space or a tab before it."""
    tags, last = [], -1
    for kind, text, start, end, word in tokens:
        tag = f"@{text}" if kind == "letter" else word if text in _SPECIAL else _TAGS.get(kind, word)
        tags.append(("\t" if start == last else " ") + tag.replace(" ", ""))
        last = end
    return tags


def any_of(some: Iterable[str]) -> str:
    """Return a pattern that matches the tag of each of these words."""
    tags = (re.escape(word) if len(word) > 1 else f"@(?i:{word})" for word in sorted(some))
    return rf"(?:{'|'.join(tags)})(?!\S)"
