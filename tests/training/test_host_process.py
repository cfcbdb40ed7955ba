"""Process-wide settings are restored after an update: garbage collector and random generators."""

import gc
import os
import platform
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from llm_reinforce.training import host_process


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_glibc_accepts_both_settings_unless_the_environment_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)
    for name, value in (("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert in_a_child(host_process.keep_freed_memory) is False
    assert in_a_child(host_process.keep_freed_memory) is True


def in_a_child(call: Callable[[], bool]) -> bool:
    """Return the result of a call in a forked process: settings of malloc are process-wide."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = int(call())
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1)
    return bool(code)


def test_other_c_libraries_are_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(host_process.ctypes, "CDLL", lambda name: object())
    assert not host_process.keep_freed_memory()


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
