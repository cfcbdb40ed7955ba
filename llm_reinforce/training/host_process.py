"""Process-wide settings during an update: random generators, garbage collector and malloc.

Random generators and the garbage collector are restored after each update, before the caller's code runs.
The setting of malloc (`keep_freed_memory`) is permanent, so only the command line makes it.
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

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # constants of <malloc.h>
LARGEST_KEPT, MOST_KEPT = 32 << 20, 1 << 30  # bytes: per block (the maximum allowed), of all free memory
NUM_NEW = 20_000  # new objects between two collections: a few updates; reference counting frees most of them


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed `random`, NumPy and torch within the context, for reward functions that use random numbers.

    The states of the generators are restored afterwards.
    """
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
    """Make the garbage collector run less often within the context, and on new objects only.

    An update creates thousands of small objects. By default the collector would run a dozen times per update,
    and every few dozen updates it would examine all objects. torch and transformers have half a million of
    them, which takes a quarter of a second. Objects that the caller has frozen stay frozen.
    """
    thresholds, has_frozen = gc.get_threshold(), gc.get_freeze_count() > 0
    if not has_frozen:
        gc.freeze()
    if thresholds[0]:  # 0 means that the collector is disabled
        gc.set_threshold(max(thresholds[0], NUM_NEW), *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if not has_frozen:
            gc.unfreeze()


def keep_freed_memory() -> bool:
    """Make glibc keep the memory of freed tensors for later tensors; return True if it does.

    By default glibc returns much of this memory to the system, and each page that is used again costs a page
    fault. An update of a small policy then takes 10% longer. The setting lasts until the process ends.
    Nothing is changed with another C library, or if the environment has settings of malloc.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(M_TRIM_THRESHOLD, MOST_KEPT))
