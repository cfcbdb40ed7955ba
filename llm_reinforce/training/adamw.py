"""AdamW with float32 copies of weights in half precision, or with 8-bit moments."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llm_reinforce.config import LEARNING_RATE, TrainingConfig
from llm_reinforce.console.messages import note
from llm_reinforce.errors import InputError
from llm_reinforce.policy import check_bitsandbytes

MAX_COPIED = 1 << 24  # maximum number of gradient elements converted to float32 at once (64 MiB)
MASTER = "master"  # key of a weight's float32 copy in the state of the optimizer
# quantization tables of bitsandbytes, which are not saved, because all weights have the same tables
OF_QUANTIZATION = ("qmap1", "qmap2")


def adamw(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW for the trainable parameters of a model.

    If these parameters are in half precision and `training.master_weights` is True, the steps are applied to
    float32 copies, which are rounded to half precision after each step. Therefore, steps that are smaller
    than the distance to the next number in half precision are not lost. Without the copies, a notice is shown
    if such steps are frequent.

    Raises:
        InputError: if no parameter can be trained, if the linear layers are quantized and have no adapters,
            or if bitsandbytes is needed and not installed.
    """
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    check_trainable(model, weights)
    kind: Any = torch.optim.AdamW
    rate = LEARNING_RATE if training.learning_rate is None else training.learning_rate
    settings: dict[str, Any] = {"lr": rate, "betas": training.betas, "weight_decay": training.weight_decay}
    if training.optimizer == "adamw_8bit":
        kind = _adamw_8bit()
    else:
        settings["fused"] = weights[0].device.type in ("cpu", "cuda")
    if not any(map(is_half, weights)):
        optimizer: torch.optim.Optimizer = kind(weights, **settings)
        return optimizer
    if training.master_weights:
        return master_weights_optimizer(kind, weights, settings)
    if (share := frac_rounded_away(weights, rate)) > 0.5:
        note(
            f"policy: a step of learning rate {rate:g} is rounded to zero for {share:.0%} of the weights, "
            "because they are in half precision; set training.master_weights: true"
        )
    return kind(weights, **settings)  # type: ignore[no-any-return]


def check_trainable(model: nn.Module, weights: Sequence[nn.Parameter]) -> None:
    """Check that a model has trainable parameters, and adapters if its linear layers are quantized.

    Raises:
        InputError: if the model cannot be trained.
    """
    if getattr(model, "is_quantized", False) and not hasattr(model, "peft_config"):
        raise InputError(
            "policy: the linear layers are quantized, and quantized weights cannot be trained; train an "
            "adapter (policy.lora: {}), or set policy.load_in_4bit: false"
        )
    if not weights:
        raise InputError(
            "policy: none of its parameters requires a gradient, so there is nothing to train; set "
            "requires_grad to True for the parameters to train"
        )


def is_half(tensor: Tensor) -> bool:
    """Return True if the tensor has floating-point numbers of fewer than 32 bits."""
    return tensor.is_floating_point() and tensor.dtype.itemsize < 4


@torch.no_grad()
def frac_rounded_away(weights: Iterable[Tensor], step: float) -> float:
    """Return the share of the weights to which adding `step` has no effect, because the sum is rounded."""
    num_all, num_same = 0, 0
    for weight in weights:
        num_all += weight.numel()
        num_same += int((weight.float().add_(step).to(weight.dtype) == weight).sum())
    return num_same / max(1, num_all)


