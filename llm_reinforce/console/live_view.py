"""Live view of a run on a terminal.

The signs ✓ and ✗ show the verdicts of the verifier. The rewards are also shown, because training maximizes
the rewards, and a reward can differ from the verdict.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llm_reinforce.console.run_display import Pace, PlainDisplay, latest_numbers, next_pace
from llm_reinforce.console.text import accuracy_title, duration, shown_accuracy, visible

if TYPE_CHECKING:
    from llm_reinforce.episodes import Episode
    from llm_reinforce.evaluation import Evaluation

NUM_AVERAGED = 20  # number of latest updates over which the reward is averaged
NUM_SAMPLES = 4  # number of episodes that are shown
SAMPLE_SECONDS = 2.0  # minimum time for which the same episodes are shown, in seconds
REFRESHES_PER_SECOND = 4
BARS = "▁▂▃▄▅▆▇█"


def display_for(
    console: Console,
    title: str = "",
    *,
    first: Mapping[str, tuple[int, float]] | None = None,
) -> "LiveDisplay | PlainDisplay":
    """Return a live view if the console is a terminal, and otherwise a display that prints plain lines.

    Args:
        console: console to print to.
        title: heading of the live view.
        first: for a resumed run, a mapping from each decoding mode to a pair: the number of updates before
            the first evaluation of the run, and the accuracy of this evaluation. None if the run is not
            resumed.
    """
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(console, title, first or {})
    return PlainDisplay(console)


@dataclass
class _Picture:
    """Data of the live view, written by the training loop and read by the thread that refreshes the view."""

    title: str
    first: dict[str, tuple[int, float]]
    pace: Pace | None = None
    status: str = ""
    stopping: str = ""
    accuracy_title: str = ""
    numbers: Mapping[str, str] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    latest: dict[str, tuple[int, float, tuple[float, float]]] = field(default_factory=dict)
    samples: "Sequence[Episode]" = ()
    is_finished: bool = False


class LiveDisplay:
    """Live view of a run, refreshed by a thread four times per second. Use it as a context manager."""

    def __init__(self, console: Console, title: str, first: Mapping[str, tuple[int, float]]) -> None:
        self.console = console
        self._picture = _Picture(title, dict(first))
        self._sampled_at = -SAMPLE_SECONDS
        self._live = Live(
            get_renderable=self.render,
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=False,
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
        picture.pace = next_pace(picture.pace, "warm start", num_updates, total, None)
        picture.numbers = {"loss": f"{loss:.3f}"}

    def update(
        self, num_updates: int, total: int, metrics: Mapping[str, float], episodes: "Sequence[Episode]"
    ) -> None:
        picture, seconds = self._picture, metrics.get("step_time")
        picture.pace = next_pace(picture.pace, "REINFORCE", num_updates, total, seconds)
        picture.status = ""
        picture.numbers = latest_numbers(metrics, len(episodes))
        if "reward" in metrics:
            picture.rewards.append(metrics["reward"])
        if time.monotonic() - self._sampled_at >= SAMPLE_SECONDS or num_updates == total:
            self._sampled_at = time.monotonic()
            picture.samples = evenly_spaced(episodes, NUM_SAMPLES)

    def evaluating(self, num_problems: int, total: int) -> None:
        self._picture.status = f"evaluating problems {num_problems:,}/{total:,}"

    def evaluation(self, num_updates: int, data: str, evaluation: "Evaluation") -> None:
        picture = self._picture
        picture.accuracy_title = accuracy_title(data)
        picture.status = ""
        picture.first.setdefault(evaluation.decoding, (num_updates, evaluation.accuracy))
        latest = (num_updates, evaluation.accuracy, evaluation.interval)
        # a new dict, because the thread that refreshes the view may be iterating over the old dict
        picture.latest = {**picture.latest, evaluation.decoding: latest}

    def stopping(self, sentence: str) -> None:
        """Show `sentence`, which says that the run will stop, at the next refresh.

        This method is safe to call from a signal handler.
        """
        self._picture.stopping = sentence

    def render(self) -> RenderableType:
        return render(self._picture, self.console.height)


def render(picture: _Picture, height: int) -> RenderableType:
    """Return the live view, with as many episodes as fit into the height of the terminal."""
    parts: list[RenderableType] = [_head(picture), _progress_bar(picture.pace)]
    if picture.numbers:
        parts += ["", _numbers_table(picture.numbers, picture.rewards)]
    is_done = picture.is_finished and picture.pace is not None and picture.pace.done == picture.pace.total
    if picture.latest and not is_done:  # after the run, a separate table shows the accuracies
        parts += ["", _accuracies(picture)]
    room = height - 11 - len(picture.latest)
    if picture.samples and room > 0:
        parts += ["", _samples(picture.samples[:room])]
    return Group(*parts, "")  # an empty line, on which the terminal shows the ^C of Ctrl+C


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


def _samples(episodes: "Sequence[Episode]") -> RenderableType:
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
    """Return a bar chart of the values as one line of text, scaled to the range of the values.

    The chart has at most `width` bars. If there are more values than bars, each bar shows the mean of several
    values.

    >>> curve([0.0, 0.1, 0.5, 1.0], 4)
    '▁▂▅█'
    """
    num_points = min(width, len(values))
    edges = [len(values) * point // num_points for point in range(num_points + 1)]
    points = [sum(values[start:stop]) / (stop - start) for start, stop in itertools.pairwise(edges)]
    low, high = min(points), max(points)
    return "".join(BARS[round((point - low) / ((high - low) or 1.0) * (len(BARS) - 1))] for point in points)


def evenly_spaced(episodes: "Sequence[Episode]", count: int) -> "Sequence[Episode]":
    """Return `count` episodes of an update at evenly spaced positions, regardless of their rewards."""
    count = min(count, len(episodes))
    return [episodes[len(episodes) * index // count] for index in range(count)]
