"""Tests of step rewards for equations. The reward depends only on the text up to the end of the equation."""

import re
import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_reinforce.errors import InputError
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import StepRewards, intermediate_steps
from llm_reinforce.rewards.intermediate_steps import find_equations

PROBLEM = Problem("", "")
PIECES = [
    *("0", "1", "2", "12", "345", "4567", "+", "-", "*", "/", "x", "X", "=", "(", ")", ".", ",", "$", "%"),
    *(
        " ",
        "  ",
        "\n",
        "\n- ",
        "^",
        "\\",
        "\\(",
        "\\)",
        "\\times",
        "a",
        "so",
        "×",
        "−",
        "3*4=12",
        "1+1=2",
        "<<",
    ),
    *("1+1=3", "=2", ", ", ". "),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def steps(text: str, **arguments: float) -> list[tuple[str, float]]:
    """Return the text and the reward of each step. In the text, ■ represents the end token."""
    answer = intermediate_steps(**arguments)(text, PROBLEM)  # type: ignore[arg-type]
    assert isinstance(answer, StepRewards)
    return [((text + "■")[start:end], value) for start, end, value in answer.spans]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3*4=12", [("3*4=12■", 1)]),
        ("3*4=13", [("3*4=13■", -1)]),
        ("3 x 4 = 12 apples", [("3 x 4 = 12 a", 1)]),
        ("3 × 4 = 12, 12 ÷ 4 = 3.", [("3 × 4 = 12, ", 1), ("12 ÷ 4 = 3.■", 1)]),
        ("5 − 7 = −2;", [("5 − 7 = −2;", 1)]),
        ("Tom has 3*4=<<3*4=12>>12 eggs", [("3*4=12>", 1)]),
        ("(3*4=12)", [("(3*4=12)", 1)]),
        ("so (we know 3*4=12)", [("3*4=12)", 1)]),
        (r"\(3*4=12\)", [(r"3*4=12\)", 1)]),
        ("- 3*4=12\n- 2+3=6\n", [("3*4=12\n", 1), ("2+3=6\n", -1)]),
        ("1) 3*4=12 2)", []),  # 12 2 is not a number
        ("1. 3*4=12\n2. 2+3=5\n", [("3*4=12\n", 1), ("2+3=5\n", 1)]),
        ("x=3*4=12", [("3*4=12■", 1)]),
        ("2+3=5=1+4=6", [("2+3=5=", 1), ("5=1+4=", 1), ("1+4=6■", -1)]),
        ("12+34-5=46-5=41;", [("12+34-5=46-5=", 1), ("46-5=41;", 1)]),
        ("(3+4)*2=14", [("(3+4)*2=14■", 1)]),
        ("-(3+4)*-2=14", [("-(3+4)*-2=14■", 1)]),
        ("$5 * 1,000 = $5,000.", [("$5 * 1,000 = $5,000.■", 1)]),
        ("1/3=2/6", [("1/3=2/6■", 1)]),
        ("10/3=3.33", [("10/3=3.33■", -1)]),
        ("0.1+0.2=0.3", [("0.1+0.2=0.3■", 1)]),
        ("12=3*4", [("12=3*4■", 1)]),
        ("3*4=12 (the total)", [("3*4=12 (t", 1)]),
        ("3*4=12 or 1+1=2\n", [("3*4=12 o", 1), ("1+1=2\n", 1)]),
    ],
)
def test_equations_are_found_and_checked(text: str, expected: list[tuple[str, float]]) -> None:
    assert steps(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12",
        "x=12",
        "12=12",
        "-5=-5",
        "(12)=12",
        "3*4",
        "3*4=",
        "=12",
        "1/0=3",
        "3*x=12",
        "2x+3=7",
        "x + 3*4=14",
        "3 apples * 4 = 12",
        "f3*4=12",
        "2^3*4=32",
        "3*3=3^2",
        "20/100=20%",
        "50*10%=5",
        r"3*4=2\times6",
        r"3\times4=12",
        "3*4=2(6)",
        "2(3+4)=7",
        "2 (3+4)=7",
        "2 1/2=2.5",
        "5/2=2 1/2",
        "3*4=12 - so",
        "3*4=24/x",
        "3*4=12,34",
        "3*4=12.5.6",
        "3*4≈12",
        "3*4>=12",
        "3*4!=13",
        "3*4=>12",
        "3*4\n=12",
        "(3*4=(12",
        "3*٤=12",
        "1" * 31 + "+0=" + "1" * 31,
        "+".join("1" * 40) + "=40",
    ],
)
def test_text_without_plain_arithmetic_has_no_steps(text: str) -> None:
    assert steps(text) == []


