"""The laboratory's figures as pictures: estimators side by side, and the article's claims."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm_reinforce.analysis.classifier_claim import ClassifierFigures
from llm_reinforce.analysis.constant_claim import ConstantFigures
from llm_reinforce.analysis.gradient_statistics import Measured
from llm_reinforce.analysis.gradient_variance import VarianceFigures
from llm_reinforce.analysis.length_claim import CoinFigures, LengthFigures
from llm_reinforce.analysis.plot_style import STYLES, Style, plotting, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

PAID = {
    "each step": "a reward for each head, as it falls",
    "at the end": "for all heads, at the end",
    "verdict": "a verdict on the first toss",
}


def plot_variance(figures: VarianceFigures, folder: Path) -> list[Path]:
    """`variance`: each estimator's variance and noise scale; the files written.

    Raises:
        ModuleNotFoundError: matplotlib isn't installed.
    """
    with plotting():
        from matplotlib.figure import Figure

        rows = figures.estimators
        figure = Figure(figsize=(8.4, 1.4 + 0.28 * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for row, each in enumerate(rows):
            style = STYLES[0] if each.is_unbiased else STYLES[1]
            _bar(left, row, each.variance, style.color, style.marker)
            _bar(right, row, each.snr, style.color, style.marker)
        right.axvline(0, color="#999999", linewidth=0.8)
        left.set_xlabel("variance of an episode")
        _in_decades(left.xaxis)
        right.set(xlabel=f"signal-to-noise ratio of an update of {figures.episodes_per_update:,} episodes")
        left.set_yticks(range(len(rows)), [each.name for each in rows])
        left.set_ylim(len(rows) - 0.5, -0.5)
        for axes in (left, right):
            axes.grid(axis="y", color="#eeeeee")
            _plain(axes)
        figure.supxlabel("line: 95% interval; circle: unbiased; square: biased", fontsize=8)
        return write_figure(figure, folder, "variance")


def plot_constant(figures: Sequence[ConstantFigures], folder: Path) -> list[Path]:
    """`constant`: each baseline's variance against the constant that was added to the rewards.

    Raises:
        ModuleNotFoundError: matplotlib isn't installed.
    """
    with plotting():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        names = list(dict.fromkeys(each.baseline for each in figures))
        for name, style in zip(names, STYLES, strict=False):
            own = [each for each in figures if each.baseline == name]
            at = [each.constant for each in own]
            label = name if name != "none" else "none (line: predicted)"
            line = [each.measured.value if each.predicted is None else each.predicted for each in own]
            axes.plot(at, line, color=style.color, linestyle=style.dashes, linewidth=1.2)
            _points(axes, at, [each.measured for each in own], style, label)
        axes.set(yscale="log", xlabel="constant added to every reward", ylabel="variance of an episode")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        _plain(axes)
        return write_figure(figure, folder, "constant")


def plot_classifier(figures: Sequence[ClassifierFigures], folder: Path) -> list[Path]:
    """`classifier`: the variance with each way to place the same rewards.

    Raises:
        ModuleNotFoundError: matplotlib isn't installed.
    """
    with plotting():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 1.2 + 0.35 * len(figures)), layout="constrained")
        axes = figure.subplots()
        for row, each in enumerate(figures):
            _bar(axes, row, each.measured, STYLES[0].color, "o")
            axes.plot(each.predicted, row + 0.25, "x", color=STYLES[1].color, markersize=5)
        axes.set_yticks(range(len(figures)), [each.name for each in figures])
        axes.set_ylim(len(figures) - 0.5, -0.5)
        axes.set_xlabel("variance of an episode (circle: measured, cross: predicted)")
        _in_decades(axes.xaxis)
        axes.grid(axis="y", color="#eeeeee")
        _plain(axes)
        return write_figure(figure, folder, "classifier")


def plot_length(coins: Sequence[CoinFigures], figures: Sequence[LengthFigures], folder: Path) -> list[Path]:
    """`length`: coins, and the gradient's variance against the number of actions.

    Raises:
        ModuleNotFoundError: matplotlib isn't installed.
    """
    with plotting():
        from matplotlib.figure import Figure

        kinds = list(dict.fromkeys(each.paid for each in figures))
        figure = Figure(figsize=(10.4, 3.4), layout="constrained")
        panels = figure.subplots(1, 1 + len(kinds))
        _plot_coins(panels[0], coins)
        for axes, paid in zip(panels[1:], kinds, strict=True):
            names = list(dict.fromkeys(each.estimator for each in figures))
            for name, style in zip(names, STYLES, strict=False):
                own = [each for each in figures if (each.paid, each.estimator) == (paid, name)]
                at = [each.num_actions for each in own]
                axes.plot(at, [each.predicted for each in own], color=style.color, linestyle=style.dashes)
                _points(axes, at, [each.measured for each in own], style, name)
            axes.set_title(PAID[paid], fontsize=9)
        for axes in panels:
            axes.set(xscale="log", yscale="log")
            axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
            axes.minorticks_off()
            _plain(axes)
        panels[1].set_ylabel("variance of an episode's gradient")
        for axes in panels[1:]:
            axes.set_xlabel("actions")
        handles, labels = panels[1].get_legend_handles_labels()
        title = "points: measured, 95% intervals; lines: predicted"
        figure.legend(
            handles, labels, ncols=len(labels), frameon=False, loc="outside lower center", title=title
        )
        return write_figure(figure, folder, "length")


def _plot_coins(axes: "Axes", coins: Sequence[CoinFigures]) -> None:
    at = [each.num_coins for each in coins]
    same, own = [each.one_coin for each in coins], [each.independent for each in coins]
    axes.plot(at, [each.expected_one_coin for each in coins], color=STYLES[4].color)
    axes.plot(at, [each.expected_independent for each in coins], color=STYLES[5].color)
    _points(axes, at, same, STYLES[4], "one coin, N times: N²/4")
    _points(axes, at, own, STYLES[5], "N coins: N/4")
    axes.set(xlabel="coins, N", ylabel="variance of the heads")
    axes.set_title("heads of N coins", fontsize=9)
    axes.legend(frameon=False, fontsize=8)


def _points(
    axes: "Axes", at: Sequence[float], measured: Sequence[Measured], style: Style, label: str
) -> None:
    values = [each.value for each in measured]
    below = [max(0.0, each.value - each.low) for each in measured]
    above = [max(0.0, each.high - each.value) for each in measured]
    axes.errorbar(
        at,
        values,
        yerr=[below, above],
        color=style.color,
        marker=style.marker,
        markersize=4,
        linestyle="none",
        label=label,
    )


def _bar(axes: "Axes", row: int, measured: Measured, color: str, marker: str) -> None:
    axes.plot((measured.low, measured.high), (row, row), color=color, linewidth=1.6, solid_capstyle="butt")
    axes.plot(measured.value, row, marker, color=color, markersize=5)


def _in_decades(axis: "Axis") -> None:
    """A logarithmic axis with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.axes.set_xscale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value:,.0f}")
    axis.set_minor_formatter(NullFormatter())


def _plain(axes: "Axes") -> None:
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
