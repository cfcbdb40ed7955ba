"""Prediction of a run's peak memory before the run starts."""

import ctypes
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from llm_reinforce.config import TrainingConfig
from llm_reinforce.policy import ShardedModel, local_tensor, memory_per_token
from llm_reinforce.processes import num_local_processes
from llm_reinforce.training.adamw import MAX_COPIED, is_half
from llm_reinforce.training.loop import TrainingLoop

ON_CPU = 150 * 2**20
"""Memory that libraries need in the first update on a CPU: code, compiled kernels, buffers, and gaps between
tensors. The value was found with `tests/benchmarks/memory.py`."""
ROOM = 32  # number of spare columns in the sampler's cache of keys and values
BITS_8 = 2 * (1 + 4 / 256)  # bytes of the two 8-bit moments of a weight, with a float32 scale per 256 numbers
TEMPORARY_8_BIT = 6  # number of float32 tensors that an 8-bit step needs for one weight matrix


@dataclass(frozen=True, slots=True)
class MemoryPrediction:
    """Peak memory of a run, in bytes, if all completions have the maximum length.

    Attributes:
        sampling: peak while episodes are sampled.
        update: peak while the gradient is computed and the optimizer takes its step.
        parts: size of each part, by name: "weights and libraries", "optimizer", "gradients", "cache" and
            "activations".
        available: free memory of the device, plus the memory that this process already uses.
    """

    sampling: float
    update: float
    parts: Mapping[str, float]
    available: float


def predict_memory(loop: TrainingLoop, in_use: float) -> MemoryPrediction:
    """Predict the peak memory of a run from the sizes of tensors in a forward pass over a few tokens.

    The memory of a value head is not included.

    With FSDP, the unsharded policy is freed during the update. The prediction of the update's peak therefore
    contains the weights that are gathered at the same time, instead of the unsharded policy.

    Args:
        loop: the training loop of the run.
        in_use: memory in bytes that the process used after the loop was built; see `memory_in_use`. It
            includes the weights, the float32 copies of weights in half precision and, with FSDP, the shards
            of this process.
    """
    in_use += ON_CPU if loop.policy.device.type == "cpu" else 0
    training, shape, policy = loop.training, loop.reinforce, loop.policy
    num_new = loop.sampling.max_new_tokens
    prompts = policy.encode_prompts([problem.policy_prompt for problem in loop.problems[:100]])
    length = round(sum(map(len, prompts)) / len(prompts))
    typical = min(prompts, key=lambda prompt: abs(len(prompt) - length))
    with loop.accelerator.autocast():
        per_token = memory_per_token(
            policy,
            typical,
            num_completions=shape.episodes_per_problem,
            max_new_tokens=num_new,
            with_entropies=shape.entropy_coefficient > 0 or shape.entropy_target is not None,
            is_sharded=loop.sharded is not None,
        )
    num_problems = shape.problems_per_update // loop.accelerator.num_processes
    num_episodes = num_problems * shape.episodes_per_problem
    num_computed = num_problems * length + num_episodes * num_new

    weights = [each for each in policy.model.parameters() if each.requires_grad]
    trained = [local_tensor(each) for each in loop.gradient_step.model.parameters() if each.requires_grad]
    gradients, largest = _num_bytes(trained), max(each.nbytes for each in weights)
    states = optimizer_bytes(trained, training) - copied_bytes(trained, training)
    if loop.reference is not None and loop.reference.is_state_of_policy:
        states += _num_bytes(weights)

    num_rows = min(num_episodes, loop.sampling.batch_size or num_episodes)
    num_rows = max(num_rows, shape.episodes_per_problem)
    keeps = not training.gradient_checkpointing and loop.sharded is None
    is_kept = keeps and num_computed <= training.micro_batch_tokens
    num_kept = min(num_computed, training.micro_batch_tokens) if keeps else 0
    rows = max(num_rows, loop.evaluation.batch_size if loop.held_out else 0)
    cache = rows * (length + num_new + ROOM) * per_token.cached
    kept = num_kept * per_token.kept
    beside = kept if is_kept else 0.0
    # if there are too many activations to keep, they are deleted early, while the cache is still small
    early = kept + num_rows * (length + ROOM + num_kept / num_rows) * per_token.cached
    logits = 2 * rows * per_token.logits
    sampling = in_use + states + max(cache + beside, early) + logits + per_token.dequantized

    num_in_update = num_computed / shape.updates_per_batch
    num_tokens = round(min(num_in_update, training.micro_batch_tokens))
    if loop.sharded is not None:  # with FSDP, a prompt is computed again for each of its completions
        num_tokens = round(num_tokens * num_episodes * (length + num_new) / num_computed)
    backward = per_token.of_backward(num_tokens, gradient_checkpointing=training.gradient_checkpointing)
    step = gradients + _step_bytes(trained, training)
    if loop.sharded is not None:
        peak = _sharded_peak(loop.sharded, backward, step, gradients, largest)
    else:
        is_divided = num_in_update > training.micro_batch_tokens  # earlier micro-batches leave gradients
        backward += beside + (gradients if is_divided else 0)
        peak = max(backward, step) + largest
    update = in_use + states + peak
    parts = {
        "weights and libraries": in_use,
        "optimizer": states,
        "gradients": float(gradients),
        "cache": cache,
        "activations": backward,
    }
    return MemoryPrediction(sampling, update, parts, _available(policy.device))


