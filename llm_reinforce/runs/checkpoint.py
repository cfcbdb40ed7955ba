"""Save and load checkpoints: safetensors and JSON files, and a manifest of their digests, written last."""

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
from llm_reinforce.errors import InputError
from llm_reinforce.runs.train_state import TrainState

MANIFEST = "manifest.json"
NAME = re.compile(r"update-[0-9]{6,}")  # directory of a checkpoint
FILES = ("optimizer.safetensors", "policy.safetensors", "state.json")  # required in every checkpoint
VALUE_HEAD = "value_head.safetensors"  # only with `baseline: value`


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
    """Write the checkpoint `root/update-NNNNNN` atomically, then remove all but the newest `keep`.

    If the directory already contains an intact checkpoint of this update, from which the run was resumed,
    nothing is changed. Checkpoints of later updates are removed: they are damaged, because a run is resumed
    from its newest intact checkpoint.

    Args:
        root: directory of the run's checkpoints.
        state: train state to save.
        model: model whose trainable weights are saved.
        optimizer: optimizer whose state is saved.
        schedule: learning-rate schedule whose state is saved.
        keep: number of checkpoints to keep.
        scaler: gradient scaler of fp16 training; None if gradients are not scaled.
        value_head: tensors of the value head and its optimizer; None if the run has none.

    Returns:
        directory of the checkpoint.

    Raises:
        OSError: if the checkpoint cannot be written, or if its files differ from their digests when they are
            read again. In these cases, all older checkpoints are kept.
    """
    directory = root / f"update-{state.num_updates:06d}"
    if _find_fault(directory) is None:
        return directory
    with whole_directory(directory) as partial:
        if value_head is not None:
            save_file(dict(value_head), partial / VALUE_HEAD)
        _write_files(partial, state, model, optimizer, schedule, scaler)
    if fault := _find_fault(directory):
        raise OSError(f"{directory} was written but can't be used: {fault}")
    for found in _checkpoints(root):
        if _num_updates(found) > state.num_updates:
            shutil.rmtree(found)
    remove_old_checkpoints(directory, keep)
    return directory


def remove_old_checkpoints(directory: Path, keep: int) -> None:
    """Remove old and unfinished checkpoints.

    The newest `keep` checkpoints up to and including `directory` are kept. Checkpoints of later updates are
    also kept.

    Args:
        directory: an intact checkpoint.
        keep: number of checkpoints to keep.
    """
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
    (directory / "state.json").write_text(json.dumps(numbers), encoding="utf-8")
    digests = {file.name: _digest(file) for file in sorted(directory.iterdir())}
    (directory / MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")


def find_checkpoint(root: Path) -> tuple[Path | None, list[str]]:
    """Find the newest intact checkpoint.

    Returns:
        directory of the checkpoint, or None if there is no intact one; and one line of text for each newer
        checkpoint, with its name and what is wrong with it.
    """
    faults: list[str] = []
    for directory in reversed(_checkpoints(root)):
        fault = _find_fault(directory)
        if fault is None:
            return directory, faults
        faults.append(f"{directory.name}: {fault}")
    return None, faults


def load_checkpoint(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    scaler: torch.amp.GradScaler | None = None,
) -> TrainState:
    """Load a checkpoint into model, optimizer, schedule and scaler, and return the train state.

    The learning rates of the optimizer become those of the checkpoint. If the run is resumed with a larger
    number of updates, the rates of its schedule differ from those of the checkpoint. In this case, the caller
    has to call `set_learning_rates`.

    Raises:
        InputError: if names or shapes of the model's weights differ from those in the checkpoint.
    """
    saved = load_file(directory / "policy.safetensors")
    with torch.no_grad():
        for name, parameter in _trainable(model).items():
            if name not in saved or saved[name].shape != parameter.shape:
                raise InputError(
                    f"{directory}: the weights in this checkpoint are not those of this policy ({name} is "
                    "missing or has another shape); resume the run with the policy with which it was started"
                )
            parameter.copy_(saved[name])
    numbers = json.loads((directory / "state.json").read_text(encoding="utf-8"))
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
    """Return the tensors that were passed to `save_checkpoint` as `value_head`, or None if it was None."""
    file = directory / VALUE_HEAD
    tensors: Mapping[str, Tensor] | None = load_file(file) if file.is_file() else None
    return tensors


def _checkpoints(root: Path) -> list[Path]:
    """Return the directories of all checkpoints, intact or damaged, sorted by number of updates."""
    return sorted(filter(lambda found: NAME.fullmatch(found.name), root.glob("update-*")), key=_num_updates)


def _num_updates(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("update-"))


def _find_fault(directory: Path) -> str | None:
    """Return what is wrong with a checkpoint; None if all files match the manifest."""
    try:
        digests = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        for name in sorted({*FILES, *digests.keys()}):
            if _digest(directory / name) != digests.get(name):
                return f"{name} does not match its digest in {MANIFEST}"
    except (OSError, ValueError, AttributeError) as error:
        return f"can't be read: {error}"
    return None


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name. Tied weights are included once."""
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
