"""Process-wide settings are restored after an update: garbage collector and random generators."""

import gc
import random

import numpy as np
import pytest
import torch

from llm_reinforce.training import host_process


@pytest.mark.parametrize("before", [(700, 10, 10), (50_000, 20, 100), (0, 10, 10)])
def test_the_garbage_collector_is_restored(before: tuple[int, int, int]) -> None:
    usual = gc.get_threshold()
    gc.set_threshold(*before)
    try:
        with host_process.fewer_collections():
            assert gc.get_threshold() == (
                max(host_process.NUM_NEW, before[0]) if before[0] else 0,
                *before[1:],
            )
            assert gc.get_freeze_count()
        assert gc.get_threshold() == before
        assert not gc.get_freeze_count()
    finally:
        gc.set_threshold(*usual)


def test_objects_frozen_by_the_caller_stay_frozen() -> None:
    gc.freeze()
    try:
        with host_process.fewer_collections():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_random_generators_are_seeded_and_restored() -> None:
    def numbers() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with host_process.seeded(7):
        inside = numbers()
    after = numbers()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert numbers() == after
    with host_process.seeded(7):
        assert numbers() == inside
