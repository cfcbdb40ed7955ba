"""Displays of a run's progress: their interface, a display that prints plain lines, and a silent display.

The live views for terminals and notebooks are in `live_view.py`.
"""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from rich.console import Console

from llm_reinforce.console.text import accuracy_title, duration, shown_accuracy, visible

if TYPE_CHECKING:
    from llm_reinforce.episodes import Episode
    from llm_reinforce.evaluation import Evaluation

# PlainDisplay prints a line after every 5% of the updates, but at most one line per 2 s. Slow runs get a line
# after every update that ends at least 60 s after the last line.
LINE_SHARE, LINE_SECONDS, MAX_SILENCE = 0.05, 2.0, 60.0
# displays show the progress within an update or evaluation after 5 s, and PlainDisplay repeats it every 30 s
LONG_SECONDS, REPEAT_SECONDS = 5.0, 30.0
# short names of the main metrics, with their logged names and formats
TRENDS = {
    "reward": ("reward", ".3f"),
    "entropy": ("entropy", ".3f"),
    "grad norm": ("grad_norm", ".3g"),
    "length": ("completions/mean_length", ".1f"),
    "truncated": ("completions/clipped_ratio", ".0%"),
}


@runtime_checkable
class Display(Protocol):
    """Interface through which the training loop shows its progress. All methods should return quickly."""

    def say(self, sentence: str) -> None:
        """Show a message."""

    def restored(
        self, updates: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
    ) -> None:
        """Load the history of a resumed run: the rows of `metrics.jsonl` and of `evaluations.jsonl`."""

    def working(self, sentence: str) -> None:
        """Record the progress within the current update. It is shown if the update takes a long time."""

    def warm_start(self, num_updates: int, total: int, loss: float) -> None:
        """Show supervised update number `num_updates` of `total`, with its loss in nats per token."""

    def update(
        self, num_updates: int, total: int, metrics: Mapping[str, float], episodes: "Sequence[Episode]"
    ) -> None:
        """Show policy-gradient update number `num_updates` of `total`, with its metrics and episodes."""

    def evaluating(self, num_problems: int, total: int) -> None:
        """Show that `num_problems` of the `total` problems of the current evaluation are completed."""

    def evaluation(self, num_updates: int, data: str, evaluation: "Evaluation") -> None:
        """Show the result of an evaluation.

        Args:
            num_updates: number of updates before the evaluation.
            data: kind of the evaluated problems, "held_out" or "training".
            evaluation: the result.
        """


class RunDisplay(Display, Protocol):
    """Display that is also a context manager. The context lasts for the duration of the run."""

    def __enter__(self) -> object: ...

    def __exit__(self, *exception: object) -> None: ...

    def stopping(self, sentence: str) -> None:
        """Show `sentence`, which says that the run will stop. This method is called from a signal handler."""


def write_on_stderr(sentence: str) -> None:
    """Print a line on stderr from a signal handler.

    The line is written directly to file descriptor 2, because `print` fails if the signal interrupted another
    `print` to the same stream.
    """
    with suppress(OSError):
        os.write(2, f"{sentence}\n".encode())