def test_repeated_steps_count_once_and_max_steps_limits_their_number() -> None:
    assert steps("1+1=2;1 + 1 = 2;1+1=3;") == [("1+1=2;", 1), ("1+1=3;", -1)]
    assert steps("1+1=2;2+2=4;3+3=6;", max_steps=2) == [("1+1=2;", 1), ("2+2=4;", 1)]
    assert steps("1+1=2;1+1=3;", right=0.5, wrong=0.0) == [("1+1=2;", 0.5), ("1+1=3;", 0.0)]
    with pytest.raises(InputError, match="max_steps must be at least 1"):
        intermediate_steps(max_steps=0)


@given(TEXTS, TEXTS)
@example("3*4=12,3", "45")
@example("3*4=12", "0")
@example("3*4=12 x", "y")
@example("3*4=12\\", ")")
@example("3*4=1", "2")
@example("3*4=12 ", "+1")
@example("3*4=12$ so", "5")
@example("3*4=12$", "5")
def test_reward_of_a_step_does_not_depend_on_later_text(text: str, other: str) -> None:
    reward = intermediate_steps(max_steps=3)
    answer = reward(text, PROBLEM)
    assert isinstance(answer, StepRewards)
    for place, (_, end, _) in enumerate(answer.spans):
        if end <= len(text):  # otherwise the end token completes the step, and no text can follow
            changed = reward(text[:end] + other, PROBLEM)
            assert isinstance(changed, StepRewards)
            assert list(changed.spans[: place + 1]) == list(answer.spans[: place + 1])


NUMBERS = st.integers(-50, 50).map(lambda number: f"({number})" if number < 0 else str(number))


EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: f"({''.join(parts)})"),
    max_leaves=6,
)


@given(EXPRESSIONS, st.integers(-3, 3))
def test_value_of_an_expression_equals_that_of_python(expression: str, offset: int) -> None:
    in_fractions = re.sub(r"[0-9]+", r"Fraction(\g<0>)", expression)
    try:
        value = eval(in_fractions, {"Fraction": Fraction})  # safe: this test has generated the expression
    except ZeroDivisionError:
        assert list(find_equations(f"{expression}+0=1")) == []
        return
    equations = list(find_equations(f"{expression}+0={value + offset}"))
    if len(str(value)) < 20:
        assert [equation.is_correct for equation in equations] == [offset == 0]


@given(st.text(alphabet="0123456789+-*/()=.,$% x\n^\\abc", max_size=300) | st.text(max_size=300))
def test_equations_of_any_text_are_ordered_and_within_the_text(text: str) -> None:
    equations = list(find_equations(text))
    ends = [equation.end for equation in equations]
    assert ends == sorted(set(ends))
    assert all(0 <= equation.start < equation.end <= len(text) + 1 for equation in equations)


@pytest.mark.parametrize(
    "piece", ["1+", "(", "3*4=12 ", "3*4=12;", "=", "-", "1", "1,", " ", "\n- ", "\\", "x", "a"]
)
def test_long_texts_are_parsed_in_linear_time(piece: str) -> None:
    text = piece * (20_000 // len(piece))
    before = time.thread_time()
    intermediate_steps()(text, PROBLEM)
    assert time.thread_time() - before < 1.0
