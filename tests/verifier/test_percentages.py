"""Percentages: 20% is 0.2, but it also equals the answer 20 if the question asks for percent."""

import doctest
import json
from pathlib import Path

import pytest

from llm_reinforce.problems import Problem, find_problems, judge
from llm_reinforce.verifier import percentages
from llm_reinforce.verifier.percentages import is_in_per_cent


@pytest.mark.parametrize(
    ("prompt", "answer", "solution", "in_per_cent"),
    [
        ("What percentage of the cars is red?", "20", None, True),
        ("What is the percentage chance of rain?", "20", None, True),
        ("What's the percent increase?", "1,200", None, True),
        ("How likely is it, expressed as a percentage?", "20", None, True),
        ("What was the charge?", "94", "It fell to 28%.\nBefore, it was 45 + 21 + 28 = 94%.", True),
        ("What was the charge?", "94", "It was 94%.\nSo it is 94 volts.", False),
        ("What is 20 percent of 50?", "10", None, False),
        ("If she pays 50% more, how much does she pay?", "94", "It is 47 * 2 = 94 dollars.", False),
        ("What percentage is it?", "0.2", None, False),  # could be 20% or 0.2%
        ("What percentage is it?", "20%", None, False),
        ("What percentage is it?", "Paris", None, False),
    ],
)
def test_answers_in_percent_are_recognized(
    prompt: str, answer: str, solution: str | None, in_per_cent: bool
) -> None:
    assert is_in_per_cent(prompt, answer, solution) is in_per_cent


@pytest.mark.parametrize(
    ("completion", "in_per_cent", "elsewhere"),
    [
        ("#### 20", True, True),
        ("#### 20%", True, False),
        ("So it is 20 percent of them.", True, False),
        ("\\boxed{20\\%}", True, False),
        ("#### 0.2", False, False),
        ("#### 2000%", False, True),  # equals 20, but is 2000 in percent
        ("#### 21%", False, False),
        ("20% or 21%", False, False),
        ("more than 20%", False, False),
        ("", False, False),
    ],
)
def test_percentage_is_correct_if_the_question_asks_for_percent(
    completion: str, in_per_cent: bool, elsewhere: bool
) -> None:
    verdict = judge(completion, Problem("?", "20", in_per_cent=True))
    assert verdict.correct is in_per_cent
    assert judge(completion, Problem("?", "20")).correct is elsewhere
    if in_per_cent and "%" in completion:
        assert verdict.extracted == "20%"


def test_problems_of_a_file_are_marked_as_in_percent(tmp_path: Path) -> None:
    rows = [
        {"question": "What percentage of 50 is 10?", "answer": "10/50 = 20%\n#### 20"},
        {"question": "What is 20% of 50?", "answer": "50*20/100 = 10\n#### 10"},
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [problem.in_per_cent for problem in find_problems(f"gsm8k={path}")] == [True, False]
    assert [problem.in_per_cent for problem in find_problems(str(path))] == [True, False]


def test_doctests() -> None:
    assert doctest.testmod(percentages).failed == 0
