"""Save and restore a run: safetensors and JSON, and a manifest of digests that is written last."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_reinforce.durable_files import PARTIAL, whole_directory
from llm_reinforce.runs.train_state import TrainState

MANIFEST = "manifest.json"
NAME = re.compile(r"update-[0-9]{6,}")  # a checkpoint's
FILES = ("optimizer.safetensors", "policy.safetensors", "state.json")  # what it vouches for, at least
VALUE_HEAD = "value_head.safetensors"  # where there is one


def save_checkpoint(
    root: Path,
    state: TrainState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    keep: int,
    scaler: torch.amp.GradScaler | None = None,
    value_head: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `root/update-NNNNNN`, complete or not at all, then remove all but the newest `keep`.

    Those of later updates are removed as well: the run went back to before them, because they were broken.
    A whole one of this update stays as it is: the run has come from it.

    Args:
        scaler: fp16's, which learns how far a loss may be scaled up; None where nothing is scaled.
        value_head: all of the learned baseline, as `load_value_head` gives it back; None where there is none.

    Raises:
        OSError: it can't be written, or not be read back as it was written; the older ones are all there.
    """
    directory = root / f"update-{state.num_updates:06d}"
    if _fault(directory) is None:
        return directory
    with whole_directory(directory) as partial:
        if value_head is not None:
            save_file(dict(value_head), partial / VALUE_HEAD)
        _write_files(partial, state, model, optimizer, schedule, scaler)
    if fault := _fault(directory):
        raise OSError(f"{directory} was written and can't be used: {fault}")
    for found in _checkpoints(root):
        if _num_updates(found) > state.num_updates:
            shutil.rmtree(found)
    tidy_up_to(directory, keep)
    return directory


def tidy_up_to(directory: Path, keep: int) -> None:
    """Remove what a killed save has left, and of the checkpoints up to this whole one all but `keep`."""
    root = directory.parent
    up_to_here = [found for found in _checkpoints(root) if _num_updates(found) <= _num_updates(directory)]
    for found in [*root.glob(f"*{PARTIAL}"), *up_to_here[:-keep]]:
        shutil.rmtree(found)


def _write_files(
    directory: Path,
    state: TrainState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    scaler: torch.amp.GradScaler | None,
) -> None:
    save_file(_trainable_tensors(model), directory / "policy.safetensors")
    tensors, groups = _flatten_optimizer(optimizer)
    save_file(tensors, directory / "optimizer.safetensors")
    numbers = {
        "state": asdict(state),
        "param_groups": groups,
        "schedule": schedule.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
    }
    (directory / "state.json").write_text(json.dumps(numbers))
    digests = {file.name: _digest(file) for file in sorted(directory.iterdir())}
    (directory / MANIFEST).write_text(json.dumps(digests, indent=1))


def find_checkpoint(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and what was wrong with the newer ones."""
    passed_over: list[str] = []
    for directory in reversed(_checkpoints(root)):
        fault = _fault(directory)
        if fault is None:
            return directory, passed_over
        passed_over.append(f"{directory.name}: {fault}")
    return None, passed_over


def load_checkpoint(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    scaler: torch.amp.GradScaler | None = None,
) -> TrainState:
    """Load the checkpoint into model, optimizer, schedule and scaler; return the train state.

    The optimizer's learning rates are those of the saved run. The caller sets those of the schedule, which
    may be that of a longer run.
    """
    saved = load_file(directory / "policy.safetensors")
    with torch.no_grad():
        for name, parameter in _trainable(model).items():
            parameter.copy_(saved[name])
    numbers = json.loads((directory / "state.json").read_text())
    tensors: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(directory / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        tensors.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": tensors, "param_groups": numbers["param_groups"]})
    schedule.load_state_dict(numbers["schedule"])
    if scaler is not None and numbers.get("scaler"):
        scaler.load_state_dict(numbers["scaler"])
    return TrainState.from_json(numbers["state"])


def load_value_head(directory: Path) -> Mapping[str, Tensor] | None:
    """What `save_checkpoint` was given of the learned baseline; None where it was given nothing."""
    file = directory / VALUE_HEAD
    tensors: Mapping[str, Tensor] | None = load_file(file) if file.is_file() else None
    return tensors


def _checkpoints(root: Path) -> list[Path]:
    """All that are there, whole or not, by their updates; from the millionth on a name has more digits."""
    return sorted(filter(lambda found: NAME.fullmatch(found.name), root.glob("update-*")), key=_num_updates)


def _num_updates(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("update-"))


def _fault(directory: Path) -> str | None:
    try:
        digests = json.loads((directory / MANIFEST).read_text())
        for name in sorted({*FILES, *digests.keys()}):
            if _digest(directory / name) != digests.get(name):
                return f"{name} isn't what was written"
    except (OSError, ValueError, AttributeError) as error:
        return f"can't be read: {error}"
    return None


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, each once (tied weights have one name here)."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _trainable_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().contiguous() for name, parameter in _trainable(model).items()}


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value).contiguous()
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, state["param_groups"]
