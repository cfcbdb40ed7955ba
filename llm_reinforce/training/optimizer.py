"""The optimizer of the policy, and its learning-rate schedule."""

import warnings
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import get_scheduler

from llm_reinforce.config import TrainingConfig
from llm_reinforce.errors import InputError
from llm_reinforce.processes import sharding
from llm_reinforce.training.adamw import adamw, is_half


def new_optimizer(
    model: nn.Module, training: TrainingConfig, accelerator: Accelerator
) -> tuple[AcceleratedOptimizer, Any]:
    """Return the optimizer of the trainable weights, and its learning-rate schedule.

    Args:
        model: the model, on the device of the accelerator. With FSDP, it is the sharded copy.
        training: settings of the optimizer and of the schedule.
        accelerator: the accelerator of the run.

    Raises:
        InputError: if no weight can be trained, if a package of the optimizer is missing (see `adamw`), or
            if gradients are scaled and trained weights are in half precision.
    """
    # a gradient scaler does not see the gradients of weights that have float32 copies, and it rejects
    # gradients in half precision
    if accelerator.scaler is not None and any(
        each.requires_grad and is_half(each) for each in model.parameters()
    ):
        raise InputError(
            "training.mixed_precision: fp16 needs trained weights in float32, but the policy has trained "
            "weights in half precision; load the policy in float32, or set training.mixed_precision to "
            "'no'"
        )
    optimizer = adamw(model, training)
    schedule = learning_rate_schedule(
        training.schedule, optimizer, training.num_warmup_updates, training.num_updates
    )
    if sharding() is not None:  # `prepare` would require that accelerate itself shards the model
        return AcceleratedOptimizer(optimizer), schedule
    return accelerator.prepare(optimizer), schedule


def learning_rate_schedule(
    name: str, optimizer: torch.optim.Optimizer, num_warmup_updates: int, num_updates: int
) -> Any:
    """Return a learning-rate schedule of transformers whose rate is positive in every update.

    In transformers, the rate of a schedule is 0 at the first step of a warm-up and after the last step of a
    decay. To avoid updates with a rate of 0, the warm-up and the whole schedule are made one step longer,
    and the first step is skipped. In a warm-up of W updates, the rate of update k is k / (W + 1) times the
    highest rate.

    Args:
        name: constant, constant_with_warmup, linear or cosine.
        optimizer: the optimizer, whose learning rate is the highest rate of the schedule.
        num_warmup_updates: number of updates with a rising rate.
        num_updates: number of updates of the run.
    """
    schedule = get_scheduler(name, optimizer, num_warmup_updates + 1, num_updates + 1)
    with warnings.catch_warnings():  # PyTorch warns if a schedule is advanced before the optimizer
        warnings.simplefilter("ignore", UserWarning)
        schedule.step()
    return schedule


def set_learning_rates(optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    """Set the learning rate of each parameter group to the schedule's rate at its current step."""
    factors = (factor(schedule.last_epoch) for factor in schedule.lr_lambdas)
    for group, highest, factor in zip(optimizer.param_groups, schedule.base_lrs, factors, strict=True):
        group["lr"] = highest * factor
