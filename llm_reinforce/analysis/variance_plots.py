"""Plots of gradient variances.

One plot compares gradient estimators. The other plots show tests of the claims of the article "The Beauty of
Reinforcement Learning (1)".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm_reinforce.analysis.plot_style import STYLES, Style, plotting, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from llm_reinforce.analysis.classifier_claim import ClassifierVariance
    from llm_reinforce.analysis.constant_claim import ConstantVariance
    from llm_reinforce.analysis.gradient_statistics import IntervalEstimate
    from llm_reinforce.analysis.gradient_variance import GradientVariance
    from llm_reinforce.analysis.length_claim import CoinVariance, LengthVariance

TITLES = {
    "each step": "each head rewarded immediately",
    "at the end": "all heads rewarded at the end",
    "verdict": "first toss rewarded at the end",
}


def plot_variance(measured: "GradientVariance", folder: Path) -> list[Path]:
    """Plot the gradient variance and signal-to-noise ratio of each estimator. Return the written files.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    with plotting():
        from matplotlib.figure import Figure

        rows = measured.estimators
        figure = Figure(figsize=(8.4, 1.4 + 0.28 * len(rows)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for row, each in enumerate(rows):
            style = STYLES[0] if each.is_unbiased else STYLES[1]
            _bar(left, row, each.variance, style.color, style.marker)
            _bar(right, row, each.snr, style.color, style.marker)
        right.axvline(0, color="#999999", linewidth=0.8)
        left.set_xlabel("variance per episode")
        _make_logarithmic(left.xaxis)
        right.set(xlabel=f"signal-to-noise ratio of an update of {measured.episodes_per_update:,} episodes")
        left.set_yticks(range(len(rows)), [each.name for each in rows])
        left.set_ylim(len(rows) - 0.5, -0.5)
        for axes in (left, right):
            axes.grid(axis="y", color="#eeeeee")
            _hide_frame(axes)
        figure.supxlabel("line: 95% interval; circle: unbiased; square: biased", fontsize=8)
        return write_figure(figure, folder, "variance")


def plot_constant_claim(rows: "Sequence[ConstantVariance]", folder: Path) -> list[Path]:
    """Plot the gradient variance with each baseline against the constant that is added to every reward.

    Returns:
        the written files.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    with plotting():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        names = list(dict.fromkeys(each.baseline for each in rows))
        for name, style in zip(names, STYLES, strict=False):
            own = [each for each in rows if each.baseline == name]
            at = [each.constant for each in own]
            label = name if name != "none" else "none (line: predicted)"
            line = [each.measured.value if each.predicted is None else each.predicted for each in own]
            axes.plot(at, line, color=style.color, linestyle=style.dashes, linewidth=1.2)
            _points(axes, at, [each.measured for each in own], style, label)
        axes.set(yscale="log", xlabel="constant added to every reward", ylabel="variance per episode")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        _hide_frame(axes)
        return write_figure(figure, folder, "constant")


def plot_classifier_claim(rows: "Sequence[ClassifierVariance]", folder: Path) -> list[Path]:
    """Plot the gradient variance of a classifier for each choice of the rewards. Return the written files.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    with plotting():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 1.2 + 0.35 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for row, each in enumerate(rows):
            _bar(axes, row, each.measured, STYLES[0].color, "o")
            axes.plot(each.predicted, row + 0.25, "x", color=STYLES[1].color, markersize=5)
        axes.set_yticks(range(len(rows)), [each.name for each in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("variance per episode (circle: measured, cross: predicted)")
        _make_logarithmic(axes.xaxis)
        axes.grid(axis="y", color="#eeeeee")
        _hide_frame(axes)
        return write_figure(figure, folder, "classifier")


def plot_length_claim(
    coins: "Sequence[CoinVariance]", lengths: "Sequence[LengthVariance]", folder: Path
) -> list[Path]:
    """Plot the variance of coin tosses by number of coins, and the gradient variance by number of actions.

    Returns:
        the written files.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    with plotting():
        from matplotlib.figure import Figure

        timings = list(dict.fromkeys(each.paid for each in lengths))
        figure = Figure(figsize=(10.4, 3.4), layout="constrained")
        panels = figure.subplots(1, 1 + len(timings))
        _plot_coins(panels[0], coins)
        for axes, timing in zip(panels[1:], timings, strict=True):
            names = list(dict.fromkeys(each.estimator for each in lengths))
            for name, style in zip(names, STYLES, strict=False):
                own = [each for each in lengths if (each.paid, each.estimator) == (timing, name)]
                at = [each.num_actions for each in own]
                axes.plot(at, [each.predicted for each in own], color=style.color, linestyle=style.dashes)
                _points(axes, at, [each.measured for each in own], style, name)
            axes.set_title(TITLES[timing], fontsize=9)
        for axes in panels:
            axes.set(xscale="log", yscale="log")
            axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
            axes.minorticks_off()
            _hide_frame(axes)
        panels[1].set_ylabel("gradient variance per episode")
        for axes in panels[1:]:
            axes.set_xlabel("actions")
        handles, labels = panels[1].get_legend_handles_labels()
        title = "points: measured, 95% intervals; lines: predicted"
        figure.legend(
            handles, labels, ncols=len(labels), frameon=False, loc="outside lower center", title=title
        )
        return write_figure(figure, folder, "length")


def _plot_coins(axes: "Axes", coins: "Sequence[CoinVariance]") -> None:
    at = [each.num_coins for each in coins]
    one_coin, independent = [each.one_coin for each in coins], [each.independent for each in coins]
    axes.plot(at, [each.expected_one_coin for each in coins], color=STYLES[4].color)
    axes.plot(at, [each.expected_independent for each in coins], color=STYLES[5].color)
    _points(axes, at, one_coin, STYLES[4], "one coin, N times: N²/4")
    _points(axes, at, independent, STYLES[5], "N coins: N/4")
    axes.set(xlabel="coins, N", ylabel="variance")
    axes.set_title("number of heads of N coins", fontsize=9)
    axes.legend(frameon=False, fontsize=8)


def _points(
    axes: "Axes", at: Sequence[float], measured: "Sequence[IntervalEstimate]", style: Style, label: str
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


def _bar(axes: "Axes", row: int, measured: "IntervalEstimate", color: str, marker: str) -> None:
    axes.plot((measured.low, measured.high), (row, row), color=color, linewidth=1.6, solid_capstyle="butt")
    axes.plot(measured.value, row, marker, color=color, markersize=5)


def _make_logarithmic(axis: "Axis") -> None:
    """Make the axis logarithmic, with labels such as 20 and 5,000 instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.axes.set_xscale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value:,.0f}")
    axis.set_minor_formatter(NullFormatter())


def _hide_frame(axes: "Axes") -> None:
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
