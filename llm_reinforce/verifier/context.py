r"""Rules that decide from the neighboring tokens whether a number is part of an expression, relation or list.

A rule is a pattern on the tags of tokens (see `tokens.py`). The first rule that matches is applied.
`BEFORE` reads the tokens before a number backwards, starting with the nearest token.
"""

import re
from collections.abc import Callable

from llm_reinforce.verifier import lexicon
from llm_reinforce.verifier.lexicon import words
from llm_reinforce.verifier.tokens import WORD, any_of

CONDITION, RANGE, OVER = "condition", "range", "over"
"""Results of rules that reject a number in some cases only: "42 if", "from 3 to 42", "42 over 7"."""


END = r"(?:\s[).?…¶]|\Z)"
OPERATOR = r"[-+*/×÷·^√]"
_MARK = r'(?:\s[,;("])?'
_UNIT = rf"\s(?!{any_of(lexicon.NO_UNITS)})(?:{WORD}|[°)])"
_ITEM = rf"(?:{_UNIT}){{0,3}}(?:\s%)?(?:\s0\s/)?\s\d\S*(?:\s[-+$])*"  # an item of a list, in reverse order
_NOT = rf"(?:{any_of(lexicon.WRONG_AFTER)}|\S*n't(?!\S))"
_JOINT = any_of(lexicon.ALTERNATIVES)
_EVEN = rf"(?:\s{any_of(lexicon.ADVERBS | words('or and'))})*"
_HEDGED = any_of(lexicon.HEDGES - {"up"} | lexicon.NEGATIONS | {"than"})
_NUMBER = rf"(?:0|\\f|{any_of(lexicon.NUMBER_WORDS)})"
_BESIDE_OR = rf"(?:\s(?:{any_of(lexicon.ADVERBS)}|@\S+|=))*"

Rule = Callable[..., "re.Match[str] | None"]


def _rules(skipped: str, *rules: tuple[str, str]) -> tuple[Rule, list[str]]:
    """Compile rules into a single pattern. Return its method `match`, and a list with each rule's result.

    The pattern first skips the tags that match `skipped`, such as brackets. The first rule that matches the
    following tags is applied.

    Args:
        skipped: pattern of the tags that are skipped.
        rules: pairs (result, pattern).
    """
    return re.compile(skipped + "(?:" + "|".join(f"({rule})" for _, rule in rules) + ")").match, [
        reason for reason, _ in rules
    ]


BEFORE = _rules(
    r"(?:\s[($|])*+",
    ("", rf" [-+](?:\s¶|\Z)| \*\s¶| - (?:{WORD}|[.?…:])"),  # an item of a list, a dash
    ("not_evaluated", rf"\s(?:{OPERATOR}|\*\*|\\f|°)"),
    ("relation", r"\s[≈<>]"),
    ("", r"\s\)\s@[a-hA-H]\s\("),  # (B) 42
    ("not_evaluated", r"\t\)|(?<=[($|])\s\)"),
    ("not_evaluated", r"\s@[xX]\s[0)](?!\S)|\t@[xX](?!\S)"),  # 3 x 4
    ("not_a_number", r"\t@|\s@(?:[^\x00-\x7f]|\S*\^)"),  # f(2), π 2
    ("several_values", r"\s0(?!\S)|\s%(?!\s¶|\Z)"),
    (
        "several_values",
        rf"(?:\s[,;]{_ITEM})+(?:\Z|\s[=(:¶]|\s{any_of(lexicon.COPULAS | words('either answers'))})",
    ),
    ("several_values", rf"\s;{_ITEM}"),
    ("relation", rf"\s[,;](?:\s{WORD}){{0,3}}\s{any_of(lexicon.INSERTED)}(?:\s{WORD}){{0,3}}(?:\Z|\s[,;¶])"),
    ("relation", rf"\s[.?…]\s{any_of(lexicon.HEDGES)}"),  # approx. 42
    ("relation", rf"(?:\s(?:{WORD}|@\S+)){{0,4}}\s(?:if|when|unless)(?!\S)"),
    ("not_a_number", r"\s: 0(?!\S)|\sbase(?!\S)"),  # the ratio 3 : 4
    ("not_evaluated", rf"\s{any_of(lexicon.MULTIPLIERS)}|\sof\s(?:[0%](?!\S)|{any_of(lexicon.PARTS)})"),
    ("not_evaluated", rf"\sby(?:\s0(?!\S)|(?:\s{WORD}){{0,2}}\s{any_of(lexicon.MULTIPLYING)})"),
    ("not_evaluated", rf"\s{any_of(lexicon.OPERATIONS)}|\s(?:adding|subtracting)\sby(?!\S)"),
    ("", rf"\sto\sup(?:\s{WORD}){{0,4}}\s{any_of(lexicon.SUMS)}"),  # adds up to 42
    (
        "relation",
        rf"\sto\sup(?!\S)|(?:\s{any_of(lexicon.FILLERS)}){{0,5}}\s(?:{_HEDGED}|\S*n't(?!\S)"
        r"|(?:least|most)(?:\s\S+){0,2}\sat(?!\S))",
    ),
    (
        "several_values",
        rf"{_BESIDE_OR}\s{any_of(lexicon.ALTERNATIVES - {'to'})}(?:\s[,;])?"
        rf"(?:\s(?:{WORD}|@\S+|[°)])){{0,6}}?\s(?:[\d%]|{any_of(lexicon.NUMBER_WORDS)})",
    ),
    (RANGE, rf"{_BESIDE_OR}\sto{_ITEM}\sfrom(?!\S)"),
    ("several_values", rf"{_BESIDE_OR}\sto(?:\s[,;])?(?:{_UNIT}){{0,4}}\s[\d%]"),
)

