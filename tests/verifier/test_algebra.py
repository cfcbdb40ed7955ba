r"""Answers that are LaTeX or algebra, including wrong answers that math-verify accepts and we reject."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llm_reinforce.errors import InputError
from llm_reinforce.problems import Problem, judge, judge_all
from llm_reinforce.verifier import algebra as algebra_module
from llm_reinforce.verifier import check_algebra, verify

pytest.importorskip("math_verify")


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the time limit, so that tests of other properties do not fail on a busy machine."""
    monkeypatch.setattr(algebra_module, "TIME_LIMIT", 120.0)


def judged(right: str, answer: str, prompt: str = "?") -> tuple[bool, str]:
    verdict = judge(rf"So it is $\boxed{{{answer}}}$.", Problem(prompt, right, algebra=True))
    return verdict.correct, verdict.reason


@pytest.mark.parametrize(
    ("right", "answer"),
    [
        ("x+1", "1+x"),
        (r"\frac{x}{2}", "0.5x"),
        (r"\sqrt{2}", "2^{1/2}"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        (r"\frac{\sqrt3}{2}", r"\frac{1}{2}\sqrt{3}"),
        ("x^2-1", "(x-1)(x+1)"),
        (r"\frac{\pi}{4}", r"\dfrac{1}{4}\pi"),
        ("3+4i", "4i+3"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("(3,4)", r"\left(3, 4\right)"),
        ("[1,2)", "[1, 2)"),
        (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)"),
        ("x+1", "y = x+1"),
        ("x+1", "f(x) = 1+x"),
        (r"2\sqrt{3}", r"\sqrt{12} = 2\sqrt{3}"),
        ("y=2x+1", "2x-y+1=0"),
        ("x>1", "x > 1"),
        (r"\infty", r"\infty"),
        (r"\text{Tuesday}", "Tuesday"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ],
)
def test_equal(right: str, answer: str) -> None:
    assert judged(right, answer) == (True, "equal")


@pytest.mark.parametrize(
    ("right", "answer", "reason"),
    [
        ("x+1", "x+2", "different"),
        (r"\text{Tuesday}", r"\text{Monday}", "different"),
        # math-verify accepts the following pairs as equal
        (r"\sqrt{2}", "1.414214", "different"),
        (r"\pi", "3.141593", "different"),
        (r"\frac{1}{3}x", "0.333333x", "different"),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}", "different"),
        (r"\frac{1}{2^{99}x}", r"\frac{1}{2^{98}x}", "different"),
        ("(1,2)", r"\{1,2\}", "several_values"),
        ("1,2", "(1,2)", "different"),
        ("5x", "x = 5x", "relation"),
        (r"\sqrt{2}", r"\sqrt{3} = \sqrt{2}", "several_values"),
        # other kinds of answers than the reference answer, more than one value, or no value
        ("[1,2)", "(1,2)", "different"),
        ("(1,2)", "[1,2]", "different"),
        (r"\sqrt{2}", r"\sqrt{2} \text{ or } \sqrt{3}", "several_values"),
        (r"\sqrt{2}", r"\sqrt{2}, \sqrt{3}", "several_values"),
        (r"\sqrt{2}", r"> \sqrt{2}", "relation"),
        (r"\sqrt{2}", r"\neq \sqrt{2}", "relation"),
        (r"\sqrt{2}", r"\approx \sqrt{2}", "relation"),
        (r"\sqrt{2}", r"\pm\sqrt{2}", "relation"),
        (r"\frac{\pi}{4}", r"\int_0^1 \frac{1}{1+x^2} dx", "not_evaluated"),
        (r"\{1,2,3\}", r"\{1,2\}", "different"),
        (r"\sqrt{2}", "", "no_answer"),
    ],
)
def test_not_equal(right: str, answer: str, reason: str) -> None:
    assert judged(right, answer) == (False, reason)


def test_copy_of_the_question_is_rejected() -> None:
    assert judged("x+1", r"\frac{x^2-1}{x-1}", r"Simplify $\frac{x^2 - 1}{x - 1}$.") == (
        False,
        "not_evaluated",
    )
    assert judged("x+1", r"\frac{x^2-1}{x-1}", "Something else?") == (True, "equal")
    assert judged("x+1", "x+1", "Is it x+1?") == (True, "equal")


def test_plain_numbers_and_problems_without_algebra_are_not_compared_as_algebra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert judge("1+x", Problem("?", "x+1", algebra=True)).correct
    assert not judge("1+x", Problem("?", "x+1")).correct

    def never(*_: object) -> str:
        raise AssertionError("a plain number was compared as algebra")

    monkeypatch.setattr(algebra_module, "compare_parts", never)
    for completion in ("#### 42", "#### 6*7", r"\boxed{\sqrt{1764}}"):
        assert judge(completion, Problem("?", "42", algebra=True)) == verify(completion, "42")


def test_answer_is_read_from_the_phrase_or_from_the_last_line_if_there_is_no_slot() -> None:
    problem = Problem("?", r"2\sqrt{3}", algebra=True)
    assert judge(r"The answer is $\sqrt{12}$.", problem).correct
    assert judge("Well.\n$\\sqrt{12}$", problem).correct
    assert judge("", problem).reason == "no_answer"
    assert judge(r"\boxed{" + "x" * 2_000 + "}", problem).reason == "not_a_number"


def test_comparison_that_hangs_is_stopped_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged("x+1", "5+x-4") == (True, "equal")  # starts the worker
    monkeypatch.setattr(algebra_module, "TIME_LIMIT", 0.5)
    start = time.monotonic()
    hanging = r"\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}"
    assert judged("x+1", hanging)[1] in ("timed_out", "crashed")
    assert time.monotonic() - start < 10  # 0.5 s, and the time to kill the worker on a busy machine
    monkeypatch.setattr(algebra_module, "TIME_LIMIT", 120.0)
    assert judged("x+1", "6+x-5") == (True, "equal")


def test_answers_can_be_compared_from_several_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        asked = [("x+1", f"{number}+x-{number - 1}") for number in range(2, 18)]
        assert list(pool.map(lambda pair: judged(*pair), asked)) == [(True, "equal")] * 16


def test_hostile_answers_of_a_batch_do_not_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def batch(forms: list[str]) -> list[tuple[str, Problem, bool]]:
        return [(rf"\boxed{{{form}}}", Problem("?", "x+1", algebra=True), False) for form in forms]

    numbers = range(5, 5 + algebra_module.NUM_WORKERS)
    assert all(judge_all(batch([f"{number}+x-{number - 1}" for number in numbers])))  # starts workers
    monkeypatch.setattr(algebra_module, "TIME_LIMIT", 2.0)
    power = r"5^{\left(5^{\left(5^{\left(5^{%s}\right)}\right)} - 4\right)}x"
    hostile = [power % number for number in numbers]
    start = time.monotonic()
    verdicts = judge_all(batch(hostile))
    assert time.monotonic() - start < 2.0 * algebra_module.NUM_WORKERS
    assert {verdict.reason for verdict in verdicts if verdict} <= {"timed_out", "crashed"}
    assert judge_all([("7", Problem("?", None), False)]) == [None]


def test_message_without_math_verify_contains_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_algebra()
    monkeypatch.setattr(algebra_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'llm-reinforce\[algebra\]'"):
        check_algebra()
