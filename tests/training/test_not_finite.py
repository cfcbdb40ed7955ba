"""What is not finite never reaches the weights, wherever it comes from: such an update is left out."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Watcher, adapted_policy, new_run, rows, same, sevens, small_policy, trainer, weights

import llm_reinforce.training.gradient_step as gradient_step_module
import llm_reinforce.training.warm_start as warm_start_module
from llm_reinforce.config import ReinforceConfig, WarmStartConfig
from llm_reinforce.errors import RunStoppedError
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import WeightedReward
from llm_reinforce.training import TrainingLoop

NAN, INF = math.nan, math.inf


class IllOnce(Watcher):
    """Says that the second update is ill; copies weights and optimiser after each."""

    def __init__(self, policy: LanguagePolicy) -> None:
        super().__init__()
        self.policy, self.is_ill = policy, False
        self.copies: list[dict[str, torch.Tensor]] = []

    def update(self, num_updates: int, *arguments: Any) -> None:
        super().update(num_updates, *arguments)
        self.is_ill = num_updates == 1
        assert self.trainer is not None
        moments = {
            f"{index} {name}": value.clone()
            for index, values in self.trainer.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        self.copies.append({**weights(self.policy), **moments})


def ill_once(
    tmp_path: Path, spoil: Callable[[IllOnce], None], *, is_adapted: bool = False, **arguments: Any
) -> TrainingLoop:
    """Three updates; nothing moves in the second, it is counted, and the third is one as any other."""
    policy = adapted_policy(tmp_path / "base") if is_adapted else small_policy()
    watcher = IllOnce(policy)
    spoil(watcher)
    directory = new_run(tmp_path / "run")
    one = trainer(policy, 3, display=watcher, run_directory=directory, **arguments)
    watcher.trainer = one
    state = one.train()
    first, second, third = watcher.copies
    assert same(second, first)
    assert not same(third, second)
    assert all(bool(value.isfinite().all()) for value in third.values())
    assert (state.num_updates, state.num_skipped_updates) == (3, 1)
    assert [row["num_skipped_updates"] for row in rows(directory)] == [0, 1, 1]
    assert len([line for line in watcher.said if "is skipped" in line]) == 1
    return one


def _some(output: torch.Tensor, bad: float) -> torch.Tensor:
    spoilt = output.clone()
    spoilt.view(-1)[output.numel() // 2] = bad
    return spoilt


@pytest.mark.parametrize(
    "logits",
    [
        lambda output: output * NAN,
        lambda output: output + INF,
        lambda output: output - INF,
        lambda output: _some(output, NAN),
        lambda output: _some(output, INF),
    ],
    ids=["nan", "inf", "-inf", "one nan", "one inf"],
)
@pytest.mark.parametrize(("micro_batch_tokens", "is_adapted"), [(1, True), (4096, False)])
def test_logits(
    tmp_path: Path, logits: Callable[[Any], Any], micro_batch_tokens: int, is_adapted: bool
) -> None:
    def spoil(watcher: IllOnce) -> None:
        def hook(module: Any, arguments: Any, output: Any) -> Any:
            return logits(output) if watcher.is_ill and torch.is_grad_enabled() else output

        watcher.policy.model.lm_head.register_forward_hook(hook)  # type: ignore[union-attr, operator]

    settings = {"micro_batch_tokens": micro_batch_tokens}
    ill_once(tmp_path, spoil, is_adapted=is_adapted, training=settings)


@pytest.mark.parametrize(
    "loss",
    [lambda loss: loss * NAN, lambda loss: loss * INF, lambda loss: loss + INF, lambda loss: loss + NAN],
    ids=["times nan", "times inf", "plus inf", "plus nan"],
)
@pytest.mark.parametrize(("ill_part", "is_adapted"), [(1, False), (2, True)])
def test_a_loss_even_if_its_gradient_is_finite(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss: Callable[[Any], Any],
    ill_part: int,
    is_adapted: bool,
) -> None:
    """That of one micro-batch of several."""
    whole, num_parts = gradient_step_module.reinforce_loss, 0

    def spoil(watcher: IllOnce) -> None:
        def spoilt(*arguments: Any) -> torch.Tensor:
            nonlocal num_parts
            num_parts += watcher.is_ill
            is_ill = watcher.is_ill and num_parts == ill_part
            return loss(whole(*arguments)) if is_ill else whole(*arguments)  # type: ignore[no-any-return]

        monkeypatch.setattr(gradient_step_module, "reinforce_loss", spoilt)

    ill_once(tmp_path, spoil, is_adapted=is_adapted, training={"micro_batch_tokens": 20})
    assert num_parts > 1


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize(("micro_batch_tokens", "is_adapted"), [(20, True), (4096, False)])
def test_one_number_of_a_gradient(
    tmp_path: Path, bad: float, is_adapted: bool, micro_batch_tokens: int
) -> None:
    def spoil(watcher: IllOnce) -> None:
        def hook(gradient: torch.Tensor) -> torch.Tensor:
            return _some(gradient, bad) if watcher.is_ill else gradient

        trained = [each for each in watcher.policy.model.parameters() if each.requires_grad]
        trained[0].register_hook(hook)

    settings = {"max_grad_norm": None, "micro_batch_tokens": micro_batch_tokens}
    ill_once(tmp_path, spoil, is_adapted=is_adapted, training=settings)


@pytest.mark.parametrize("baseline", ["none", "moving_average", "batch_mean", "leave_one_out", "optimal"])
def test_rewards_that_are_finite_and_whose_sums_are_not(tmp_path: Path, baseline: str) -> None:
    watchers: list[IllOnce] = []

    def huge(completion: str, problem: Problem) -> float:
        return 3e38 if watchers[0].is_ill else sevens(completion, problem)

    reinforce: Any = {"problems_per_update": 4, "episodes_per_problem": 3, "baseline": baseline}
    one = ill_once(
        tmp_path,
        watchers.append,
        rewards=(WeightedReward("huge", huge),),
        reinforce=ReinforceConfig(**reinforce),
    )
    assert math.isfinite(one.state.moving_average.value)  # else no later update would be one


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e39])
def test_a_reward_is_none(bad: float) -> None:
    """An episode whose reward isn't finite counts as one that is unscored, and so do all of an update."""

    def trained(value: float | None, is_one: bool) -> tuple[dict[str, torch.Tensor], IllOnce]:
        policy = small_policy()
        watcher = IllOnce(policy)

        def reward(completion: str, problem: Problem) -> float | None:
            is_bad = watcher.is_ill and (not is_one or problem.id == "0")
            return value if is_bad else sevens(completion, problem)

        rewards = (WeightedReward("r", reward),)
        one = trainer(policy, 3, rewards=rewards, display=watcher, training={"max_unscored_share": 1.0})
        watcher.trainer = one
        one.train()
        return weights(policy), watcher

    for is_one in (True, False):
        spoilt, watcher = trained(bad, is_one)
        assert same(spoilt, trained(None, is_one)[0])
        assert [metrics["num_unscored"] for metrics in watcher.metrics] == [0, 3 if is_one else 12, 0]
        assert same(watcher.copies[1], watcher.copies[0]) is not is_one


