"""Several updates per batch: parts of a batch, counters, schedules, corrections, and resumed runs."""

import itertools
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import (
    COPY,
    KilledError,
    Killer,
    Watcher,
    adapted_policy,
    new_run,
    rows,
    same,
    sevens,
    small_policy,
    timeless,
    trainer,
    weights,
)

from llm_reinforce.config import EvaluationConfig, ReinforceConfig, SamplingConfig
from llm_reinforce.console.run_display import Silent
from llm_reinforce.episodes import EpisodeBatch
from llm_reinforce.errors import RunStoppedError
from llm_reinforce.policy import token_log_probs
from llm_reinforce.rewards import WeightedReward
from llm_reinforce.runs import RunDirectory
from llm_reinforce.training import TrainingLoop, objective
from llm_reinforce.training.gradient_step import GradientStep, UpdateOutcome
from llm_reinforce.training.metrics import step_metrics
from llm_reinforce.training.objective import surrogate_loss


def halves(**settings: Any) -> ReinforceConfig:
    """Return settings with two updates per batch."""
    return ReinforceConfig(
        **{"problems_per_update": 4, "episodes_per_problem": 3, "updates_per_batch": 2, **settings}
    )


class Steps:
    """Records the arguments of all gradient steps, and the weights and gradients of each step."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.batches: list[EpisodeBatch] = []
        self.estimates: list[Any] = []
        self.num_kept: list[int | None] = []
        self.expected: list[torch.Tensor | None] = []
        self.found: list[torch.Tensor] = []
        self.formula: Any = None
        plain = GradientStep.__call__

        def watched(
            step: GradientStep, batch: Any, estimate: Any, kept: Any, *options: Any, **keywords: Any
        ) -> Any:
            self.batches.append(batch)
            self.estimates.append(estimate)
            self.num_kept.append(None if kept is None else kept.num_tokens)
            self.expected.append(self.formula and self._gradient(step, batch, estimate))
            outcome = plain(step, batch, estimate, kept, *options, **keywords)
            self.found.append(_flat(step))
            return outcome

        patch.setattr(GradientStep, "__call__", watched)

    def _gradient(self, step: GradientStep, batch: EpisodeBatch, estimate: Any) -> torch.Tensor:
        """Return the gradient of `formula(log_probs, behavior, advantages, mask) / denominator`."""
        prompts = [episode.prompt_ids for episode in batch.episodes]
        actions = [episode.completion.token_ids for episode in batch.episodes]
        found = token_log_probs(step.model, prompts, actions, pad_token_id=step.pad_token_id).log_probs
        step.model.zero_grad()
        total = self.formula(found, batch.behavior_log_probs, estimate.advantages, estimate.mask)
        (-total / estimate.denominator).backward()
        return _flat(step)


def _flat(step: GradientStep) -> torch.Tensor:
    gradients = [p.grad for p in step.model.parameters() if p.grad is not None]
    return torch.cat([gradient.flatten().clone() for gradient in gradients])


def test_each_update_uses_a_part_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)
    watcher = Watcher()
    settings = halves(denominator="tokens")
    one = trainer(num_updates=4, reinforce=settings, display=watcher, training={"schedule": "linear"})
    updates = [*one.updates()]
    assert [update.number for update in updates] == [2, 4]
    assert [metrics["update"] for metrics in watcher.metrics] == [2, 4]
    assert [len(update.episodes) for update in updates] == [12, 12]
    # updates 2 and 4 of the linear schedule of four updates
    assert [metrics["learning_rate"] for metrics in watcher.metrics] == pytest.approx([7.5e-3, 2.5e-3])
    assert one.state.num_problems == 8
    groups = [sorted(set(batch.groups.tolist())) for batch in steps.batches]
    assert groups == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert [estimate.denominator for estimate in steps.estimates] == [
        float(batch.lengths.sum()) for batch in steps.batches
    ]
    # activations of sampling match the weights of the first update only
    assert steps.num_kept[0] > 0
    assert steps.num_kept[1::2] == [None, None]


FORMULAS = {
    "ppo": (
        {"clip": {"low": 0.01, "high": 0.02}},
        lambda r, a: torch.minimum(r * a, r.clamp(0.99, 1.02) * a),
    ),
    "cispo": (
        {"clip": {"form": "cispo", "low": 0.01, "high": 0.02}},
        lambda r, a: r.detach().clamp(0.99, 1.02) * a * r.log(),
    ),
    "token": (
        {"importance": {"level": "token", "limit": 1.02}},
        lambda r, a: r.detach().clamp(max=1.02) * a * r.log(),
    ),
    "sequence": (
        {"importance": {"level": "sequence", "limit": None}},
        lambda r, a: r.detach().prod(dim=1, keepdim=True) * a * r.log(),
    ),
    "none": ({"clip": False}, lambda r, a: a * r.log()),
    "per_decision": (  # the only reward is the one at the end
        {"importance": {"level": "per_decision", "limit": None}},
        lambda r, a: r.detach().prod(dim=1, keepdim=True) * a * r.log(),
    ),
}


@pytest.mark.parametrize("form", FORMULAS)
def test_gradient_of_each_update_is_that_of_the_formula(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, formula = FORMULAS[form]
    steps = Steps(monkeypatch)

    def total(found: Any, behavior: Any, advantages: Any, mask: Any) -> torch.Tensor:
        ratios = torch.exp((found - behavior).masked_fill(~mask, 0.0))
        return formula(ratios, advantages).masked_fill(~mask, 0.0).sum()

    steps.formula = total
    watcher = Watcher()
    one = trainer(
        num_updates=4,
        reinforce=halves(**settings),
        training={"max_grad_norm": None, "micro_batch_tokens": 30},
        display=watcher,
    )
    one.train()
    assert len(steps.found) == 4
    for expected, found in zip(steps.expected, steps.found, strict=True):
        assert found.norm() > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    logged = watcher.metrics[-1]
    if settings.get("clip"):
        assert logged["clip/frac_low"] + logged["clip/frac_high"] > 0
    else:
        assert 0.5 < logged["importance/effective_sample_size"] < 1.0
        assert logged["importance/mean"] == pytest.approx(1.0, abs=0.2)
        assert ("importance/frac_truncated" in logged) is ("importance" in settings)


def test_gradient_with_all_terms_is_that_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terms are per-decision weights, k3, and entropy, at a temperature, without truncated episodes."""
    expected: list[torch.Tensor] = []
    found: list[torch.Tensor] = []
    plain = GradientStep.__call__

    def watched(step: GradientStep, batch: EpisodeBatch, estimate: Any, *rest: Any, **options: Any) -> Any:
        log_probs, entropies = token_log_probs(
            step.model,
            [episode.prompt_ids for episode in batch.episodes],
            [episode.completion.token_ids for episode in batch.episodes],
            pad_token_id=step.pad_token_id,
            temperature=0.7,
            with_entropies=True,
        )
        total = torch.zeros(())
        for row in batch.terminated.nonzero().flatten().tolist():
            length = int(batch.lengths[row])
            own, advantages = log_probs[row, :length], estimate.advantages[row, :length].tolist()
            ratios = (own - batch.behavior_log_probs[row, :length]).detach().exp().tolist()
            products = [min(1.05, math.prod(ratios[: t + 1])) for t in range(length)]
            steps = [a - b for a, b in itertools.pairwise([*advantages, 0.0])]
            logs = batch.reference_log_probs[row, :length] - own
            for t in range(length):
                total = total + own[t] * sum(products[k] * steps[k] for k in range(t, length))
                total = total - 0.5 * ratios[t] * (logs[t].exp() - 1 - logs[t]) + 0.1 * entropies[row, t]
        step.model.zero_grad()
        (-total / int(batch.terminated.sum())).backward()
        expected.append(_flat(step))
        outcome = plain(step, batch, estimate, *rest, **options)
        found.append(_flat(step))
        return outcome

    monkeypatch.setattr(GradientStep, "__call__", watched)
    settings = halves(
        importance={"level": "per_decision", "limit": 1.05},
        kl={"coefficient": 0.5, "estimator": "k3"},
        entropy_coefficient=0.1,
        truncated="mask",
        discount=0.9,
    )
    trainer(
        num_updates=4,
        reinforce=settings,
        sampling=SamplingConfig(max_new_tokens=4, temperature=0.7),
        training={"max_grad_norm": None, "micro_batch_tokens": 30, "learning_rate": 3e-2},
    ).train()
    assert len(found) == 4
    for truth, gradient in zip(expected, found, strict=True):
        assert gradient.norm() > 0.01
        torch.testing.assert_close(gradient, truth, rtol=1e-3, atol=1e-5)


