"""Tests of the size of a step and of the signal share of the gradient."""

import math

import pytest
import torch

from llm_reinforce.training import step_statistics as module
from llm_reinforce.training.step_statistics import mean_of_noise, signal_share, step_statistics

BETAS = (0.9, 0.99)


def test_hand_worked_numbers() -> None:
    assert mean_of_noise(0.5, 1) == 1.0
    assert mean_of_noise(0.5, 2) == pytest.approx(5 / 9)  # (1 + 1/4) / (1 + 1/2)²
    assert mean_of_noise(0.9, 1000) == pytest.approx(1 / 19)
    assert signal_share(5 / 9, 1.0, 5 / 9) == pytest.approx(0.0)
    assert signal_share(7.0, 7.0, 1 / 19) == pytest.approx(1.0)
    assert signal_share(0.75, 1.0, 0.5) == 0.5
    assert signal_share(1.0, 1.0, 1.0) is None
    assert signal_share(0.0, 0.0, 0.5) is None


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_known_signal_and_noise(share: float) -> None:
    generator, size = torch.Generator().manual_seed(0), 10_000
    weights = torch.nn.Parameter(torch.zeros(size))
    optimizer = torch.optim.AdamW([weights], lr=1e-3, betas=BETAS)
    signal = torch.randn(size, generator=generator) * share**0.5
    shares = []
    for _ in range(100):
        weights.grad = signal + torch.randn(size, generator=generator) * (1.0 - share) ** 0.5
        optimizer.step()
        found = step_statistics(optimizer)
        if found is not None and found.signal_share is not None:
            shares.append(found.signal_share)
    assert len(shares) == 99  # the first step has none
    assert sum(shares) / 99 == pytest.approx(share, abs=0.01)


def test_relative_step_is_the_movement_of_the_weights() -> None:
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.full((2,), 2.0))]
    frozen = torch.nn.Parameter(torch.ones(5))
    optimizer = torch.optim.AdamW([*weights, frozen], lr=1e-2, betas=BETAS, weight_decay=0.0)
    assert step_statistics(optimizer) is None
    for number in range(1, 4):
        before = torch.cat([each.detach().clone() for each in weights])
        for each in weights:
            each.grad = torch.arange(1.0, len(each) + 1) * number
        optimizer.step()
        after = torch.cat([each.detach() for each in weights])
        found = step_statistics(optimizer)
        assert found is not None
        assert found.relative_step == pytest.approx(float((after - before).norm() / after.norm()), rel=1e-4)
    assert math.isfinite(found.relative_step)


def test_large_policies_are_measured_in_every_fifth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 2)
    weights = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weights], lr=1e-2)
    measured = []
    for _ in range(10):
        weights.grad = torch.ones(3)
        optimizer.step()
        measured.append(step_statistics(optimizer) is not None)
    assert [index for index, each in enumerate(measured, 1) if each] == [5, 10]
