"""Await the coroutines of reward functions in one event loop per process."""

import asyncio
import os
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Thread, current_thread

from llm_reinforce.errors import LeaveAtOnce


def await_all(coroutines: Sequence[Awaitable[object]]) -> list[object]:
    """Run the coroutines concurrently and return the result or the exception of each.

    All coroutines of reward functions run in one event loop per process.
    """
    if not coroutines:
        return []

    process = os.getpid()

    async def guarded_one(coroutine: Awaitable[object]) -> object:
        try:
            return await coroutine
        except LeaveAtOnce:
            raise
        except BaseException as error:
            return error
        finally:
            if os.getpid() != process:  # a forked child, as in `call_guarded`
                os._exit(0)

    async def together() -> list[object]:
        return list(await asyncio.gather(*map(guarded_one, coroutines)))

    loop, own_thread = _event_loop(process)
    if current_thread() is own_thread:  # called by a coroutine of this loop: waiting would deadlock
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, together()).result()
    results = asyncio.run_coroutine_threadsafe(together(), loop)
    try:
        return results.result()
    except BaseException:  # the caller is interrupted
        results.cancel()
        raise


_loops: dict[int, tuple[asyncio.AbstractEventLoop, Thread]] = {}


def _event_loop(process: int) -> tuple[asyncio.AbstractEventLoop, Thread]:
    """Return the event loop of this process and the thread in which the loop runs.

    As in TRL, one loop is used for all batches, so that functions can reuse objects that are bound to a loop,
    such as a semaphore, a lock or a client with open connections. The loop runs in a separate thread, because
    the caller's thread may already be running a loop (in a notebook, for example). A forked child process
    does not use the loop of its parent process. It creates a new loop.
    """
    if process not in _loops:
        loop = asyncio.new_event_loop()
        thread = Thread(target=_run_forever, args=[loop], name="asynchronous rewards", daemon=True)
        if _loops.setdefault(process, (loop, thread))[0] is loop:
            thread.start()
        else:  # another thread has created the loop in the meantime
            loop.close()
    return _loops[process]


def _run_forever(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        with suppress(BaseException):  # a user's task has called sys.exit() or stopped the loop
            loop.run_forever()
