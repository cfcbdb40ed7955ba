r"""The verifier: verdicts on literal completions, and properties that hold for all text."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_reinforce.verifier import Verdict, extract_answer, final_answer, verify
from llm_reinforce.verifier.final_answer import find_final_answer
from llm_reinforce.verifier.plain_answers import UNPARSEABLE, WRONG

untimed = settings(deadline=None, max_examples=80)  # other tests measure time


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        # plain text: the last number
        ("132", "132"),
        ("47+85=132", "132"),
        ("56/7=8", "8"),
        ("5 - 8 = -3", "-3"),
        ("x = - 3", "-3"),
        ("So there are 18 apples.", "18"),
        ("The total is:\n- 15", "15"),
        ("15 (version 1.5.2 of 2024-01-15, 12:30)", "15"),
        ("She runs 15 km on the 1st day", "15"),
        ("**132**", "132"),
        # phrases
        ("The answer is 15.", "15"),
        ("The final answer is: **$1,042**. I used 3 steps.", "1042"),
        ("Answer: 15\nQuestion: what is 3+4?", "15"),
        ("answer = 15", "15"),
        ("The answer is 15 because 3*5=15 and 4<5.", "15"),
        ("The answer is 47+85=132.", "132"),
        ("The answer is that 5 " + "a " * 200, "5"),
        ("The answer is 4. No, the answer is 15.", "15"),
        # slots, and their precedence
        ("#### 15", "15"),
        ("3 and 4 make 7\n#### 1,042\nQuestion: 5", "1042"),
        ("#### 7\n#### 15", "15"),
        ("<answer> 15 </answer>", "15"),
        ("<ANSWER>7</ANSWER> <answer>15</answer> 9", "15"),
        (r"\boxed{7} then \boxed{15} of 20", "15"),
        (r"#### 7 \boxed{15}", "15"),
        (r"The answer is $\boxed{15}$.", "15"),
        (r"\boxed{\text{15}}", "15"),
        (r"\boxed{\boxed{15}}", "15"),
        ("<think>it is 7, so \\boxed{7}</think> \\boxed{15}", "15"),
        ("<think>7</think>15", "15"),
        # numbers
        ("#### 42.0", "42"),
        ("42.", "42"),
        ("#### 007", "7"),
        ("#### 1042", "1,042"),
        ("#### 1,042,000", "1042000"),
        (r"\boxed{10{,}000}", "10000"),
        (r"\boxed{10\,000}", "10000"),
        ("10\u202f000", "10000"),
        ("#### −5", "-5"),
        ("#### +5", "5"),
        (r"\boxed{- 5}", "-5"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### $18", "18"),
        (r"\boxed{\$18}", "18"),
        ("#### 18 €", "18"),
        ("#### £ 18", "18"),
        ("#### 18 dollars", "$18"),
        (r"\boxed{15\text{ cm}^2}", "15"),
        (r"\boxed{15^\circ}", "15"),
        ("#### 15 km/h", "15"),
        (r"\boxed{x = 15}", "15"),
        ("#### Total: 15", "15"),
        ("#### 3/4", "0.75"),
        (r"\boxed{\frac{3}{4}}", "0.75"),
        (r"\boxed{-\dfrac{6}{8}}", "-3/4"),
        (r"\boxed{\frac34}", "3/4"),
        (r"\boxed{5\frac{1}{2}}", "5.5"),
        ("5 1/2", "5.5"),
        ("#### .5", "0.5"),
        ("#### 1e3", "1000"),
        ("#### 5 million", "5,000,000"),
        ("#### 50%", "0.5"),
        ("#### 0.5", "50%"),
        (r"\boxed{50\%}", "50%"),
        # text
        ("The answer is Paris.", "paris"),
        ("The answer is St. Louis.", "St. Louis"),
        (" PARIS. ", "Paris"),
        (r"\boxed{\text{New  York}}", "new york"),
        ("It is (B), <answer>(B)</answer>", "B"),
        ("#### yes", "Yes"),
    ],
)
def test_correct_answers(completion: str, answer: str) -> None:
    verdict = verify(completion, answer)
    assert (verdict.correct, verdict.reason) == (True, "equal")
    assert verdict.extracted


@pytest.mark.parametrize(
    ("completion", "answer", "reason"),
    [
        ("#### 15", "150", "different"),
        ("#### 150", "15", "different"),
        ("#### 15", "-15", "different"),
        ("#### 1.04", "1.040001", "different"),
        ("#### 5%", "6", "different"),
        ("#### 5 million", "5", "different"),
        ("#### 0.3333333333333333", "1/3", "different"),
        ("#### 9007199254740993", "9007199254740992", "different"),  # equal as floats
        ("15 apples cost 20", "15", "different"),
        ("The answer is London.", "Paris", "different"),
        ("It isn't Paris", "Paris", "different"),
        ("", "15", "no_answer"),
        ("", "Paris", "no_answer"),
        ("fifteen", "15", "no_answer"),
        ("15 #### none", "15", "no_answer"),
        (r"15, so \boxed{}", "15", "no_answer"),
        ("<think>15</think>", "15", "no_answer"),
        ("on 2024-01-15", "15", "no_answer"),
        ("12:15", "15", "no_answer"),
        ("v1.5.2", "2", "no_answer"),
        ("1.5.2", "2", "no_answer"),
        ("H2O and x15", "15", "no_answer"),
        (r"\boxed{15 or 16}", "15", "several_values"),
        ("#### 15, 16", "15", "several_values"),
        ("<answer>15 and 16</answer>", "15", "several_values"),
        ("#### 15 or sixteen", "15", "several_values"),
        ("The answer is 15 or 16.", "15", "several_values"),
        (r"\boxed{23*47}", "1081", "not_evaluated"),
        (r"\boxed{23 \times 47}", "1081", "not_evaluated"),
        (r"\boxed{56/7}", "8", "not_evaluated"),
        (r"\boxed{\frac{56}{7}}", "8", "not_evaluated"),
        (r"\boxed{2^{10}}", "2", "not_evaluated"),
        ("56/7", "8", "not_evaluated"),
        ("1*47", "47", "not_evaluated"),  # repeats the question
        ("0+7", "7", "not_evaluated"),
        ("7-0", "0", "not_evaluated"),
        ("47 -85", "-85", "not_evaluated"),
        ("The answer is 0+7.", "7", "not_evaluated"),
        ("#### 1,04", "104", "not_a_number"),
        ("3,5", "5", "not_a_number"),
        ("#### 3/0", "3", "not_a_number"),
        (r"\boxed{2x}", "2", "not_a_number"),
        (r"\boxed{\sqrt{16}}", "4", "not_evaluated"),
        ("#### 1e9999", "1", "not_a_number"),
        ("#### " + "9" * 5_000, "9", "not_a_number"),
    ],
)
def test_wrong_answers(completion: str, answer: str, reason: str) -> None:
    verdict = verify(completion, answer)
    assert (verdict.correct, verdict.reason) == (False, reason)


def test_verdict_contains_the_extracted_answer() -> None:
    assert verify("so 47+85=132", "132") == Verdict(correct=True, extracted="132", reason="equal")
    assert verify("#### $18 each", "19") == Verdict(correct=False, extracted="$18 each", reason="different")
    assert verify("no idea", "19") == Verdict(correct=False, extracted=None, reason="no_answer")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"so \boxed{x+1}", "x+1"),
        ("#### 18 apples\nmore", "18 apples"),
        ("The answer is 15 because it is.", "15"),
        ("The answer is Paris.", "Paris."),
        ("7 and 8", "8"),
        ("nothing", None),
        (r"\boxed{}", None),
    ],
)
def test_extract_answer(completion: str, answer: str | None) -> None:
    assert extract_answer(completion) == answer


# --- properties -----------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        "\\boxed{",
        "}",
        "{",
        "####",
        "<answer>",
        "</answer>",
        "</think>",
        "answer is ",
        "\\frac{1}{",
        "-",
        "1",
        "9" * 500,
        ",",
        ".",
        "/",
        "%",
        "e",
        "=",
        " ",
        "\n",
        "$",
        "\x00",
        "�",
        "²",
        "٣",
        "or",
        "\\",
        "^",
        "0",
        "15",
        "*",
    ]
)
ANY_TEXT = st.text(st.characters(), max_size=200) | st.lists(PIECES, max_size=30).map("".join)


@untimed
@given(ANY_TEXT, ANY_TEXT)
@example("\ud800\x00", "15")
@example("0/0", "0/0")
@example("²", "²")
def test_any_text_has_a_verdict(completion: str, answer: str) -> None:
    verdict = verify(completion, answer)
    assert verdict.reason in {"equal"} | WRONG | UNPARSEABLE
    assert verdict.is_unparseable == (verdict.reason in UNPARSEABLE)
    assert verdict.correct == (verdict.reason == "equal")
    assert verdict.extracted != ""
    assert extract_answer(completion) != ""


WRAPPINGS = [
    r"\boxed{%s}",
    "#### %s",
    "The answer is %s.",
    "<answer>%s</answer>",
    "%s",
    "1+2=%s",
    r"**\boxed{%s}**.",
]
INTEGERS = st.integers() | st.integers(-(10**60), 10**60)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@untimed
@given(number=INTEGERS)
def test_verdict_does_not_depend_on_the_wrapping(wrapping: str, number: int) -> None:
    for text in (f"{number}", f"{number:,}", f"{number}.0"):
        assert verify(wrapping % text, str(number)).correct
    if number:
        assert not verify(wrapping % (number * 10), str(number)).correct
        assert not verify(wrapping % number, str(number * 10)).correct
        assert not verify(wrapping % number, str(-number)).correct


@untimed
@given(numerator=st.integers(-999, 999), denominator=st.integers(2, 99), factor=st.integers(2, 9))
def test_fractions_are_compared_by_value(numerator: int, denominator: int, factor: int) -> None:
    if numerator % denominator:
        scaled = f"{numerator * factor}/{denominator * factor}"
        assert verify(rf"\boxed{{{scaled}}}", f"{numerator}/{denominator}").correct
        assert not verify(f"#### {numerator + 1}/{denominator}", f"{numerator}/{denominator}").correct


MILLION = 1_000_000
LONG = [
    *(
        "1",
        "a",
        " ",
        "\n",
        "#",
        "-",
        "{",
        "1 ",
        "1,",
        "1.1,",
        "0.",
        "1-",
        "1/1 ",
        "1:",
        "a-",
        "x1",
        "= ",
        "=    ",
    ),
    *("$-", r"\boxed{", r"\boxed{1}", r"\frac{1", r"\text{", r"\frac{1}{1}", "answer is ", "answer     "),
    *(
        "<answer>",
        "<answer>1</answer>",
        "</think>",
        "#### ",
        "1e1",
        "thousand ",
        "1 million",
        "\ud800",
        "1\u202f000",
    ),
]


@pytest.mark.parametrize("piece", LONG)
def test_million_characters_are_verified_fast(piece: str) -> None:
    text = (piece * (MILLION // len(piece) + 1))[:MILLION]
    start = time.process_time()
    verify(text, "15")
    verify(text + " #### 15", "15")
    verify("answer is " + text[:60_000] + "x", "15")
    verify(r"\boxed{" + text[:60_000] + "x}", "15")
    assert time.process_time() - start < 2.0  # takes at most 0.2 s; a quadratic pattern would take minutes


def test_only_the_end_of_a_long_text_is_read_without_cutting_a_number() -> None:
    assert verify("7 " * MILLION + "is 15", "15").correct
    assert verify("9" * MILLION + " words" * 10_000, "9").reason == "no_answer"


# --- the adversarial set --------------------------------------------------------------------------------


def adversarial_cases() -> list[dict[str, Any]]:
    """Return the cases of adversarial.jsonl; tests/benchmarks/verifier.py also runs math-verify on them."""
    lines = Path(__file__).with_name("adversarial.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_adversarial_set() -> None:
    cases = adversarial_cases()
    assert len(cases) >= 300
    assert len({(case["completion"], case["answer"]) for case in cases}) == len(cases)
    wrongly_judged = [
        case for case in cases if verify(case["completion"], case["answer"]).correct is not case["correct"]
    ]
    assert wrongly_judged == []


DEEP = 100_000


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        (r"\boxed{" * DEEP + "15" + "}" * DEEP, None),  # None: any verdict
        (r"\boxed{" * 8 + "15" + "}" * 8, True),
        (r"\boxed{" * DEEP + "15", None),
        ("{" * DEEP + "15" + "}" * DEEP, None),
        ("(" * DEEP + "16" + ")" * DEEP, False),
        ("<think>" * DEEP + "15", False),
        ("<think>" * DEEP + "</think>" * DEEP + "15", True),
        ("<answer>" * DEEP + "15" + "</answer>" * DEEP, None),
        (r"\frac{" * DEEP + "15", None),
        ("9^" * DEEP + "9", False),
        ("9" * DEEP + "!" * DEEP, False),
        ("15" + "\x00" * DEEP, None),
        ("\u200f" * DEEP + "15" + "\u200f" * 200, True),
        ("\x1b[0m" * DEEP + "15" + "\x1b[0m" * 50, True),
    ],
)
def test_deeply_nested_and_long_texts_are_verified_fast(completion: str, correct: bool | None) -> None:
    start = time.thread_time()
    assert correct is None or verify(completion, "15").correct is correct
    verify(completion, completion)
    assert time.thread_time() - start < 1.0


def test_verify_is_thread_safe() -> None:
    cases = adversarial_cases()
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda case: verify(case["completion"], case["answer"]), cases * 2))
    assert [verdict.correct for verdict in verdicts] == [case["correct"] for case in cases] * 2


# --- properties of wrappings, units and white space -------------------------------------------------------

VALUES = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.decimals(-10_000, 10_000, places=2).map(str),
    st.tuples(st.integers(-99, 99), st.integers(2, 99))
    .filter(lambda pair: pair[0] % pair[1] != 0)
    .map(lambda pair: f"{pair[0]}/{pair[1]}"),
)
LAW_WRAPPINGS = st.sampled_from(
    [*WRAPPINGS, "Answer: %s", "x = %s", "**%s**", "So it is %s.", "<think>7</think>%s"]
)
SPACES = st.text(" \n\t\u00a0\u200b\u200e", max_size=4)
UNITS = st.sampled_from(["apples", "km", "dollars", "km/h", "cm^2", "m²", "°C", "hours per day"])
SEPARATORS = st.sampled_from([" or ", ", ", " and ", "; ", " to ", " or maybe "])


@untimed
@given(value=VALUES, other=VALUES, wrapping=LAW_WRAPPINGS, around=st.tuples(SPACES, SPACES))
def test_wrapping_and_white_space_do_not_change_the_verdict(
    value: str, other: str, wrapping: str, around: tuple[str, str]
) -> None:
    for answer in (value, other):
        expected = Fraction(value) == Fraction(answer)
        assert verify(wrapping % value, answer).correct is expected
        assert verify(around[0] + wrapping % value + around[1], answer).correct is expected
        assert verify(rf"\boxed{{{around[0]}{value}{around[1]}}}", answer).correct is expected
        assert verify(f"####{around[0]}{value}{around[1]}", answer).correct is expected


@untimed
@given(value=VALUES, other=VALUES, unit=UNITS, wrapping=LAW_WRAPPINGS)
def test_units_do_not_change_the_verdict(value: str, other: str, unit: str, wrapping: str) -> None:
    for answer in (value, other):
        expected = Fraction(value) == Fraction(answer)
        assert verify(wrapping % f"{value} {unit}", answer).correct is expected
        assert verify(wrapping % value, f"{answer} {unit}").correct is expected


@untimed
@given(
    value=VALUES, other=VALUES, separator=SEPARATORS, wrapping=st.sampled_from(WRAPPINGS), flip=st.booleans()
)
def test_several_values_are_never_correct(
    value: str, other: str, separator: str, wrapping: str, flip: bool
) -> None:
    if Fraction(value) == Fraction(other):
        return
    pair = (other, value) if flip else (value, other)
    assert not verify(wrapping % separator.join(pair), value).correct
    assert not verify(wrapping % separator.join(pair), other).correct


@untimed
@given(completion=ANY_TEXT, value=st.integers(0, 10**6), other=st.integers(0, 10**6))
def test_alternatives_after_any_text_are_never_correct(completion: str, value: int, other: int) -> None:
    if value != other:
        assert not verify(f"{completion}</think>\n#### {value} or {other}", str(value)).correct
        assert not verify(f"{completion}</think>\n\\boxed{{{value}, {other}}}", str(other)).correct


@untimed
@given(st.text(alphabet="0123456789+=.,-/ x\nb()$%") | st.text())
def test_fast_path_for_text_without_marks_equals_the_general_path(text: str) -> None:
    at_once = find_final_answer(text)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(final_answer, "MARK", re.compile(""))
        assert find_final_answer(text) == at_once


def test_algebra_is_an_option_of_verify() -> None:
    pytest.importorskip("math_verify")
    assert verify(r"So it is $\boxed{\frac{x}{2}}$.", r"\frac{1}{2}x", algebra=True).correct
    assert not verify(r"So it is $\boxed{\frac{x}{2}}$.", r"\frac{1}{2}x").correct


@pytest.mark.parametrize(
    "completion", [r"so \boxed{15", "<answer>15", "<answer> 15\n", r"\boxed{7} \boxed{15"]
)
def test_open_slot_is_read_unless_the_completion_was_truncated(completion: str) -> None:
    assert verify(completion, "15").correct
    assert verify(completion, "15", truncated=True).reason == "no_answer"  # it could have become 150
