"""Data parallelism: every process holds the whole policy, and the processes sum their gradients.

The model is not wrapped in `DistributedDataParallel`, so every process can use the fast path.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast
from torch import Tensor, nn

from llm_reinforce.errors import InputError

# elements per message: enough to amortize the latency of a message, but few compared with the whole gradient
MAX_EXCHANGED = 1 << 23
SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


_mixed_precision: list[str] = []  # setting of the latest accelerator; at most one element


def new_accelerator(mixed_precision: str) -> Accelerator:
    """Return an accelerator with this mixed precision.

    accelerate keeps one setting for all accelerators of a process. A setting that an earlier call of this
    function has made is reset. A setting that other code has made is not reset.

    Args:
        mixed_precision: "no", "bf16" or "fp16".

    Raises:
        InputError: if accelerate was launched with sharding (FSDP, DeepSpeed, Megatron), if the process
            already has an accelerator with another mixed precision, or if it is fp16 on a CPU.
    """
    if _mixed_precision and _mixed_precision[-1] != mixed_precision:
        with suppress(AttributeError):  # a private method; if it is missing, accelerate raises below
            AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision)
    except ValueError as error:
        raise InputError(
            f"training.mixed_precision: accelerate rejects {mixed_precision!r}: {error}"
        ) from error
    _mixed_precision[:] = [mixed_precision]
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError(
            "training.mixed_precision: fp16 has no effect on a CPU, on which this run is; use bf16 or no"
        )
    if accelerator.distributed_type in SHARDING:
        raise InputError(
            f"accelerate was launched with {accelerator.distributed_type.value}: sharding is not supported, "
            "every process holds the whole policy; launch without it (`accelerate launch --multi_gpu`)"
        )
    return accelerator


@torch.no_grad()
def broadcast_weights(model: nn.Module, accelerator: Accelerator) -> None:
    """Copy the weights and buffers of the first process to all other processes, whose weights may differ."""
    if accelerator.num_processes > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = broadcast(tensor.data.contiguous())  # broadcast ignores strides


@torch.no_grad()
def sum_gradients(model: nn.Module, accelerator: Accelerator) -> None:
    """Replace the gradients of every process by their sum over all processes.

    The gradient of a parameter remains None if it is None in every process.
    """
    if accelerator.num_processes == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # a parameter may have a gradient in some processes only, such as an expert that received no token
    has_gradient = torch.tensor([parameter.grad is not None for parameter in parameters])
    num_with = accelerator.reduce(has_gradient.to(accelerator.device, torch.long), "sum").tolist()
    gradients = []
    for parameter, num in zip(parameters, num_with, strict=True):
        if num:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        totals = accelerator.reduce(flat, "sum").split([gradient.numel() for gradient in bucket])
        for gradient, total in zip(bucket, totals, strict=True):
            gradient.copy_(total.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Split the gradients into lists of consecutive gradients of one dtype.

    Each list has at most MAX_EXCHANGED elements in total, or contains a single gradient.
    """
    bucket: list[Tensor] = []
    for gradient in gradients:
        num_elements = sum(each.numel() for each in bucket) + gradient.numel()
        if bucket and (num_elements > MAX_EXCHANGED or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
