"""Tests of checkpoints, which are saved completely or not at all, and are skipped if they are damaged."""

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import llm_reinforce
from llm_reinforce.checkpoint_files import find_checkpoint
from llm_reinforce.config import AdapterConfig
from llm_reinforce.policy import LanguagePolicy, load_policy
from llm_reinforce.policy_gradient import MovingAverage
from llm_reinforce.runs import BestEvaluation, TrainState
from llm_reinforce.runs.checkpoint import load_checkpoint, load_value_head, save_checkpoint
from llm_reinforce.training.optimizer import learning_rate_schedule


class Run:
    """A model with an optimizer and a schedule, trained with random gradients."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-2, betas=(0.8, 0.99))
        self.schedule = learning_rate_schedule("linear", self.optimizer, 2, 20)

    def step(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        self.optimizer.step()
        self.schedule.step()

    def save(self, root: Path, num_updates: int, keep: int = 2) -> Path:
        state = TrainState(num_updates, 3 * num_updates, 40, 1, 0, MovingAverage(0.1, 0.7))
        return save_checkpoint(root, state, self.model, self.optimizer, self.schedule, keep)

    def load(self, directory: Path) -> TrainState:
        return load_checkpoint(directory, self.model, self.optimizer, self.schedule)

    def numbers(self) -> dict[str, torch.Tensor]:
        state = self.optimizer.state_dict()["state"]
        moments = {
            f"{i}.{name}": value.clone() for i, values in state.items() for name, value in values.items()
        }
        weights = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        return {**weights, **moments, "lr": torch.tensor(self.schedule.get_last_lr())}


def tiny(tied: bool = False, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = LlamaConfig(
        vocab_size=13,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype)  # type: ignore[no-any-return, arg-type]


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def names(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_checkpoint_continues_with_the_same_bits(
    tmp_path: Path, tied: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    run = Run(tiny(tied, dtype))
    for seed in range(3):
        run.step(seed)
    directory = run.save(tmp_path, 3)
    at_three = run.numbers()
    run.step(3)
    other = Run(tiny(tied, dtype))
    state = other.load(directory)
    assert state == TrainState(3, 9, 40, 1, 0, MovingAverage(0.1, 0.7))
    assert equal(other.numbers(), at_three)
    other.step(3)
    assert equal(other.numbers(), run.numbers())
    if tied:
        assert other.model.lm_head.weight is other.model.model.embed_tokens.weight  # type: ignore[union-attr]
        assert "lm_head.weight" not in load_file(directory / "policy.safetensors")


def test_a_checkpoint_before_the_first_update(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = Run(tiny())
    directory = run.save(tmp_path, 0)  # AdamW has no moments yet
    other = Run(tiny())
    other.load(directory)
    run.step(1)
    other.step(1)
    assert equal(other.numbers(), run.numbers())


def test_the_scaler_is_saved_and_loaded(tmp_path: Path) -> None:
    run, scaler = Run(tiny()), torch.amp.GradScaler("cpu", init_scale=8.0)
    rest = (run.model, run.optimizer, run.schedule)
    directory = save_checkpoint(tmp_path, TrainState(), *rest, keep=1, scaler=scaler)
    other = torch.amp.GradScaler("cpu")
    load_checkpoint(directory, *rest, other)
    assert other.state_dict() == scaler.state_dict()
    load_checkpoint(run.save(tmp_path, 1), *rest, other)  # a checkpoint without a scaler
    assert other.get_scale() == 8.0


def test_only_adapters_are_saved_if_the_policy_has_them(tiny_policy: LanguagePolicy, tmp_path: Path) -> None:
    tiny_policy.save(tmp_path / "base")
    run = Run(load_policy(tmp_path / "base", lora=AdapterConfig(rank=2)).model)
    run.step(0)
    directory = run.save(tmp_path / "checkpoints", 1)
    stored = load_file(directory / "policy.safetensors")
    assert stored
    assert all("lora_" in name for name in stored)
    other = Run(load_policy(tmp_path / "base", lora=AdapterConfig(rank=2), seed=9).model)
    other.load(directory)
    assert equal(other.numbers(), run.numbers())


# --------------------------------------------------------------------------- finding a checkpoint


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a directory with checkpoints of updates 1 and 2."""
    run = Run(tiny())
    for num_updates in (1, 2):
        run.step(num_updates)
        run.save(tmp_path / "checkpoints", num_updates)
    return tmp_path / "checkpoints"


