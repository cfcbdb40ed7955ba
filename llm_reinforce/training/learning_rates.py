"""Learning-rate schedules."""

import warnings
from typing import Any

import torch
from transformers import get_scheduler


def learning_rate_schedule(
    name: str, optimizer: torch.optim.Optimizer, num_warmup_updates: int, num_updates: int
) -> Any:
    """Return the transformers schedule of this name, advanced by one step.

    The schedules of transformers start a warm-up and end a decay with a learning rate of 0. Here update k of
    W warm-up updates has k / (W + 1) of the highest rate, so the rate of every update is positive.

    Args:
        name: constant, constant_with_warmup, linear or cosine.
        optimizer: the optimizer; its learning rate is the highest rate.
        num_warmup_updates: number of updates with a rising rate.
        num_updates: number of updates of the run.
    """
    schedule = get_scheduler(name, optimizer, num_warmup_updates + 1, num_updates + 1)
    with warnings.catch_warnings():  # PyTorch warns because no optimizer step came before
        warnings.simplefilter("ignore", UserWarning)
        schedule.step()
    return schedule


def set_learning_rates(optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    """Set the learning rate of each parameter group to the schedule's rate at its current step."""
    factors = (factor(schedule.last_epoch) for factor in schedule.lr_lambdas)
    for group, highest, factor in zip(optimizer.param_groups, schedule.base_lrs, factors, strict=True):
        group["lr"] = highest * factor
