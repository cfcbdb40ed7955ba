"""What a run borrows from the process it runs in, and gives back after each update.

Random generators and the garbage collector are as before whenever the caller's own code runs. Only the
command line, which owns its process, also changes how malloc keeps freed memory (`keep_freed_memory`).
"""

import ctypes
import gc
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils import set_seed

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as <malloc.h> numbers them
LARGEST_KEPT, MOST_KEPT = 32 << 20, 1 << 30  # bytes: of one block (the maximum allowed), of all free memory
NUM_NEW = 20_000  # objects, a few updates' worth: most are freed by reference counting


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed `random`, numpy and torch, from which reward functions may draw; restore them after."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    accelerators = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    set_seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if accelerators is not None:
            torch.cuda.set_rng_state_all(accelerators)


@contextmanager
def fewer_collections() -> Iterator[None]:
    """Let the garbage collector look at new objects only, and seldom, within the context.

    An update makes thousands of small objects, so the collector would run a dozen times in each, and every
    few
    dozen updates examine all objects there are: those of torch and transformers are half a million, which
        takes
    a quarter of a second. Objects that the caller has frozen stay frozen.
    """
    thresholds, has_frozen = gc.get_threshold(), gc.get_freeze_count() > 0
    if not has_frozen:
        gc.freeze()
    if thresholds[0]:  # 0: the collector is off
        gc.set_threshold(max(thresholds[0], NUM_NEW), *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if not has_frozen:
            gc.unfreeze()


def keep_freed_memory() -> bool:
    """Make glibc keep the memory of freed tensors for the next ones; return False if it can't.

    By default it returns much of it to the system, and each page that is used again costs a page fault: an
    update of a small policy takes a tenth longer. The setting lasts until the process ends, so only the
    command line makes it. Settings of malloc in the environment take precedence.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(M_TRIM_THRESHOLD, MOST_KEPT))