def master_weights_optimizer(
    kind: type[torch.optim.Optimizer], weights: Sequence[nn.Parameter], settings: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Return an optimizer of class `kind` that applies its steps to float32 copies of the weights.

    Args:
        kind: class of the optimizer.
        weights: the weights. Weights in float32 are not copied.
        settings: keyword arguments of `kind`.
    """
    cls: Any = type(f"{kind.__name__}WithMasterWeights", (_WithMasterWeights, kind), {})
    optimizer: torch.optim.Optimizer = cls(weights, **settings)
    return optimizer


class _WithMasterWeights(torch.optim.Optimizer):
    """Base class of an optimizer that applies its steps to float32 copies ("master weights") of the weights.

    To save memory, the gradients of only a few weights at a time are converted to float32. If other code has
    changed a weight since the last step, for example by loading a checkpoint, the next step first copies the
    changed weight to its float32 copy.
    """

    def __init__(self, weights: Sequence[nn.Parameter], **settings: Any) -> None:
        self._weights = list(weights)
        self._masters = [weight.detach().float() if is_half(weight) else weight for weight in self._weights]
        super().__init__(self._masters, **settings)  # calls the constructor of the class `kind`

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove the gradients of the weights."""
        for weight in self._weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply a step to the float32 copies, and write the rounded results to the weights."""
        gradients = [weight.grad for weight in self._weights]
        for weight in self._weights:
            weight.grad = None
        for part in self._parts():
            for index in part:
                gradient = gradients[index]
                self._masters[index].grad = None if gradient is None else gradient.float()
                self._refresh(index)
            super().step()
            for index in part:
                self._masters[index].grad = None
                if self._masters[index] is not self._weights[index]:
                    self._weights[index].copy_(self._masters[index])
        for weight, gradient in zip(self._weights, gradients, strict=True):
            weight.grad = gradient

    def _refresh(self, index: int) -> None:
        weight, master = self._weights[index], self._masters[index]
        if master is not weight:
            is_changed = master.to(weight.dtype) != weight
            master.copy_(torch.where(is_changed, weight, master))

    def _parts(self) -> Iterator[list[int]]:
        """Divide the weights into parts, and yield the indices of the weights of each part.

        A part has at most `MAX_COPIED` numbers in total, or consists of a single weight tensor.
        """
        part: list[int] = []
        num_copied = 0
        for index, weight in enumerate(self._weights):
            if part and num_copied + weight.numel() > MAX_COPIED:
                yield part
                part, num_copied = [], 0
            part.append(index)
            num_copied += weight.numel()
        yield part

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer, which includes the float32 copies of half-precision weights."""
        state = super().state_dict()
        of_weights = dict(state["state"])
        for index, (weight, master) in enumerate(zip(self._weights, self._masters, strict=True)):
            if master is not weight:
                of_weights[index] = {**of_weights.get(index, {}), MASTER: master}
        return {**state, "state": of_weights}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that `state_dict` returned, or a state without float32 copies."""
        of_weights = {index: dict(values) for index, values in state_dict["state"].items()}
        for index, (weight, master) in enumerate(zip(self._weights, self._masters, strict=True)):
            saved = of_weights.get(index, {}).pop(MASTER, weight)
            if master is not weight:
                master.copy_(saved)
        of_weights = {index: values for index, values in of_weights.items() if values}
        super().load_state_dict({**state_dict, "state": of_weights})


def _adamw_8bit() -> Any:
    """Return the class AdamW8bit of bitsandbytes, with a state that can be saved as tensors.

    Raises:
        InputError: if bitsandbytes is not installed.
    """
    check_bitsandbytes("training.optimizer: adamw_8bit")
    from bitsandbytes.optim import AdamW8bit

    class AdamW8Bit(AdamW8bit):  # type: ignore[misc]
        def state_dict(self) -> dict[str, Any]:
            # the method of bitsandbytes is not used, because it returns nested dictionaries for FSDP
            state = torch.optim.Optimizer.state_dict(self)
            of_weights = {
                index: {name: value for name, value in values.items() if name not in OF_QUANTIZATION}
                for index, values in state["state"].items()
            }
            return {**state, "state": of_weights}

        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            super().load_state_dict(state_dict, move_to_device)
            for weight, state in self.state.items():
                state["step"] = int(state["step"])
                if state["state1"].dtype == torch.uint8:
                    for name, table in zip(OF_QUANTIZATION, ("dynamic", "udynamic"), strict=True):
                        state[name] = self.name2qmap[table].to(weight.device)

    return AdamW8Bit
