"""Plots of learning curves: files, panels, lines and markers."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from llm_reinforce.analysis.learning_curve_plots import (
    MOST_IN_ONE,
    STYLES,
    curves_figure,
    measures_figure,
    plot_comparison,
    short_number,
)
from llm_reinforce.analysis.learning_curves import LearningCurve, compare_curves

BUDGET = 1000


def variants_of_curves(number: int, num_seeds: int = 3) -> dict[str, list[LearningCurve]]:
    return {
        f"variant {index}": [
            LearningCurve((0, 400, 1010), (0.1, 0.2 + 0.05 * index, 0.5 + 0.01 * seed + 0.03 * index))
            for seed in range(num_seeds)
        ]
        for index in range(number)
    }


def test_plots_are_reproducible_files(tmp_path: Path) -> None:
    def plotted(folder: Path) -> dict[str, bytes]:
        folder.mkdir()
        own = variants_of_curves(1)
        files = plot_comparison(own, compare_curves(own, BUDGET, 0.6), BUDGET, 0.6, folder)
        assert {file.name for file in folder.iterdir()} == {file.name for file in files}
        return {file.name: file.read_bytes() for file in files}

    first = plotted(tmp_path / "first")
    assert set(first) == {"curves.png", "curves.svg", "comparison.png", "comparison.svg"}
    assert all(content.startswith(b"\x89PNG") for name, content in first.items() if name.endswith("png"))
    for name, content in first.items():
        if name.endswith("svg"):
            ElementTree.fromstring(content)
    assert plotted(tmp_path / "second") == first


def test_panel_has_a_mean_a_band_and_a_line_per_seed() -> None:
    (axes,) = curves_figure(variants_of_curves(MOST_IN_ONE), BUDGET, 0.6).axes
    assert len(axes.collections) == MOST_IN_ONE
    (axes,) = curves_figure(variants_of_curves(3), BUDGET, 0.6).axes
    assert len(axes.collections) == 3  # the bands
    assert len(axes.lines) == 3 * (3 + 1) + 1  # per variant: seeds and mean; and the target
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["variant 0", "variant 1", "variant 2", "target: 60%"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("sampled tokens", "accuracy")


def test_many_variants_have_one_panel_each_with_the_first_mean() -> None:
    figure = curves_figure(variants_of_curves(MOST_IN_ONE + 1), BUDGET, 0.6)
    titled = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in titled] == [f"variant {number}" for number in range(MOST_IN_ONE + 1)]
    assert "mean of variant 0" not in {line.get_label() for line in titled[0].lines}
    assert all("mean of variant 0" in {line.get_label() for line in axes.lines} for axes in titled[1:])


def test_single_seed_has_no_band() -> None:
    (axes,) = curves_figure(variants_of_curves(2, num_seeds=1), BUDGET, 0.6).axes
    assert len(axes.collections) == 0
    assert axes.get_legend().get_title().get_text() == "one seed"


def test_lines_differ_in_dashes_and_markers() -> None:
    assert len(STYLES) == MOST_IN_ONE
    assert (
        len({str(style.dashes) for style in STYLES}) == len({style.marker for style in STYLES}) == len(STYLES)
    )


def test_mean_of_runs_below_the_target_is_hollow() -> None:
    own = variants_of_curves(3)
    compared = compare_curves(own, BUDGET, 0.55)
    assert [runs.num_reached for runs in compared] == [0, 0, 3]
    tokens = measures_figure(compared, 0.55).axes[2]
    means = [line for line in tokens.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in means] == [True, True, False]


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (500, "500"), (2500, "2.5k"), (60_000, "60k"), (1.5e6, "1.5M")]
)
def test_short_number(value: float, shown: str) -> None:
    assert short_number(value) == shown
