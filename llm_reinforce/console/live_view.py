"""Live view of a run on a terminal.

The signs ✓ and ✗ show the verdicts of the verifier. The rewards are also shown, because training maximizes
the rewards, and a reward can differ from the verdict.
"""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderableType, RenderHook
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment
from rich.table import Table
from rich.text import Text

from llm_reinforce.console.run_display import (
    Pace,
    PlainDisplay,
    Work,
    evaluating_sentence,
    latest_numbers,
    next_pace,
)
from llm_reinforce.console.text import accuracy_title, duration, fitted, shown_accuracy, visible

if TYPE_CHECKING:
    from llm_reinforce.episodes import Episode
    from llm_reinforce.evaluation import Evaluation
    from llm_reinforce.verifier import Verdict

NUM_AVERAGED = 20  # maximum number of latest updates over which the reward is averaged
NUM_SAMPLES = 40  # maximum number of episodes that are shown
SAMPLE_SECONDS = 2.0  # minimum time for which the same episodes are shown, in seconds
REFRESHES_PER_SECOND = 4
MIN_SAMPLE_LINES = 6  # lines that are kept for episodes before the reward chart gets more than one line
MAX_CHART_LINES = 10
# minimum widths, in columns, at which accuracies are shown with the number of the update and with a curve
MEDIUM, WIDE = 72, 100
BARS = "▁▂▃▄▅▆▇█"


def display_for(console: Console, title: str = "") -> "LiveDisplay | PlainDisplay":
    """Return a live view if the console is a terminal, and otherwise a display that prints plain lines.

    Args:
        console: console to print to.
        title: heading of the live view.
    """
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(console, title)
    return PlainDisplay(console)


class _Accuracy(NamedTuple):
    num_updates: int
    accuracy: float
    interval: tuple[float, float]


@dataclass
class _Picture:
    """Data of the live view, written by the training loop and read by the thread that refreshes the view."""

    title: str
    pace: Pace | None = None
    work: Work = field(default_factory=Work)
    stopping: str = ""
    accuracy_title: str = ""
    numbers: Mapping[str, str] = field(default_factory=dict)
    rewards: list[tuple[int, float]] = field(default_factory=list)  # (number of the update, reward)
    accuracies: dict[str, list[_Accuracy]] = field(default_factory=dict)  # by decoding
    samples: "Sequence[Episode]" = ()
    is_finished: bool = False

    def add_accuracy(self, decoding: str, accuracy: _Accuracy) -> None:
        # a new dict and list, because the thread that refreshes the view may be iterating over the old ones
        self.accuracies = {**self.accuracies, decoding: [*self.accuracies.get(decoding, ()), accuracy]}


