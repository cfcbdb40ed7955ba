"""The progress of a command and the time it still takes, on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from llm_reinforce.console.messages import messages_above_bar, note
from llm_reinforce.console.text import duration

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress(
    name: str, total: int, *, what: str = "problems", done: int = 0, is_shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number done; it updates a bar on a terminal, else prints some lines.

    Args:
        what: the unit that is counted.
        done: the number done before, which does not count for the pace.
        is_shown: if False, the function does nothing.
    """
    if not is_shown:
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        tell = _lines(name, total, what)
        if done:
            tell(done)
        yield tell
        return
    named, counted = TextColumn("{task.description}", markup=False), TextColumn(what, markup=False)
    columns = (named, BarColumn(), MofNCompleteColumn(), counted, TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    with messages_above_bar(console), bar:
        task = bar.add_task(name, total=total, completed=done)
        yield lambda done: bar.update(task, completed=done)


def _lines(name: str, total: int, what: str) -> Callable[[int], None]:
    begun: tuple[float, int] | None = None  # when it was first told, and how many were done by then
    shown = time.monotonic()

    def tell(done: int) -> None:
        nonlocal shown, begun
        now = time.monotonic()
        if begun is None:  # what an evaluation that goes on has found done says nothing of the pace
            begun = now, done
        started, first = begun
        if now - shown < SECONDS_BETWEEN_LINES or done in (total, first):
            return
        shown = now
        left = (now - started) / (done - first) * (total - done)
        note(f"{name}: {done:,} of {total:,} {what} · {duration(left)} left")

    return tell
