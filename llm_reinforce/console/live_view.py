"""The live picture of a run on a terminal.

✓ and ✗ are the verifier's verdict, right or wrong; the reward beside them is what training maximises.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llm_reinforce.console.run_display import (
    Pace,
    PlainDisplay,
    accuracy_title,
    advanced,
    duration,
    latest_numbers,
    shown_accuracy,
    visible,
)
from llm_reinforce.episodes import Episode
from llm_reinforce.evaluation import Evaluation

NUM_AVERAGED = 20  # the last updates, whose mean reward is shown
NUM_SAMPLES = 4
SAMPLE_SECONDS = 2.0  # a sample stays long enough to be read
REFRESHES_A_SECOND = 4
BARS = "▁▂▃▄▅▆▇█"


def display_for(
    console: Console,
    title: str = "",
    *,
    num_processes: int = 1,
    first: Mapping[str, tuple[int, float]] | None = None,
) -> "TerminalDisplay | PlainDisplay":
    """A live picture where the console is a terminal, else plain lines.

    Args:
        title: what is trained, for the picture's head.
        num_processes: each process tells of its own episodes; this many work side by side.
        first: by decoding, update and accuracy of the first evaluation of a run that goes on.
    """
    if console.is_terminal and not console.is_dumb_terminal:
        return TerminalDisplay(console, title, num_processes, first or {})
    return PlainDisplay(console, num_processes)


@dataclass
class _Picture:
    """All that the live picture shows; the loop writes it, and the refreshing thread reads it."""

    title: str
    first: dict[str, tuple[int, float]]
    pace: Pace | None = None
    status: str = ""
    stopping: str = ""
    accuracy_title: str = ""
    numbers: Mapping[str, str] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    latest: dict[str, tuple[int, float, tuple[float, float]]] = field(default_factory=dict)
    samples: Sequence[Episode] = ()
    is_finished: bool = False


class TerminalDisplay:
    """A picture that is drawn anew up to four times a second by a thread of its own; use it as a context."""

    def __init__(
        self, console: Console, title: str, num_processes: int, first: Mapping[str, tuple[int, float]]
    ) -> None:
        self.console = console
        self.num_processes = num_processes
        self._picture = _Picture(title, dict(first))
        self._sampled_at = -SAMPLE_SECONDS
        self._live = Live(
            get_renderable=self._draw, console=console, refresh_per_second=REFRESHES_A_SECOND, transient=False
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._picture.is_finished = True
        self._live.stop()

    def say(self, sentence: str) -> None:
        self.console.print(Text(visible(sentence), style="dim"))

    def warm_start(self, num_updates: int, total: int, loss: float) -> None:
        picture = self._picture
        picture.pace = advanced(picture.pace, "warm start", num_updates, total, None)
        picture.numbers = {"loss": f"{loss:.3f}"}

    def update(
        self, num_updates: int, total: int, metrics: Mapping[str, float], episodes: Sequence[Episode]
    ) -> None:
        picture, seconds = self._picture, metrics.get("step_time")
        picture.pace = advanced(picture.pace, "REINFORCE", num_updates, total, seconds)
        picture.status = ""
        picture.numbers = latest_numbers(metrics, len(episodes) * self.num_processes)
        if "reward" in metrics:
            picture.rewards.append(metrics["reward"])
        if time.monotonic() - self._sampled_at >= SAMPLE_SECONDS or num_updates == total:
            self._sampled_at = time.monotonic()
            picture.samples = evenly_spaced(episodes, NUM_SAMPLES)

    def evaluating(self, num_problems: int, total: int) -> None:
        self._picture.status = f"asking problems {num_problems:,}/{total:,}"

    def evaluation(self, num_updates: int, data: str, evaluation: Evaluation) -> None:
        picture = self._picture
        picture.accuracy_title = accuracy_title(data)
        picture.status = ""
        picture.first.setdefault(evaluation.decoding, (num_updates, evaluation.accuracy))
        latest = (num_updates, evaluation.accuracy, evaluation.interval)
        picture.latest = {
            **picture.latest,
            evaluation.decoding: latest,
        }  # a new dict, since a thread reads the old

    def stopping(self, sentence: str) -> None:
        """Called from a signal handler: it only leaves the sentence for the next drawing."""
        self._picture.stopping = sentence

    def _draw(self) -> RenderableType:
        return draw(self._picture, self.console.height)


def draw(picture: _Picture, height: int) -> RenderableType:
    """The picture, with as many samples as the terminal's height leaves room for."""
    parts: list[RenderableType] = [_head(picture), _progress_bar(picture.pace)]
    if picture.numbers:
        parts += ["", _numbers_table(picture.numbers, picture.rewards)]
    is_done = picture.is_finished and picture.pace is not None and picture.pace.done == picture.pace.total
    if picture.latest and not is_done:  # in the end a table says it all
        parts += ["", _accuracies(picture)]
    room = height - 11 - len(picture.latest)
    if picture.samples and room > 0:
        parts += ["", _samples(picture.samples[:room])]
    return Group(*parts, "")  # the ^C that a terminal echoes needs a line of its own