def memory_in_use(device: torch.device) -> float:
    """Return the memory of this process on the device of the policy, in bytes."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    release_freed_memory()  # otherwise, the result would include memory that loading the weights has freed
    return float(psutil.Process().memory_info().rss)


def optimizer_bytes(trained: Iterable[Tensor], training: TrainingConfig) -> float:
    """Return the size of the optimizer's state in bytes: moments, and float32 copies of weights."""
    weights = list(trained)
    total = float(copied_bytes(weights, training))
    for weight in weights:
        is_float32 = training.optimizer == "adamw_8bit" or (is_half(weight) and training.master_weights)
        is_8_bit = training.optimizer == "adamw_8bit" and weight.numel() >= 4096
        total += weight.numel() * (BITS_8 if is_8_bit else 2 * (4 if is_float32 else weight.dtype.itemsize))
    return total


def copied_bytes(trained: Iterable[Tensor], training: TrainingConfig) -> int:
    """Return the size of the float32 copies of weights in half precision."""
    return sum(4 * weight.numel() for weight in trained if is_half(weight) and training.master_weights)


def _step_bytes(trained: Iterable[Tensor], training: TrainingConfig) -> float:
    """Return how many bytes an optimizer step needs temporarily, in addition to the gradients."""
    weights = list(trained)
    halves = [weight for weight in weights if is_half(weight)]
    copied = 0
    if training.master_weights and halves:
        copied = 4 * max(MAX_COPIED, max(weight.numel() for weight in halves))
    elif halves:
        copied = _num_bytes(halves)  # copies of the weights before the step, for counting the changed weights
    is_8_bit = training.optimizer == "adamw_8bit" and weights[0].device.type == "cpu"
    largest = max(weight.numel() for weight in weights)
    return copied + (4 * TEMPORARY_8_BIT * largest if is_8_bit else 0)


def _sharded_peak(sharded: ShardedModel, backward: float, step: float, gradients: int, largest: int) -> float:
    """Return the peak memory of an update with FSDP. The unsharded policy is freed during the update."""
    whole = _num_bytes(sharded.whole.parameters())
    outside, layer = sharded.gathered_sizes()
    # 4 * layer: the weights of one layer and of the next, and the layer's gradient with a copy to be sent
    of_layer, of_outside = backward + 4 * layer, 2 * outside
    gathered = gradients + outside + max(of_layer, of_outside)
    # at the end, the whole policy is gathered again
    return max(gathered - whole, step - whole, gradients + largest)


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _available(device: torch.device) -> float:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free + torch.cuda.memory_allocated(device))
    # the processes of this machine share its memory
    available = psutil.virtual_memory().available / num_local_processes()
    return float(available + psutil.Process().memory_info().rss)


def release_freed_memory() -> None:
    """Make glibc return the memory of freed tensors to the system. With another C library, do nothing."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
