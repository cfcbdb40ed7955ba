r"""The strict and the flexible answer extraction of lm-evaluation-harness for GSM8K.

Strict extraction takes the number after the first `#### `. Flexible extraction takes the last number.
The extracted text is correct if it equals the reference answer after commas, dollar signs and a final period
are removed from both texts. Therefore `8.0` does not match `8`. The verifier (`llm_reinforce.verify`)
compares numbers instead of texts.

Source: tasks/gsm8k/gsm8k.yaml of the harness, version 3. A test compares these functions with the patterns in
that file.
"""

import re

STRICT_PATTERN = r"#### (\-?[0-9\.\,]+)"
FLEXIBLE_PATTERN = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
INVALID = "[invalid]"  # result of the harness if the text contains no answer

_STRICT = re.compile(STRICT_PATTERN)
_FLEXIBLE = re.compile(FLEXIBLE_PATTERN)


def strict_answer(text: str) -> str:
    """Return the number after the first `#### `, with a period or comma that follows it, or `[invalid]`.

    >>> strict_answer("3 + 4 = 7\\n#### 7.")
    '7.'
    """
    found = _STRICT.search(text)
    return found[1].strip() if found else INVALID


def flexible_answer(text: str) -> str:
    """Return the last number of the text, unchanged, or `[invalid]`.

    >>> flexible_answer("so $1,042 it is.")
    '$1,042'
    """
    last: re.Match[str] | None = None
    for last in _FLEXIBLE.finditer(text):  # noqa: B007 - only the last one is used
        pass
    return (last[1] or last[2]).strip() if last else INVALID


def exact_match(extracted: str, answer: str) -> bool:
    """Return True if both texts are equal after the harness's normalization.

    >>> exact_match("$1,042.", "1042"), exact_match("8.0", "8")
    (True, False)
    """
    return _normalize(extracted) == _normalize(answer)


def _normalize(text: str) -> str:
    # equivalent to removing the harness's patterns `,`, `\$`, `(?s).*#### ` and `\.$`, but in linear time
    return text.replace(",", "").replace("$", "").rpartition("#### ")[2].removesuffix(".").lower()
