"""Tables that compare recipes trained with equal budgets of sampled tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from llm_reinforce.analysis import ComparedRuns, Difference, MeasureName

    Interval = tuple[float, float]


def print_comparison(
    console: Console, compared: "Sequence[ComparedRuns]", target: float, num_tokens: int
) -> None:
    """Print one table per measure, with the mean of each variant and its difference from the first variant.

    If there are several seeds, the tables also have p-values of the differences.

    Args:
        console: console to print to.
        compared: the measures of each variant. A variant is a recipe, possibly with changed settings. All
            variants are compared with the first variant.
        target: target accuracy, for the measure `tokens to TARGET accuracy`.
        num_tokens: budget of sampled tokens per run.
    """
    titles: dict[MeasureName, str] = {
        "final": "final accuracy",
        "area": "area under the learning curve, 0..1",
        "tokens": f"tokens to {target:.0%} accuracy",
        "timed": "accuracy after the time of the fastest variant",
    }
    is_tested = len(compared) > 1 and len(compared[0].num_sampled) > 1
    for key, title in titles.items():
        if key not in compared[0].measures:
            continue
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("", overflow="fold")
        table.add_column("mean", overflow="fold")
        if key == "tokens":
            table.add_column("reached", overflow="fold")
        if len(compared) > 1:
            table.add_column("difference", overflow="fold")
        if is_tested:
            table.add_column("p, t-test", overflow="fold")
            table.add_column("p, sign flips", overflow="fold")
        for runs in compared:
            table.add_row(*_cells(runs, key, is_tested=is_tested, is_compared=len(compared) > 1))
        console.print(Text(f"\n{title}"), table, sep="\n")
    console.print()
    for sentence in _footnotes(compared, num_tokens):
        console.print(Text(sentence, style="dim"))


def _cells(runs: "ComparedRuns", key: "MeasureName", *, is_tested: bool, is_compared: bool) -> list[Text]:
    measure, num_runs = runs.measures[key], len(runs.num_sampled)
    bound = "≥ " if key == "tokens" and runs.num_reached < num_runs else ""
    # if no run reached the target, all values equal the budget, and an interval would be misleading
    interval = measure.interval if key != "tokens" or runs.num_reached else None
    cells = [Text(runs.name, style="bold"), Text(bound + _shown(key, measure.mean, interval))]
    if key == "tokens":
        cells.append(Text(f"{runs.num_reached} of {num_runs}"))
    if is_compared:
        difference = runs.differences.get(key)
        cells += _difference_cells(key, difference, is_tested=is_tested)
    return cells


def _difference_cells(key: "MeasureName", difference: "Difference | None", *, is_tested: bool) -> list[Text]:
    if difference is None:  # the first variant is not compared
        return [Text("")] * (3 if is_tested else 1)
    cells = [Text(_shown(key, difference.mean, difference.interval, sign="+"))]
    if is_tested:
        for p_value in (difference.t_p_value, difference.flip_p_value):
            cells.append(Text("-" if p_value is None else f"{p_value:.2g}"))
    return cells


def _shown(key: "MeasureName", value: float, interval: "Interval | None", sign: str = "") -> str:
    """Return a value with its interval as text, in the format of the measure `key`.

    Examples: `98.8% [97.4, 99.4]`, `0.740 [0.710, 0.770]`, `41,800 [36,500, 47,100]`. With `sign="+"`, the
    numbers are differences and have a sign.
    """

    def number(each: float) -> str:
        if key in ("final", "timed"):
            return f"{100 * each:{sign}.1f}"
        return f"{each:{sign}.3f}" if key == "area" else f"{each:{sign},.0f}"

    unit = "%" if key in ("final", "timed") and not sign else ""
    limits = f" [{number(interval[0])}, {number(interval[1])}]" if interval else ""
    return f"{number(value)}{unit}{limits}"


def _footnotes(compared: "Sequence[ComparedRuns]", num_tokens: int) -> list[str]:
    num_seeds = len(compared[0].num_sampled)
    beyond = max(max(runs.num_sampled) for runs in compared) / num_tokens - 1
    notes = [
        f"the last update of a run exceeds the token budget by up to {beyond:.1%}; the area under the curve "
        "is computed up to the budget"
    ]
    if num_seeds < 2:
        notes.append("one seed gives no interval and no test; use several seeds, for example --seeds 5")
    else:
        notes.append("in brackets: 95% intervals over the seeds, Student's t")
    if any(runs.num_reached < num_seeds for runs in compared):
        notes.append(
            "≥: lower bound, because a run that did not reach the target is counted as if it had needed its "
            "whole token budget"
        )
    if "timed" in compared[0].measures:
        notes.append(
            "time of the fastest variant: duration of its updates on this machine, without evaluations"
        )
    if len(compared) > 1 and num_seeds > 1:
        least = 2 / 2**num_seeds
        notes.append(
            f"difference: value minus the value of {compared[0].name} with the same seed, averaged; the "
            f"p-value of sign flips is at least {least:.2g}; p-values are not corrected for multiple "
            "comparisons"
        )
    elif len(compared) > 1:
        notes.append(f"difference: value minus the value of {compared[0].name}")
    return notes
