"""AdamW with float32 copies of weights in half precision, and with 8-bit moments."""

import importlib.util
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import KilledError, Killer, new_run, same, trainer, weights

from llm_reinforce.config import RandomInitConfig, TrainingConfig
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy, random_policy
from llm_reinforce.runs import RunDirectory
from llm_reinforce.training import adamw as adamw_module
from llm_reinforce.training.adamw import adamw
from llm_reinforce.training.optimizer import new_optimizer

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed (pip install -e '.[quantization]')",
)


def model_of(dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(80, 80), torch.nn.Linear(80, 3)]
    return torch.nn.Sequential(layers[0].to(dtype), layers[1])  # the second layer is in float32


def step(model: Any, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    optimizer.step()


def numbers(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("max_copied", [1, 7000])
def test_steps_equal_those_of_float32_weights(max_copied: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw_module, "MAX_COPIED", max_copied)
    half, full = model_of(), model_of().float()
    settings = TrainingConfig(learning_rate=1e-5, weight_decay=0.1)
    optimizers = adamw(half, settings), adamw(full, settings)
    before = numbers(half)
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed % 2)
        for one, other in zip(half.parameters(), full.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator).abs().to(one.dtype)
            other.grad = one.grad.float()
        for optimizer in optimizers:
            optimizer.step()
    assert all(
        torch.equal(one, other.to(one.dtype)) for one, other in zip(*map(numbers, (half, full)), strict=True)
    )
    assert not any(map(torch.equal, before, numbers(half)))
    assert all(parameter.grad is not None for parameter in half.parameters())
    optimizers[0].zero_grad()
    assert all(parameter.grad is None for parameter in half.parameters())


def test_a_saved_state_continues_with_the_same_bits() -> None:
    settings = TrainingConfig(learning_rate=1e-4)
    straight, resumed = model_of(), model_of()
    optimizer, other = adamw(straight, settings), adamw(resumed, settings)
    for seed in range(3):
        step(straight, optimizer, seed)
    resumed.load_state_dict(straight.state_dict())
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    for model, own in ((straight, optimizer), (resumed, other)):
        step(model, own, 3)
    assert all(map(torch.equal, numbers(straight), numbers(resumed)))
    saved = [one.state_dict()["state"][0]["master"] for one in (optimizer, other)]
    assert torch.equal(*saved)
    assert saved[0].dtype == torch.float32


def test_weights_that_other_code_has_changed_replace_their_copies() -> None:
    model = model_of()
    optimizer = adamw(model, TrainingConfig(learning_rate=1e-6))
    step(model, optimizer, 0)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    step(model, optimizer, 1)
    assert (model[0].weight == 1.0).all()
    assert (optimizer.state_dict()["state"][0]["master"] - 1.0).abs().max() < 1e-5


def test_small_steps_without_copies_are_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    settings = TrainingConfig(learning_rate=1e-6, master_weights=False)
    assert type(adamw(model_of(), settings)) is torch.optim.AdamW
    assert "a step of learning rate 1e-06 is rounded to zero for 9" in capsys.readouterr().err
    adamw(model_of(), settings.model_copy(update={"master_weights": True}))
    adamw(model_of(), settings.model_copy(update={"learning_rate": 0.1}))
    adamw(model_of(torch.float32), settings)
    assert capsys.readouterr().err == ""


def half_policy() -> LanguagePolicy:
    """Return a policy in half precision whose matrices are large enough for 8-bit moments."""
    shape = RandomInitConfig(
        alphabet="0123=", num_layers=1, num_heads=2, hidden_size=64, intermediate_size=64, max_length=8
    )
    return random_policy(shape, dtype="bfloat16")


@pytest.mark.parametrize(
    "optimizer", ["adamw", pytest.param("adamw_8bit", marks=needs_bitsandbytes)], ids=["32 bits", "8 bits"]
)
def test_a_killed_run_in_half_precision_ends_with_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    training = {"checkpoint_every": 1, "learning_rate": 1e-4, "optimizer": optimizer}
    straight = trainer(half_policy(), training=training, run_directory=new_run(tmp_path / "straight"))
    straight.train()
    killed = trainer(
        half_policy(),
        training=training,
        run_directory=new_run(tmp_path / "killed"),
        display=(killer := Killer(2)),
    )
    killer.trainer = killed
    with pytest.raises(KilledError):
        killed.train()
    resumed = trainer(half_policy(), training=training, run_directory=RunDirectory(tmp_path / "killed"))
    resumed.train(resume=True)
    assert same(weights(straight.policy), weights(resumed.policy))
    assert not same(weights(straight.policy), weights(half_policy()))
    saved = [one.optimizer.state_dict()["state"] for one in (straight, resumed)]
    for index, values in saved[0].items():
        assert all(
            torch.equal(torch.as_tensor(values[name]), torch.as_tensor(saved[1][index][name]))
            for name in values
        )
    dtypes = {
        value.dtype for values in saved[0].values() for value in values.values() if torch.is_tensor(value)
    }
    assert (torch.uint8 in dtypes) == (optimizer == "adamw_8bit")


@needs_bitsandbytes
def test_8_bit_moments_give_nearly_the_same_steps() -> None:
    models = [torch.nn.Linear(64, 64, bias=False) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    before = models[0].weight.detach().clone()
    settings = TrainingConfig(learning_rate=1e-3, weight_decay=0.1)
    optimizers = (
        adamw(models[0], settings),
        adamw(models[1], settings.model_copy(update={"optimizer": "adamw_8bit"})),
    )
    for seed in range(20):
        for model, optimizer in zip(models, optimizers, strict=True):
            step(model, optimizer, seed)
    moved, moved_8_bit = (model.weight.detach() - before for model in models)
    assert 0 < (moved - moved_8_bit).norm() < 0.1 * moved.norm()


def test_missing_bitsandbytes_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"adamw_8bit: needs bitsandbytes.*'llm-reinforce\[quantization\]'"):
        adamw(model_of(), TrainingConfig(optimizer="adamw_8bit"))


def test_scaled_gradients_need_weights_in_float32() -> None:
    scaling = SimpleNamespace(scaler=object(), prepare=lambda optimizer: optimizer)
    with pytest.raises(
        InputError, match=r"fp16 needs trained weights in float32, .*; load the policy in float32"
    ):
        new_optimizer(model_of(), TrainingConfig(), scaling)
    frozen = model_of()
    frozen[0].requires_grad_(False)  # as below adapters
    new_optimizer(frozen, TrainingConfig(), scaling)


def test_a_model_without_trainable_weights_is_refused() -> None:
    with pytest.raises(InputError, match="none of its parameters requires a gradient"):
        adamw(model_of().requires_grad_(False), TrainingConfig())
