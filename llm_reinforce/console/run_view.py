"""View of a run as lines of text: progress, accuracy with its interval, metrics, and sampled episodes.

The signs ✓ and ✗ show the verdicts of the verifier. The rewards are also shown, because training maximizes
the rewards, and a reward can differ from the verdict.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise, zip_longest
from operator import itemgetter
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.cells import cell_len, chop_cells
from rich.text import Text

from llm_reinforce.console.run_display import (
    TRENDS,
    Pace,
    Work,
    evaluating_sentence,
    latest_numbers,
    next_pace,
)
from llm_reinforce.console.text import accuracy_title, duration, fitted, shown_accuracy, visible

if TYPE_CHECKING:
    from llm_reinforce.episodes import Episode
    from llm_reinforce.evaluation import Evaluation

SAMPLE_SECONDS = 2.0  # minimum time for which the same episodes are shown, in seconds
WIDE = 120  # minimum number of columns at which the metrics are shown beside the accuracies
MIN_SAMPLE_LINES = 5  # number of lines that are reserved for episodes
MAX_SAMPLE_LINES = 11
COLUMNS_PER_EVALUATION = 12  # maximum width of a chart between two evaluations
MIN_METRIC_COLUMNS = 28  # minimum width of a metric with its sparkline
BARS = "▁▂▃▄▅▆▇█"
BRAILLE_DOTS = ((0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08))  # left and right dots, from the bottom
# replacements for consoles that cannot print the signs
ASCII_SIGNS = str.maketrans(f"{BARS}━─·…→✓✗≥", ".:-=+*#@=--~>+x>")


class Accuracy(NamedTuple):
    """Result of an evaluation: the number of updates before it, the accuracy, and its 95% interval."""

    num_updates: int
    accuracy: float
    interval: tuple[float, float]


class RunView:
    """Display that records the state of a run, and returns a view of this state as lines of text.

    The training loop calls the methods of `Display`. Another thread may call `lines` at the same time.

    Args:
        title: heading of the view.
        num_tokens: number of sampled tokens after which the run ends. None: only the number of updates is
            limited.
    """

    def __init__(self, title: str = "", num_tokens: int | None = None) -> None:
        self.title, self.token_budget, self.num_tokens = title, num_tokens, 0
        self.pace: Pace | None = None
        self.work = Work()
        self.stopping_sentence = ""
        self.numbers: Mapping[str, str] = {}
        self.trends: dict[str, list[float]] = {name: [] for name in ("loss", *TRENDS)}
        self.accuracy_title = ""
        self.accuracies: dict[str, list[Accuracy]] = {}  # by decoding
        self.samples: Sequence[Episode] = ()
        self.sampled_at = -SAMPLE_SECONDS
        self.is_finished = False

    def restored(
        self, updates: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
    ) -> None:
        for name, (key, _) in TRENDS.items():
            self.trends[name] = [row[key] for row in updates if isinstance(row.get(key), int | float)]
        self.accuracies = {}
        for row in evaluations:
            made = Accuracy(row["update"], row["accuracy"], tuple(row["interval"]))
            self._add_accuracy(row["data"], row["decoding"], made)

    def changed(self) -> None:
        """Called after each change of the state. Override it if no thread refreshes the view."""

    def working(self, sentence: str) -> None:
        self.work.sentence = sentence
        self.changed()

    def warm_start(self, num_updates: int, total: int, loss: float) -> None:
        self.pace = next_pace(self.pace, "warm start", num_updates, total, None)
        self.work = Work()
        self.trends["loss"].append(loss)
        self.numbers = {"loss": f"{loss:.3f}"}
        self.changed()

    def update(
        self, num_updates: int, total: int, metrics: Mapping[str, float], episodes: "Sequence[Episode]"
    ) -> None:
        self.pace = next_pace(self.pace, "REINFORCE", num_updates, total, metrics.get("step_time"))
        self.work = Work()
        self.numbers = latest_numbers(metrics, len(episodes))
        self.num_tokens = int(metrics.get("num_tokens", 0))
        for name, (key, _) in TRENDS.items():
            if key in metrics:
                self.trends[name].append(metrics[key])
        if time.monotonic() - self.sampled_at >= SAMPLE_SECONDS or num_updates == total:
            self.sampled_at, self.samples = time.monotonic(), episodes
        self.changed()

    def evaluating(self, num_problems: int, total: int) -> None:
        self.working(evaluating_sentence(num_problems, total))

    def evaluation(self, num_updates: int, data: str, evaluation: "Evaluation") -> None:
        self.work = Work()
        made = Accuracy(num_updates, evaluation.accuracy, evaluation.interval)
        self._add_accuracy(data, evaluation.decoding, made)
        self.changed()

    def stopping(self, sentence: str) -> None:
        """Show `sentence`, which says that the run will stop. A signal handler may call this method."""
        self.stopping_sentence = sentence

    def _add_accuracy(self, data: str, decoding: str, accuracy: Accuracy) -> None:
        self.accuracy_title = accuracy_title(data)
        # a new dict and list, because another thread may be iterating over the old ones
        self.accuracies = {**self.accuracies, decoding: [*self.accuracies.get(decoding, ()), accuracy]}

    def lines(self, width: int, height: int, encoding: str = "utf-8") -> list[Text]:
        """Return the view as fewer than `height` lines, each of at most `width` columns.

        If the view does not fit into the height, the episodes are omitted first, and then lines of the
        charts.

        Args:
            width: number of columns, at least 20.
            height: number of lines of the terminal.
            encoding: encoding of the output. If it is not UTF-8, ASCII signs replace blocks and arrows.
        """
        is_ascii = not encoding.lower().startswith("utf")
        lines = [Text(fitted(self.title, width), "bold"), *self._progress(width), *self._status(width)]
        samples, is_wide = self.samples, width >= WIDE and bool(self.accuracies)
        room = height - 1 - len(lines) - (1 + MIN_SAMPLE_LINES if samples else 0)
        num_lines = max(1, height // 4)  # maximum number of lines of each chart, and of the metrics
        if is_wide:
            left = self._accuracies(width // 2 - 3, room, num_lines, is_ascii=is_ascii)
            lines += _side_by_side(left, self._metrics(width - width // 2, 1), width // 2)
        else:
            metrics = self._metrics(width, 2)[:num_lines]
            lines += self._accuracies(width, room - 1 - len(metrics), num_lines, is_ascii=is_ascii)
            lines += [Text(), *metrics] if metrics else []
        if samples and (room := height - 2 - len(lines)) > 1:
            lines += [Text(), *sample_lines(samples, width, min(room, MAX_SAMPLE_LINES))]
        for line in lines:
            line.no_wrap, line.overflow = True, "crop"
            if is_ascii:
                line.plain = line.plain.translate(ASCII_SIGNS).encode(encoding, "replace").decode(encoding)
        return lines[: height - 1]

    def _progress(self, width: int) -> list[Text]:
        """Return a progress bar, and lines with the used and the remaining time and tokens."""
        pace = self.pace
        if pace is None:
            return [Text(fitted("before training", width), "cyan")]
        counts = f"{pace.done:,}/{pace.total:,}"
        num_columns = max(0, width - len(pace.name) - len(counts) - 2)
        num_done = num_columns * pace.done // max(1, pace.total)
        bar = [(f"{pace.name} {'━' * num_done}", "cyan"), ("─" * (num_columns - num_done), "dim")]
        has_more = not self.is_finished and pace.done < pace.total
        left = pace.left() if has_more else None
        used = [(duration(pace.elapsed()) + (f", {duration(left)} left" if left is not None else ""), "")]
        if self.num_tokens:
            used.append((f"{self.num_tokens:,} tokens{self._tokens_left(pace) if has_more else ''}", ""))
        return [Text.assemble(*bar, f" {counts}"), *flow(used, width, " · ")]

    def _tokens_left(self, pace: Pace) -> str:
        expected = self.num_tokens / pace.done * (pace.total - pace.done)
        budget = None if self.token_budget is None else max(0, self.token_budget - self.num_tokens)
        if budget is not None and budget <= expected:
            return f", {budget:,} left"
        return f", about {float(f'{expected:.2g}'):,.0f} left"

    def _status(self, width: int) -> list[Text]:
        """Return the message that the run will stop, and the progress within a long update or evaluation.

        If there is neither, an empty line is returned.
        """
        work = self.work
        is_shown = work.is_long() or work.sentence.startswith("evaluating")
        progress = (
            f"{work.sentence} · {duration(work.seconds())}" if is_shown and not self.is_finished else ""
        )
        stopping = [Text(line, "bold yellow") for line in wrap(self.stopping_sentence, width)]
        return [*stopping, *([Text(fitted(progress, width), "dim")] if progress else [])] or [Text()]

    def _accuracies(self, width: int, room: int, max_chart_lines: int, *, is_ascii: bool) -> list[Text]:
        """Return lines with the accuracies and their charts, at most `room` lines if possible.

        Each chart has at least one line.
        """
        accuracies, lines = self.accuracies, []
        heads = {decoding: self._accuracy(decoding, made, width) for decoding, made in accuracies.items()}
        num_each = (room - sum(map(len, heads.values()))) // max(1, len(heads))
        num_lines = max(1, min(max_chart_lines, num_each))
        for decoding, head in heads.items():
            lines += head
            if len(accuracies[decoding]) > 1:
                lines += band_chart(accuracies[decoding], width, num_lines, is_ascii=is_ascii)
        return lines

    def _accuracy(self, decoding: str, made: Sequence[Accuracy], width: int) -> list[Text]:
        first, last = made[0], made[-1]
        before = f"{first.accuracy:.1%} → " if len(made) > 1 else ""
        pieces = [
            (f"{self.accuracy_title}, {decoding}", "dim"),
            (before + shown_accuracy(last.accuracy, last.interval), "bold green"),
        ]
        rest = (f"at update {last.num_updates:,}", "95% band" if len(made) > 1 else "")
        for text in filter(None, rest):
            if sum(len(piece) + 2 for piece, _ in pieces) + len(text) <= width:
                pieces.append((text, "dim"))
        return flow(pieces, width)

    def _metrics(self, width: int, max_columns: int) -> list[Text]:
        """Return the metrics in columns, each with its latest value and a sparkline of all its values."""
        numbers = self.numbers
        if not numbers:
            return []
        num_columns = min(len(numbers), max_columns, max(1, (width + 2) // (MIN_METRIC_COLUMNS + 2)))
        num_lines = -(-len(numbers) // num_columns)
        column = (width + 2) // num_columns - 2
        name_width, value_width = max(map(len, numbers)), max(map(len, numbers.values()))
        lines = [Text() for _ in range(num_lines)]
        for index, (name, value) in enumerate(numbers.items()):
            line, start = lines[index % num_lines], index // num_lines * (column + 2)
            line.append(" " * (start - len(line)))
            line.append(f"{name:<{name_width}} ", "dim").append(f"{value:>{value_width}} ", "bold")
            trend = list(self.trends.get(name, ()))
            line.append(curve(trend, column - name_width - value_width - 2), "cyan")
        return lines


def _side_by_side(left: Sequence[Text], right: Sequence[Text], column: int) -> list[Text]:
    """Join each line of `left` with the line of `right` beside it, which starts at `column`."""
    lines = []
    for first, second in zip_longest(left, right, fillvalue=Text()):
        lines.append(Text.assemble(first, " " * (column - first.cell_len if second else 0), second))
    return lines


def flow(pieces: Sequence[tuple[str, str]], width: int, separator: str = "  ") -> list[Text]:
    """Return lines filled with styled pieces of text. A piece wider than a line is shortened."""
    lines: list[Text] = []
    for text, style in pieces:
        piece = Text(fitted(text, width), style)
        if lines and lines[-1].cell_len + cell_len(separator) + piece.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], (separator, "dim"), piece)
        else:
            lines.append(piece)
    return lines


def band_chart(made: Sequence[Accuracy], width: int, num_lines: int, *, is_ascii: bool = False) -> list[Text]:
    """Return a chart of accuracies with their intervals, over the number of updates.

    The band between the limits of the intervals consists of Braille dots. In ASCII, it consists of `:`, with
    `o` at the accuracy. Between two evaluations, the band is interpolated.

    Args:
        made: at least two evaluations, in the order of their updates.
        width: maximum number of columns.
        num_lines: number of lines.
        is_ascii: use only ASCII signs.
    """
    # the range of the vertical axis: the multiples of 5% around the intervals
    bottom = min(int(20 * each.interval[0] + 1e-9) for each in made) / 20
    top = max(-int(-20 * each.interval[1] + 1e-9 - 1) for each in made) / 20
    labels = [f"{top:.0%}", *[""] * (num_lines - 2), f"{bottom:.0%}"][-num_lines:]
    num_columns = max(1, min(width - 5, COLUMNS_PER_EVALUATION * (len(made) - 1)))
    across, up = (1, 1) if is_ascii else (2, 4)
    cells = [[0] * num_columns for _ in range(num_lines)]  # dots of each cell, from the bottom
    is_middle = [[False] * num_columns for _ in range(num_lines)]
    for x in range(num_columns * across):
        values = _interpolated(made, x / max(1, num_columns * across - 1))
        low, middle, high = (round((v - bottom) / (top - bottom) * (num_lines * up - 1)) for v in values)
        for y in range(low, high + 1):
            cells[y // up][x // across] |= BRAILLE_DOTS[x % across][y % up]
        is_middle[middle // up][x // across] = True
    lines = []
    for label, row, middles in zip(labels, reversed(cells), reversed(is_middle), strict=True):
        line = Text.assemble((f"{label:>4} ", "dim"))
        for middle, group in groupby(zip(row, middles, strict=True), key=itemgetter(1)):
            signs = [_sign(dots, middle, is_ascii) for dots, _ in group]
            line.append("".join(signs), "bold cyan" if middle else "blue")
        lines.append(line)
    return lines


def _sign(dots: int, is_middle: bool, is_ascii: bool) -> str:
    if not dots:
        return " "
    return ":o"[is_middle] if is_ascii else chr(0x2800 + dots)


def _interpolated(made: Sequence[Accuracy], position: float) -> tuple[float, float, float]:
    """Interpolate the accuracy and its interval linearly between the evaluations.

    Args:
        made: the evaluations.
        position: 0 for the first evaluation, 1 for the last evaluation.

    Returns:
        the lower limit of the interval, the accuracy, and the upper limit.
    """
    first, last = made[0].num_updates, made[-1].num_updates
    update = first + position * (last - first)
    before, after = next((a, b) for a, b in pairwise(made) if update <= b.num_updates or b is made[-1])
    share = (update - before.num_updates) / max(1, after.num_updates - before.num_updates)
    rows = ((each.interval[0], each.accuracy, each.interval[1]) for each in (before, after))
    low, middle, high = ((1 - share) * a + share * b for a, b in zip(*rows, strict=True))
    return low, middle, high


def sample_lines(episodes: "Sequence[Episode]", width: int, num_lines: int) -> list[Text]:
    """Return at most `num_lines` lines that show some of an update's episodes, chosen at equal intervals.

    If an episode does not fit into one line, only the first episode is shown, with its prompt and its
    completion on several lines.
    """
    count = min(num_lines - 1, len(episodes))
    shown = [episodes[len(episodes) * index // count] for index in range(count)]
    is_short = all(len(each.problem.prompt) + len(each.completion.text) < width for each in shown)
    table = _sample_table(shown) if is_short else []
    if table and max(line.cell_len for line in table) <= width:
        return table
    episode = episodes[0]
    pieces = [_verdict(episode), (f"reward {_reward(episode)}", "")]
    if episode.verdict is not None and not episode.verdict.correct:
        pieces += [
            (f"answer {fitted(episode.verdict.extracted or 'none', width // 2)}", ""),
            (f"correct answer {fitted(episode.problem.answer or '', width // 2)}", ""),
        ]
    head = flow(pieces, width, " · ")[: num_lines - 1]
    rest = num_lines - len(head)
    prompt = _folded(episode.problem.prompt, width, rest // 3, "dim")
    return [*head, *prompt, *_folded(episode.completion.text, width, rest - len(prompt), "")]


def _sample_table(episodes: "Sequence[Episode]") -> list[Text]:
    """Return a line with titles and a line per episode, with the correct answer beside a wrong answer."""
    rows = [("", "prompt", "completion", "reward", "correct answer")]
    for each in episodes:
        is_wrong = each.verdict is not None and not each.verdict.correct
        answer = visible(each.problem.answer or "") if is_wrong else ""
        texts = visible(each.problem.prompt), visible(each.completion.text)
        rows.append((_verdict(each)[0][:1], *texts, f"{_reward(each):>6}", answer))
    if not any(row[-1] for row in rows[1:]):
        rows = [(*row[:-1], "") for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for index, row in enumerate(rows):
        line = Text(style="" if index else "dim")
        for cell, width in zip(row, widths, strict=True):
            style = {"✓": "green", "✗": "red"}.get(cell, "")
            line.append(cell, style).append(" " * (width - cell_len(cell) + 2))
        line.rstrip()
        lines.append(line)
    return lines


def _verdict(episode: "Episode") -> tuple[str, str]:
    """Return the verdict on an episode as text, and the style of this text."""
    if episode.verdict is None:
        return "  not verified", ""
    if episode.verdict.correct:
        return "✓ correct", "green"
    return f"✗ wrong ({episode.verdict.reason.replace('_', ' ')})", "red"


def _reward(episode: "Episode") -> str:
    return "none" if episode.total_reward is None else f"{episode.total_reward:.2f}"


def _folded(text: str, width: int, num_lines: int, style: str) -> list[Text]:
    """Return the text on at most `num_lines` lines. The middle of a longer text is omitted."""
    if num_lines < 1:
        return []
    # the end of a line may be too short for a character of two columns, so the text may need more lines
    for num_columns in range(width * num_lines, 0, -1):
        lines = chop_cells(fitted(text, num_columns), width)
        if len(lines) <= num_lines:
            break
    return [Text(line, style) for line in lines]


def curve(values: Sequence[float], width: int) -> str:
    """Return a bar chart of the values as one line of text, scaled to the range of the values.

    The chart has at most `width` bars. If there are more values than bars, each bar shows the mean of several
    values.

    >>> curve([0.0, 0.1, 0.5, 1.0], 4)
    '▁▂▅█'
    """
    points = averaged(values, width)
    low, high = min(points, default=0.0), max(points, default=0.0)
    return "".join(BARS[round((point - low) / ((high - low) or 1.0) * (len(BARS) - 1))] for point in points)


def averaged(values: Sequence[float], max_points: int) -> list[float]:
    """Divide a sequence into at most `max_points` parts, and return the mean of each part."""
    num_points = max(0, min(max_points, len(values)))
    edges = [len(values) * point // max(1, num_points) for point in range(num_points + 1)]
    return [sum(values[start:stop]) / (stop - start) for start, stop in pairwise(edges)]
