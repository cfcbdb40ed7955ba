"""Budgets of sampled tokens: end of the run, evaluations, and a larger budget on resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import COPY, Watcher, new_run, rows, same, timeless, trainer, weights

from llm_reinforce.config import EvaluationConfig, TrainingConfig
from llm_reinforce.runs import RunDirectory, TrainState
from llm_reinforce.training import TrainingLoop
from llm_reinforce.training.budget import is_evaluation_due, is_over


def training(num_updates: int = 10, num_tokens: int | None = 100) -> TrainingConfig:
    return TrainingConfig(num_updates=num_updates, num_tokens=num_tokens, learning_rate=1e-2)


@pytest.mark.parametrize(
    ("num_tokens", "state", "over"),
    [
        (None, TrainState(9, num_tokens=10**9), False),
        (None, TrainState(10, num_tokens=1), True),
        (100, TrainState(3, num_tokens=99), False),
        (100, TrainState(3, num_tokens=100), True),
        (100, TrainState(10, num_tokens=99), True),
    ],
)
def test_run_is_over_after_its_updates_or_tokens(
    num_tokens: int | None, state: TrainState, over: bool
) -> None:
    assert is_over(training(num_tokens=num_tokens), state) is over


@pytest.mark.parametrize(
    ("num_tokens", "state", "expected"),
    [
        (None, TrainState(4, num_tokens=1), 10),
        (100, TrainState(), 10),  # the tokens per update are not known yet
        (100, TrainState(2, num_tokens=40), 5),
        (101, TrainState(2, num_tokens=40), 6),
        (100, TrainState(2, num_tokens=2), 10),  # num_updates ends it first
        (100, TrainState(2, num_tokens=250), 2),  # exact, since the run is over
    ],
)
def test_expected_number_of_updates(num_tokens: int | None, state: TrainState, expected: int) -> None:
    assert training(num_tokens=num_tokens).expected_updates(state.num_updates, state.num_tokens) == expected


def test_evaluations_by_updates_and_by_tokens() -> None:
    by_tokens = EvaluationConfig(every=50, unit="tokens")
    steps = [TrainState(number, num_tokens=40 * number) for number in range(6)]  # 0, 40, 80, 120, 160, 200
    due = [is_evaluation_due(by_tokens, *steps[number : number + 2]) for number in range(5)]
    assert due == [False, True, True, True, True]
    by_updates = EvaluationConfig(every=2)
    due = [is_evaluation_due(by_updates, *steps[number : number + 2]) for number in range(5)]
    assert due == [False, True, False, True, False]


def budgeted(directory: RunDirectory, watcher: Watcher, num_tokens: int, **settings: Any) -> TrainingLoop:
    """Return a run whose updates sample 12 episodes of at most 4 tokens."""
    one = trainer(
        num_updates=1000,
        training={"num_tokens": num_tokens, "checkpoint_every": 2, **settings},
        held_out=COPY[:2],
        evaluation=EvaluationConfig(every=100, unit="tokens"),
        run_directory=directory,
        display=watcher,
    )
    watcher.trainer = one
    return one


def test_a_run_that_reaches_its_token_budget_is_evaluated_and_saved(tmp_path: Path) -> None:
    directory, watcher = new_run(tmp_path / "run"), Watcher()
    state = budgeted(directory, watcher, 250).train()
    sampled = [row["num_tokens"] for row in rows(directory)]
    assert sampled[-1] == state.num_tokens >= 250 > sampled[-2]
    assert state.num_updates == len(sampled) < 1000
    assert directory.policy.is_dir()
    assert (directory.checkpoints / f"update-{state.num_updates:06d}").is_dir()
    by_update = {0: 0, **{row["update"]: row["num_tokens"] for row in rows(directory)}}
    evaluated = [by_update[row["update"]] for row in rows(directory, "evaluations.jsonl")]
    crossed = [next(number for number in sampled if number >= line) for line in (100, 200)]
    assert evaluated == sorted({0, *crossed, state.num_tokens})
    evaluated_updates = {row["update"] for row in rows(directory, "evaluations.jsonl")}
    assert {row["update"] for row in rows(directory, "answers.jsonl")} == evaluated_updates
    assert any("250 sampled tokens" in sentence for sentence in watcher.said)


def test_a_stopped_run_ends_with_the_same_bits_and_its_budget_may_grow(tmp_path: Path) -> None:
    whole = new_run(tmp_path / "whole")
    undisturbed = budgeted(whole, Watcher(), 400)
    undisturbed.train()
    directory = new_run(tmp_path / "run")
    first = budgeted(directory, Watcher(stop_after=3), 250)
    assert not is_over(first.training, first.train())
    again = budgeted(directory, Watcher(), 250)
    assert is_over(again.training, again.train(resume=True))
    longer = budgeted(directory, Watcher(), 400)
    state = longer.train(resume=True)
    # only this run was evaluated at 250 tokens
    assert replace(state, best_evaluation={}) == replace(undisturbed.state, best_evaluation={})
    assert same(weights(longer.policy), weights(undisturbed.policy))
    assert timeless(rows(directory)) == timeless(rows(whole))


def test_the_displayed_number_of_updates_is_exact_at_the_end(tmp_path: Path) -> None:
    totals: list[tuple[int, int]] = []

    class Totals(Watcher):
        def update(self, num_updates: int, total: int, *arguments: Any) -> None:
            totals.append((num_updates, total))

    state = budgeted(new_run(tmp_path / "run"), Totals(), 250).train()
    assert totals[-1] == (state.num_updates, state.num_updates)
    assert all(done < total < 100 for done, total in totals[:-1])


class _StopsInEvaluation(Watcher):
    """Stop the trainer when evaluation number `stop_in` begins to sample answers."""

    def __init__(self, stop_in: int) -> None:
        super().__init__()
        self.stop_in, self.num_progress = stop_in, 0

    def evaluating(self, num_problems: int, total: int) -> None:
        assert self.trainer is not None
        if len(self.accuracies) == self.stop_in - 1:
            self.num_progress += 1
            self.trainer.stop_requested = True


def evaluated(directory: RunDirectory, watcher: Watcher) -> TrainingLoop:
    """Return a run with six evaluations, three of each decoding."""
    evaluation = EvaluationConfig(every=2, decodings=("greedy", "sampled"), batch_size=1)
    watcher.trainer = trainer(run_directory=directory, display=watcher, evaluation=evaluation)
    return watcher.trainer


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingLoop, RunDirectory]:
    """The finished run of `evaluated`."""
    one = evaluated(directory := new_run(tmp_path_factory.mktemp("undisturbed") / "run"), Watcher())
    one.train()
    return one, directory


# the first evaluation, greedy; an intermediate one; the last one
@pytest.mark.parametrize("stop_in", [1, 3, 6])
def test_an_evaluation_is_stopped_at_once_and_repeated_on_resume(
    tmp_path: Path, undisturbed: tuple[TrainingLoop, RunDirectory], stop_in: int
) -> None:
    whole, whole_run = undisturbed
    directory = new_run(tmp_path / "run")
    stopped = evaluated(directory, watcher := _StopsInEvaluation(stop_in))
    state = stopped.train()
    assert watcher.num_progress == 1  # no further problem was evaluated
    assert len(watcher.accuracies) == stop_in - 1
    assert not is_over(stopped.training, state)
    assert not directory.policy.exists()
    resumed = evaluated(directory, Watcher())
    assert is_over(resumed.training, resumed.train(resume=True))
    assert directory.policy.is_dir()
    assert same(weights(resumed.policy), weights(whole.policy))
    for name in ("evaluations.jsonl", "answers.jsonl"):
        assert rows(directory, name) == rows(whole_run, name)
    assert resumed.state.seconds > state.seconds > 0