def test_the_newest_checkpoint_is_found(root: Path) -> None:
    assert find_checkpoint(root) == (root / "update-000002", [])


def test_no_checkpoint_is_found_in_an_empty_directory(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "missing") == (None, [])
    assert find_checkpoint(tmp_path) == (None, [])


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    "name", ["policy.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", [_cut, _flip_a_bit, _empty, Path.unlink])
def test_a_damaged_checkpoint_is_skipped_and_reported(
    root: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(root / "update-000002" / name)
    directory, faults = find_checkpoint(root)
    assert directory == root / "update-000001"
    (fault,) = faults
    assert fault.startswith("update-000002: ")
    assert name in fault or damage is not Path.unlink


@pytest.mark.parametrize(
    "name", ["policy.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
def test_every_truncation_and_every_flipped_bit_is_detected(root: Path, name: str) -> None:
    file, rng = root / "update-000002" / name, random.Random(name)
    whole = file.read_bytes()
    sizes = [0, *rng.sample(range(1, len(whole) - 1), 18), len(whole) - 1]
    damaged = [whole[:size] for size in sizes]
    for bit in rng.sample(range(8 * len(whole)), 50):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for content in damaged:
        file.write_bytes(content)
        directory, faults = find_checkpoint(root)
        assert directory == root / "update-000001"
        assert len(faults) == 1
    file.write_bytes(whole)
    assert find_checkpoint(root) == (root / "update-000002", [])


@pytest.mark.parametrize("manifest", ["{}", "[]", "null", '{"state.json": 3}', '{"manifest.json": ""}'])
def test_an_incomplete_manifest_is_a_fault(root: Path, manifest: str) -> None:
    (root / "update-000002" / "manifest.json").write_text(manifest)
    directory, faults = find_checkpoint(root)
    assert directory == root / "update-000001"
    assert len(faults) == 1


def test_all_checkpoints_damaged(root: Path) -> None:
    for directory in root.iterdir():
        _cut(directory / "state.json")
    found, faults = find_checkpoint(root)
    assert found is None
    assert [fault.split(":")[0] for fault in faults] == ["update-000002", "update-000001"]


def test_the_next_save_removes_the_files_of_a_killed_save(root: Path) -> None:
    shutil.copytree(root / "update-000002", root / "update-000007.partial")
    run = Run(tiny())
    run.load(root / "update-000002")
    run.save(root, 3)
    assert names(root) == ["update-000002", "update-000003"]


def test_the_best_evaluation_is_saved(tmp_path: Path) -> None:
    state = TrainState(3).with_evaluation("greedy", 0.5)
    assert state.with_evaluation("greedy", 0.5) == state
    later = replace(state, num_updates=6).with_evaluation("greedy", 0.4).with_evaluation("sampled", 0.1)
    best = {"greedy": BestEvaluation(3, 0.5), "sampled": BestEvaluation(6, 0.1)}
    assert later.best_evaluation == best
    run = Run(tiny())
    directory = save_checkpoint(tmp_path, later, run.model, run.optimizer, run.schedule, keep=1)
    assert run.load(directory) == later


def test_a_partly_written_checkpoint_is_ignored(root: Path) -> None:
    shutil.copytree(root / "update-000002", root / "update-000003.partial")
    (root / "update-000004").write_text("no directory")
    directory, faults = find_checkpoint(root)
    assert directory == root / "update-000002"
    assert len(faults) == 1


# ------------------------------------------------------------------------------------- value head

HEAD = {"head.w": torch.arange(6.0).reshape(2, 3), "optimizer.0.step": torch.tensor(4.0)}


def saved_with_head(root: Path) -> Path:
    run = Run(tiny())
    state = TrainState(3)
    return save_checkpoint(root, state, run.model, run.optimizer, run.schedule, keep=2, value_head=HEAD)


def test_a_value_head_is_saved_and_loaded(root: Path) -> None:
    assert load_value_head(root / "update-000002") is None
    directory = saved_with_head(root)
    assert find_checkpoint(root) == (directory, [])
    loaded = load_value_head(directory)
    assert loaded is not None
    assert equal(dict(loaded), HEAD)


@pytest.mark.parametrize("damage", [_cut, _flip_a_bit, _empty, Path.unlink])
def test_a_checkpoint_with_a_damaged_value_head_is_skipped(
    root: Path, damage: Callable[[Path], None]
) -> None:
    damage(saved_with_head(root) / "value_head.safetensors")
    directory, faults = find_checkpoint(root)
    assert directory == root / "update-000002"
    assert len(faults) == 1


# ---------------------------------------------------------------------------- removed checkpoints


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_checkpoints_are_kept(tmp_path: Path, keep: int) -> None:
    run = Run(tiny())
    for num_updates in (1, 5, 9, 10):
        run.step(num_updates)
        run.save(tmp_path, num_updates, keep=keep)
    assert names(tmp_path) == ["update-000001", "update-000005", "update-000009", "update-000010"][-keep:]


def test_checkpoints_are_sorted_by_number_beyond_six_digits(tmp_path: Path) -> None:
    run = Run(tiny())
    for num_updates in (999_000, 999_999, 1_000_000, 1_000_001):
        run.save(tmp_path, num_updates)
        assert find_checkpoint(tmp_path) == (tmp_path / f"update-{num_updates}", [])
    assert names(tmp_path) == ["update-1000000", "update-1000001"]


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_checkpoints_of_later_updates_do_not_displace_intact_ones(root: Path, keep: int) -> None:
    # checkpoint 9 was damaged, so the run was resumed from checkpoint 2 and is at update 3 now
    shutil.copytree(root / "update-000002", root / "update-000009")
    _cut(root / "update-000009" / "state.json")
    run = Run(tiny())
    run.load(root / "update-000002")
    run.step(3)
    run.save(root, 3, keep=keep)
    assert names(root) == ["update-000002", "update-000003"][-keep:]
    assert find_checkpoint(root) == (root / "update-000003", [])


def test_an_intact_checkpoint_of_the_same_update_is_kept(root: Path) -> None:
    before = Run(tiny())
    before.load(root / "update-000002")
    run = Run(tiny())
    run.step(7)
    run.save(root, 2)  # other weights; in a real run they would be the same
    other = Run(tiny())
    other.load(root / "update-000002")
    assert equal(other.numbers(), before.numbers())


def test_a_checkpoint_with_a_pending_evaluation_is_replaced_after_the_evaluation(tmp_path: Path) -> None:
    run = Run(tiny())
    rest = (run.model, run.optimizer, run.schedule, 2)
    pending = TrainState(3, pending_evaluations=("greedy",))
    save_checkpoint(tmp_path, pending, *rest)
    evaluated = pending.with_evaluation("greedy", 0.5)
    assert run.load(save_checkpoint(tmp_path, evaluated, *rest)) == evaluated


def test_a_damaged_checkpoint_of_the_same_update_is_replaced(root: Path) -> None:
    (root / "update-000002" / "policy.safetensors").write_bytes(b"")
    run = Run(tiny())
    run.load(root / "update-000001")
    run.step(7)
    run.save(root, 2)
    other = Run(tiny())
    other.load(root / "update-000002")
    assert equal(other.numbers(), run.numbers())


def test_a_partly_written_checkpoint_of_the_same_update_is_replaced(root: Path) -> None:
    (root / "update-000003.partial").mkdir()
    (root / "update-000003.partial" / "junk").write_text("x")
    run = Run(tiny())
    run.step(1)
    directory = run.save(root, 3)
    assert names(directory) == ["manifest.json", "optimizer.safetensors", "policy.safetensors", "state.json"]
    assert sorted(json.loads((directory / "manifest.json").read_text())) == names(directory)[1:]


def test_no_module_uses_pickle_or_eval() -> None:
    package = Path(llm_reinforce.__file__).parent
    unsafe = re.compile(
        r"torch\.(load|save)\(|\bimport (pickle|dill|joblib|shelve)|\beval\(|\bexec\(|yaml\.load\("
    )
    for file in package.rglob("*.py"):
        text = file.read_text().replace("model.eval(", "")
        assert not unsafe.search(text), file