AFTER = _rules(
    r"(?:\s[)$|])*+",
    ("not_evaluated", r"(?<=\))\t\(|\t\(\s(?:0|@|\\f)"),  # (8)(1), 8(x)
    ("not_evaluated", rf"\s(?:\*\*|(?!-\s{WORD}){OPERATOR})|\s=(?!\s(?:@\S+|{WORD}){END})"),  # 42 = x is 42
    ("relation", r"\s≈|\s[<>](?!\s[.?…¶]|\Z)|\s\?"),
    ("not_a_number", r"\s\\f|\s‰|\s:\s0"),
    ("several_values", r"\s0|\s[,;]\s[.…]"),
    ("several_values", rf"(?:{_MARK}\s{_JOINT}|\s[,;]){_EVEN}(?:\s(?:[$(=+-]|@\S+))*\s{_NUMBER}"),
    ("several_values", rf"{_MARK}\sor(?!\S)(?:\s(?:{WORD}|@\S+|[$(=+-])){{0,5}}\s{_NUMBER}"),
    ("relation", rf"{_MARK}\s{_JOINT}\s{any_of(lexicon.BOUNDS_AFTER | lexicon.HEDGES_AFTER)}"),
    ("relation", rf'(?:\s[,;"])?\s{any_of(lexicon.HEDGES_AFTER)}'),
    ("relation", rf"\s[,;(]\s{any_of(lexicon.HEDGES | lexicon.HEDGES_AFTER)}(?:\sspeaking|{END})"),
    ("relation", rf"{_MARK}\s(?:at\s(?:least|most)|more\sor)(?!\S)"),
    ("not_evaluated", rf"{_MARK}\s{any_of(lexicon.BOUNDS_AFTER)}\sthan(?!\S)"),
    ("", r"\s[,;(]\snot\s[0$]"),
    ("relation", rf"{_MARK}\s(?:{any_of(lexicon.COPULAS)}(?:\s\S+)?\s)?{_NOT}"),
    (CONDITION, rf"{_MARK}\s{any_of(lexicon.CONDITIONS)}"),
    ("several_values", rf"{_MARK}\s(?:remainder|rem)(?!\S)"),
    ("not_a_number", rf"{_MARK}\s(?:base|(?:in|to)\s{any_of(lexicon.BASES)})(?!\S)"),
    ("not_evaluated", rf"{_MARK}\s(?:(?:out\s)?of|by)\s0(?!\S)"),
    (OVER, rf"{_MARK}\sover\s0(?!\S)"),
    ("not_evaluated", rf"{_MARK}\sto\sthe(?:\s\S+){{0,3}}\s(?:power|fourth|fifth)(?!\S)"),
)

# --- the tags between two numbers, or before the first one --------------------------------------------

_PART = rf"\s(?:[()$°!]|\\f|@\S+|{OPERATOR}|\*\*|=|{any_of(lexicon.JOINING)})"
JOINED = re.compile(rf"(?=.*\s(?:{OPERATOR}|\*\*|=|{any_of(lexicon.JOINING)}))(?:{_PART})+", re.DOTALL)
"""Pattern of the tags between two numbers of one chain: operators, equals signs, brackets and letters."""
CORRECTED = re.compile(
    rf"\s{any_of(lexicon.CORRECTIONS)}(?!\s{any_of(words('than doubt matter problem more less'))})"
)
"""Pattern of a word that takes back the number before it, such as "no" in "42, no, 43"."""
LEAD = re.compile(rf'(?:\s(?:[()=:"$|¶+-]|minus|negative|@\S+|(?:{WORD}|\\f)(?=\s[=:)])))*')
"""Pattern of the tags that can precede the first number of a sentence without changing its meaning."""
LABEL = re.compile(rf"(?:\s(?!{OPERATOR}|0(?!\S)|[@\\])\S+)?\s@\S+\s[=:]")
"""Pattern of a letter that names the number after it, as in "x = 5"."""
BESIDE = re.compile(
    rf"\s(?:[≈<>]|{any_of(lexicon.CONDITIONS | lexicon.NEGATIONS - {'without'})}|\S*n't(?!\S))"
)
"""Pattern of a relation or a condition in a slot, which is a text that should contain only the answer."""
REST = re.compile(r"(?<!\s=)\s@(?![airAIR](?!\S))[\x00-\x7f]|\sor(?!\S)")
"""Pattern of a variable or an alternative after the only number of a slot."""
