"""What an answer commits to: tables of accepted and refused answers.

`commitments.jsonl` has at least 30 cases of each kind. The cases in `independent_cases.jsonl` were written
from the description of the verifier alone, by someone who had not seen its code.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_reinforce.verifier import algebra as algebra_module
from llm_reinforce.verifier import verify


def read_cases(name: str) -> list[dict[str, Any]]:
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


CASES, INDEPENDENT = read_cases("commitments.jsonl"), read_cases("independent_cases.jsonl")
KINDS = list(dict.fromkeys(case["kind"] for case in CASES))


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the time limit, so that comparisons do not fail on a busy machine."""
    monkeypatch.setattr(algebra_module, "TIME_LIMIT", 120.0)


@pytest.mark.parametrize("algebra", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_verdicts(kind: str, algebra: bool) -> None:
    if algebra:
        pytest.importorskip("math_verify")
    chosen = [case for case in CASES if (case["kind"], case["algebra"]) == (kind, algebra)]
    assert wrongly_judged(chosen) == []


def test_verdicts_of_independent_cases() -> None:
    assert wrongly_judged([case for case in INDEPENDENT if not case["algebra"]]) == []


def test_verdicts_of_some_independent_cases_of_algebra() -> None:
    pytest.importorskip("math_verify")
    # all of them take half a minute
    assert wrongly_judged([case for case in INDEPENDENT if case["algebra"]][::10]) == []


def wrongly_judged(cases: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return the completion, the answer and the expected verdict of each case that is judged wrongly."""
    return [
        (case["completion"], case["answer"], f"should be {case['correct']}")
        for case in cases
        if verify(case["completion"], case["answer"], algebra=case["algebra"]).correct is not case["correct"]
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_accepted_and_refused_answers(kind: str) -> None:
    verdicts = [case["correct"] for case in CASES if case["kind"] == kind]
    assert min(verdicts.count(True), verdicts.count(False)) >= 15