def test_importance_without_effect_is_reported() -> None:
    """In float32 on a CPU, an update reuses the log-probabilities of sampling, so all weights are 1."""
    for num_per_batch in (1, 2):
        watcher = Watcher()
        settings = halves(updates_per_batch=num_per_batch, importance={"level": "token"})
        trainer(num_updates=2, reinforce=settings, display=watcher).train()
        said = [line for line in watcher.said if "reinforce.importance has no effect in this run" in line]
        assert len(said) == (1 if num_per_batch == 1 else 0)


def test_infinite_importance_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = objective.log_ratios
    monkeypatch.setattr(objective, "log_ratios", lambda *given: plain(*given) + 50.0 * given[2])
    watcher = Watcher()
    settings = halves(importance={"level": "sequence", "limit": None})
    one = trainer(num_updates=2, reinforce=settings, display=watcher)
    one.train()
    assert one.state.num_skipped_updates == 2
    (said,) = [line for line in watcher.said if "is skipped" in line]
    assert said.startswith("update 1 is skipped: its gradient is not finite")
    assert "importance weights are infinite (reinforce.importance.limit would bound them)" in said


def test_weights_that_are_large_or_infinite() -> None:
    settings = ReinforceConfig(updates_per_batch=2, importance={"level": "per_decision", "limit": None})
    behavior = torch.full((2, 3), -50.0)
    log_probs = torch.tensor([[0.0, -60.0, -60.0], [0.0, 0.0, 0.0]], requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    # the first weight is e^50, whose square overflows in float32; the second episode has no advantage
    advantages = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    loss, counts = surrogate_loss(settings, log_probs, behavior, advantages, mask, 1.0)
    loss.backward()
    assert log_probs.grad[0, 0] == pytest.approx(-math.exp(50), rel=1e-5)
    assert not log_probs.grad[1].any()
    weights = [math.exp(50), math.exp(40), math.exp(30)]
    found = counts.metrics(settings)["importance/effective_sample_size"]
    assert found == pytest.approx(sum(weights) ** 2 / (3 * sum(each**2 for each in weights)), rel=1e-4)
    assert counts.num_infinite == 0
    advantages[1, 2] = 1.0  # the weight of this episode is e^150
    assert surrogate_loss(settings, log_probs, behavior, advantages, mask, 1.0).counts.num_infinite == 2


def test_loss_of_each_episode_is_divided_by_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)

    def total(found: Any, behavior: Any, advantages: Any, mask: Any) -> torch.Tensor:
        return ((advantages * found).masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1)).sum()

    steps.formula = total
    settings = ReinforceConfig(
        problems_per_update=4, episodes_per_problem=3, denominator="episode_lengths", standardize="group"
    )
    trainer(num_updates=2, reinforce=settings, training={"max_grad_norm": None}).train()
    assert [estimate.denominator for estimate in steps.estimates] == [12.0, 12.0]
    for expected, found in zip(steps.expected, steps.found, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_runs_end_with_a_whole_batch(tmp_path: Path) -> None:
    watcher = Watcher()
    directory = new_run(tmp_path / "run")
    one = trainer(
        num_updates=5,
        reinforce=halves(updates_per_batch=4),
        training={"checkpoint_every": 3, "schedule": "linear", "num_checkpoints_kept": 9},
        held_out=COPY[:2],
        evaluation=EvaluationConfig(every=3),
        run_directory=directory,
        display=watcher,
    )
    assert one.train().num_updates == 8
    assert [row["update"] for row in rows(directory)] == [4, 8]
    assert [row["learning_rate"] for row in rows(directory)] == pytest.approx([6.25e-3, 1.25e-3])
    # updates 3 and 6 are followed by the batch ends 4 and 8
    assert [row["update"] for row in rows(directory, "evaluations.jsonl")] == [0, 4, 8]
    saved = sorted(entry.name for entry in directory.checkpoints.iterdir())
    assert saved == ["update-000000", "update-000004", "update-000008"]


def test_expected_updates_are_whole_batches() -> None:
    totals: list[int] = []

    class Totals(Silent):
        def update(self, number: int, total: int, *others: Any) -> None:
            totals.append(total)

    one = trainer(
        num_updates=99, reinforce=halves(updates_per_batch=4), training={"num_tokens": 100}, display=Totals()
    )
    one.train()
    assert one.state.num_updates == totals[-1] == 12
    assert [total % 4 for total in totals] == [0, 0, 0]


def test_updates_that_are_not_finite_within_a_batch_stop_the_run(tmp_path: Path) -> None:
    directory = new_run(tmp_path / "run")
    one = trainer(
        num_updates=8,
        reinforce=halves(updates_per_batch=4),
        training={"max_not_finite": 3},
        run_directory=directory,
    )
    parameter = next(each for each in one.policy.model.parameters() if each.requires_grad)
    calls: list[int] = []
    parameter.register_hook(
        lambda gradient: gradient * (float("nan") if calls.append(0) or len(calls) < 4 else 1)
    )
    with pytest.raises(RunStoppedError, match="the gradients of 3 updates in a row were not finite"):
        one.train()
    assert one.state.num_not_finite_in_a_row == 0  # the last update of the batch is finite
    assert (directory.checkpoints / "update-000004").is_dir()


def test_means_are_over_the_updates_with_a_gradient() -> None:
    skipped = UpdateOutcome(0.0, 0.0, None, 1e-3, "no episode was scored")
    metrics = step_metrics([UpdateOutcome(2.0, 4.0, None, 1e-3, None), skipped], halves())
    assert (metrics["loss"], metrics["grad_norm"]) == (2.0, 4.0)
    assert "loss" not in step_metrics([skipped], ReinforceConfig())


def test_a_step_that_is_skipped_within_a_batch_is_reported() -> None:
    def only_some(completion: str, problem: Any) -> float | None:
        return None if problem.id in unscored else sevens(completion, problem)

    unscored: set[str] = set()
    watcher = Watcher()
    one = trainer(
        num_updates=4,
        reinforce=halves(),
        rewards=(WeightedReward("some", only_some),),
        training={"max_unscored_share": 1.0},
        display=watcher,
    )
    parameter = next(each for each in one.policy.model.parameters() if each.requires_grad)
    calls = []
    parameter.register_hook(
        lambda gradient: gradient * (float("nan") if calls.append(0) or len(calls) == 1 else 1)
    )
    one.train()
    (said,) = [line for line in watcher.said if "is skipped" in line]
    assert said.startswith("update 1 is skipped: its gradient is not finite")
    assert one.state.num_skipped_updates == 1
    assert one.state.num_not_finite_in_a_row == 0

    # no episode of the second part is scored
    unscored |= {update.problem.id for update in watcher.episodes[0] if update.group % 2}
    again = trainer(
        num_updates=2,
        reinforce=halves(),
        rewards=(WeightedReward("some", only_some),),
        training={"max_unscored_share": 1.0},
    )
    again.train()
    assert again.state.num_skipped_updates == 1


@pytest.mark.parametrize(
    ("settings", "is_adapted"),
    [
        ({"baseline": "moving_average"}, False),
        ({"variant": "grpo", "entropy_coefficient": 0.1}, True),
        ({"baseline": "value", "importance": {"level": "per_decision"}}, False),
    ],
    ids=str,
)
def test_a_killed_run_ends_with_the_same_bits(
    tmp_path: Path, settings: dict[str, Any], is_adapted: bool
) -> None:
    def one(directory: RunDirectory, watcher: Watcher) -> TrainingLoop:
        policy = adapted_policy(tmp_path / "base") if is_adapted else small_policy()
        watcher.trainer = made = trainer(
            policy,
            num_updates=8,
            reinforce=halves(**settings),
            training={"schedule": "linear", "checkpoint_every": 3},
            held_out=COPY[:2],
            evaluation=EvaluationConfig(every=4),
            run_directory=directory,
            display=watcher,
        )
        return made

    straight = one(straight_run := new_run(tmp_path / "straight"), Watcher())
    straight.train()
    with suppress(KilledError):
        one(killed_run := new_run(tmp_path / "killed"), Killer(6)).train()
    resumed = one(killed_run, watcher := Watcher())
    assert resumed.train(resume=True) == straight.state
    assert watcher.said[0] == "resuming from update-000004"
    assert same(weights(resumed.policy), weights(straight.policy))
    for name in ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl"):
        assert timeless(rows(killed_run, name)) == timeless(rows(straight_run, name)), name
