"""Answer extraction of lm-evaluation-harness: against the harness's patterns, and by hand."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_reinforce.evaluation.extraction import INVALID, exact_match, flexible_answer, strict_answer

# patterns and filters, copied from gsm8k.yaml of the harness
STRICT, FLEXIBLE = re.compile(r"#### (\-?[0-9\.\,]+)"), re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED = [",", "\\$", "(?s).*#### ", "\\.$"]


def harness_reading(pattern: re.Pattern[str], place: int, text: str) -> str:
    found = pattern.findall(text)
    if not found:
        return "[invalid]"
    match = found[place]
    if isinstance(match, tuple):
        match = next((part for part in match if part), "[invalid]")
    return str(match).strip()


def harness_normal(text: str) -> str:
    for pattern in IGNORED:
        text = re.sub(pattern, "", text)
    return text.lower()


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("3+4=7\n#### 7", "7", "7"),
        ("#### 7 or #### 8", "7", "8"),  # strict takes the first number after ####, flexible the last number
        ("so it is $1,042.", INVALID, "$1,042."),
        ("####7", INVALID, "7"),
        ("#### -3.5%", "-3.5", "-3.5"),
        ("nothing", INVALID, INVALID),
        ("7 apples, then", INVALID, "7"),
        ("7 apples..", INVALID, ".."),  # as in the harness
        ("", INVALID, INVALID),
    ],
)
def test_extraction_by_hand(text: str, strict: str, flexible: str) -> None:
    assert (strict_answer(text), flexible_answer(text)) == (strict, flexible)


@pytest.mark.parametrize(
    ("extracted", "answer", "equal"),
    [
        ("1,042.", "1042", True),
        ("$7", "7", True),
        ("7.0", "7", False),
        ("07", "7", False),
        ("2002", "2+2000 = 2002\n#### 2,002", True),
        (INVALID, "7", False),
    ],
)
def test_exact_match_by_hand(extracted: str, answer: str, equal: bool) -> None:
    assert exact_match(extracted, answer) is equal


TEXTS = st.lists(
    st.sampled_from(["#### ", "####", " ", "\n", "-", "$", "1", "20", ".", ",", "x", "3.5", "1,000"])
).map("".join)


@given(TEXTS)
@settings(deadline=None)
def test_extraction_equals_the_patterns_of_the_harness(text: str) -> None:
    assert strict_answer(text) == harness_reading(STRICT, 0, text)
    assert flexible_answer(text) == harness_reading(FLEXIBLE, -1, text)


@given(TEXTS, TEXTS)
@settings(deadline=None)
def test_exact_match_equals_the_filters_of_the_harness(left: str, right: str) -> None:
    left, right = left.strip(), right.strip()  # the harness strips extracted texts
    assert exact_match(left, right) == (harness_normal(left) == harness_normal(right))


def test_long_texts_are_fast() -> None:
    for text in ("1" * 100_000, "-" * 100_000, "#### " * 20_000, "a 1 " * 25_000, "." * 100_000):
        assert exact_match(flexible_answer(text), strict_answer(text)) in (True, False)
