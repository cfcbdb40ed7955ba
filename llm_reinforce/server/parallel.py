"""Function calls in several threads, whose results are yielded as soon as they are available."""

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

WAIT = 1.0  # seconds between two calls of `on_wait`

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    num_threads: int,
    on_wait: Callable[[], None] | None = None,
) -> Iterator[tuple[int, Result]]:
    """Call a function with each item in several threads, and yield the index and the result of each item.

    The results are yielded in the order in which the calls end. If a call raises an exception, this function
    raises the exception at once. The threads do not keep the process alive. Therefore, calls that wait for a
    server do not delay the end of the run.

    Args:
        work: function that is called with one item.
        items: arguments of the calls, one for each call.
        num_threads: maximum number of calls at the same time.
        on_wait: function that is called in the caller's thread once per second while no call ends. If this
            function raises an exception, no further calls are started.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    ended: SimpleQueue[tuple[int, Result | None, BaseException | None]] = SimpleQueue()
    stopped = threading.Event()
    for index in range(len(items)):
        waiting.put(index)

    def loop() -> None:
        while not stopped.is_set():
            try:
                index = waiting.get_nowait()
            except Empty:
                return
            try:
                ended.put((index, work(items[index]), None))
            except BaseException as error:
                ended.put((index, None, error))

    for _ in range(min(num_threads, len(items))):
        threading.Thread(target=loop, daemon=True).start()
    num_left = len(items)
    try:
        while num_left:
            try:
                index, result, error = ended.get(timeout=WAIT)
            except Empty:
                if on_wait is not None:
                    on_wait()
                continue
            if error is not None:
                raise error
            num_left -= 1
            yield index, result  # type: ignore[misc]
    finally:
        stopped.set()
