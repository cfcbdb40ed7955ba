"""The verifier on completions that a real model wrote, labeled by hand: see model_completions.md."""

from collections.abc import Callable

import pytest
from model_completions import UNFINISHED, Pair, derived_pairs, gold_pairs

from llm_reinforce.verifier import verify

Pairs = Callable[[], list[Pair]]
RESTATED = " At the stop 13 more people got on the bus."  # only the question shows that this is no answer
both_kinds = pytest.mark.parametrize("pairs", [gold_pairs, derived_pairs])


@both_kinds
def test_no_wrong_answer_of_a_model_is_accepted(pairs: Pairs) -> None:
    wrong = [pair for pair in pairs() if not pair.correct and pair.kind != UNFINISHED]
    assert len(wrong) > 100
    accepted = {pair.completion for pair in wrong if verify(pair.completion, pair.answer).correct}
    assert accepted <= {RESTATED}


@both_kinds
def test_right_answers_of_a_model_are_accepted(pairs: Pairs) -> None:
    correct = [pair for pair in pairs() if pair.correct]
    assert len(correct) > 40
    refused = [pair for pair in correct if not verify(pair.completion, pair.answer).correct]
    assert len(refused) <= 0.01 * len(correct), refused


def test_labels_are_consistent() -> None:
    """A completion that is correct for the gold answer commits to this value."""
    correct = {(pair.row, pair.answer) for pair in derived_pairs() if pair.correct}
    for pair in gold_pairs():
        if pair.correct:
            assert (pair.row, pair.answer) in correct
