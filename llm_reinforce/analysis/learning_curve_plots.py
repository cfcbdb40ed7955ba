"""Plots of learning curves, and of their measures such as the final accuracy."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_reinforce.analysis.learning_curves import ComparedRuns, LearningCurve, MeasureName, mean_curve
from llm_reinforce.analysis.plot_style import STYLES, Style, plotting, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_IN_ONE = 6  # maximum number of variants in one panel; more variants have one panel each
NUM_COLUMNS = 4
TITLES: Mapping[MeasureName, str] = {
    "final": "final accuracy",
    "area": "area under the curve",
    "tokens": "tokens to {target:.0%} accuracy",
}


def plot_comparison(
    variants: Mapping[str, Sequence[LearningCurve]],
    compared: Sequence[ComparedRuns],
    budget: int,
    target: float,
    folder: Path,
) -> list[Path]:
    """Write the plots `curves` and `comparison`, each as .png and .svg. Return the paths of the four files.

    Args:
        variants: for each variant, the curve of each seed.
        compared: the measures of each variant, such as final accuracy.
        budget: upper limit of the x axis, in sampled tokens.
        target: target accuracy. It is marked by a horizontal line.
        folder: directory of the files.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    with plotting():
        return [
            *write_figure(curves_figure(variants, budget, target), folder, "curves"),
            *write_figure(measures_figure(compared, target), folder, "comparison"),
        ]


def curves_figure(variants: Mapping[str, Sequence[LearningCurve]], budget: int, target: float) -> "Figure":
    """Plot accuracy against sampled tokens: the mean over seeds, its 95% interval, and a thin line per seed.

    Up to six variants share one panel. If there are more than six variants, each variant has a separate
    panel, and the mean of the first variant is shown in every panel as a dashed line.
    """
    from matplotlib.figure import Figure

    if len(variants) <= MOST_IN_ONE:
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.subplots()
        for (name, curves), style in zip(variants.items(), STYLES, strict=False):
            _plot_variant(axes, name, curves, budget, style)
        _finish(axes, budget, target)
        axes.set(xlabel="sampled tokens", ylabel="accuracy")
        axes.legend(title=_seeds_title(variants), frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure
    num_rows = math.ceil(len(variants) / NUM_COLUMNS)
    figure = Figure(figsize=(2.5 * NUM_COLUMNS, 1.0 + 1.9 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, NUM_COLUMNS, sharex=True, sharey=True, squeeze=False)
    panels = [axes for row in grid for axes in row]
    first = next(iter(variants))
    for axes, (name, curves) in zip(panels, variants.items(), strict=False):
        _plot_variant(axes, "mean over seeds", curves, budget, STYLES[0])
        if name != first:
            _plot_mean(axes, f"mean of {first}", variants[first], budget)
        _finish(axes, budget, target)
        axes.set_title(name, fontsize=9)
    for axes in panels[len(variants) :]:
        axes.set_axis_off()
    for column in range(NUM_COLUMNS):  # the lowest panel of each column is labeled
        lowest = max(row for row in range(num_rows) if row * NUM_COLUMNS + column < len(variants))
        grid[lowest][column].tick_params(labelbottom=True)
    figure.supxlabel("sampled tokens", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(
        handles, labels, title=_seeds_title(variants), ncols=3, frameon=False, loc="outside upper center"
    )
    return figure


def _seeds_title(variants: Mapping[str, Sequence[LearningCurve]]) -> str:
    number = len(next(iter(variants.values())))
    return f"{number} seeds, band: 95% interval" if number > 1 else "one seed"


def _plot_variant(
    axes: "Axes", name: str, curves: Sequence[LearningCurve], budget: int, style: Style
) -> None:
    at, mean, low, high = mean_curve(curves, budget)
    if low is not None and high is not None:
        axes.fill_between(at, low, high, color=style.color, alpha=0.15, linewidth=0)
        for curve in curves:
            axes.plot(curve.num_tokens, curve.accuracy, color=style.color, alpha=0.35, linewidth=0.6)
    axes.plot(
        at,
        mean,
        color=style.color,
        linestyle=style.dashes,
        linewidth=1.8,
        marker=style.marker,
        markevery=len(at) // 8,
        markersize=4,
        label=name,
    )


def _plot_mean(axes: "Axes", name: str, curves: Sequence[LearningCurve], budget: int) -> None:
    at, mean, _, _ = mean_curve(curves, budget)
    axes.plot(at, mean, color="#555555", linestyle=(0, (4, 2)), linewidth=1.2, label=name)


def _finish(axes: "Axes", budget: int, target: float) -> None:
    axes.axhline(target, color="#777777", linewidth=0.8, linestyle=":", label=f"target: {target:.0%}")
    axes.set(xlim=(0, budget), ylim=(0, 1))
    axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
    axes.xaxis.set_major_locator(_locator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.spines[["top", "right"]].set_visible(False)


def _locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10])


def short_number(value: float) -> str:
    """Format a number of tokens for an axis.

    >>> short_number(0), short_number(2500), short_number(60_000), short_number(1.5e6)
    ('0', '2.5k', '60k', '1.5M')
    """
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def measures_figure(compared: Sequence[ComparedRuns], target: float) -> "Figure":
    """Plot one panel per measure, with one row per variant: the mean, its 95% interval, and a dot per seed.

    The mean number of tokens to the target accuracy has a hollow marker if not all runs reached the target
    accuracy within the token budget. The mean is then a lower bound.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 1.3 + 0.3 * len(compared)), layout="constrained")
    panels = figure.subplots(1, len(TITLES), sharey=True, squeeze=False)[0]
    rows = range(len(compared))
    for axes, (key, title) in zip(panels, TITLES.items(), strict=True):
        for row, runs in zip(rows, compared, strict=True):
            _plot_row(axes, row, runs, key)
        axes.axvline(compared[0].measures[key].mean, color="#999999", linewidth=0.8, linestyle=":")
        axes.set_title(title.format(target=target), fontsize=9)
        axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.xaxis.set_major_formatter(_formatter(key))
        axes.xaxis.set_major_locator(_locator())
    panels[0].set_yticks(rows, [runs.name for runs in compared])
    panels[0].set_ylim(len(compared) - 0.5, -0.5)  # shows the first variant at the top
    figure.supxlabel(
        "lines: 95% intervals over seeds; dots: single seeds; dotted line: mean of the first variant; "
        "hollow symbols: not all seeds reached the target",
        fontsize=8,
    )
    return figure


def _formatter(key: MeasureName) -> Any:
    shown = {"final": "{:.0%}".format, "area": "{:.2f}".format, "tokens": short_number}[key]
    return lambda value, _: shown(value)


def _plot_row(axes: "Axes", row: int, runs: ComparedRuns, key: MeasureName) -> None:
    measure, color = runs.measures[key], STYLES[0].color
    is_bound = key == "tokens" and runs.num_reached < len(measure.values)
    if measure.interval is not None:
        axes.plot(measure.interval, (row, row), color=color, linewidth=1.6, solid_capstyle="butt")
        axes.plot(measure.values, [row + 0.25] * len(measure.values), ".", color="#777777", markersize=3)
    inside = "white" if is_bound else color
    axes.plot(measure.mean, row, "o", color=color, markerfacecolor=inside, markersize=5)
