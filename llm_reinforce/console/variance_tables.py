"""Tables of the gradient variance, and of tests of claims about the variance.

The claims are made in the article "The Beauty of Reinforcement Learning (1)".
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from llm_reinforce.analysis import (
        ClassifierVariance,
        CoinVariance,
        ConstantVariance,
        EstimatorVariance,
        GradientVariance,
        IntervalEstimate,
        LengthClaim,
        LengthVariance,
    )

ENOUGH_PROBLEMS = 32  # if fewer problems have a nonzero gradient, the intervals are too narrow
EXPLANATION = "below each value: its 95% interval; ≈: theoretical prediction, computed from other episodes"
TIMINGS = {
    "each step": "a reward for each head, given immediately",
    "at the end": "a reward for all heads, given at the end",
    "verdict": "a verdict at the end, which depends on the first toss only",
}


def variance_table(measured: "GradientVariance") -> RenderableType:
    """Return a table with a row per gradient estimator. The 95% interval of each value is below the value."""
    table = _table(padding=1)
    table.add_column("estimator", no_wrap=True)
    for title in ("variance", "SNR", "noise scale", "cosine", "bias"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in measured.estimators:
        shown = (each.variance, each.snr, each.noise_scale, each.cosine)
        cells = (_cell(estimate, digits=2) for estimate in shown)
        table.add_row(Text(each.name, style="bold"), *cells, _bias(each))
    head = (
        f"{measured.num_problems:,} problems x {measured.episodes_per_problem} episodes, "
        f"mean return {measured.mean_return:.3f}"
        f"{'' if measured.accuracy is None else f', accuracy {measured.accuracy:.1%}'}; "
        f"{measured.num_parameters:,} parameters"
    )
    return Group(
        Text(head, style="bold"), table, *(Text(line, style="dim") for line in _variance_notes(measured))
    )


def _variance_notes(measured: "GradientVariance") -> list[str]:
    norm = measured.squared_norm
    notes = [f"‖∇J‖² = {_number(norm.value)} [{_number(norm.low)}, {_number(norm.high)}]"]
    if measured.sketch_error:
        notes.append(
            "gradients are projected to fewer dimensions, which changes squared lengths by a random relative "
            f"error with a standard deviation of at most {measured.sketch_error:.1%}"
        )
    if measured.num_with_gradient < ENOUGH_PROBLEMS:
        few = f"{measured.num_with_gradient} of {measured.num_problems:,} problems"
        notes.append(
            f"only {few} have a nonzero gradient, so the intervals are too narrow; measure more problems "
            "(--problems)"
        )
    if measured.num_unscored:
        notes.append(f"{measured.num_unscored:,} episodes could not be scored and are left out")
    notes += [
        "variance: variance of the gradient per episode; SNR: signal-to-noise ratio of an update of "
        f"{measured.episodes_per_update:,} episodes; noise scale: number of episodes at which the SNR is 1; "
        "cosine: cosine between the gradients of two halves of the measured episodes; below each value: "
        "its 95% interval",
        "bias: distance of the expected gradient estimate from ∇J (the gradient of the expected return), "
        "divided by ‖∇J‖; along: component of the expected gradient estimate along ∇J, divided by ‖∇J‖",
    ]
    return notes


def _bias(each: "EstimatorVariance") -> Text:
    if each.bias is None or each.along is None:
        return Text("none", style="dim")
    return Text.assemble(_cell(each.bias, digits=2), (f"\nalong {each.along.value:.2f}", "dim"))


def constant_table(rows: "Sequence[ConstantVariance]") -> RenderableType:
    """Return a table of the gradient variance after a constant is added to every reward.

    The table has a row per constant and a column per baseline.
    """
    table = _table()
    table.add_column("constant", justify="right")
    names = list(dict.fromkeys(each.baseline for each in rows))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for value in dict.fromkeys(each.constant for each in rows):
        row = {each.baseline: each for each in rows if each.constant == value}
        table.add_row(f"{value:+g}", *(_cell(row[name].measured, row[name].predicted) for name in names))
    head = "variance of the gradient per episode, with a constant added to every reward"
    return Group(Text(head, style="bold"), table, Text(EXPLANATION, style="dim"))


def classifier_table(rows: "Sequence[ClassifierVariance]") -> RenderableType:
    """Return a table of the gradient variance of a classifier.

    The table has a row per choice of the rewards for a wrong and a correct label.
    """
    table = _table()
    for title in ("rewards, correct and wrong", "reinforced", "to the label", "‖E ĝ‖", "variance"):
        table.add_column(title, justify="left" if title.startswith("rewards") else "right")
    for each in rows:
        table.add_row(
            each.name,
            f"{each.share_reinforced:.0%}",
            f"{each.share_to_label:.0%}",
            _number(each.signal),
            _cell(each.measured, each.predicted),
        )
    notes = (
        "rewards: reward of the correct label and of a wrong label; w is 1, and 'here' and 'there' are two "
        "halves of the states; reinforced: share of the nonzero returns that make the sampled action more "
        "likely; to the label: share of the nonzero returns that move the policy towards the label; ‖E ĝ‖: "
        "norm of the expected gradient estimate"
    )
    return Group(table, Text(f"{notes}; {EXPLANATION}", style="dim"))


def length_table(claim: "LengthClaim") -> RenderableType:
    """Return tables that show how variance grows with the length of an episode.

    The first table shows the variance of coin tosses. The other tables show the gradient variance, with a row
    per episode length. Each of them is for a different timing of the rewards, such as after each step.
    """
    return Group(_coins_table(claim.coins), Text(""), _lengths_table(claim.lengths))


def _coins_table(rows: "Sequence[CoinVariance]") -> RenderableType:
    table = _table()
    for title in ("coins", "N/4", "independent", "N²/4", "one coin, N times"):
        table.add_column(title, justify="right")
    for each in rows:
        table.add_row(
            str(each.num_coins),
            f"{each.expected_independent:g}",
            _cell(each.independent),
            f"{each.expected_one_coin:g}",
            _cell(each.one_coin),
        )
    return Group(Text("variance of the number of heads in coin tosses", style="bold"), table)


def _lengths_table(rows: "Sequence[LengthVariance]") -> RenderableType:
    blocks: list[RenderableType] = [Text("variance of the gradient per episode", style="bold")]
    for timing in dict.fromkeys(each.paid for each in rows):
        blocks.append(Text(f"\n{TIMINGS[timing]}"))
        table = _table()
        table.add_column("T", justify="right")
        names = list(dict.fromkeys(each.estimator for each in rows))
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for num in dict.fromkeys(each.num_actions for each in rows):
            row = {each.estimator: each for each in rows if (each.paid, each.num_actions) == (timing, num)}
            table.add_row(str(num), *(_cell(row[name].measured, row[name].predicted) for name in names))
        blocks.append(table)
    return Group(*blocks, Text(EXPLANATION, style="dim"))


def _table(padding: int = 2) -> Table:
    return Table(box=None, padding=(0, padding, 0, 0), header_style="dim")


def _cell(estimate: "IntervalEstimate", predicted: float | None = None, digits: int = 3) -> Text:
    """Return lines with a value, its interval and, if `predicted` is not None, the predicted value."""
    low, high = _number(estimate.low, digits), _number(estimate.high, digits)
    lines = Text.assemble(_number(estimate.value), (f"\n{low} – {high}", "dim"))
    return lines if predicted is None else lines.append(f"\n≈ {_number(predicted)}", "italic")


def _number(value: float, digits: int = 3) -> str:
    """Return the value with `digits` significant digits, or in thousands (`123k`) from 100,000 on."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if abs(value) >= 1e5:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