def _head(picture: _Picture) -> RenderableType:
    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    head.add_column(no_wrap=True, justify="right")
    style = "bold yellow" if picture.stopping else "dim"
    note = Text(picture.stopping or picture.status, style=style)
    head.add_row(Text(picture.title, style="bold"), "" if picture.is_finished else note)
    return head


def _progress_bar(pace: Pace | None) -> RenderableType:
    line = Table.grid(expand=True, padding=(0, 1))
    line.add_column(no_wrap=True, style="cyan")
    line.add_column(ratio=1)
    for _ in range(2):
        line.add_column(no_wrap=True, justify="right")
    if pace is None:
        line.add_row("before training", ProgressBar(total=1, completed=0), "", "")
        return line
    left = pace.left()
    rest = "" if pace.done == pace.total or left is None else f", {duration(left)} left"
    line.add_row(
        pace.name,
        ProgressBar(total=pace.total, completed=pace.done),
        f"{pace.done:,}/{pace.total:,}",
        f"{duration(pace.elapsed())}{rest}",
    )
    return line


def _numbers_table(numbers: Mapping[str, str], rewards: Sequence[float]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    values: list[Text] = []
    if rewards:
        recent = rewards[-NUM_AVERAGED:]
        table.add_column(f"reward, last {NUM_AVERAGED}", no_wrap=True)
        mean = sum(recent) / len(recent)
        values.append(Text.assemble((f"{mean:.3f} ", "bold"), (curve(rewards, 12), "cyan")))
    for name, value in numbers.items():
        if name != "reward":
            table.add_column(name, no_wrap=True)
            values.append(Text(value, style="bold"))
    table.add_row(*values)
    return table


def _accuracies(picture: _Picture) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(no_wrap=True, overflow="ellipsis")
    for decoding, (num_updates, accuracy, interval) in picture.latest.items():
        begun_at, begun = picture.first[decoding]
        before = f"{begun:.1%} → " if begun_at != num_updates else ""
        table.add_row(
            Text(f"{picture.accuracy_title}, {decoding}", style="dim"),
            Text.assemble(before, (shown_accuracy(accuracy, interval), "bold green")),
            Text(f"at update {num_updates:,}", style="dim"),
        )
    return table


def _samples(episodes: Sequence[Episode]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    table.add_column("", no_wrap=True, width=1)
    table.add_column("prompt", ratio=2, no_wrap=True, overflow="ellipsis")
    table.add_column("completion (✓ ✗: the verdict)", ratio=3, no_wrap=True, overflow="ellipsis")
    table.add_column("reward", no_wrap=True, justify="right")
    for episode in episodes:
        is_right = episode.verdict.correct
        table.add_row(
            Text("✓", style="green") if is_right else Text("✗", style="red"),
            Text(visible(episode.problem.prompt, 60)),
            Text(visible(episode.completion.text, 90)),
            "none" if episode.reward is None else f"{episode.reward:.2f}",
        )
    return table


def curve(values: Sequence[float], width: int) -> str:
    """The course of the values in at most `width` characters, from the lowest bar to the highest.

    >>> curve([0.0, 0.1, 0.5, 1.0], 4)
    '▁▂▅█'
    """
    num_points = min(width, len(values))
    edges = [len(values) * point // num_points for point in range(num_points + 1)]
    points = [sum(values[start:stop]) / (stop - start) for start, stop in itertools.pairwise(edges)]
    low, high = min(points), max(points)
    return "".join(BARS[round((point - low) / ((high - low) or 1.0) * (len(BARS) - 1))] for point in points)


def evenly_spaced(episodes: Sequence[Episode], count: int) -> Sequence[Episode]:
    """Some of an update's episodes, chosen by their place and not by how good they are."""
    count = min(count, len(episodes))
    return [episodes[len(episodes) * index // count] for index in range(count)]
