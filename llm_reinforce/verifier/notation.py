"""Conversion of LaTeX, typographic characters and terminal codes to plain text, so that numbers can be read.

The running time of each pattern is linear in the length of the text, because its repetitions are bounded,
possessive or cannot overlap.
"""

import re
import unicodedata

_APOSTROPHE, _MINUS = "'", "-"
_CHARACTERS: dict[str, str] = {
    **dict.fromkeys("‐‑–−﹣－", _MINUS),
    "’": _APOSTROPHE,
    "٫": ".",
    "٬": ",",
    "٪": "%",
    "⁄": "/",
    "∕": "/",
    "∙": "·",
    "⋅": "·",
    "✕": "×",
    "⩽": "≤",
    "⩾": "≥",
    "→": " = ",
    "⇒": " = ",
    "⟹": " = ",
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")


class _Table(dict[int, str]):
    """Table for `str.translate` that computes the replacement of each character when it is first needed."""

    def __missing__(self, code: int) -> str:
        self[code] = shown = _shown(chr(code))
        return shown


def _shown(character: str) -> str:
    if character in _CHARACTERS:
        return _CHARACTERS[character]
    if character in "\t\n":
        return character
    category = unicodedata.category(character)
    if category == "Nd":  # the decimal digits of every script
        return str(unicodedata.decimal(character))
    if category == "Cf":  # marks of direction, joiners, soft hyphens
        return ""
    if category in ("Cc", "Zs", "Zl", "Zp"):
        return " "
    if category == "No" and "⁄" in (whole := unicodedata.normalize("NFKC", character)):
        return f" {whole.replace('⁄', '/')}"  # ½
    if 0xFF01 <= ord(character) <= 0xFF5E:  # full-width forms of ASCII
        return chr(ord(character) - 0xFEE0)
    return character


_TABLE = _Table()

_ANSI = re.compile(r"\x1b\[[0-9;:?]{0,32}[A-Za-z]")
_RAISED = re.compile("[⁰¹²³⁴-⁹⁺⁻]++")
_TAG = r"</?[A-Za-z][A-Za-z0-9 \"'=_-]{0,40}/?>|<\|[A-Za-z0-9_/]{1,32}\|>"
_TAG_IN_NUMBER = re.compile(rf"(?<=[0-9])(?:{_TAG})++(?=\.?[0-9])")
_MARKUP = re.compile(rf"<<[^<>\n]{{0,200}}>>|{_TAG}|&nbsp;")
_ARROW = re.compile(r"[-=]{1,2}>")

_SYMBOLS = {
    **{"times": "×", "cdot": "·", "div": "÷", "pm": "±", "mp": "∓", "infty": "∞", "pi": "π", "sqrt": "√"},
    **{"neq": "≠", "ne": "≠", "leq": "≤", "le": "≤", "leqslant": "≤", "lt": "<", "gt": ">", "in": "∈"},
    **{"geq": "≥", "ge": "≥", "geqslant": "≥", "approx": "≈", "sim": "≈", "simeq": "≈", "not": "≠"},
    **{"to": " = ", "rightarrow": " = ", "Rightarrow": " = ", "implies": " = ", "degree": "°"},
}
_SYMBOL = re.compile(rf"\\({'|'.join(sorted(_SYMBOLS, key=len, reverse=True))})(?![A-Za-z])")
_INTEGER = r"[ ]?(-?[0-9]++)[ ]?"

_LATEX: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\\(?=[A-Za-z(\[])", r"\\"),  # a backslash that was escaped twice
        (r"\\(?:text[a-z]{0,6}|math[a-z]{2}|mbox|hbox|boldsymbol|bm|underline)[ ]?\{([^{}]*+)\}", r" \1 "),
        (r"\\(?:boxed|fbox)[ ]?\{", "{"),
        (r"\\color[ ]?\{[a-zA-Z]{0,20}\}", " "),
        (
            r"\\(?:left|right|quad|qquad|displaystyle|textstyle|bf|it|rm|large|Large|huge|Huge)(?![A-Za-z])",
            " ",
        ),
        (r"(?<=[0-9]),?\\[,!;: ](?=[0-9]{3}(?![0-9]))", ","),  # thousands separated by a small space
        # 5\frac{1}{2} is 5 1/2; \frac{3}{4}, \dfrac34 and {3 \over 4} are 3/4; a sign moves to the front
        (rf"(?<=[0-9])[ ]?\\[dtcs]?frac[ ]?\{{{_INTEGER}\}}[ ]?\{{{_INTEGER}\}}", r" \1/\2"),
        (rf"\\[dtcs]?frac[ ]?\{{{_INTEGER}\}}[ ]?\{{{_INTEGER}\}}", r"\1/\2"),
        (r"\\[dtcs]?frac[ ]?([0-9])[ ]?([0-9])", r"\1/\2"),
        (rf"\{{{_INTEGER}\\over{_INTEGER}\}}", r"\1/\2"),
        (r"(?<![-0-9])([0-9]++)/-([0-9]++)", r"-\1/\2"),
        (r"\^[ ]?(?:\\circ|\{[ ]?\\circ[ ]?\})", "°"),
        (r"\\[,;:! ()\[\]]", " "),
        (r"\\([$%&#_{}])", r"\1"),
    )
)
_TEXT: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\$\$", " "),
        (r"(?<=[0-9])\{,\}(?=[0-9]{3}(?![0-9]))", ","),
        (r"([$£€¥₹])[ ]?-(?=[0-9.])", r"-\1"),
        (r"=\s{0,4}-\s{1,4}(?=[0-9$£€.])", "= -"),
        (r"\b(?:[Mm]inus|[Nn]egative)[ ](?=[$£€]?[0-9.])", "-"),
        # 1.5 × 10^{3} is 1.5e3; with more than one digit before the decimal point it is a product
        (
            r"(?<![0-9.,])([0-9](?:\.[0-9]++)?)[ ]{0,2}[×·*xX][ ]{0,2}10[ ]?(?:\^|\*\*)[ ]?"
            r"(?:\{[ ]?([-+]?[0-9]{1,4})[ ]?\}|\([ ]?([-+]?[0-9]{1,4})[ ]?\)|([-+]?[0-9]{1,4})(?![0-9]))",
            r"\1e\2\3\4",
        ),
    )
)


def plain(text: str) -> str:
    r"""Return a text with ASCII digits and minus signs, without markup, and without LaTeX in numbers.

    >>> plain(r"\boxed{-\dfrac{3}{4}\text{ cm}}")
    '{-3/4  cm }'
    """
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    if not text.isascii():
        text = _RAISED.sub(lambda raised: "^{" + raised[0].translate(_SUPERSCRIPTS) + "}", text)
    text = text.translate(_TABLE)
    if "<" in text or "&" in text:
        # a tag between two digits is a special token, such as <pad> in 1<pad>5, which is neither 15 nor 5
        text = _TAG_IN_NUMBER.sub("\ufffd", text)
        text = _MARKUP.sub(" ", text)
    if ">" in text:
        text = _ARROW.sub(" = ", text)
    if "\\" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
        text = _SYMBOL.sub(lambda command: _SYMBOLS[command[1]], text)
    for pattern, replacement in _TEXT:
        text = pattern.sub(replacement, text)
    return text
