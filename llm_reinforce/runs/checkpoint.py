"""Save and load checkpoints.

A checkpoint is a directory of safetensors and JSON files. A manifest, which is written last, contains the
digests of these files.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_reinforce.checkpoint_files import (
    WEIGHTS,
    all_checkpoints,
    find_fault,
    num_updates_of,
    write_manifest,
)
from llm_reinforce.durable_files import PARTIAL, whole_directory
from llm_reinforce.policy import GatheredState, load_weights, split_like, trainable_parameters
from llm_reinforce.runs.train_state import TrainState

VALUE_HEAD = "value_head.safetensors"  # written only with `baseline: value`
REFERENCE = "reference.safetensors"  # only with `kl`, if the reference is an earlier policy of the run


def save_checkpoint(
    root: Path,
    state: TrainState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | GatheredState,
    schedule: Any,
    keep: int,
    scaler: torch.amp.GradScaler | None = None,
    value_head: Mapping[str, Tensor] | None = None,
    reference: Mapping[str, Tensor] | None = None,
    best: int | None = None,
) -> Path:
    """Write a checkpoint, and remove all checkpoints except the newest `keep` and the best one.

    The directory of the checkpoint is `root/update-NNNNNN`, where NNNNNN is the number of updates.

    If the run was resumed from this update, the directory already contains an intact checkpoint. It is
    replaced only if the train state has changed, for example because a pending evaluation was made.

    If damaged checkpoints were skipped when the run was resumed, there are checkpoints of later updates.
    These are removed when a checkpoint is written.

    Args:
        root: directory of the run's checkpoints.
        state: train state to save.
        model: model whose trainable weights are saved.
        optimizer: optimizer whose state is saved, or the gathered state if the state is divided among
            processes.
        schedule: learning-rate schedule whose state is saved.
        keep: number of checkpoints to keep.
        scaler: gradient scaler of fp16 training; None if gradients are not scaled.
        value_head: tensors of the value head and its optimizer. None: the run has no value head.
        reference: trainable weights of a reference policy that is an earlier policy of the run. None: the run
            has no reference policy, or the reference policy is another model.
        best: number of updates of a checkpoint that is also kept. None: only the newest checkpoints are kept.

    Returns:
        directory of the checkpoint.

    Raises:
        OSError: if the checkpoint cannot be written, or if its files differ from their digests when they are
            read again. In these cases, all older checkpoints are kept.
    """
    directory = root / f"update-{state.num_updates:06d}"
    if find_fault(directory) is None and _train_state(directory) == state:
        return directory
    with whole_directory(directory) as partial:
        if value_head is not None:
            save_file(dict(value_head), partial / VALUE_HEAD)
        if reference is not None:
            save_file(dict(reference), partial / REFERENCE)
        _write_files(partial, state, model, optimizer, schedule, scaler)
    if fault := find_fault(directory):
        raise OSError(f"the checkpoint {directory} was written, but it can't be read back: {fault}")
    for found in all_checkpoints(root):
        if num_updates_of(found) > state.num_updates:
            shutil.rmtree(found)
    remove_old_checkpoints(directory, keep, best)
    return directory


def remove_old_checkpoints(directory: Path, keep: int, best: int | None = None) -> None:
    """Remove old and unfinished checkpoints.

    The newest `keep` checkpoints up to and including `directory` are kept. Checkpoints of later updates are
    also kept.

    Args:
        directory: an intact checkpoint.
        keep: number of checkpoints to keep.
        best: number of updates of a checkpoint that is also kept.
    """
    root = directory.parent
    up_to_here = [
        found for found in all_checkpoints(root) if num_updates_of(found) <= num_updates_of(directory)
    ]
    old = [found for found in up_to_here[:-keep] if num_updates_of(found) != best]
    for found in [*root.glob(f"*{PARTIAL}"), *old]:
        shutil.rmtree(found)


def _write_files(
    directory: Path,
    state: TrainState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | GatheredState,
    schedule: Any,
    scaler: torch.amp.GradScaler | None,
) -> None:
    save_file(_trainable_tensors(model), directory / WEIGHTS)
    tensors, groups = _flatten_optimizer(optimizer)
    save_file(tensors, directory / "optimizer.safetensors")
    numbers = {
        "state": asdict(state),
        "param_groups": groups,
        "schedule": schedule.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
    }
    (directory / "state.json").write_text(json.dumps(numbers), encoding="utf-8")
    write_manifest(directory)


def load_checkpoint(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    scaler: torch.amp.GradScaler | None = None,
) -> TrainState:
    """Load a checkpoint into model, optimizer, schedule and scaler, and return the train state.

    If the parameters of the optimizer are sharded, each process loads its part of the optimizer's state.

    The optimizer gets the learning rates that are saved in the checkpoint. If the run is resumed with a
    larger number of updates, these rates are outdated, and the caller has to call `set_learning_rates`.

    Raises:
        InputError: if names or shapes of the model's weights differ from those in the checkpoint.
    """
    load_weights(directory, model)
    numbers = json.loads((directory / "state.json").read_text(encoding="utf-8"))
    tensors: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in load_file(directory / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        tensors.setdefault(int(index), {})[name] = split_like(tensor, parameters[int(index)])
    optimizer.load_state_dict({"state": tensors, "param_groups": numbers["param_groups"]})
    schedule.load_state_dict(numbers["schedule"])
    if scaler is not None and numbers.get("scaler"):
        scaler.load_state_dict(numbers["scaler"])
    return _train_state(directory)


def _train_state(directory: Path) -> TrainState:
    numbers = json.loads((directory / "state.json").read_text(encoding="utf-8"))
    return TrainState.from_json(numbers["state"])


def load_value_head(directory: Path) -> Mapping[str, Tensor] | None:
    """Return the tensors that were passed to `save_checkpoint` as `value_head`, or None if there are none."""
    return _load_tensors(directory / VALUE_HEAD)


def load_reference(directory: Path) -> Mapping[str, Tensor] | None:
    """Return the tensors that were passed to `save_checkpoint` as `reference`, or None if there are none."""
    return _load_tensors(directory / REFERENCE)


def _load_tensors(file: Path) -> Mapping[str, Tensor] | None:
    tensors: Mapping[str, Tensor] | None = load_file(file) if file.is_file() else None
    return tensors


def _trainable_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().contiguous() for name, parameter in trainable_parameters(model).items()}


def _flatten_optimizer(
    optimizer: torch.optim.Optimizer | GatheredState,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value).contiguous()
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    return tensors, state["param_groups"]
