"""The audit of a data set's answers: accepted and rejected answers, and their kinds."""

import pytest

from llm_reinforce.problems import Problem
from llm_reinforce.verifier.audit import WRAPPINGS, audit_answers, kind_of_answer


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("42", "number"),
        ("-1,042.50", "number"),
        ("3/4", "number"),
        ("$18", "number"),
        (r"\frac{3}{4}", "number"),
        ("50%", "percentage"),
        ("12 percent", "percentage"),
        ("Paris", "text"),
        ("St. Louis", "text"),
        (r"2\sqrt{3}", "latex"),
        ("x+1", "latex"),
        ("y = 2x", "latex"),
        (" ", "empty"),
    ],
)
def test_kind_of_answer(answer: str, kind: str) -> None:
    assert kind_of_answer(answer) == kind


def test_numbers_and_words_are_accepted_in_every_wrapping() -> None:
    answers = ["42", "-3", "0.5", "3/4", "1,042", "50%", "$18", "15 apples", "Paris", "yes", "B", "(3, 4)"]
    audit = audit_answers([Problem("?", answer) for answer in answers])
    assert audit.doubts == []
    assert audit.total == len(answers)
    assert audit.kinds == {"number": 7, "percentage": 1, "text": 4}


def test_rejected_answers_are_listed_with_wrapping_and_reason() -> None:
    problems = [Problem("?", answer, id=answer) for answer in ("7", "", "nan", "a } b", "x^{2}+1")]
    progress: list[int] = []
    audit = audit_answers(problems * 64, progress.append)
    assert progress == [64, 128, 192, 256, 320]
    found = {doubt.problem.id: (doubt.wrapping, doubt.reason) for doubt in audit.doubts}
    assert found == {
        "": ("", "empty"),
        "nan": (WRAPPINGS[0], "not_a_number"),
        "a } b": (WRAPPINGS[1], "different"),
    }
    assert audit.num_latex_as_text == 64


def test_answers_whose_reading_may_lose_something_are_listed() -> None:
    answers = {
        "x^2 + y^2 = 13": ("equation", "text"),
        "x = 4": ("equation", "4"),
        r"3\frac18": ("mixed number", "25/8"),
        "5 1/2": ("mixed number", "11/2"),
        "4t": ("letters", "text"),
        "3s^2": ("letters", "text"),
        "2516_9": ("letters", "text"),
        r"So it is \boxed{42}.": ("whole solution", "text"),
        "6*7=42\n#### 42": ("whole solution", "text"),
        "First add them. Then it is 42.": ("whole solution", "text"),
        **dict.fromkeys(("42", "1,042.5", "15 km", "$18", "3/4", "Paris", "(B)", r"\frac{1}{2}", "50%")),
    }
    losses = audit_answers([Problem("?", answer) for answer in answers]).losses
    found = {loss.problem.answer: (loss.kind, loss.reading) for loss in losses}
    assert found == {answer: loss for answer, loss in answers.items() if loss}


def test_different_boxes_in_a_solution_are_listed() -> None:
    several = Problem("?", "43", id="a", solution=r"First \boxed{42}, then \boxed{43}.")
    fraction = Problem("?", "x", id="b", solution=r"\boxed{\frac{1}{2}} and \fbox{x}")
    repeated = Problem("?", "43", id="c", solution=r"It is \boxed{43}. So \boxed{ 43 }.")
    losses = audit_answers([several, fraction, repeated]).losses
    assert [(loss.problem.id, loss.kind, loss.reading) for loss in losses] == [
        ("a", "several boxes", "43"),
        ("b", "several boxes", "text"),
    ]
