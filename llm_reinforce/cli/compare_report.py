"""What a comparison came to: tables or JSON, `curves.json`, `comparison.json`, and the plots."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_reinforce.analysis.recipe_comparison_plan import Kind, PlannedRun, decoding_of
from llm_reinforce.console.messages import note, wide_console
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.analysis import ComparedRuns, Difference, LearningCurve, MeasureName

    Interval = tuple[float, float]


def tell_comparison(
    runs: Sequence[PlannedRun],
    kinds: Sequence[Kind],
    num_tokens: int,
    target: float,
    output: Path,
    *,
    as_json: bool,
) -> None:
    """Read the runs' curves, write what they come to below `output`, draw it, and tell it.

    Raises:
        InputError: a run's logs aren't what a run writes.
    """
    from llm_reinforce.analysis import compare_curves
    from llm_reinforce.durable_files import write_whole

    curves = {kind.name: [_curve(run) for run in runs if run.kind == kind.name] for kind in kinds}
    compared = compare_curves(curves, num_tokens, target)
    seeds = sorted({run.seed for run in runs})
    data = runs[0].directory.rows("evaluations.jsonl")[-1]["data"]
    summary = {
        "num_tokens": num_tokens,
        "target": target,
        "decoding": decoding_of(runs),
        "data": data,
        "seeds": seeds,
        "intervals": "95%, Student's t over seeds",
        "against": compared[0].name,
        "runs": [
            {"recipe": kind.recipe, "overrides": list(kind.overrides), **asdict(each)}
            for kind, each in zip(kinds, compared, strict=True)
        ],
    }
    write_whole(output / "comparison.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_whole(output / "curves.json", json.dumps(_curves_json(curves, seeds, num_tokens)) + "\n")
    files = _draw(curves, compared, num_tokens, target, output)
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False))
        return
    console = wide_console()
    what = "held-out problems" if data == "held_out" else "the training problems"
    seeds_told = f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed"
    head = f"{decoding_of(runs)} accuracy on {what}; {num_tokens:,} sampled tokens a run, {seeds_told}"
    console.print(Text(head, style="bold"))
    _print_tables(console, compared, target, num_tokens)
    console.print(
        Text(
            f"written: {', '.join(map(str, [output / 'comparison.json', output / 'curves.json', *files]))}",
            style="dim",
        )
    )


def _curve(run: PlannedRun) -> "LearningCurve":
    from llm_reinforce.analysis import learning_curve

    rows = run.directory.rows
    try:
        return learning_curve(rows("evaluations.jsonl"), rows("metrics.jsonl"), decoding_of([run]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{run.directory.path}: its logs aren't what a run writes ({error}); remove it to run it again"
        ) from None


def _curves_json(
    curves: "Mapping[str, Sequence[LearningCurve]]", seeds: Sequence[int], num_tokens: int
) -> dict[str, Any]:
    """By kind: each seed's evaluations as they are, and the mean curve with its pointwise limits."""
    from llm_reinforce.analysis import mean_curve

    shown: dict[str, Any] = {}
    for name, each in curves.items():
        at, mean, low, high = mean_curve(each, num_tokens)
        shown[name] = {
            "seeds": {
                str(seed): {"num_tokens": curve.num_tokens, "accuracy": curve.accuracy}
                for seed, curve in zip(seeds, each, strict=True)
            },
            "num_tokens": at.tolist(),
            "mean": mean.tolist(),
            "low": None if low is None else low.tolist(),
            "high": None if high is None else high.tolist(),
        }
    return shown


def _draw(
    curves: "Mapping[str, Sequence[LearningCurve]]",
    compared: "Sequence[ComparedRuns]",
    num_tokens: int,
    target: float,
    output: Path,
) -> list[Path]:
    from llm_reinforce.analysis.learning_curve_plot import plot_comparison

    try:
        return plot_comparison(curves, compared, num_tokens, target, output)
    except ModuleNotFoundError:
        note("no plot without matplotlib: pip install 'llm-reinforce[plots]', and the same command draws it")
        return []


