r"""Normalization: LaTeX, Markdown, typographic characters and terminal codes become plain text.

The function `plain` removes markup such as that of a number in bold, in `$…$` or in `\text{…}`, and converts
the digits of other scripts. The rules that read an answer therefore need to know only one notation. Line ends
are kept, because they carry meaning. A special token between two digits, such as `<pad>` in `1<pad>5`,
becomes U+FFFD, so that neither 15 nor 5 is read.

The running time of each pattern is linear in the length of the text. For this purpose, each repetition in a
pattern is bounded, is possessive, or cannot overlap with another repetition.
"""

import re
import unicodedata

_APOSTROPHE, _MINUS = "'", "-"
_CHARACTERS: dict[str, str] = {
    **dict.fromkeys("‐‑–−﹣－", _MINUS),
    **dict.fromkeys("’‘", _APOSTROPHE),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("→⇒⟹", " = "),
    **dict.fromkeys("∙⋅", "·"),
    **dict.fromkeys("∼≃≅∽≋", "≈"),
    **{"٫": ".", "٬": ",", "٪": "%", "⁄": "/", "∕": "/", "✕": "×", "⩽": "≤", "⩾": "≥", "º": "°"},
}
_RAISED_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_LOWERED_DIGITS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


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
    if category == "Cf":  # directional marks, joiners and soft hyphens
        return ""
    if category in ("Cc", "Zs", "Zl", "Zp"):
        return " "
    if category == "No" and "⁄" in (whole := unicodedata.normalize("NFKC", character)):
        return f" {whole.replace('⁄', '/')}"  # ½
    if 0xFF01 <= ord(character) <= 0xFF5E:  # full-width forms of ASCII
        return chr(ord(character) - 0xFEE0)
    if 0x1D400 <= ord(character) <= 0x1D7FF:  # mathematical letters
        return unicodedata.normalize("NFKC", character)
    return character


_TABLE = _Table()

_ANSI = re.compile(r"\x1b\[[0-9;:?]{0,32}[A-Za-z]")
_RAISED = re.compile("[⁰¹²³⁴-⁹⁺⁻]++")
_LOWERED = re.compile("[₀-₉]++")
_TAG = r"</?[A-Za-z][A-Za-z0-9 \"'=_-]{0,40}/?>|<\|[A-Za-z0-9_/]{1,32}\|>"
_TAG_IN_NUMBER = re.compile(rf"(?<=[0-9])(?:{_TAG})++(?=\.?[0-9])")
_MARKUP = re.compile(rf"<<[^<>\n]{{0,200}}>>|{_TAG}|&nbsp;")
_ARROW = re.compile(r"[-=]{1,2}>")

# --- LaTeX --------------------------------------------------------------------------------------------

_COMMANDS = {
    **{"times": "×", "cdot": "·", "div": "÷", "pm": "±", "mp": "∓", "infty": "∞", "pi": "π", "sqrt": "√"},
    **{"neq": "≠", "ne": "≠", "leq": "≤", "le": "≤", "leqslant": "≤", "lt": "<", "gt": ">", "in": "∈"},
    **{"geq": "≥", "ge": "≥", "geqslant": "≥", "not": "≠", "ast": "*", "lbrace": "⦃", "rbrace": "⦄"},
    **dict.fromkeys(("approx", "sim", "simeq", "approxeq", "cong", "thickapprox", "thicksim"), "≈"),
    **dict.fromkeys(("to", "rightarrow", "Rightarrow", "implies", "longrightarrow"), " = "),
    **{"degree": "°", "percent": "%", "dots": "…", "ldots": "…", "cdots": "…", "euro": "€", "pounds": "£"},
    **dict.fromkeys(("left", "right", "big", "Big", "bigl", "bigr", "Bigl", "Bigr", "middle"), ""),
    **dict.fromkeys(("displaystyle", "textstyle", "bf", "it", "rm", "large", "Large", "huge", "Huge"), " "),
    **dict.fromkeys(("quad", "qquad", "boxed", "fbox", "phantom", "text", "mathrm"), " "),
    **{"lvert": "|", "rvert": "|", "vert": "|", "tfrac": "\\frac", "dfrac": "\\frac", "cfrac": "\\frac"},
}
_ESCAPED = {"$": "$", "%": "%", "&": "&", "#": "#", "_": "_", "{": "⦃", "}": "⦄", "\\": " ; ", "|": "|"}
_COMMAND = re.compile(r"\\(?:([A-Za-z]++)|(.))", re.DOTALL)
_INTEGER = r"(?:\{\s{0,4}([-+]?[0-9]++)\s{0,4}\}|([0-9]))"
_FRACTION = re.compile(rf"\\[dtcs]?frac\s{{0,4}}{_INTEGER}\s{{0,4}}{_INTEGER}")
_LATEX: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\\(?=[A-Za-z(\[])", r"\\"),  # a backslash that was escaped twice
        (r"\\\\\s*+(?:\n|$)", "\n"),
        (
            r"\\(?:text(?!color)[a-z]{0,6}|math[a-z]{2,6}|mbox|hbox|emph|boldsymbol|bm|underline|operatorname)"
            r"\s?\{([^{}]*+)\}",
            r" \1 ",
        ),
        (r"\\(begin|end)\s?\{([a-z]{0,16})\*?\}", r" \\\1_\2 "),
        (r"\\(?:(?:text)?color|[hv]?phantom|tag|label)\s?\{[^{}]{0,32}\}", " "),
        (r"(?<=[0-9]),?[ ]?\\[,!;: ][ ]?(?=[0-9]{3}(?![0-9]))", ","),  # thousands separated by a small space
        (r"\{\s{0,4}([-+]?[0-9]++)\s{0,4}\\over\s{0,4}([-+]?[0-9]++)\s{0,4}\}", r"\\frac{\1}{\2}"),
        (r"\^\s?(?:\\circ(?![A-Za-z])|\{\s?\\circ\s?\})", "°"),
        (r"\\[()\[\]]", " "),
        (r"(?<=[0-9}])~(?=\s?[\\A-Za-z])", " "),  # a space without a line break
    )
)


