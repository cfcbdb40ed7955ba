"""Python's garbage collector, kept from looking again and again at what a run keeps anyway."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def what_is_there_stays() -> Iterator[None]:
    """Within it the collector looks at new objects only.

    An update makes thousands of small objects, so every few dozen updates the collector would go through all
    there are: of torch and transformers half a million, a quarter of a second each time.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
