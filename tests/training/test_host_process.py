"""Process-wide settings are restored after an update: garbage collector and random generators."""

import gc
import os
import platform
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from llm_reinforce.training import host_process

# settings of malloc are process-wide, and settings of the environment leave them unchanged
PROGRAM = """
import os
from llm_reinforce.training.host_process import keep_freed_memory
for name, value in (("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")):
    os.environ[name] = value
    print(name, keep_freed_memory())
    del os.environ[name]
print("neither", keep_freed_memory())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_glibc_accepts_both_settings_unless_the_environment_has_some() -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=inherited, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["MALLOC_ARENA_MAX False", "GLIBC_TUNABLES False", "neither True"]


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