def _fraction(found: re.Match[str]) -> str:
    r"""Return \frac{3}{4} as 3/4. A space separates it from a digit: 5\frac12 is the mixed number 5 1/2."""
    numerator, denominator = found[1] or found[2], found[3] or found[4]
    sign = "-" if numerator.startswith("-") != denominator.startswith("-") else ""
    before = found.string[found.start() - 1 : found.start()]
    after = found.string[found.end() : found.end() + 1]
    text = f"{sign}{numerator.lstrip('+-')}/{denominator.lstrip('+-')}"
    return f"{' ' if before.isdigit() else ''}{text}{' ' if after.isdigit() else ''}"


def _command(found: re.Match[str]) -> str:
    if found[1]:
        return _COMMANDS.get(found[1], found[0])
    return _ESCAPED.get(found[2], " ")


def _without_latex(text: str) -> str:
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return _COMMAND.sub(_command, _FRACTION.sub(_fraction, text))


# --- emphasis, math mode and scripts -------------------------------------------------------------------

_EMPHASIS: tuple[re.Pattern[str], ...] = tuple(
    map(
        re.compile,
        (
            r"(?<![\w)*])\*{3}(?=[^\s*])([^*\n]++)\*{3}(?!\*)",
            r"(?<![\w)*])\*{2}(?=[^\s*])((?:[^*\n]++|\*(?!\*))++)(?<=\S)\*{2}(?!\*)",
            r"(?<![\w)*])\*{2}(?=[^\s*])((?:[^*\n]++|\*(?!\*))++)\*{2}(?!\*)",
            r"(?<![^\s(])\*{2}(?=[^\s*])()|(?<=[^\s*])\*{2}()(?![^\s.,;:!?)])",  # unbalanced
            r"(?<![\w)*])\*(?=[^\s*])([^*\n]++)(?<=\S)\*(?![\w*])",
            r"(?<!\w)__(?=[^\s_])([^_\n]++)__(?!\w)",
            r"(?<!\w)_(?=[^\s_])([^_\n]++)_(?!\w)",
        ),
    )
)
_MATH = re.compile(r"\$(?=[^\s$])([^$\n]++)(?<=\S)\$(?![0-9])")
_DISPLAY = re.compile(r"\$\$|`")
_SCRIPTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\^\s?\{\s?([-+]?\w++)\s?\}"), r"^\1"),
    (re.compile(r"_\s?\{\s?(\w++)\s?\}"), r"_\1"),
    (re.compile(r"\{\s?(\w++)\s?\}(?=_[0-9])"), r"\1"),
    (re.compile(r"(?<=[0-9])_10(?![0-9_])"), ""),  # a number in base ten
)
# 1.5 × 10^3 is 1.5e3; with more than one digit before the decimal point it is a product
_SCIENTIFIC = re.compile(
    r"(?<![0-9.,])([0-9](?:\.[0-9]++)?)[ ]{0,2}[×·*xX][ ]{0,2}10[ ]?(?:\^|\*\*)[ ]?"
    r"(?:\([ ]?([-+]?[0-9]{1,4})[ ]?\)|([-+]?[0-9]{1,4})(?![0-9]))"
)


def plain(text: str) -> str:
    r"""Return a text without markup, with ASCII digits and signs, and with fractions as 3/4.

    >>> plain(r"**-\dfrac{3}{4}\text{ cm}^{2}**").split()
    ['-3/4', 'cm', '^2']
    """
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    if not text.isascii():
        text = _RAISED.sub(lambda raised: "^{" + raised[0].translate(_RAISED_DIGITS) + "}", text)
        text = _LOWERED.sub(lambda lowered: "_" + lowered[0].translate(_LOWERED_DIGITS), text)
    text = text.translate(_TABLE).replace("{,}", ",")
    if "<" in text or "&" in text:
        # a tag between two digits is a special token, such as <pad> in 1<pad>5, which is neither 15 nor 5
        text = _TAG_IN_NUMBER.sub("\ufffd", text)
        text = _MARKUP.sub(" ", text)
    if ">" in text:
        text = _ARROW.sub(" = ", text)
    dollars = "$" in text
    if dollars:
        text = _DISPLAY.sub(" ", text).replace(r"\$", "\x00")  # an escaped dollar is never a delimiter
        text = _MATH.sub(r"\1", text).replace("\x00", "$")
    elif "`" in text:
        text = _DISPLAY.sub(" ", text)
    if "\\" in text:
        text = _without_latex(text)
    if "^" in text or "_" in text:
        for pattern, replacement in _SCRIPTS:
            text = pattern.sub(replacement, text)
    if "*" in text or "_" in text:
        for pattern in _EMPHASIS:
            text = pattern.sub(r"\1", text)
    return _SCIENTIFIC.sub(r"\1e\2\3", text) if "10" in text else text