class Silent:
    """Display that shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def say(self, sentence: str) -> None: ...

    def restored(
        self, updates: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
    ) -> None: ...

    def working(self, sentence: str) -> None: ...

    def warm_start(self, num_updates: int, total: int, loss: float) -> None: ...

    def update(
        self, num_updates: int, total: int, metrics: Mapping[str, Any], episodes: "Sequence[Episode]"
    ) -> None: ...

    def evaluating(self, num_problems: int, total: int) -> None: ...

    def evaluation(self, num_updates: int, data: str, evaluation: "Evaluation") -> None: ...

    def stopping(self, sentence: str) -> None: ...


@dataclass
class Pace:
    """Progress and remaining time of a phase of the run: the warm start or the policy-gradient updates.

    Attributes:
        name: name of the phase.
        total: number of updates of the phase.
        done: number of updates made so far.
        first: number of updates that were made before the time measurement started; above 0 in a resumed run.
        started: time at which the time measurement started, in seconds of `time.monotonic`.
    """

    name: str
    total: int
    done: int
    first: int
    started: float

    def elapsed(self) -> float:
        """Return the number of seconds since the time measurement started."""
        return time.monotonic() - self.started

    def left(self) -> float | None:
        """Return the estimated remaining time in seconds, or None if no update has been made yet.

        The estimate is based on the mean time per update so far, including the time of evaluations.
        """
        num_done = self.done - self.first
        return self.elapsed() / num_done * (self.total - self.done) if num_done > 0 else None


def next_pace(pace: Pace | None, name: str, done: int, total: int, seconds: float | None) -> Pace:
    """Return the progress of a phase after another update. The first update of a phase creates a new `Pace`.

    Args:
        pace: progress before the update; None before the first update of the run.
        name: name of the phase.
        done: number of updates of the phase that have been made.
        total: number of updates of the phase.
        seconds: duration of the update in seconds; None if the duration is unknown.
    """
    if pace is None or pace.name != name:
        first = done if seconds is None else done - 1
        return Pace(name, total, done, first, time.monotonic() - (seconds or 0.0))
    pace.done, pace.total = done, total
    return pace


@dataclass
class Work:
    """Progress within the current update or evaluation.

    Attributes:
        sentence: latest progress; empty if none has been reported.
        started: time at which the update or evaluation started, in seconds of `time.monotonic`.
        shown_time: time at which PlainDisplay last printed the sentence.
    """

    sentence: str = ""
    started: float = field(default_factory=lambda: time.monotonic())
    shown_time: float = -REPEAT_SECONDS

    def seconds(self) -> float:
        """Return the duration of the update or evaluation so far."""
        return time.monotonic() - self.started

    def is_long(self) -> bool:
        """Return True if the update or evaluation has taken so long that its progress should be shown."""
        return bool(self.sentence) and self.seconds() >= LONG_SECONDS


def evaluating_sentence(num_problems: int, total: int) -> str:
    """Return a sentence about the progress of an evaluation."""
    return f"evaluating: {num_problems:,} of {total:,} problems"


class PlainDisplay:
    """Display for log files and pipes. It prints a line for each evaluation and for some updates."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._pace: Pace | None = None
        self._shown_at = -1
        self._shown_time = -MAX_SILENCE
        self._work = Work()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._ended.clear()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()

    def say(self, sentence: str) -> None:
        # one call of `write`, because the thread of `_watch` may write at the same time
        self.console.file.write(f"{visible(sentence)}\n")
        self.console.file.flush()

    def restored(
        self, updates: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
    ) -> None: ...

    def working(self, sentence: str) -> None:
        self._work.sentence = sentence

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self.show_long_work()

    def show_long_work(self) -> None:
        """Print the progress within a long update or evaluation, but not more often than every 30 seconds."""
        work = self._work
        if work.is_long() and time.monotonic() - work.shown_time >= REPEAT_SECONDS:
            work.shown_time = time.monotonic()
            self.say(f"{work.sentence} · {duration(work.seconds())} so far")

    def warm_start(self, num_updates: int, total: int, loss: float) -> None:
        self._progress("warm start", num_updates, total, None, {"loss": f"{loss:.3f}"})

    def update(
        self, num_updates: int, total: int, metrics: Mapping[str, float], episodes: "Sequence[Episode]"
    ) -> None:
        numbers = latest_numbers(metrics, len(episodes))
        if "num_tokens" in metrics:
            numbers["tokens"] = f"{metrics['num_tokens']:,.0f}"
        self._progress("update", num_updates, total, metrics.get("step_time"), numbers)

    def evaluating(self, num_problems: int, total: int) -> None:
        self.working(evaluating_sentence(num_problems, total))

    def evaluation(self, num_updates: int, data: str, evaluation: "Evaluation") -> None:
        self._work = Work()
        accuracy = shown_accuracy(evaluation.accuracy, evaluation.interval)
        counts = f"{evaluation.correct} of {evaluation.total}"
        self.say(f"update {num_updates}: {accuracy_title(data)}, {evaluation.decoding}: {accuracy}, {counts}")

    def stopping(self, sentence: str) -> None:
        write_on_stderr(sentence)

    def _progress(
        self, name: str, done: int, total: int, seconds: float | None, numbers: Mapping[str, str]
    ) -> None:
        self._work = Work()
        is_new = self._pace is None or self._pace.name != name
        self._pace = next_pace(self._pace, name, done, total, seconds)
        silence = time.monotonic() - self._shown_time
        far = done - self._shown_at >= LINE_SHARE * total and silence >= LINE_SECONDS
        if not (is_new or far or silence >= MAX_SILENCE or done == total):
            return
        self._shown_at, self._shown_time = done, time.monotonic()
        left = self._pace.left()
        parts = [f"{name} {done}/{total}", *(f"{key} {value}" for key, value in numbers.items())]
        self.say(" · ".join(parts) + (f" · {duration(left)} left" if left and done < total else ""))


def latest_numbers(metrics: Mapping[str, float], num_episodes: int) -> dict[str, str]:
    """Return the main metrics of an update, as a mapping from short names to formatted values.

    Args:
        metrics: metrics of the update.
        num_episodes: number of episodes of the update. The metric `episodes/s` is computed from this number.
    """
    shown = {name: format(metrics[key], form) for name, (key, form) in TRENDS.items() if key in metrics}
    if metrics.get("num_unscored"):
        shown["unscored"] = f"{metrics['num_unscored']:.0f}"
    if metrics.get("refill/num_tokens"):
        shown["refill tokens"] = f"{metrics['refill/num_tokens']:,.0f}"
    if metrics.get("step_time"):
        rate = num_episodes / metrics["step_time"]
        shown["episodes/s"] = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
    return shown
