"""Data parallelism: every process holds the whole policy, and their gradients are summed.

The model is not wrapped, so that every process can use the fastest path of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast
from torch import Tensor, nn

from llm_reinforce.errors import InputError

MAX_EXCHANGED = 1 << 23  # numbers at once: enough to be worth a message, little beside the gradient
SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


_mixed_precision: list[str] = []  # of the accelerator that this process got here last


def new_accelerator(mixed_precision: str) -> Accelerator:
    """Return an accelerator with this mixed precision.

    accelerate keeps one setting for all accelerators of a process, so the one of an earlier run is removed,
    but not one that the caller's own code has made.

    Raises:
        InputError: the processes were launched to share one policy (FSDP, DeepSpeed, Megatron), or the
            caller's own accelerator has another mixed precision.
    """
    if _mixed_precision and _mixed_precision[-1] != mixed_precision:
        with suppress(AttributeError):  # private; without it accelerate raises the error below
            AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision)
    except ValueError as error:
        raise InputError(
            f"training.mixed_precision: {mixed_precision}: accelerate refuses it: {error}"
        ) from error
    _mixed_precision[:] = [mixed_precision]
    if accelerator.distributed_type in SHARDING:
        raise InputError(
            f"accelerate was launched with {accelerator.distributed_type.value}, which is not supported: "
            "every process holds the whole policy. Launch without it (`accelerate launch --multi_gpu`)"
        )
    return accelerator


@torch.no_grad()
def broadcast_weights(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the weights of the first one; random weights may differ."""
    if accelerator.num_processes > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = broadcast(tensor.data.contiguous())  # broadcast sends memory as it is


@torch.no_grad()
def sum_gradients(model: nn.Module, accelerator: Accelerator) -> None:
    """Replace the gradients of every process by the sum over all processes."""
    if accelerator.num_processes == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # an expert that received no token, say; it stays without a gradient if it has none in any process
    has_gradient = torch.tensor([parameter.grad is not None for parameter in parameters])
    num_with = accelerator.reduce(has_gradient.to(accelerator.device, torch.long), "sum").tolist()
    gradients = []
    for parameter, num in zip(parameters, num_with, strict=True):
        if num:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for several in _at_once(gradients):
        together = torch.cat([gradient.flatten() for gradient in several])
        totals = accelerator.reduce(together, "sum").split([gradient.numel() for gradient in several])
        for gradient, total in zip(several, totals, strict=True):
            gradient.copy_(total.view_as(gradient))


def _at_once(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield runs of gradients of one type, each of at most MAX_EXCHANGED numbers or of one gradient."""
    run: list[Tensor] = []
    for gradient in gradients:
        num_numbers = sum(each.numel() for each in run) + gradient.numel()
        if run and (num_numbers > MAX_EXCHANGED or gradient.dtype != run[0].dtype):
            yield run
            run = []
        run.append(gradient)
    if run:
        yield run
