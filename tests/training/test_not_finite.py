"""Updates with numbers that are not finite are skipped, wherever the numbers come from."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Watcher, adapted_policy, new_run, rows, same, sevens, small_policy, trainer, weights

import llm_reinforce.training.objective as objective_module
import llm_reinforce.training.warm_start as warm_start_module
from llm_reinforce.config import ReinforceConfig, WarmStartConfig
from llm_reinforce.errors import RunStoppedError
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import WeightedReward
from llm_reinforce.training import TrainingLoop

NAN, INF = math.nan, math.inf


class BrokenOnce(Watcher):
    """Set `is_broken` during the second update; copy weights and optimizer state after each update."""

    def __init__(self, policy: LanguagePolicy) -> None:
        super().__init__()
        self.policy, self.is_broken = policy, False
        self.copies: list[dict[str, torch.Tensor]] = []

    def update(self, num_updates: int, *arguments: Any) -> None:
        super().update(num_updates, *arguments)
        self.is_broken = num_updates == 1
        assert self.trainer is not None
        moments = {
            f"{index} {name}": value.clone()
            for index, values in self.trainer.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        self.copies.append({**weights(self.policy), **moments})


def run_broken_once(
    tmp_path: Path, break_run: Callable[[BrokenOnce], None], *, is_adapted: bool = False, **arguments: Any
) -> TrainingLoop:
    """Train three updates; check that the second is skipped and counted, and that the third is not."""
    policy = adapted_policy(tmp_path / "base") if is_adapted else small_policy()
    watcher = BrokenOnce(policy)
    break_run(watcher)
    one = trainer(policy, 3, display=watcher, **arguments)
    watcher.trainer = one
    state = one.train()
    first, second, third = watcher.copies
    assert same(second, first)
    assert not same(third, second)
    assert all(bool(value.isfinite().all()) for value in third.values())
    assert (state.num_updates, state.num_skipped_updates) == (3, 1)
    assert [metrics["num_skipped_updates"] for metrics in watcher.metrics] == [0, 1, 1]
    assert len([line for line in watcher.said if "is skipped" in line]) == 1
    return one


def _with_one(output: torch.Tensor, bad: float) -> torch.Tensor:
    changed = output.clone()
    changed.view(-1)[output.numel() // 2] = bad
    return changed


@pytest.mark.parametrize(
    ("logits", "micro_batch_tokens", "is_adapted"),
    [
        (lambda output: output * NAN, 1, True),
        (lambda output: output + INF, 4096, False),
        (lambda output: output - INF, 4096, True),
        (lambda output: _with_one(output, NAN), 4096, False),
        (lambda output: _with_one(output, INF), 1, False),
    ],
    ids=["nan", "inf", "-inf", "one nan", "one inf"],
)
def test_logits_that_are_not_finite(
    tmp_path: Path, logits: Callable[[Any], Any], micro_batch_tokens: int, is_adapted: bool
) -> None:
    def break_run(watcher: BrokenOnce) -> None:
        def hook(module: Any, arguments: Any, output: Any) -> Any:
            return logits(output) if watcher.is_broken and torch.is_grad_enabled() else output

        watcher.policy.model.lm_head.register_forward_hook(hook)  # type: ignore[union-attr, operator]

    settings = {"micro_batch_tokens": micro_batch_tokens}
    run_broken_once(tmp_path, break_run, is_adapted=is_adapted, training=settings)


@pytest.mark.parametrize(
    ("loss", "broken_part", "is_adapted"),
    [
        (lambda loss: loss * NAN, 1, False),
        (lambda loss: loss * INF, 2, True),
        (lambda loss: loss + INF, 1, True),
        (lambda loss: loss + NAN, 2, False),
    ],
    ids=["times nan", "times inf", "plus inf", "plus nan"],
)
def test_a_loss_that_is_not_finite(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss: Callable[[Any], Any],
    broken_part: int,
    is_adapted: bool,
) -> None:
    """The loss of one of several micro-batches is not finite, even if its gradient is."""
    whole, num_parts = objective_module.reinforce_loss, 0

    def break_run(watcher: BrokenOnce) -> None:
        def broken_loss(*arguments: Any) -> torch.Tensor:
            nonlocal num_parts
            num_parts += watcher.is_broken
            is_broken = watcher.is_broken and num_parts == broken_part
            return loss(whole(*arguments)) if is_broken else whole(*arguments)  # type: ignore[no-any-return]

        monkeypatch.setattr(objective_module, "reinforce_loss", broken_loss)

    run_broken_once(tmp_path, break_run, is_adapted=is_adapted, training={"micro_batch_tokens": 20})
    assert num_parts > 1


@pytest.mark.parametrize(
    ("bad", "micro_batch_tokens", "is_adapted"), [(NAN, 20, True), (INF, 4096, False), (-INF, 20, False)]
)
def test_a_gradient_element_that_is_not_finite(
    tmp_path: Path, bad: float, is_adapted: bool, micro_batch_tokens: int
) -> None:
    def break_run(watcher: BrokenOnce) -> None:
        def hook(gradient: torch.Tensor) -> torch.Tensor:
            return _with_one(gradient, bad) if watcher.is_broken else gradient

        trained = [each for each in watcher.policy.model.parameters() if each.requires_grad]
        trained[0].register_hook(hook)

    settings = {"max_grad_norm": None, "micro_batch_tokens": micro_batch_tokens}
    run_broken_once(tmp_path, break_run, is_adapted=is_adapted, training=settings)


@pytest.mark.parametrize("baseline", ["none", "moving_average", "batch_mean", "leave_one_out", "optimal"])
def test_finite_rewards_whose_sum_overflows(tmp_path: Path, baseline: str) -> None:
    watchers: list[BrokenOnce] = []

    def huge(completion: str, problem: Problem) -> float:
        return 3e38 if watchers[0].is_broken else sevens(completion, problem)

    reinforce: Any = {"problems_per_update": 4, "episodes_per_problem": 3, "baseline": baseline}
    one = run_broken_once(
        tmp_path,
        watchers.append,
        rewards=(WeightedReward("huge", huge),),
        reinforce=ReinforceConfig(**reinforce),
    )
    assert math.isfinite(one.state.moving_average.value)  # otherwise all later updates would be skipped


def test_a_reward_that_is_not_finite_counts_as_unscored() -> None:
    """This holds for a single episode and for all episodes of an update."""

    def trained(value: float | None, is_one: bool) -> tuple[dict[str, torch.Tensor], BrokenOnce]:
        policy = small_policy()
        watcher = BrokenOnce(policy)

        def reward(completion: str, problem: Problem) -> float | None:
            is_bad = watcher.is_broken and (not is_one or problem.id == "0")
            return value if is_bad else sevens(completion, problem)

        rewards = (WeightedReward("r", reward),)
        one = trainer(policy, 3, rewards=rewards, display=watcher, training={"max_unscored_share": 1.0})
        watcher.trainer = one
        one.train()
        return weights(policy), watcher

    for is_one in (True, False):
        unscored, watcher = trained(None, is_one)
        assert [metrics["num_unscored"] for metrics in watcher.metrics] == [0, 3 if is_one else 12, 0]
        assert same(watcher.copies[1], watcher.copies[0]) is not is_one
        for bad in (NAN, INF, -INF, 1e39) if is_one else (NAN,):
            actual, watcher = trained(bad, is_one)
            assert same(actual, unscored), bad
            assert [metrics["num_unscored"] for metrics in watcher.metrics] == [0, 3 if is_one else 12, 0]


def break_warm_start(monkeypatch: pytest.MonkeyPatch, policy: LanguagePolicy, broken: set[int]) -> list[Any]:
    """Make the loss infinite in some updates of a warm start.

    Return a list to which each update appends the weights before it.
    """
    whole, copies = warm_start_module.reinforce_loss, []

    def broken_loss(*arguments: Any) -> torch.Tensor:
        copies.append(weights(policy))
        return whole(*arguments) + (INF if len(copies) in broken else 0.0)

    monkeypatch.setattr(warm_start_module, "reinforce_loss", broken_loss)
    return copies


def test_warm_start_updates_that_are_not_finite_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, watcher, directory = small_policy(), Watcher(), new_run(tmp_path / "run")
    copies = break_warm_start(monkeypatch, policy, {2, 4, 5})
    settings = {
        "warm_start": WarmStartConfig(num_updates=7, batch_size=4, num_warmup_updates=0),
        "max_not_finite": 3,
    }
    one = trainer(policy, 2, training=settings, display=watcher, run_directory=directory)
    assert one.train().num_skipped_updates == 3
    is_same = [same(after, before) for before, after in itertools.pairwise(copies)]
    assert is_same == [False, True, False, True, True, False]
    reported = [line for line in watcher.said if "of the warm start is skipped" in line]
    assert [line.split(":")[0] for line in reported] == [
        f"update {number} of the warm start is skipped" for number in (2, 4)
    ]
    assert [row["num_skipped_updates"] for row in rows(directory)] == [3, 3]
    saved = json.loads((directory.checkpoints / "update-000000" / "state.json").read_text())
    assert saved["state"]["num_skipped_updates"] == 3


def test_repeated_warm_start_updates_that_are_not_finite_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, directory = small_policy(), new_run(tmp_path / "run")
    copies = break_warm_start(monkeypatch, policy, {2, 4, 5, 6})
    settings = {
        "warm_start": WarmStartConfig(num_updates=9, batch_size=4, num_warmup_updates=0),
        "max_not_finite": 3,
    }
    with pytest.raises(RunStoppedError, match=r"last 3 updates of the warm start.*warm_start.learning_rate"):
        trainer(policy, 2, training=settings, run_directory=directory).train()
    assert len(copies) == 6
    assert same(weights(policy), copies[3])
    assert not directory.checkpoints.exists()  # an unfinished warm start is not saved
