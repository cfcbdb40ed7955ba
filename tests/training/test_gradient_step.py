"""Activations kept from sampling: the gradient equals that of a separate forward pass."""

from typing import Any

import pytest
import torch
from small_runs import COPY, Watcher, small_policy, trainer

from llm_reinforce.config import ReinforceConfig
from llm_reinforce.policy import Activations, token_log_probs
from llm_reinforce.policy.fast_path import slot_batch
from llm_reinforce.training import TrainingLoop, loop
from llm_reinforce.training.gradient_step import GradientStep


@pytest.mark.parametrize("entropy_coefficient", [0.0, 0.1])
@pytest.mark.parametrize("micro_batch_tokens", [30, 4096])
def test_kept_activations_give_the_gradient_of_a_new_forward_pass(
    entropy_coefficient: float, micro_batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ReinforceConfig(
        problems_per_update=4, episodes_per_problem=3, entropy_coefficient=entropy_coefficient
    )
    one = trainer(reinforce=settings, training={"micro_batch_tokens": micro_batch_tokens})
    activations = Activations(4096)
    batch = one.sampler.collect(COPY, one.state, activations)
    estimate = one.estimate_batch(batch, None)
    parameters = list(one.policy.model.parameters())
    monkeypatch.setattr(one.optimizer, "step", lambda: None)
    gradients = []
    num_tokens = activations.num_tokens
    for kept in (None, activations):
        outcome = one.gradient_step(batch, estimate, kept)
        gradients.append([parameter.grad.clone() for parameter in parameters if parameter.grad is not None])
        # reused log-probabilities equal those of sampling by construction, so there is nothing to measure
        assert outcome.max_log_prob_difference is None or kept is None
    assert num_tokens > 20
    assert any(gradient.abs().max() > 0.01 for gradient in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_recomputation_notices_that_the_sampler_computes_other_logits(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "RECOMPUTE_EVERY", 2)
    one = trainer(num_updates=3)
    token_log_probs(
        one.policy.model, [(1,)], [(2,)], pad_token_id=0
    )  # check the fast path before it is changed
    logits = slot_batch.SlotBatch._logits
    monkeypatch.setattr(slot_batch.SlotBatch, "_logits", lambda *given: factor * logits(*given))
    name = "sampling/sampling_logp_difference/max"
    measured = [update.metrics.get(name) for update in one.updates()]
    assert [each is not None for each in measured] == [True, False, True]
    assert all(each is None or (each > 1e-3) == (factor > 1) for each in measured)
    assert all(each is None or (each < 1e-5) == (factor == 1) for each in measured)


def test_kept_activations_are_cleared_before_the_optimizer_step(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Activations] = []
    kept_at_step: list[int] = []
    plain = GradientStep.__call__

    def watched(
        self: GradientStep, batch: Any, estimate: Any, activations: Activations, *options: Any, **named: Any
    ) -> Any:
        given.append(activations)
        assert activations.num_tokens > 0
        return plain(self, batch, estimate, activations, *options, **named)

    monkeypatch.setattr(GradientStep, "__call__", watched)
    one = trainer(num_updates=3)
    step = one.optimizer.step
    monkeypatch.setattr(one.optimizer, "step", lambda: (kept_at_step.append(given[-1].num_tokens), step())[1])
    one.train()
    assert len(given) == 3
    assert kept_at_step == [0, 0, 0]


def test_a_run_is_the_same_without_kept_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights() -> torch.Tensor:
        one: TrainingLoop = trainer(small_policy(seed=2), num_updates=3)
        one.train()
        return torch.cat([parameter.detach().flatten() for parameter in one.policy.model.parameters()])

    kept = weights()
    monkeypatch.setattr("llm_reinforce.training.loop.Activations", lambda most: Activations(0))
    torch.testing.assert_close(kept, weights(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "learning_rate"), [("bfloat16", 1e-7), ("bfloat16", 1e-1), ("float32", 1e-7)]
)
def test_weights_that_do_not_move_are_reported(dtype: str, learning_rate: float) -> None:
    watcher = Watcher()
    policy = small_policy()
    policy.model.to(getattr(torch, dtype))
    one = trainer(
        policy=policy,
        num_updates=2,
        training={"learning_rate": learning_rate, "schedule": "constant", "master_weights": False},
        display=watcher,
    )
    one.train()
    said = [line for line in watcher.warnings if "with a nonzero gradient changed in updates 1–2" in line]
    assert len(said) == (dtype == "bfloat16" and learning_rate < 1e-3)
    shares = [metrics.get("frac_weights_changed") for metrics in watcher.metrics]
    if dtype == "float32":
        assert shares == [None, None]
    else:
        assert all(share < 0.5 if learning_rate < 1e-3 else share > 0.5 for share in shares)
