"""Display of a command's progress on stderr, with an estimate of the remaining time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from llm_reinforce.console.messages import is_live, messages_above_bar, note
from llm_reinforce.console.text import duration

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress(
    name: str, total: int, *, what: str = "problems", done: int = 0, is_shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show progress in a `with` block. Yield a function that takes the number of items done so far.

    On a terminal, the function updates a progress bar. Otherwise, it prints a line every 30 seconds.

    Args:
        name: heading of the progress bar or line.
        total: total number of items.
        what: name of the items, in the plural.
        done: number of items that were already done before the block, for example by an interrupted
            evaluation. The estimate of the remaining time ignores these items.
        is_shown: if False, nothing is shown.
    """
    if not is_shown:
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not is_live(console):
        show = _lines(name, total, what)
        if done:
            show(done)
        yield show
        return
    named, counted = TextColumn("{task.description}", markup=False), TextColumn(what, markup=False)
    columns = (named, BarColumn(), MofNCompleteColumn(), counted, TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    with messages_above_bar(console), bar:
        task = bar.add_task(name, total=total, completed=done)
        yield lambda done: bar.update(task, completed=done)


def _lines(name: str, total: int, what: str) -> Callable[[int], None]:
    begun: tuple[float, int] | None = None  # time of the first call, and number of items done at that time
    shown = time.monotonic()

    def show(done: int) -> None:
        nonlocal shown, begun
        now = time.monotonic()
        if begun is None:  # the time per item is measured from the first call on
            begun = now, done
        started, first = begun
        if now - shown < SECONDS_BETWEEN_LINES or done in (total, first):
            return
        shown = now
        left = (now - started) / (done - first) * (total - done)
        note(f"{name}: {done:,} of {total:,} {what} · {duration(left)} left")

    return show
