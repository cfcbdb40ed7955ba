"""Measures of answers (shares, lengths, pass@k, majority votes) and comparisons of two policies."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_reinforce.evaluation import (
    KINDS,
    Answer,
    Evaluation,
    compare_by,
    compare_evaluations,
    difference_interval,
    kind_of_failure,
    majority_at_k,
    mcnemar,
    measures_of,
    share_interval,
)
from llm_reinforce.evaluation.answers import judged
from llm_reinforce.policy import Completion
from llm_reinforce.problems import Problem

SEVEN = Problem("3+4=", "7", id="seven")


def answered(text: str, problem: Problem = SEVEN, *, terminated: bool = True, num_tokens: int = 3) -> Answer:
    tokens = tuple(range(num_tokens))
    zeros = (0.0,) * num_tokens
    return judged(Completion(tokens, zeros, zeros, text, terminated), problem)


RIGHT, WRONG, CUT = answered("#### 7"), answered("8"), answered("8 and", terminated=False)
FORMAT = answered("the answer is 7 or 7")  # the last number is correct, but the verifier finds two values
UNANSWERED = answered("no")


def evaluation(*rows: list[Answer]) -> Evaluation:
    problems = [Problem("3+4=", "7", id=str(number)) for number in range(len(rows))]
    return Evaluation("greedy", problems, rows, measures_of(rows, 8))


def test_verdicts_of_one_answer() -> None:
    assert (RIGHT.correct, RIGHT.strict, RIGHT.flexible) == (True, True, True)
    assert (answered("7").correct, answered("7").strict, answered("7").flexible) == (True, False, True)
    assert (FORMAT.correct, FORMAT.flexible, FORMAT.parsed) == (False, True, False)
    assert (WRONG.parsed, UNANSWERED.parsed) == (True, False)
    stopped = judged(Completion((1,), (0.0,), (0.0,), "7\n\nQ: 8", False), SEVEN, ["Q:", "\n\n"])
    assert (stopped.text, stopped.terminated, stopped.correct) == ("7", True, True)


def test_measures_by_hand() -> None:
    measures = measures_of([[RIGHT], [WRONG], [CUT], [UNANSWERED]], 8)
    values = {name: measure.value for name, measure in measures.items()}
    assert values == {
        "accuracy": 0.25,
        "strict": 0.25,
        "flexible": 0.25,
        "truncated": 0.25,
        "unparseable": 0.25,
        "mean_length": 3,
    }
    assert measures["accuracy"].interval == share_interval([1, 0, 0, 0])
    assert measures["accuracy"].standard_error == pytest.approx(0.25)  # sqrt(0.1875 * 4/3 / 4)


def test_measures_of_several_samples() -> None:
    rows = [[RIGHT, WRONG, RIGHT, RIGHT], [WRONG, WRONG, RIGHT, UNANSWERED]]
    measures = measures_of(rows, 8)
    assert measures["accuracy"].value == 0.5
    assert measures["pass@2"].value == pytest.approx((1 + 0.5) / 2)
    assert measures["pass@4"].value == 1
    assert measures["maj@4"].value == 0.5
    assert "pass@3" not in measures


def test_majority_at_k_by_hand() -> None:
    eight, eight_again = answered("8"), answered("8.0")
    assert majority_at_k([RIGHT, eight, eight_again], 3) == 0  # 8 and 8.0 count as the same answer
    assert majority_at_k([answered("7"), answered("7.0"), eight], 3) == 1
    assert majority_at_k([RIGHT, eight], 2) == 1  # the first one wins a tie
    assert majority_at_k([eight, RIGHT], 2) == 0
    assert majority_at_k([UNANSWERED, UNANSWERED, RIGHT], 3) == 1  # an answer without a value has no vote
    assert majority_at_k([UNANSWERED], 1) == 0
    assert majority_at_k([RIGHT, eight, eight, eight], 1) == 0.25
    assert (
        majority_at_k([RIGHT, RIGHT, eight, eight, RIGHT], 2) == 0.5
    )  # two groups, and one answer left over
    # all forms of a number count as the same answer
    eights = [answered(text) for text in (r"\boxed{8 \text{ apples}}", r"\boxed{x = 8}", "800%")]
    assert majority_at_k([RIGHT, RIGHT, *eights], 5) == 0
    ones = [answered("1"), answered("1.0")]  # although 1 == True in Python
    assert majority_at_k([RIGHT, *ones, answered("2")], 4) == 0
    assert majority_at_k([RIGHT, answered("1"), eight, eight_again], 4) == 0
    capital = Problem("Capital of France?", "Paris")
    huge, paris = answered("1e99999999", capital), answered("Paris", capital)
    assert majority_at_k([huge, paris], 2) == 0  # and the huge number is not computed
    with pytest.raises(ValueError, match="maj@2 is not defined for 1 samples"):
        majority_at_k([RIGHT], 2)


# ------------------------------------------------------------------------------------- comparisons


def test_kinds_of_failure() -> None:
    kinds = [kind_of_failure(answer) for answer in (FORMAT, CUT, WRONG, UNANSWERED)]
    assert kinds == ["format", "truncation", "arithmetic", "arithmetic"]


def test_comparison_by_hand() -> None:
    before = evaluation([WRONG], [FORMAT], [CUT], [RIGHT], [RIGHT], [WRONG], [RIGHT], [CUT])
    after = evaluation([RIGHT], [RIGHT], [RIGHT], [CUT], [RIGHT], [WRONG], [RIGHT], [RIGHT])
    result = compare_by(before, after)
    assert (result.before, result.after, result.difference) == (3 / 8, 6 / 8, 3 / 8)
    assert (result.gained, result.lost) == (("0", "1", "2", "7"), ("3",))
    assert (result.test, result.p_value) == ("mcnemar", mcnemar(4, 1))
    assert result.interval == difference_interval([1, 1, 1, -1, 0, 0, 0, 1])
    parts = {kind: (part.gained * 8, part.lost * 8) for kind, part in result.parts.items()}
    assert parts == {"format": (1, 0), "truncation": (2, 1), "arithmetic": (1, 0)}
    assert compare_evaluations(before, evaluation(*[[WRONG]] * 8)).keys() == {"accuracy", "strict"}
    assert compare_evaluations(evaluation([WRONG]), evaluation([answered("7")])).keys() == {"accuracy"}
    strict = compare_by(evaluation([answered("7")]), evaluation([RIGHT]), "strict")
    assert (strict.before, strict.after, strict.parts["format"].difference) == (0, 1, 1)


ANSWERS = st.sampled_from([RIGHT, WRONG, CUT, FORMAT, UNANSWERED, answered("7")])


@given(st.integers(1, 3), st.integers(1, 3), st.data())
@settings(max_examples=30, deadline=None)
def test_parts_add_up_to_the_difference(num_before: int, num_after: int, data: st.DataObject) -> None:
    num_problems = data.draw(st.integers(1, 6))

    def rows(num_samples: int) -> Evaluation:
        row = st.lists(ANSWERS, min_size=num_samples, max_size=num_samples)
        return evaluation(*data.draw(st.lists(row, min_size=num_problems, max_size=num_problems)))

    before, after = rows(num_before), rows(num_after)
    for criterion in ("accuracy", "strict"):
        result = compare_by(before, after, criterion)  # type: ignore[arg-type]
        assert set(result.parts) == set(KINDS)
        total = sum(part.difference for part in result.parts.values())
        assert total == pytest.approx(result.difference, abs=1e-12)
        assert all(part.gained >= 0 and part.lost >= 0 for part in result.parts.values())
        low, high = result.interval
        assert low - 1e-12 <= result.difference <= high + 1e-12
        mirrored = compare_by(after, before, criterion)  # type: ignore[arg-type]
        assert (mirrored.gained, mirrored.lost) == (result.lost, result.gained)
        assert mirrored.p_value == pytest.approx(result.p_value, abs=0.02)


def test_different_problems_are_not_compared() -> None:
    other = Evaluation("greedy", [Problem("3+4=", "8", id="0")], [[WRONG]], measures_of([[WRONG]], 8))
    with pytest.raises(ValueError, match="different problems"):
        compare_by(evaluation([RIGHT]), other)