class LiveDisplay:
    """Live view of a run, refreshed by a thread four times per second. Use it as a context manager."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self._picture = _Picture(title)
        self._sampled_at = -SAMPLE_SECONDS
        self._eraser = _Eraser(console)
        self._live = Live(
            get_renderable=self.render,
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=False,
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        self.console.push_render_hook(self._eraser)
        return self

    def __exit__(self, *exception: object) -> None:
        self._picture.is_finished = True
        self._live.refresh()
        self.console.pop_render_hook()
        self._live.stop()

    def say(self, sentence: str) -> None:
        self.console.print(Text(visible(sentence), style="dim"))

    def restored(
        self, updates: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
    ) -> None:
        picture = self._picture
        picture.rewards = [
            (row["update"], row["reward"]) for row in updates if isinstance(row.get("reward"), float)
        ]
        picture.accuracies = {}
        for row in evaluations:
            picture.accuracy_title = accuracy_title(row["data"])
            picture.add_accuracy(
                row["decoding"], _Accuracy(row["update"], row["accuracy"], tuple(row["interval"]))
            )

    def working(self, sentence: str) -> None:
        self._picture.work.sentence = sentence

    def warm_start(self, num_updates: int, total: int, loss: float) -> None:
        picture = self._picture
        picture.pace = next_pace(picture.pace, "warm start", num_updates, total, None)
        picture.work = Work()
        picture.numbers = {"loss": f"{loss:.3f}"}

    def update(
        self, num_updates: int, total: int, metrics: Mapping[str, float], episodes: "Sequence[Episode]"
    ) -> None:
        picture, seconds = self._picture, metrics.get("step_time")
        picture.pace = next_pace(picture.pace, "REINFORCE", num_updates, total, seconds)
        picture.work = Work()
        picture.numbers = latest_numbers(metrics, len(episodes))
        if "reward" in metrics:
            picture.rewards.append((num_updates, metrics["reward"]))
        if time.monotonic() - self._sampled_at >= SAMPLE_SECONDS or num_updates == total:
            self._sampled_at = time.monotonic()
            picture.samples = evenly_spaced(episodes, NUM_SAMPLES)

    def evaluating(self, num_problems: int, total: int) -> None:
        self.working(evaluating_sentence(num_problems, total))

    def evaluation(self, num_updates: int, data: str, evaluation: "Evaluation") -> None:
        picture = self._picture
        picture.accuracy_title = accuracy_title(data)
        picture.work = Work()
        latest = _Accuracy(num_updates, evaluation.accuracy, evaluation.interval)
        picture.add_accuracy(evaluation.decoding, latest)

    def stopping(self, sentence: str) -> None:
        """Show `sentence`, which says that the run will stop, at the next refresh.

        This method is safe to call from a signal handler.
        """
        self._picture.stopping = sentence

    def render(self) -> RenderableType:
        return self._eraser.measured(render(self._picture, self.console))


class _Eraser(RenderHook):
    """Erases the remains of a view whose lines were wrapped because the terminal became narrower.

    Before `rich.live.Live` prints the next view, it moves the cursor up by the number of lines of the last
    view. After a terminal has become narrower, these lines occupy more lines of the terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._widths: list[int] = []  # numbers of columns of the lines of the last view

    def measured(self, view: RenderableType) -> RenderableType:
        """Return the view as a renderable that records the widths of its lines when it is printed."""
        return _Measured(view, self)

    def record(self, lines: Sequence[Sequence[Segment]]) -> None:
        self._widths = [Segment.get_line_length(list(line)) for line in lines]

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        width = max(1, self._console.width)
        num_more = sum(max(0, -(-each // width) - 1) for each in self._widths)
        up_and_erase = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
        # the first renderable moves the cursor to the first line of the last view
        return [*renderables[:1], Control(*(up_and_erase * num_more)), *renderables[1:]]


@dataclass(frozen=True)
class _Measured:
    view: RenderableType
    eraser: _Eraser

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        lines = console.render_lines(self.view, options, pad=False)
        self.eraser.record(lines)
        for line in lines:
            yield from line
            yield Segment.line()


def render(picture: _Picture, console: Console) -> RenderableType:
    """Return the live view. The chart of rewards and the episodes fill the height of the terminal."""
    width = console.width
    parts: list[RenderableType] = [_head(picture, width), _progress_bar(picture), _status(picture)]
    sections = _number_tables(picture.numbers, picture.rewards, width)
    is_done = picture.is_finished and picture.pace is not None and picture.pace.done == picture.pace.total
    if picture.accuracies and not is_done:  # after the run, a separate table shows the accuracies
        sections.append(Group("", _accuracies(picture, width)))

    def num_lines_of(part: RenderableType) -> int:
        return len(console.render_lines(part, pad=False))

    # the last line is empty, and the terminal shows the ^C of Ctrl+C in it
    room = console.height - 1 - sum(map(num_lines_of, parts))
    for section in sections:
        if (num_lines := num_lines_of(section)) <= room:
            parts.append(section)
            room -= num_lines
    if len(picture.rewards) > 1 and room >= MIN_SAMPLE_LINES:
        num_lines = min(MAX_CHART_LINES, max(1, (room - MIN_SAMPLE_LINES) // 3))
        parts += ["", reward_chart(list(picture.rewards), width, num_lines)]
        room -= 1 + num_lines + (num_lines > 1)
    if picture.samples and room > 2:
        parts += ["", _samples(evenly_spaced(picture.samples, room - 2), width)]
    return Group(*parts, "")


def _head(picture: _Picture, width: int) -> RenderableType:
    return Text(fitted(picture.title, width), style="bold", no_wrap=True)


def _status(picture: _Picture) -> RenderableType:
    if picture.is_finished:
        return ""
    work = picture.work
    is_shown = work.is_long() or work.sentence.startswith("evaluating")
    progress = f"{work.sentence} · {duration(work.seconds())}" if is_shown else ""
    return Text.assemble(
        (picture.stopping, "bold yellow"), "\n" if picture.stopping and progress else "", (progress, "dim")
    )


def _progress_bar(picture: _Picture) -> RenderableType:
    pace = picture.pace
    line = Table.grid(expand=True, padding=(0, 1))
    line.add_column(no_wrap=True, style="cyan")
    line.add_column(ratio=1)
    for _ in range(2):
        line.add_column(no_wrap=True, justify="right")
    if pace is None:
        line.add_row("before training", ProgressBar(total=1, completed=0), "", "")
        return line
    left = None if picture.is_finished or pace.done == pace.total else pace.left()
    line.add_row(
        pace.name,
        ProgressBar(total=pace.total, completed=pace.done),
        f"{pace.done:,}/{pace.total:,}",
        duration(pace.elapsed()) + ("" if left is None else f", {duration(left)} left"),
    )
    return line


def _number_tables(
    numbers: Mapping[str, str], rewards: Sequence[tuple[int, float]], width: int
) -> list[RenderableType]:
    """Return tables of two lines, each with as many metrics as fit into the width."""
    shown = {name: value for name, value in numbers.items() if name != "reward"}
    if rewards:
        recent = [reward for _, reward in rewards[-NUM_AVERAGED:]]
        shown = {f"reward, last {len(recent)}": f"{sum(recent) / len(recent):.3f}", **shown}
    tables: list[RenderableType] = []
    row: dict[str, str] = {}
    for name, value in [*shown.items(), ("", "")]:
        used = sum(max(len(key), len(each)) + 2 for key, each in row.items())
        if row and (not name or used + max(len(name), len(value)) > width):
            table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
            for key in row:
                table.add_column(key, no_wrap=True)
            table.add_row(*(Text(each, style="bold") for each in row.values()))
            tables.append(table)
            row = {}
        row[name] = value
    return tables


def _accuracies(picture: _Picture, width: int) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(4):
        table.add_column()
    for decoding, made in picture.accuracies.items():
        first, last = made[0], made[-1]
        before = f"{first.accuracy:.1%} → " if len(made) > 1 else ""
        table.add_row(
            Text(f"{picture.accuracy_title}, {decoding}", style="dim"),
            Text.assemble(before, (shown_accuracy(last.accuracy, last.interval), "bold green")),
            Text(f"at update {last.num_updates:,}" if width >= MEDIUM else "", style="dim"),
            Text(curve([each.accuracy for each in made], 20), style="cyan", no_wrap=True)
            if width >= WIDE and len(made) > 1
            else "",
        )
    return table


def reward_chart(rewards: Sequence[tuple[int, float]], width: int, num_lines: int) -> RenderableType:
    """Return a bar chart of the rewards of all updates, with the range of its values and its updates.

    Args:
        rewards: pairs of the number of an update and its mean reward; at least one.
        width: number of columns.
        num_lines: number of lines of bars. If it is above 1, the chart has another line with its title.
    """
    values = [reward for _, reward in rewards]
    updates = f"updates {rewards[0][0]:,} to {rewards[-1][0]:,}"
    if num_lines == 1:
        num_bars = max(1, min(len(values), width - len(f"reward 0.000 to 0.000, {updates}") - 4))
        points = averaged(values, num_bars)
        label = f"reward {min(points):.3f} to {max(points):.3f}, {updates}"
        return Text.assemble((f"{label}  ", "dim"), (bar_chart(points, 1)[0], "cyan"), no_wrap=True)
    num_columns = max(1, width - 10)
    points = averaged(values, num_columns)
    low, high = f"{min(points):.3f}", f"{max(points):.3f}"
    num_each = len(values) / len(points)
    each = f", {num_each:.3g} per bar" if num_each > 1 else ""
    labels = [high, *[""] * (num_lines - 2), low]
    wide = [point for point in points for _ in range(max(1, num_columns // len(points)))]
    margin = max(len(low), len(high))
    lines = [
        Text.assemble((f"{label:>{margin}} ", "dim"), (bars, "cyan"), no_wrap=True)
        for label, bars in zip(labels, bar_chart(wide, num_lines), strict=True)
    ]
    return Group(Text(f"reward, {updates}{each}", style="dim"), *lines)


def _samples(episodes: "Sequence[Episode]", width: int) -> RenderableType:
    """Return a table with a line per episode. The reference answer is shown beside a wrong answer."""
    is_verified = any(each.verdict for each in episodes)  # otherwise there are no reference answers
    head, explained = "right answer", "completion (✓ ✗: the verdict)" if is_verified else "completion"
    limit = max(len(head), width // 5)
    answers = [
        fitted(each.problem.answer or "", limit) if each.verdict and not each.verdict.correct else ""
        for each in episodes
    ]
    answer_width = max(len(head), *map(cell_len, answers)) if any(answers) else 0
    rest = width - len("✓  ") - 2 - len("reward") - (answer_width + 2 if answer_width else 0)
    prompts = [fitted(episode.problem.prompt, rest * 2 // 5) for episode in episodes]
    prompt_width = max(len("prompt"), *map(cell_len, prompts))
    completion_width = max(len("completion"), rest - prompt_width - 2)
    completions = [fitted(episode.completion.text, completion_width) for episode in episodes]
    completion_width = min(completion_width, max(len(explained), *map(cell_len, completions)))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("", no_wrap=True, width=1)
    table.add_column("prompt", no_wrap=True, width=prompt_width)
    title = explained if len(explained) <= completion_width else "completion"
    table.add_column(title, no_wrap=True, width=completion_width)
    if answer_width:
        table.add_column(head, no_wrap=True, width=answer_width)
    table.add_column("reward", no_wrap=True, justify="right", width=6)
    for episode, prompt, completion, answer in zip(episodes, prompts, completions, answers, strict=True):
        table.add_row(
            _mark(episode.verdict),
            Text(prompt),
            Text(completion),
            *([Text(answer)] if answer_width else []),
            "none" if episode.reward is None else f"{episode.reward:.2f}",
        )
    return table


def _mark(verdict: "Verdict | None") -> Text:
    if verdict is None:
        return Text("")
    return Text("✓", style="green") if verdict.correct else Text("✗", style="red")


def averaged(values: Sequence[float], max_points: int) -> list[float]:
    """Return at most `max_points` means of consecutive values."""
    num_points = min(max_points, len(values))
    edges = [len(values) * point // num_points for point in range(num_points + 1)]
    return [sum(values[start:stop]) / (stop - start) for start, stop in itertools.pairwise(edges)]


def bar_chart(points: Sequence[float], num_lines: int) -> list[str]:
    """Return a bar chart as lines of text, the top line first, scaled to the range of the points.

    >>> bar_chart([0.0, 0.5, 1.0], 2)
    [' ▁█', '▁██']
    """
    low, high = min(points), max(points)
    num_steps = num_lines * len(BARS) - 1
    heights = [1 + round((point - low) / ((high - low) or 1.0) * num_steps) for point in points]
    return [
        "".join(f" {BARS}"[min(max(height - line * len(BARS), 0), len(BARS))] for height in heights)
        for line in reversed(range(num_lines))
    ]


def curve(values: Sequence[float], width: int) -> str:
    """Return a bar chart of the values as one line of text, scaled to the range of the values.

    The chart has at most `width` bars. If there are more values than bars, each bar shows the mean of several
    values.

    >>> curve([0.0, 0.1, 0.5, 1.0], 4)
    '▁▂▅█'
    """
    return bar_chart(averaged(values, width), 1)[0]


def evenly_spaced(episodes: "Sequence[Episode]", count: int) -> "Sequence[Episode]":
    """Return `count` episodes of an update at evenly spaced positions, regardless of their rewards."""
    count = min(count, len(episodes))
    return [episodes[len(episodes) * index // count] for index in range(count)]