def _print_tables(
    console: Console, compared: "Sequence[ComparedRuns]", target: float, num_tokens: int
) -> None:
    """A table a measure: the mean, and the difference from the first kind, with its tests."""
    titles: dict[MeasureName, str] = {
        "final": "final accuracy",
        "area": "area under the learning curve, 0..1",
        "tokens": f"tokens to {target:.0%} accuracy",
    }
    is_tested = len(compared) > 1 and len(compared[0].num_sampled) > 1
    for key, title in titles.items():
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("", overflow="fold")
        table.add_column("mean", overflow="fold")
        if key == "tokens":
            table.add_column("reached", overflow="fold")
        if len(compared) > 1:
            table.add_column("difference", overflow="fold")
        if is_tested:
            table.add_column("p, t-test", overflow="fold")
            table.add_column("p, flips", overflow="fold")
        for runs in compared:
            table.add_row(*_cells(runs, key, is_tested=is_tested, is_compared=len(compared) > 1))
        console.print(Text(f"\n{title}"), table, sep="\n")
    console.print()
    for sentence in _footnotes(compared, num_tokens):
        console.print(Text(sentence, style="dim"))


def _cells(runs: "ComparedRuns", key: "MeasureName", *, is_tested: bool, is_compared: bool) -> list[Text]:
    measure, num_runs = runs.measures[key], len(runs.num_sampled)
    bound = "≥ " if key == "tokens" and runs.num_reached < num_runs else ""
    # where no run reached the target the budget is all there is to say
    interval = measure.interval if key != "tokens" or runs.num_reached else None
    cells = [Text(runs.name, style="bold"), Text(bound + _shown(key, measure.mean, interval))]
    if key == "tokens":
        cells.append(Text(f"{runs.num_reached} of {num_runs}"))
    if is_compared:
        difference = runs.differences.get(key)
        cells += _difference_cells(key, difference, is_tested=is_tested)
    return cells


def _difference_cells(key: "MeasureName", difference: "Difference | None", *, is_tested: bool) -> list[Text]:
    if difference is None:  # the first itself
        return [Text("")] * (3 if is_tested else 1)
    cells = [Text(_shown(key, difference.mean, difference.interval, sign="+"))]
    if is_tested:
        for p_value in (difference.t_p_value, difference.flip_p_value):
            cells.append(Text("-" if p_value is None else f"{p_value:.2g}"))
    return cells


def _shown(key: "MeasureName", value: float, interval: "Interval | None", sign: str = "") -> str:
    """`98.8% [97.4, 99.4]`, `0.74 [0.71, 0.77]`, `41,800 [36,500, 47,100]`; of a difference with signs."""

    def number(each: float) -> str:
        if key == "final":
            return f"{100 * each:{sign}.1f}"
        return f"{each:{sign}.3f}" if key == "area" else f"{each:{sign},.0f}"

    unit = "%" if key == "final" and not sign else ""
    limits = f" [{number(interval[0])}, {number(interval[1])}]" if interval else ""
    return f"{number(value)}{unit}{limits}"


def _footnotes(compared: "Sequence[ComparedRuns]", num_tokens: int) -> list[str]:
    num_seeds = len(compared[0].num_sampled)
    beyond = max(max(runs.num_sampled) for runs in compared) / num_tokens - 1
    notes = [f"the last update goes beyond the budget, by {beyond:.1%} at most; the area ends at the budget"]
    if num_seeds < 2:
        notes.append("one seed has no interval and no test: take several, --seeds 5 say")
    else:
        notes.append("in brackets: 95% intervals over the seeds, Student's t")
    if any(runs.num_reached < num_seeds for runs in compared):
        notes.append("≥: a run that didn't reach the target counts with the budget")
    if len(compared) > 1 and num_seeds > 1:
        least = 2 / 2**num_seeds
        notes.append(
            f"difference: from {compared[0].name}, seed by seed; p by sign flips is {least:.2g} at least; "
            "p-values stand each for itself, uncorrected for their number"
        )
    elif len(compared) > 1:
        notes.append(f"difference: from {compared[0].name}")
    return notes
