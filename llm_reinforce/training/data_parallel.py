"""Data parallelism: every process samples with the whole policy, and the processes sum their gradients.

Each process samples the episodes of its share of an update's problems. The processes then exchange the
episodes, so that every process has all episodes of the update. The advantages and metrics of the update
therefore do not depend on the number of processes. The model is not wrapped in `DistributedDataParallel`,
because the fast path needs the unwrapped model.

With FSDP2, gradients are computed by a copy of the model whose weights are divided among the processes; see
`ShardedModel`. Each process then holds a part of every gradient.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast, parse_flag_from_env
from accelerate.utils import gather_object as accelerate_gather_object
from torch import Tensor, nn
from torch.nn.functional import pad

from llm_reinforce.config import Config
from llm_reinforce.episodes import Episode, EpisodeBatch
from llm_reinforce.errors import InputError
from llm_reinforce.policy import ShardedModel, is_sharded, local_tensor, whole_tensor
from llm_reinforce.problems import Problem
from llm_reinforce.processes import (
    check_launch,
    num_local_processes,
    num_processes,
    repeated_launch,
    sharding,
)

# maximum number of elements per message; large enough to amortize the latency of a message, but small
# compared with the whole gradient
MAX_EXCHANGED = 1 << 23
OTHER_SHARDING = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
NO_PROBLEM = Problem("", "")

Value = TypeVar("Value")

_mixed_precision: list[str] = []  # mixed precision of the latest accelerator, if there is one


def new_accelerator(mixed_precision: str, timeout: float = 1800.0) -> Accelerator:
    """Return an accelerator with the given mixed precision.

    The library accelerate uses one mixed-precision setting for all accelerators of a process. A call of this
    function replaces the mixed precision of an earlier call, but not a mixed precision that other code has
    chosen.

    Several processes without a GPU train on the CPU.

    Args:
        mixed_precision: "no", "bf16" or "fp16".
        timeout: maximum time for which a process waits for another process, in seconds. Only the timeout of
            the first accelerator of a process has an effect.

    Raises:
        InputError: if the launch is not supported. Unsupported are DeepSpeed, Megatron, some settings of
            FSDP, more processes than GPUs, and a number of processes that differs from the number that
            accelerate uses. Also raised if other code has created an accelerator with another mixed
            precision, or if the mixed precision is fp16 on a CPU or with FSDP.
    """
    prepare_launch(mixed_precision)
    _check_devices()
    if _mixed_precision and _mixed_precision[-1] != mixed_precision:
        with suppress(AttributeError):  # if this private method is missing, a ValueError follows below
            AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision, **_settings_of_launch(timeout))
    except ValueError as error:
        key = f"training.mixed_precision {mixed_precision!r}"
        rejected = key if num_processes() == 1 else f"{key} or the launch of {num_processes()} processes"
        raise InputError(f"accelerate rejects {rejected}: {error}") from error
    _mixed_precision[:] = [mixed_precision]
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError(
            "training.mixed_precision: fp16 has no effect on a CPU, and this run uses a CPU; set "
            "training.mixed_precision to 'bf16' or 'no'"
        )
    if accelerator.distributed_type in OTHER_SHARDING:
        raise InputError(
            f"accelerate was launched with {accelerator.distributed_type.value}, which is not supported; "
            "divide the weights among the processes with FSDP2 (`accelerate launch --use_fsdp --fsdp_version "
            "2`), or launch the run without sharding (`accelerate launch --multi_gpu`)"
        )
    if accelerator.num_processes != num_processes():
        raise InputError(
            f"the launcher has started {num_processes()} processes, but accelerate uses "
            f"{accelerator.num_processes} on this machine ({accelerator.device}), so each would train alone; "
            f"train on the CPU with `{repeated_launch(on_cpu=True)}`, or start "
            "one process"
        )
    return accelerator


def prepare_launch(mixed_precision: str) -> None:
    """Check how the processes were launched, and make transformers load the weights in every process.

    Raises:
        InputError: if the launch is not supported, or cannot be combined with the mixed precision.
    """
    check_launch()
    if sharding() is None:
        return
    # every process needs all weights, so transformers must not load them in the first process only
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    if mixed_precision == "fp16":
        raise InputError(
            "training.mixed_precision: fp16 is not supported with FSDP, because the gradient scaler would "
            "see only a part of each gradient; set training.mixed_precision to 'bf16' or 'no'"
        )


def check_sharded_settings(config: Config) -> None:
    """If FSDP was requested, check that the settings allow dividing the weights among the processes.

    Raises:
        InputError: if a setting quantizes weights or moments, because quantized tensors cannot be sharded.
    """
    rejected = {
        "policy.load_in_4bit": config.policy.load_in_4bit,
        "training.optimizer: adamw_8bit": config.training.optimizer == "adamw_8bit",
    }
    for setting, is_set in rejected.items():
        if is_set and sharding() is not None:
            raise InputError(
                f"{setting} is not supported with FSDP, because quantized tensors cannot be divided among "
                "the processes; remove this setting, or start the processes without FSDP"
            )


def shard(model: nn.Module, accelerator: Accelerator) -> ShardedModel | None:
    """Return a sharded copy of the model. The weights of the copy are not loaded yet.

    Return None if FSDP was not requested, or if there is only one process.

    Raises:
        InputError: if PyTorch cannot shard the model.
    """
    settings = sharding()
    if settings is None or accelerator.num_processes == 1:
        return None
    return ShardedModel(
        model,
        accelerator.device,
        layer_classes=settings.layer_classes,
        reshard_after_forward=settings.reshard_after_forward,
    )


def _settings_of_launch(timeout: float) -> dict[str, Any]:
    """Return the arguments of `Accelerator` that a run with several processes needs.

    The result is empty for a single process.
    """
    if num_processes() == 1:
        return {}
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))
    # without `cpu`, accelerate ignores a launcher that has started several processes on a CPU
    return {"kwargs_handlers": [group], "cpu": not torch.accelerator.is_available()}


def _check_devices() -> None:
    """Check that there is a GPU for every process of this machine, unless the processes train on the CPU.

    Raises:
        InputError: if there are more processes than GPUs.
    """
    num_local, num_devices = num_local_processes(), torch.accelerator.device_count()
    if num_devices and num_local > num_devices and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise InputError(
            f"{num_local} processes were started on this machine, which has {num_devices} "
            f"GPU{'s' if num_devices > 1 else ''}; start one process per GPU, or train on the CPU with "
            f"`{repeated_launch(on_cpu=True)}`"
        )


def describe_processes(accelerator: Accelerator) -> str:
    """Return one line with the device, and the numbers of processes and threads."""
    processes, threads = accelerator.num_processes, torch.get_num_threads()
    divided = ", weights divided among the processes by FSDP2" if sharding() and processes > 1 else ""
    return (
        f"{accelerator.device.type}, {processes} process{'es' if processes > 1 else ''} with {threads} "
        f"thread{'s' if threads > 1 else ''}{' each' if processes > 1 else ''}{divided}"
    )


def own_rows(num_rows: int, accelerator: Accelerator) -> slice:
    """Return the slice that selects the rows of this process from the `num_rows` rows of all processes."""
    num_own = num_rows // accelerator.num_processes
    first = accelerator.process_index * num_own
    return slice(first, first + num_own)


def gather_object(value: Value, accelerator: Accelerator) -> list[Value]:
    """Return the values of all processes, in the order of the processes. The values must be picklable."""
    if accelerator.num_processes == 1:
        return [value]
    values: list[Value] = accelerate_gather_object([value])
    return values


def gather_episodes(own: EpisodeBatch, problems: Sequence[Problem], accelerator: Accelerator) -> EpisodeBatch:
    """Return the episodes of all processes as one batch, in the order of the processes.

    A metric that reward functions log is averaged over the processes that have logged it.

    Args:
        own: episodes of this process. The group of an episode is the index of its problem in `problems`.
        problems: problems of all processes.
        accelerator: the accelerator of the run.
    """
    if accelerator.num_processes == 1:
        return own

    def gather_all(episodes: Sequence[Episode]) -> tuple[Episode, ...]:
        # the problems are not sent: their columns may be objects that cannot be pickled, and every process
        # already has the problems
        sent = [replace(episode, problem=NO_PROBLEM) for episode in episodes]
        parts = gather_object(sent, accelerator)
        return tuple(replace(one, problem=problems[one.group]) for part in parts for one in part)

    of_processes = gather_object(dict(own.logged), accelerator)
    names = dict.fromkeys(name for logged in of_processes for name in logged)
    values = {name: [logged[name] for logged in of_processes if name in logged] for name in names}
    means = {name: sum(each) / len(each) for name, each in values.items()}
    return EpisodeBatch.of(gather_all(own.episodes), means, gather_all(own.greedy))


def gather_rows(own: Tensor, num_columns: int, accelerator: Accelerator) -> Tensor:
    """Return the rows of all processes on the CPU, each padded with zeros to `num_columns` columns."""
    padded = pad(own, (0, num_columns - own.shape[1]))
    gathered: Tensor = accelerator.gather(padded.to(accelerator.device))
    return gathered.cpu()


@torch.no_grad()
def broadcast_weights(model: nn.Module, accelerator: Accelerator) -> None:
    """Replace the weights and buffers of all processes by those of the first process."""
    if accelerator.num_processes > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            # `broadcast` ignores strides, so the tensor has to be contiguous
            tensor.data = broadcast(tensor.data.contiguous())


@torch.no_grad()
def sum_gradients(model: nn.Module, accelerator: Accelerator) -> None:
    """Replace the gradients of every process by their sum over all processes.

    The gradient of a parameter remains None if it is None in every process. If the model is sharded, the
    backward pass has already averaged the gradients over the processes. In this case, this function only
    multiplies the gradients by the number of processes.
    """
    if accelerator.num_processes == 1:
        return
    if is_sharded(model):
        # with `set_gradient_divide_factor`, the backward pass would sum the gradients, but gloo does not
        # support this
        for parameter in model.parameters():
            if parameter.grad is not None:
                local_tensor(parameter.grad).mul_(accelerator.num_processes)
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # a parameter may have a gradient in some processes only; for example, an expert may receive no token
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


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Clip the norm of the whole gradient to `max_norm`, and return the norm before clipping."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = whole_tensor(nn.utils.get_total_norm(gradients))
    nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return float(norm)


def sum_over_shards(model: nn.Module, numbers: Sequence[float], accelerator: Accelerator) -> Sequence[float]:
    """Return the sums over all processes of numbers that each process has computed from its shards.

    If the model is not sharded, every process has all weights, and the numbers are returned unchanged.
    """
    if not is_sharded(model):
        return numbers
    return [math.fsum(of_all) for of_all in zip(*gather_object(numbers, accelerator), strict=True)]


def equal_passes(
    parts: Sequence[Sequence[int]], model: nn.Module, accelerator: Accelerator
) -> list[tuple[Sequence[int], bool]]:
    """Return the forward passes of this process: the rows of each pass, and True if its loss counts.

    The passes of a sharded model exchange weights, so all processes have to make the same number of passes.
    If `parts` of this process is shorter than that of another process, additional passes over one row are
    appended. The loss of an additional pass does not count: the caller has to multiply this loss by zero.

    Args:
        parts: the rows of each pass whose loss counts. There must be at least one part.
        model: the model that computes the passes.
        accelerator: the accelerator of the run.
    """
    passes = [(rows, True) for rows in parts]
    if is_sharded(model):
        num_missing = max(gather_object(len(parts), accelerator)) - len(parts)
        passes += [(parts[0][:1], False)] * num_missing
    return passes


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
