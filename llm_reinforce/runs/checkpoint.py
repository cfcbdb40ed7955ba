"""Save and restore all that a run is: safetensors and JSON, and a manifest of digests written last."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_reinforce.durable_files import PARTIAL, whole_directory
from llm_reinforce.policy_gradient import MovingAverage
from llm_reinforce.training.learning_rates import set_learning_rates

MANIFEST = "manifest.json"
NAME = re.compile(r"update-[0-9]{6,}")  # a checkpoint's
FILES = ("optimizer.safetensors", "policy.safetensors", "state.json")  # what it vouches for, at least
VALUE_HEAD = "value_head.safetensors"  # where there is one


@dataclass(frozen=True, slots=True)
class BestEvaluation:
    """The highest accuracy that was measured, and after how many updates."""

    update: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class TrainState:
    """All that changes in a run beside the tensors; this is the one place that lists it.

    A checkpoint holds this state, the weights that are trained (an adapter's alone, where there is one), the
    optimiser's state, the schedule's and fp16's scaler's, with `baseline: value` the value head's weights and
    its optimiser's moments, and that is all of a run:

    - Every random generator (the sampler's; Python's, numpy's and torch's own) is made anew for each update
      from the seed and `num_updates`, and so is the order of the problems in each epoch from the seed.
    - Episodes live within one update, and a checkpoint is written between two: there are none in hand.

    Attributes:
        num_updates: updates done (a skipped one counts).
        num_problems: problems drawn so far, the position in the training problems' order.
        num_tokens: actions sampled so far.
        num_skipped_updates: updates left out because of a gradient that wasn't finite, or no scored episode;
            those of the warm start are among them.
        num_not_finite_in_a_row: the last so many updates had a gradient that wasn't finite.
        moving_average: the baseline of that name.
        best_evaluation: by decoding, the highest accuracy measured so far and the first update that had it.
        num_skipped_fits: updates whose episodes the value head didn't learn from, or not in all of its steps,
            because a loss or a gradient wasn't finite.
    """

    num_updates: int = 0
    num_problems: int = 0
    num_tokens: int = 0
    num_skipped_updates: int = 0
    num_not_finite_in_a_row: int = 0
    moving_average: MovingAverage = field(default_factory=MovingAverage)
    best_evaluation: Mapping[str, BestEvaluation] = field(default_factory=dict)
    num_skipped_fits: int = 0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        best = values.get("best_evaluation", {})
        nested = {
            "moving_average": MovingAverage(**values["moving_average"]),
            "best_evaluation": {decoding: BestEvaluation(**each) for decoding, each in best.items()},
        }
        return cls(**{**values, **nested})

    def with_evaluation(self, decoding: str, accuracy: float) -> "TrainState":
        """The state once this accuracy has been measured: the best one may be another."""
        best = self.best_evaluation.get(decoding)
        if best is not None and accuracy <= best.accuracy:
            return self
        measured = BestEvaluation(self.num_updates, accuracy)
        return replace(self, best_evaluation={**self.best_evaluation, decoding: measured})


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
    """Put the checkpoint's numbers into model, optimiser, schedule and scaler; return the train state.

    The learning rate is the schedule's own, which may be that of a longer run than the one that was saved.
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
    set_learning_rates(optimizer, schedule)
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
