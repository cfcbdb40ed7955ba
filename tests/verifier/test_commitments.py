"""What an answer commits to: tables of accepted and refused answers, by kind, in commitments.jsonl."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_reinforce.verifier import algebra as algebra_module
from llm_reinforce.verifier import verify

CASES: list[dict[str, Any]] = [
    json.loads(line)
    for line in Path(__file__).with_name("commitments.jsonl").read_text(encoding="utf-8").splitlines()
]
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
    wrong = [
        (case["completion"], case["answer"], f"should be {case['correct']}")
        for case in CASES
        if (case["kind"], case["algebra"]) == (kind, algebra)
        and verify(case["completion"], case["answer"], algebra=algebra).correct is not case["correct"]
    ]
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_accepted_and_refused_answers(kind: str) -> None:
    verdicts = [case["correct"] for case in CASES if case["kind"] == kind]
    assert min(verdicts.count(True), verdicts.count(False)) >= 15
