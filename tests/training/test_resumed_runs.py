"""Runs that are stopped or killed, and resumed: they end with the same bits."""

import json
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from small_runs import (
    KilledError,
    Killer,
    Watcher,
    adapted_policy,
    full,
    new_run,
    rows,
    same,
    timeless,
    trainer,
    weights,
)

from llm_reinforce.config import (
    EvaluationConfig,
    ReinforceConfig,
)
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy, load_policy
from llm_reinforce.runs import RunDirectory
from llm_reinforce.training import run_checkpoints
from llm_reinforce.training.loop import TrainingLoop

Undisturbed = Callable[..., tuple[TrainingLoop, RunDirectory]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Return a function that makes the finished run of `full` with some settings, once for all tests."""

    @cache
    def made(**settings: Any) -> tuple[TrainingLoop, RunDirectory]:
        directory = new_run(tmp_path_factory.mktemp("undisturbed") / "run")
        one = full(directory, Watcher(), **settings)
        one.train()
        return one, directory

    return made


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_run_ends_with_the_same_bits(
    tmp_path: Path, undisturbed: Undisturbed, stop_after: int
) -> None:
    straight, straight_run = undisturbed(every=4)
    stopped = full(stopped_run := new_run(tmp_path / "stopped"), Watcher(stop_after), every=4)
    assert stopped.train().num_updates == stop_after
    assert not stopped_run.policy.exists()
    resumed = full(stopped_run, watcher := Watcher(), every=4)
    assert resumed.train(resume=True) == straight.state
    assert watcher.warm_updates == 0
    assert watcher.said == [f"resuming from update-{stop_after:06d}"]

    assert same(weights(resumed.policy), weights(straight.policy))
    for name in ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl"):
        assert timeless(rows(stopped_run, name)) == timeless(rows(straight_run, name)), name
    assert same(weights(load_policy(stopped_run.path)), weights(load_policy(straight_run.path)))


AdaptedRun = Callable[[RunDirectory, Watcher], TrainingLoop]


@pytest.fixture(scope="module")
def adapted_run(tmp_path_factory: pytest.TempPathFactory) -> AdaptedRun:
    """Return a function that prepares a run of an adapter in micro-batches."""
    base = tmp_path_factory.mktemp("adapted") / "base"

    def one(directory: RunDirectory, watcher: Watcher) -> TrainingLoop:
        return full(
            directory, watcher, policy=adapted_policy(base), checkpoint_every=1, micro_batch_tokens=20
        )

    return one


@pytest.fixture(scope="module")
def undisturbed_adapter(
    tmp_path_factory: pytest.TempPathFactory, adapted_run: AdaptedRun
) -> tuple[TrainingLoop, RunDirectory]:
    one = adapted_run(directory := new_run(tmp_path_factory.mktemp("straight") / "run"), Watcher())
    one.train()
    return one, directory


@pytest.mark.parametrize("stop", [Watcher, Killer], ids=["stopped", "killed"])
def test_a_resumed_adapter_in_micro_batches_ends_with_the_same_bits(
    tmp_path: Path,
    adapted_run: AdaptedRun,
    undisturbed_adapter: tuple[TrainingLoop, RunDirectory],
    stop: type[Watcher],
) -> None:
    one, (straight, straight_run) = adapted_run, undisturbed_adapter
    with suppress(KilledError):
        one(stopped_run := new_run(tmp_path / "stopped"), stop(2)).train()
    resumed = one(stopped_run, watcher := Watcher())
    assert resumed.train(resume=True) == straight.state
    assert watcher.said == [f"resuming from update-00000{1 if stop is Killer else 2}"]
    assert same(weights(resumed.policy), weights(straight.policy))
    for name in ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl", "answers.jsonl"):
        assert timeless(rows(stopped_run, name)) == timeless(rows(straight_run, name)), name
    assert same(weights(load_policy(stopped_run.path)), weights(load_policy(straight_run.path)))


BASELINES = get_args(ReinforceConfig.model_fields["baseline"].annotation)
# They have no state and no episodes of their own. The other tests have the baseline `moving_average`.
OTHERS = {"none", "moving_average", "batch_mean", "group_mean", "leave_one_out", "optimal"}


@pytest.mark.parametrize("baseline", [each for each in BASELINES if each not in OTHERS])
def test_a_killed_run_ends_with_the_same_bits_with_all_kinds_of_baselines(
    tmp_path: Path, baseline: str
) -> None:
    def one(directory: RunDirectory, watcher: Watcher) -> TrainingLoop:
        return full(directory, watcher, baseline=baseline, checkpoint_every=2)

    straight = one(straight_run := new_run(tmp_path / "straight"), Watcher())
    straight.train()
    with suppress(KilledError):
        one(killed_run := new_run(tmp_path / "killed"), Killer(3)).train()
    resumed = one(killed_run, Watcher())
    assert resumed.train(resume=True) == straight.state
    assert same(weights(resumed.policy), weights(straight.policy))
    assert timeless(rows(killed_run)) == timeless(rows(straight_run))
    heads = [one.value_baseline.tensors() if one.value_baseline else {} for one in (resumed, straight)]
    assert bool(heads[0]) is (baseline == "value")
    assert same(*heads)


def test_everything_that_changes_in_a_run_is_in_its_state(tmp_path: Path) -> None:
    """All other attributes that change are flags and counters that a resumed run does not need."""
    one = full(new_run(tmp_path / "run"), Watcher())
    before = dict(vars(one))
    one.train()
    changed = {name for name, value in vars(one).items() if value is not before[name]}
    assert changed <= {
        "state",
        "stop_requested",
        "_clock",
        "_has_begun",
        "_has_reported_failure",
        "_has_tried_rewards",
        "_is_state_current",
        "_num_evaluated",
        "_num_saved",
    }
    assert "state" in changed


def test_a_resumed_run_that_is_stopped_immediately_loses_nothing(
    tmp_path: Path, undisturbed: Undisturbed
) -> None:
    straight, straight_run = undisturbed(every=4)
    full(run := new_run(tmp_path / "run"), Watcher(2), every=4).train()
    before = {name: rows(run, name) for name in ("metrics.jsonl", "evaluations.jsonl", "episodes.jsonl")}
    for _ in range(2):
        hasty = full(run, watcher := Watcher(), every=4)
        hasty.stop_requested = True
        assert hasty.train(resume=True).num_updates == 2
        assert watcher.metrics == []
        assert {name: rows(run, name) for name in before} == before
    resumed = full(run, Watcher(), every=4)
    assert resumed.train(resume=True) == straight.state
    assert same(weights(resumed.policy), weights(straight.policy))
    for name in before:
        assert timeless(rows(run, name)) == timeless(rows(straight_run, name)), name


def test_stops_neither_skip_nor_repeat_problems(tmp_path: Path) -> None:
    """Stop after each update. Each draws two of four problems, so epochs end after updates 2 and 4."""

    def one(directory: RunDirectory | None, watcher: Watcher) -> TrainingLoop:
        reinforce = ReinforceConfig(problems_per_update=2, episodes_per_problem=2)
        made = trainer(num_updates=4, reinforce=reinforce, run_directory=directory, display=watcher)
        watcher.trainer = made
        return made

    straight = one(None, straight_watcher := Watcher())
    straight.train()
    directory, drawn = new_run(tmp_path / "run"), []
    for number, stop in enumerate((1, 2, 3, 4, None)):
        resumed = one(directory, watcher := Watcher(stop))
        resumed.train(resume=number > 0)
        drawn += watcher.episodes
    problems = [[episode.problem.id for episode in episodes] for episodes in drawn]
    assert problems == [[e.problem.id for e in episodes] for episodes in straight_watcher.episodes]
    assert resumed.state.num_problems == 8
    assert same(weights(resumed.policy), weights(straight.policy))


def test_a_stop_at_an_evaluation_loses_no_evaluation(tmp_path: Path, undisturbed: Undisturbed) -> None:
    _, straight_run = undisturbed(every=2)
    full(stopped_run := new_run(tmp_path / "stopped"), Watcher(2), every=2).train()
    full(stopped_run, Watcher(), every=2).train(resume=True)
    assert rows(stopped_run, "evaluations.jsonl") == rows(straight_run, "evaluations.jsonl")


@pytest.mark.parametrize(("moment", "stops_after"), [("evaluation", 0), ("save", 1)])
def test_a_stop_at_any_moment_saves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, stops_after: int
) -> None:
    class Asking(Watcher):
        def evaluation(self, num_updates: int, *_: Any) -> None:
            one.stop_requested = moment == "evaluation"

    def save(*arguments: Any, **settings: Any) -> Path:
        one.stop_requested = moment == "save"
        return write(*arguments, **settings)

    write = run_checkpoints.save_checkpoint
    monkeypatch.setattr(run_checkpoints, "save_checkpoint", save)
    directory = new_run(tmp_path / "run")
    one = trainer(training={"checkpoint_every": 1}, run_directory=directory, display=Asking())
    if moment == "save":
        one.evaluation = EvaluationConfig(every=9)
    assert one.train().num_updates == stops_after
    assert (directory.checkpoints / f"update-{stops_after:06d}" / "manifest.json").is_file()


def test_a_killed_run_is_resumed_from_its_checkpoint(tmp_path: Path, undisturbed: Undisturbed) -> None:
    straight, straight_run = undisturbed(checkpoint_every=2)
    watcher = Killer()
    watcher.stop_after = 4
    with pytest.raises(KilledError):
        full(killed_run := new_run(tmp_path / "killed"), watcher, checkpoint_every=2).train()
    with (killed_run.path / "episodes.jsonl").open("a") as file:
        file.write('{"update": 4, "prob')  # half a line
    assert len(rows(killed_run)) == 3  # one more than at the checkpoint
    resumed = full(killed_run, Watcher(), checkpoint_every=2)
    resumed.train(resume=True)
    assert same(weights(resumed.policy), weights(straight.policy))
    for name in ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl"):
        assert timeless(rows(killed_run, name)) == timeless(rows(straight_run, name)), name


def test_a_resume_from_update_0_does_not_repeat_the_warm_start(
    tmp_path: Path, undisturbed: Undisturbed
) -> None:
    straight, _ = undisturbed()
    watcher = Killer(1)
    with pytest.raises(KilledError):
        full(killed_run := new_run(tmp_path / "killed"), watcher).train()
    assert watcher.warm_updates == 3
    assert [entry.name for entry in killed_run.checkpoints.iterdir()] == ["update-000000"]
    resumed = full(killed_run, again := Watcher())
    resumed.train(resume=True)
    assert again.warm_updates == 0
    assert same(weights(resumed.policy), weights(straight.policy))


def test_a_stop_during_the_warm_start_saves_nothing(tmp_path: Path, undisturbed: Undisturbed) -> None:
    class Hasty(Watcher):
        def warm_start(self, num_updates: int, total: int, loss: float) -> None:
            super().warm_start(num_updates, total, loss)
            assert self.trainer is not None
            self.trainer.stop_requested = num_updates == 2

    directory = new_run(tmp_path / "run")
    hasty = Hasty()
    assert full(directory, hasty).train().num_updates == 0
    assert hasty.warm_updates == 2
    assert {entry.name for entry in directory.path.iterdir()} == {"recipe.yaml"}
    resumed = full(directory, watcher := Watcher())
    resumed.train(resume=True)
    assert watcher.warm_updates == 3
    assert watcher.said == ["no complete checkpoint: the run starts from the beginning"]
    straight, _ = undisturbed()
    assert same(weights(resumed.policy), weights(straight.policy))


def test_a_damaged_checkpoint_is_skipped_and_reported(tmp_path: Path, undisturbed: Undisturbed) -> None:
    straight, straight_run = undisturbed(checkpoint_every=1)
    full(broken_run := new_run(tmp_path / "broken"), Watcher(3), checkpoint_every=1).train()
    file = broken_run.checkpoints / "update-000003" / "policy.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    resumed = full(broken_run, watcher := Watcher(), checkpoint_every=1)
    resumed.train(resume=True)
    assert watcher.said[0].startswith("skipped checkpoint update-000003")
    assert watcher.said[1] == "resuming from update-000002"
    assert same(weights(resumed.policy), weights(straight.policy))
    assert timeless(rows(broken_run)) == timeless(rows(straight_run))


def test_resuming_a_finished_run_does_not_train(tmp_path: Path) -> None:
    one = full(directory := new_run(tmp_path / "run"), Watcher())
    one.train()
    before = {name: rows(directory, name) for name in ("metrics.jsonl", "evaluations.jsonl")}
    again = full(directory, watcher := Watcher())
    assert again.train(resume=True) == one.state
    assert watcher.metrics == []
    assert {name: rows(directory, name) for name in before} == before


def test_an_extended_run_has_the_learning_rates_of_the_longer_run(tmp_path: Path) -> None:
    directory = new_run(tmp_path / "run")
    trainer(training={"schedule": "linear"}, run_directory=directory).train()
    watcher = Watcher()
    longer = {"num_updates": 8, "schedule": "linear"}
    trainer(training=longer, run_directory=directory, display=watcher).train(resume=True)
    rates = [metrics["learning_rate"] for metrics in watcher.metrics]
    assert rates == pytest.approx([5e-3, 3.75e-3, 2.5e-3, 1.25e-3])


def test_scaled_gradients_are_unscaled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(scaler: torch.amp.GradScaler | None) -> dict[str, torch.Tensor]:
        directory = new_run(tmp_path / f"scaled {scaler is not None}")
        one = full(directory, Watcher())
        if scaler is not None:  # as accelerate sets it up for fp16 on a GPU, without the half precision
            monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
            one.accelerator.native_amp, one.accelerator.scaler = True, scaler
            one.accelerator.autocast = nullcontext
            one.optimizer = AcceleratedOptimizer(one.optimizer.optimizer, scaler=scaler)
            one.accelerator._optimizers = [one.optimizer]
            one.gradient_step = replace(one.gradient_step, optimizer=one.optimizer)
        one.train()
        saved = json.loads((directory.checkpoints / "update-000004" / "state.json").read_text())
        assert saved["scaler"] == (scaler and scaler.state_dict())
        return weights(one.policy)

    plain = trained(None)
    # scaling by a power of two does not round
    assert same(trained(torch.amp.GradScaler("cpu", init_scale=1024.0)), plain)


def test_a_run_killed_before_it_saved_its_policy_saves_it_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: LanguagePolicy, directory: Path) -> None:
        raise KilledError

    directory = new_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(LanguagePolicy, "save", killed)
        with pytest.raises(KilledError):
            full(directory, Watcher()).train()
    resumed = full(directory, Watcher())
    resumed.train(resume=True)
    assert same(weights(load_policy(directory.path)), weights(resumed.policy))


def test_a_resume_removes_old_checkpoints_left_by_a_killed_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(directory: Path, *_: Any) -> None:
        if directory.name == "update-000004":
            raise KilledError

    settings = {"checkpoint_every": 1, "num_checkpoints_kept": 2}
    directory = new_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("llm_reinforce.runs.checkpoint.remove_old_checkpoints", killed)
        with pytest.raises(KilledError):
            full(directory, Watcher(), **settings).train()
    assert len(list(directory.checkpoints.iterdir())) > 2
    full(directory, Watcher(), **settings).train(resume=True)
    kept = sorted(entry.name for entry in directory.checkpoints.iterdir())
    assert kept == ["update-000003", "update-000004"]


def test_resuming_without_a_directory_is_rejected() -> None:
    with pytest.raises(InputError, match="no output_dir"):
        trainer().train(resume=True)
