"""Several processes train one policy: each holds all of it, and they add their gradients up.

No wrapper ties the model to the others, so that in each process it is scored in the fastest way.
"""

from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast
from torch import Tensor, nn

from llm_reinforce.errors import InputError

MAX_EXCHANGED = 1 << 23  # numbers at once: enough to be worth a message, little beside the gradient
SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def check_kind(accelerator: Accelerator) -> None:
    """Refuse what spreads one policy over several processes.

    Raises:
        InputError: it was launched so.
    """
    if accelerator.distributed_type in SHARDING:
        raise InputError(
            f"accelerate was told to use {accelerator.distributed_type.value}, but a policy that is trained "
            "here is held whole by every process: launch without it (`accelerate launch --multi_gpu`)"
        )


@torch.no_grad()
def begin_alike(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the first one's weights: random ones may differ."""
    if accelerator.num_processes > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = broadcast(tensor.data.contiguous())  # numbers are sent as they lie in memory


@torch.no_grad()
def add_up_gradients(model: nn.Module, accelerator: Accelerator) -> None:
    """Let every process have the sum of all processes' gradients."""
    if accelerator.num_processes == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # an expert that no token was sent to, say; without a gradient in any process it stays as it is
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
    """Runs of gradients of one type, each of at most MAX_EXCHANGED numbers or of one gradient."""
    run: list[Tensor] = []
    for gradient in gradients:
        num_numbers = sum(each.numel() for each in run) + gradient.numel()
        if run and (num_numbers > MAX_EXCHANGED or gradient.dtype != run[0].dtype):
            yield run
            run = []
        run.append(gradient)
    if run:
        yield run
