"""Process-wide state during an update: random generators and garbage collector.

The states of random generators and the garbage collector are restored after each update, before the code of
the caller runs.
"""

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils import set_seed

# garbage is collected after this number of new objects, which is about once in a few updates
NUM_NEW = 20_000


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
    """Reduce the time of garbage collection within the context.

    The collector runs less often, and examines only objects that were created within the context. An update
    creates thousands of small objects. By default, the collector would run a dozen times per update. Every
    few dozen updates, it would examine all objects of the process, which takes a quarter of a second, because
    torch and transformers create half a million objects. Objects that the caller has frozen with `gc.freeze`
    remain frozen.
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
