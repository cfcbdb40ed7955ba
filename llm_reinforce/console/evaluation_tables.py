"""Tables of evaluations, and of the differences between two evaluations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llm_reinforce.console.text import visible

if TYPE_CHECKING:
    from llm_reinforce.evaluation import Comparison, Evaluation, Measure

TITLES = {
    "strict": "strict (####)",
    "flexible": "flexible (last number)",
    "mean_length": "mean length",
}


def measures_table(data: str, columns: "Sequence[tuple[str, Evaluation]]") -> RenderableType:
    """Return a table with a row per measure and a column per policy. Each value has its 95% interval.

    Measures other than the accuracy are omitted if they are 0 for all policies.

    Args:
        data: name of the data set.
        columns: name and evaluation of each policy. All policies were evaluated on the same problems.
    """
    first = columns[0][1]
    samples = f" x {first.samples_per_problem} samples" if first.samples_per_problem > 1 else ""
    head = f"{visible(data)}: {len(first.problems):,} problems{samples}, {first.decoding}"
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    if len(columns) > 1:
        for policy, _ in columns:
            table.add_column(Text(visible(policy, 40)), overflow="fold")
    else:
        table.add_column("", justify="right")
        table.add_column("95% interval", no_wrap=True)
        table.add_column("")
    for name, measure in first.measures.items():
        if name != "accuracy" and not any(each.measures[name].value for _, each in columns):
            continue
        table.add_row(TITLES.get(name, name), *_cells(name, columns, measure))
    note = Text("in brackets: 95% intervals", style="dim")
    return Group(Text(head, style="bold"), table, *([note] if len(columns) > 1 else []))


def _cells(name: str, columns: "Sequence[tuple[str, Evaluation]]", measure: "Measure") -> list[Text]:
    style = "bold" if name == "accuracy" else ""
    if len(columns) > 1:
        return [
            Text(" ".join(_shown(name, evaluation.measures[name])), style=style) for _, evaluation in columns
        ]
    value, interval = _shown(name, measure)
    count = f"{columns[0][1].correct:,} of {columns[0][1].total:,}" if name == "accuracy" else ""
    return [Text(value, style=style), Text(interval), Text(count)]


def _shown(name: str, measure: "Measure") -> tuple[str, str]:
    low, high = measure.interval
    if name == "mean_length":
        return f"{measure.value:.1f}", f"[{low:.1f}, {high:.1f}]"
    return f"{measure.value:.1%}", f"[{100 * low:.1f}, {100 * high:.1f}]"


def comparison_table(comparison: "Comparison") -> RenderableType:
    """Return a line with the difference in accuracy, and a table of its parts, one per kind of failure.

    The line also contains the interval and the p-value of the difference. Kinds of failure without gained or
    lost answers are omitted.
    """
    low, high = comparison.interval
    test = "McNemar" if comparison.test == "mcnemar" else "sign flips"
    head = (
        f"{comparison.criterion}: difference {_points(comparison.difference)} points "
        f"[{_points(low)}, {_points(high)}], {test} p = {comparison.p_value:.2g}; "
        f"problems gained {len(comparison.gained):,}, lost {len(comparison.lost):,}"
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("kind of failure (points)")
    for title in ("gained", "lost", "difference"):
        table.add_column(title, justify="right", no_wrap=True)
    for kind, part in comparison.parts.items():
        if not (part.gained or part.lost):
            continue
        table.add_row(kind, f"{100 * part.gained:.1f}", f"{100 * part.lost:.1f}", _points(part.difference))
    return Group(Text(head), *([table] if table.row_count else []))


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
