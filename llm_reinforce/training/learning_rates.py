"""The learning rate of each update."""

import warnings
from typing import Any

import torch
from transformers import get_scheduler


def learning_rate_schedule(
    name: str, optimizer: torch.optim.Optimizer, num_warmup_updates: int, num_updates: int
) -> Any:
    """transformers' schedule of that name, one step ahead.

    Theirs starts a warm-up, and a fall ends, at a learning rate of 0. Here update k of a warm-up of W has
    the share k / (W + 1) of the highest rate, so that no update stands still.
    """
    schedule = get_scheduler(name, optimizer, num_warmup_updates + 1, num_updates + 1)
    with warnings.catch_warnings():  # PyTorch expects an optimiser's step before this
        warnings.simplefilter("ignore", UserWarning)
        schedule.step()
    return schedule


def set_learning_rates(optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    """Give each parameter group the rate that the schedule has where it stands."""
    shares = (share(schedule.last_epoch) for share in schedule.lr_lambdas)
    for group, highest, share in zip(optimizer.param_groups, schedule.base_lrs, shares, strict=True):
        group["lr"] = highest * share
