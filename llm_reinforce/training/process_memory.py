"""Memory, kept from being looked through, and from being given back, again and again."""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as <malloc.h> numbers them
LARGEST_KEPT, MOST_KEPT = 32 << 20, 1 << 30  # bytes: of a block, no more is allowed; of all that is free
NUM_NEW = 20_000  # objects, some updates' worth: what is in no cycle is freed without the collector


@contextmanager
def what_is_there_stays() -> Iterator[None]:
    """Within it the collector looks at new objects only, and seldom; memory of freed tensors stays here.

    An update makes thousands of small objects, so the collector would look at the latest a dozen times in it,
    and every few dozen updates at all there are: of torch and transformers half a million, a quarter of a
    second each time.
    """
    keep_freed_memory()
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    if thresholds[0]:  # 0: it is switched off
        gc.set_threshold(max(thresholds[0], NUM_NEW), *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of tensors that are freed, as the next ones will need it; False: it can't.

    Else it gives much of it back, and each page that is used anew costs a fault: a small policy's update
    takes a tenth longer. It stays so till the process ends. What the environment says of malloc holds.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(M_TRIM_THRESHOLD, MOST_KEPT))
