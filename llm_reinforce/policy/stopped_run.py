"""Policy of a run that was stopped before its policy was saved: the weights of its newest checkpoint."""

import shlex
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from llm_reinforce.checkpoint_files import WEIGHTS, find_checkpoint
from llm_reinforce.config import Config, load_config
from llm_reinforce.errors import InputError


def stopped_run(path: Path) -> tuple[Config, Path] | None:
    """Return the settings and the newest intact checkpoint of a run that has no `policy/` directory.

    Returns None if the path is not the directory of such a run. A warning names the checkpoint.

    Raises:
        InputError: if the run has no intact checkpoint.
    """
    if not (path / "recipe.yaml").is_file() or (path / "policy").is_dir():
        return None
    checkpoint, _ = find_checkpoint(path / "checkpoints")
    if checkpoint is None:
        raise InputError(
            f"{path}: the run has neither a policy nor an intact checkpoint; continue it with "
            f"`llm-reinforce train {shlex.quote(str(path))} --resume`"
        )
    warnings.warn(
        f"{path}: the run is not finished; its newest checkpoint, {checkpoint.name}, is used", stacklevel=3
    )
    return load_config(path), checkpoint


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Copy the weights of a checkpoint into the trainable parameters of a model.

    Raises:
        InputError: if names or shapes of the model's weights differ from those in the checkpoint.
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
