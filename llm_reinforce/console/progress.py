"""How far a command is and how long the rest will take, on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from llm_reinforce.cli.common import note, showing_a_bar

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress(
    name: str, total: int, *, what: str = "problems", done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Yields what is to be told the number done: a bar on a terminal, a line now and then elsewhere.

    Args:
        what: is counted.
        done: how many were done before, which says nothing of the pace.
    """
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
    with showing_a_bar(console), bar:
        task = bar.add_task(name, total=total, completed=done)
        yield lambda done: bar.update(task, completed=done)


def _lines(name: str, total: int, what: str) -> Callable[[int], None]:
    from llm_reinforce.console.run_display import duration

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
