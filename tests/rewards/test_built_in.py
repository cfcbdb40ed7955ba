"""Tests of the built-in reward functions, except intermediate steps."""

import inspect
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_reinforce.config import BUILT_IN_REWARD_ARGUMENTS
from llm_reinforce.errors import InputError
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import (
    BUILT_IN,
    JudgedCompletion,
    RewardFunction,
    WeightedReward,
    answer_format,
    combine_rewards,
    conciseness,
    correct_answer,
    readability,
)
from llm_reinforce.rewards.built_in import ANSWER_FORMS

PROBLEM = Problem(prompt="47+85=", answer="132")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [("132", 1.0), ("47+85 is\n#### 132", 1.0), ("133", 0.0), ("", 0.0), ("no idea", 0.0)],
)
def test_correct_answer_rewards_right_answers(completion: str, expected: float) -> None:
    assert correct_answer()(completion, PROBLEM) == expected


# ------------------------------------------------------------------------------------ answer_format


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("so\n#### 132", 1.0),
        ("#### 7\n", 1.0),
        ("####132", 1.0),
        ("##### 7", 1.0),
        ("132", 0.0),
        ("### 7", 0.0),
        ("#### ", 0.0),
        ("#### 7\nand more", 0.0),
        ("#### 7\n#### 8", 1.0),
    ],
)
def test_answer_format_checks_only_the_form(completion: str, expected: float) -> None:
    assert answer_format()(completion, PROBLEM) == expected
    assert answer_format(form="hashes")(completion, PROBLEM) == expected


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (
            "boxed",
            [r"\boxed{42}", r"so $\boxed{42}$.", r"\boxed{\frac{3}{4}}", r"\boxed{x^{2^{3}}}" + "\n"],
            [r"\boxed{}", r"\boxed{42", r"\boxed{42} or so", r"\boxed{\frac{3}{4}", "42"],
        ),
        (
            "tag",
            ["<answer>42</answer>", "so <answer> 42 </answer>\n"],
            ["<answer></answer>", "<answer>42", "<answer>42</answer> or so", "<answer><b></answer>"],
        ),
        (
            "phrase",
            ["The answer is 42.", "the Answer Is: 42", "so\nthe answer is $42\n"],
            ["The answer is", "The answer is 42.\nOr so", "the answer isnt 42", "42"],
        ),
    ],
)
def test_answer_forms_match_and_reject(form: str, good: list[str], bad: list[str]) -> None:
    reward = answer_format(form=form)
    assert {text: reward(text, PROBLEM) for text in good} == dict.fromkeys(good, 1.0)
    assert {text: reward(text, PROBLEM) for text in bad} == dict.fromkeys(bad, 0.0)


@pytest.mark.parametrize("form", list(ANSWER_FORMS))
@pytest.mark.parametrize("piece", ["#", "####7 ", "\\boxed{", "{", "<answer>", "answer is 7 ", " ", "\n"])
def test_answer_forms_match_in_linear_time(form: str, piece: str) -> None:
    text = piece * (8_000 // len(piece)) + "\nx}"
    before = time.thread_time()
    answer_format(form=form)(text, PROBLEM)
    assert time.thread_time() - before < 0.5


def test_answer_format_accepts_a_pattern() -> None:
    reward = answer_format(pattern=r"^\d+$")
    assert [reward(text, PROBLEM) for text in ("7", "x7")] == [1.0, 0.0]


@pytest.mark.parametrize("pattern", ["(", "[", "*"])
def test_invalid_pattern_is_rejected(pattern: str) -> None:
    with pytest.raises(InputError, match="is not a valid regular expression"):
        answer_format(pattern=pattern)


def test_unknown_form_and_form_with_pattern_are_rejected() -> None:
    with pytest.raises(InputError, match="unknown form 'box'; choose one of hashes, boxed, tag, phrase"):
        answer_format(form="box")
    with pytest.raises(InputError, match="remove one"):
        answer_format(pattern="x", form="boxed")


# ------------------------------------------------------------------------ conciseness, readability


def reward_of(reward: RewardFunction, completion: str, num_tokens: int) -> float | None:
    judged = JudgedCompletion(PROBLEM, completion, tuple(range(num_tokens)))
    return combine_rewards([judged], [WeightedReward("reward", reward)]).scored[0].total


def test_conciseness_rewards_only_right_answers_by_number_of_tokens() -> None:
    reward = conciseness(max_tokens=10)
    assert reward_of(reward, "132", 3) == pytest.approx(0.7)
    assert reward_of(reward, "       132", 3) == pytest.approx(0.7)  # tokens are counted, not characters
    assert reward_of(reward, "132", 10) == 0.0
    assert reward_of(reward, "132", 20) == 0.0  # never negative
    assert reward_of(reward, "1", 1) == 0.0
    assert reward_of(reward, "", 1) == 0.0


@pytest.mark.parametrize("limit", [0, -1])
def test_conciseness_and_readability_reject_limits_below_1(limit: int) -> None:
    with pytest.raises(InputError, match="max_tokens must be at least 1"):
        conciseness(max_tokens=limit)
    with pytest.raises(InputError, match="max_words must be at least 1"):
        readability(max_words=limit)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("", 0.0),
        (" \n ", 0.0),
        ("132", 1.0),
        ("One two three.", 1.0),
        ("One two three four.", 0.0),  # a sentence of more than three words
        ("One two. One two three four.", 0.5),
        ("One two\nthree four", 1.0),  # the end of a line ends a sentence
        ("3.14 is pi", 1.0),  # a decimal point does not end a sentence
        ("a b c! a b c? a b c.", 1.0),  # punctuation makes different words: no trigram is repeated
        ("a b c\na b c", 3 / 4),  # abc bca cab abc: three of four are distinct
        ("A b c\na B c", 3 / 4),
    ],
)
def test_readability_equals_values_computed_by_hand(completion: str, expected: float) -> None:
    assert readability(max_words=3)(completion, PROBLEM) == pytest.approx(expected)


@given(st.text(max_size=200))
def test_readability_is_from_0_to_1(completion: str) -> None:
    assert 0.0 <= float(readability()(completion, PROBLEM)) <= 1.0  # type: ignore[arg-type]


def test_recipes_and_factories_have_the_same_names_and_arguments() -> None:
    of_factories = {
        name: {each.name: each.default for each in inspect.signature(factory).parameters.values()}
        for name, factory in BUILT_IN.items()
    }
    assert of_factories == {name: dict(taken()) for name, taken in BUILT_IN_REWARD_ARGUMENTS.items()}
    for form in ANSWER_FORMS:
        BUILT_IN_REWARD_ARGUMENTS["answer_format"].model_validate({"form": form})
