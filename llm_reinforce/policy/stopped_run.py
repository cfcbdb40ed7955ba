"""Policy of a run that is not finished: the weights of its newest checkpoint."""

import shlex
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from llm_reinforce.checkpoint_files import WEIGHTS, all_checkpoints, find_checkpoint, num_updates_of
from llm_reinforce.config import Config, load_config
from llm_reinforce.errors import InputError


def stopped_run(path: Path) -> tuple[Config, Path] | None:
    """Return the settings and the newest intact checkpoint of an unfinished run, and warn that it is used.

    A run that has saved its policy and was then resumed for further updates also counts as unfinished. The
    result is None if `path` is not the directory of a run, if the saved policy of the run is up to date, or
    if there is a saved policy but no intact checkpoint.

    Raises:
        InputError: if the run has neither a policy nor an intact checkpoint.
    """
    if not (path / "recipe.yaml").is_file():
        return None
    policy = path / "policy"
    if policy.is_dir() and not all_checkpoints(path / "checkpoints"):
        return None
    checkpoint, faults = find_checkpoint(path / "checkpoints")
    if checkpoint is None and policy.is_dir():
        return None
    if checkpoint is None:
        raise InputError(
            f"{path}: the run has neither a policy nor an intact checkpoint; continue it with "
            f"`llm-reinforce train {shlex.quote(str(path))} --resume`"
        )
    # the last update of a run saves a checkpoint before the policy
    is_older = policy.is_dir() and _written_at(policy) < _written_at(checkpoint)
    if policy.is_dir() and not is_older:
        return None
    config = load_config(path)
    if is_older and num_updates_of(checkpoint) >= config.training.num_updates:
        return None
    used = f"the newest checkpoint, {checkpoint.name}, is used"
    instead = f" instead of the older policy in {policy}" if is_older else ""
    skipped = "".join(f"; skipped checkpoint {fault}" for fault in faults)
    warnings.warn(f"{path}: the run is not finished; {used}{instead}{skipped}", stacklevel=3)
    return config, checkpoint


def _written_at(directory: Path) -> float:
    return max((file.stat().st_mtime for file in directory.iterdir()), default=0.0)


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Copy the weights of a checkpoint into the trainable parameters of a model.

    Raises:
        InputError: if a trainable parameter is missing in the checkpoint or has another shape there.
    """
    saved = load_file(checkpoint / WEIGHTS)
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            if name not in saved or saved[name].shape != parameter.shape:
                raise InputError(
                    f"{checkpoint}: the weights in this checkpoint are not those of this policy ({name} is "
                    "missing or has another shape); resume the run with the policy with which it was started"
                )
            parameter.copy_(saved[name])


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name. Tied weights are included once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