def ill_warm_start(monkeypatch: pytest.MonkeyPatch, policy: LanguagePolicy, ill: set[int]) -> list[Any]:
    """Have the loss be infinite in these updates of a warm start; grows by the weights before each."""
    whole, copies = warm_start_module.reinforce_loss, []

    def spoilt(*arguments: Any) -> torch.Tensor:
        copies.append(weights(policy))
        return whole(*arguments) + (INF if len(copies) in ill else 0.0)

    monkeypatch.setattr(warm_start_module, "reinforce_loss", spoilt)
    return copies


def test_a_warm_start_leaves_such_updates_out_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, watcher, directory = small_policy(), Watcher(), new_run(tmp_path / "run")
    copies = ill_warm_start(monkeypatch, policy, {2, 4, 5})
    settings = {
        "warm_start": WarmStartConfig(num_updates=7, batch_size=4, num_warmup_updates=0),
        "max_not_finite": 3,
    }
    one = trainer(policy, 2, training=settings, display=watcher, run_directory=directory)
    assert one.train().num_skipped_updates == 3
    is_same = [same(after, before) for before, after in itertools.pairwise(copies)]
    assert is_same == [False, True, False, True, True, False]
    told = [line for line in watcher.said if "of the warm start is left out" in line]
    assert [line.split(":")[0] for line in told] == [
        f"update {number} of the warm start is left out" for number in (2, 4)
    ]
    assert [row["num_skipped_updates"] for row in rows(directory)] == [3, 3]
    saved = json.loads((directory.checkpoints / "update-000000" / "state.json").read_text())
    assert saved["state"]["num_skipped_updates"] == 3


def test_a_warm_start_that_goes_on_so_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, directory = small_policy(), new_run(tmp_path / "run")
    copies = ill_warm_start(monkeypatch, policy, {2, 4, 5, 6})
    settings = {
        "warm_start": WarmStartConfig(num_updates=9, batch_size=4, num_warmup_updates=0),
        "max_not_finite": 3,
    }
    with pytest.raises(RunStoppedError, match=r"last 3 updates of the warm start.*warm_start.learning_rate"):
        trainer(policy, 2, training=settings, run_directory=directory).train()
    assert len(copies) == 6
    assert same(weights(policy), copies[3])
    assert not directory.checkpoints.exists()  # half of it is nothing to go on from
