"""`measure_accuracy`: counts, the order of prompts, resuming, and stop strings."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from llm_reinforce.evaluation import Answer, measure_accuracy, share_interval
from llm_reinforce.policy import LanguagePolicy, stream_completions
from llm_reinforce.problems import Problem

PROBLEMS = [Problem(f"{a}+{b}=", str(a + b)) for a in range(4) for b in range(5)]


def test_counts_follow_the_verifier(tiny_policy: LanguagePolicy) -> None:
    result = measure_accuracy(tiny_policy, PROBLEMS, max_new_tokens=3)
    assert result.total == len(PROBLEMS) == len(result.verdicts) == len(result.answers)
    assert result.correct == sum(verdict.correct for verdict in result.verdicts)
    assert result.accuracy == result.correct / 20
    assert result.interval == share_interval([float(v.correct) for v in result.verdicts])
    assert result.truncated == sum(not row[0].terminated for row in result.answers) / 20
    assert result.mean_length == sum(row[0].num_tokens for row in result.answers) / 20
    summary = result.summary()
    assert summary["decoding"] == "greedy"
    assert summary["interval"] == list(result.interval)
    assert summary["samples_per_problem"] == 1
    assert json.loads(json.dumps(summary)) == summary
    assert set(result.measures) == {
        "accuracy",
        "strict",
        "flexible",
        "truncated",
        "unparseable",
        "mean_length",
    }


def test_measures_of_several_samples_per_problem(tiny_policy: LanguagePolicy) -> None:
    result = measure_accuracy(
        tiny_policy, PROBLEMS, decoding="sampled", samples_per_problem=6, max_new_tokens=2
    )
    assert result.total == 120
    by_problem = [sum(v.correct for v in result.verdicts[i : i + 6]) for i in range(0, 120, 6)]
    assert 0 < result.correct == sum(by_problem)
    assert result.interval == share_interval([correct / 6 for correct in by_problem])
    assert {"pass@2", "pass@4", "pass@6", "maj@6"} <= set(result.measures)
    assert result.measures["pass@6"].value == sum(correct > 0 for correct in by_problem) / 20


def test_result_depends_on_the_seed_and_not_on_the_batch_size(tiny_policy: LanguagePolicy) -> None:
    def sampled(seed: int, batch_size: int = 256) -> object:
        return measure_accuracy(
            tiny_policy, PROBLEMS, decoding="sampled", max_new_tokens=3, seed=seed, batch_size=batch_size
        )

    assert sampled(0) == sampled(0)
    assert sampled(0, 7) == sampled(0)  # no draw is so close to a limit that rounding matters
    assert sampled(0) != sampled(1)


@pytest.mark.parametrize("batch_size", [1, 7, 20, 1000])
def test_greedy_result_is_independent_of_the_batch_size(tiny_policy: LanguagePolicy, batch_size: int) -> None:
    whole = measure_accuracy(tiny_policy, PROBLEMS, max_new_tokens=3)
    done: list[int] = []
    parts = measure_accuracy(
        tiny_policy, PROBLEMS, max_new_tokens=3, batch_size=batch_size, progress=done.append
    )
    assert parts.verdicts == whole.verdicts
    assert done[-1] == len(PROBLEMS)
    assert done == sorted(set(done))


def test_no_problems_are_an_error(tiny_policy: LanguagePolicy) -> None:
    with pytest.raises(ValueError, match="no problems to evaluate"):
        measure_accuracy(tiny_policy, [])


def test_several_greedy_samples_are_an_error(tiny_policy: LanguagePolicy) -> None:
    with pytest.raises(ValueError, match="samples_per_problem must be 1"):
        measure_accuracy(tiny_policy, PROBLEMS, samples_per_problem=2)


# ------------------------------------------------------------------------ order and interruptions


LONG_AND_SHORT = [Problem("+".join("1" * (1 + n % 5)) + "=", "1", id=str(n)) for n in range(12)]


def record_prompt_lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives the length of each prompt evaluated from now on."""
    lengths: list[int] = []

    def watched(policy: LanguagePolicy, prompts: Sequence[Sequence[int]], **rest: Any) -> Any:
        lengths.extend(len(prompt) for prompt in prompts)
        return stream_completions(policy, prompts, **rest)

    monkeypatch.setattr("llm_reinforce.evaluation.accuracy.stream_completions", watched)
    return lengths


def test_longest_prompts_come_first_and_results_keep_the_order_of_problems(
    tiny_policy: LanguagePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = record_prompt_lengths(monkeypatch)
    result = measure_accuracy(tiny_policy, LONG_AND_SHORT, max_new_tokens=2, batch_size=5)
    assert [problem.id for problem in result.problems] == [str(n) for n in range(12)]
    assert len(lengths) == 12
    assert lengths == sorted(lengths, reverse=True)
    backwards = measure_accuracy(tiny_policy, LONG_AND_SHORT[::-1], max_new_tokens=2, batch_size=5)
    assert backwards.verdicts == result.verdicts[::-1]


class InterruptingJournal:
    """Journal in memory that interrupts the evaluation after `stop_after` problems."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.done: dict[int, Sequence[Answer]] = {}
        self.stop_after = stop_after

    def record(self, index: int, problem: Problem, answers: Sequence[Answer]) -> None:
        if len(self.done) == self.stop_after:
            raise KeyboardInterrupt
        self.done[index] = answers


@pytest.mark.parametrize("stop_after", [0, 3, 7, 11])
def test_interrupted_evaluation_gives_the_same_answers(
    tiny_policy: LanguagePolicy, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "decoding": "sampled",
        "samples_per_problem": 3,
        "max_new_tokens": 3,
        "batch_size": 12,
    }
    whole = measure_accuracy(tiny_policy, LONG_AND_SHORT, **settings)
    journal = InterruptingJournal(stop_after)
    with pytest.raises(KeyboardInterrupt):
        measure_accuracy(tiny_policy, LONG_AND_SHORT, journal=journal, **settings)
    journal.stop_after = None
    lengths = record_prompt_lengths(monkeypatch)
    assert measure_accuracy(tiny_policy, LONG_AND_SHORT, journal=journal, **settings) == whole
    assert len(lengths) == 12 - stop_after
    assert len(journal.done) == 12


def test_completion_is_cut_at_a_stop_string(tiny_policy: LanguagePolicy) -> None:
    plain = measure_accuracy(tiny_policy, PROBLEMS, max_new_tokens=4)
    word = next(row[0].text[1] for row in plain.answers if len(row[0].text) > 1)
    cut = measure_accuracy(tiny_policy, PROBLEMS, max_new_tokens=4, stop=[word, "never"])
    for before, after in zip(plain.answers, cut.answers, strict=True):
        assert after[0].text == before[0].text.partition(word)[0]
        assert after[0].num_tokens == before[0].num_tokens
        assert after[0].terminated == (before[0].terminated or word in before[0].text)
