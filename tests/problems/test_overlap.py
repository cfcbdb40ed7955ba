"""Overlap of training and evaluated problems, and few-shot examples."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_reinforce.errors import InputError
from llm_reinforce.problems import Problem, examples_before, find_overlap
from llm_reinforce.problems.overlap import masked_text, normal_text

APPLES = "Tom has 1,000 apples. How many are left?"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (APPLES, "tom has 1000  apples, how many are left"),
        ("It's \u201cfine\u201d (yes)", "It s fine yes"),
        ("\uff11\uff12 apples", "12 apples"),
    ],
)
def test_case_white_space_and_punctuation_are_ignored(one: str, other: str) -> None:
    assert normal_text(one) == normal_text(other)


@pytest.mark.parametrize(
    ("one", "other"), [("1+2=", "1-2="), ("1.5 x", "15 x"), ("2/4", "24"), ("1,2", "12")]
)
def test_differences_in_meaning_are_kept(one: str, other: str) -> None:
    assert normal_text(one) != normal_text(other)


@given(st.text(st.characters(max_codepoint=0xFF)))
@settings(deadline=None)
def test_normal_text_is_idempotent(text: str) -> None:
    assert normal_text(normal_text(text)) == normal_text(text)


def test_numbers_are_masked() -> None:
    assert masked_text(APPLES) == masked_text("Tom has 2.5 apples. How many are left?")
    assert masked_text(APPLES) != masked_text("Ann has 1,000 apples. How many are left?")
    assert masked_text("12+34=") == masked_text("What is 12 + 34?") == ""  # sums are all alike


def test_find_overlap() -> None:
    train = [Problem(APPLES, "1", id="a"), Problem("1+1=", "2", id="b"), Problem(APPLES.lower(), "1", id="c")]
    evaluated = [
        Problem(APPLES.upper(), "1", id="x"),
        Problem(APPLES.replace("1,000", "7"), "1", id="y"),
        Problem("1+2=", "3", id="z"),
    ]
    overlap = find_overlap(train, evaluated)
    assert overlap.same == (("x", "a"),)
    assert overlap.masked == (("y", "a"),)
    assert overlap.summary() == {"same": 1, "masked": 1, "evaluated": 3}
    assert overlap.sentences()[0].startswith("1 of 3 evaluated problems are also training problems")
    assert overlap.sentences()[1].endswith("only in their numbers (y = a)")
    assert find_overlap(train[1:2], evaluated).sentences() == ()


def test_examples_have_solutions_and_are_never_evaluated_problems() -> None:
    pool = [
        Problem("How much is 1+1?", "2", solution="1+1 is 2.", id="a"),
        Problem("How much is 2+1?", "3", id="b"),
        Problem("How much is 3+1?", "4", id="c"),
    ]
    asked = [Problem("how much is 3+1", "4")]
    for seed in range(9):
        text = examples_before(pool, asked, num_examples=2, template="Question: {prompt}\nAnswer:", seed=seed)
        assert sorted(text.strip().split("\n\n")) == [
            "Question: How much is 1+1?\nAnswer: 1+1 is 2.\n#### 2",
            "Question: How much is 2+1?\nAnswer: 3",
        ]
        assert text.endswith("\n\n")
    assert text == examples_before(
        pool, asked, num_examples=2, template="Question: {prompt}\nAnswer:", seed=8
    )
    assert examples_before([Problem("1+1=", "2")], (), num_examples=1, template="{prompt}") == "1+1=2\n\n"
    marked = Problem("1+1=", "2", solution="1+1=2\n#### 2")
    assert examples_before([marked], (), num_examples=1, template="{prompt}") == "1+1=1+1=2\n#### 2\n\n"
    headings = Problem("1+1=", "2", solution="#### Step 1\n1+1=2")
    (example,) = examples_before([headings], (), num_examples=1, template="{prompt}").strip().split("\n\n")
    assert example == "1+1=#### Step 1\n1+1=2\n#### 2"
    with pytest.raises(InputError, match="3 examples are needed, but only 2 of 3 available problems"):
        examples_before(pool, asked, num_examples=3, template="{prompt}")
