"""Tables and plots of word problems: `python tests/benchmarks/word_problems_plot.py DIRECTORY`.

The directory contains base.json, gains.json and curves.json, written by `word_problems.py`, and can also
contain settings.json and shaping.json. The script prints the tables of the page "Results" of the
documentation, and draws gains.svg and curves.svg in the directory.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from llm_reinforce.analysis.plot_style import STYLES, plotting
from llm_reinforce.console.text import shown_accuracy

WINDOW = 10  # a point of a learning curve is a mean over 10 updates
END = 5  # the start and the end of a run are means over 5 updates
PERCENT = 100


def points(value: float, interval: Sequence[float]) -> str:
    """Return a difference with its interval, in percentage points."""
    low, high = interval
    return f"{PERCENT * value:+.1f} [{PERCENT * low:.1f}, {PERCENT * high:.1f}]"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def base_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the accuracy before training, and the reasons for wrong answers."""
    cells = [
        [
            f"`{row['data']}`",
            words_around(row["template"]),
            row["decoding"],
            *(shown_accuracy(*measure(row, name)) for name in ("accuracy", "truncated", "unparseable")),
        ]
        for row in rows
    ]
    head = ["problems", "text of the template", "decoding", "right", "truncated", "without a number"]
    return markdown(head, cells)


def words_around(template: str) -> str:
    """Return the text that a template adds to a question."""
    return " … ".join(part.strip() for part in template.split("{prompt}") if part.strip()) or "none"


def measure(row: Mapping[str, Any], name: str) -> tuple[float, Sequence[float]]:
    """Return a measure of an evaluation, with its interval."""
    found = row["measures"][name]
    return found["value"], found["interval"]


def gains_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the accuracy of each method and seed, and the difference to the accuracy before training."""
    cells = []
    order = list(dict.fromkeys(row["data"] for row in rows))
    for row in sorted(rows, key=lambda row: order.index(row["data"])):
        change = row["change"]
        parts = [f"{PERCENT * part['difference']:+.1f}" for part in change["parts"].values()]
        minutes = "" if row["seconds"] is None else f"{row['seconds'] / 60:.0f}"
        accuracy = shown_accuracy(row["accuracy"]["accuracy"], row["accuracy"]["interval"])
        difference = points(change["difference"], change["interval"])
        name = [f"`{row['data']}`", row["method"], str(row["seed"]), minutes]
        cells.append([*name, accuracy, difference, *parts])
    kinds = list(rows[0]["change"]["parts"])
    return markdown(["problems", "method", "seed", "minutes", "right", "difference in points", *kinds], cells)


def variants_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the values at the start and at the end of each run, and the findings of the doctor."""
    cells = []
    for run in runs:
        updates, held_out = run["updates"], run["held_out"]
        ends = [
            f"{shown(statistics.mean(row[key] for row in updates[:END]))} to "
            f"{shown(statistics.mean(row[key] for row in updates[-END:]))}"
            for key, shown in (
                ("reward", "{:.2f}".format),
                ("accuracy", "{:.1%}".format),
                ("completions/mean_length", "{:.1f}".format),
            )
        ]
        accuracy = [shown_accuracy(row["accuracy"], row["interval"]) for row in (held_out[0], held_out[-1])]
        findings = ", ".join(run["findings"]) or "none"
        cells.append([run["variant"], str(run["seed"]), str(len(updates)), *ends, *accuracy, findings])
    names = ["variant", "seed", "updates", "reward", "sampled, right", "tokens per answer"]
    return markdown([*names, "greedy before, right", "greedy after, right", "symptoms"], cells)


def plot_gains(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the accuracy of each method and seed on the test problems."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    tests = list(dict.fromkeys(row["data"] for row in rows))
    figure, axes = plt.subplots(1, len(tests), figsize=(9, 3.5), sharey=True)
    for axis, data in zip(axes, tests, strict=True):
        shown = [row for row in rows if row["data"] == data]
        before = PERCENT * shown[0]["change"]["before"]
        axis.axhline(before, color="gray", linestyle=":", label="before training")
        for row in shown:
            value, (low, high) = row["accuracy"]["accuracy"], row["accuracy"]["interval"]
            place = names.index(row["method"]) + 0.15 * row["seed"]
            bars = [[PERCENT * (value - low)], [PERCENT * (high - value)]]
            axis.errorbar(place, PERCENT * value, bars, fmt="o", color=STYLES[0].color, capsize=2)
        axis.set_xticks([each + 0.15 for each in range(len(names))], names, rotation=30, ha="right")
        axis.set_title(data)
    axes[0].set_ylabel("greedy accuracy (%)")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def plot_curves(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the accuracy of the episodes sampled for training, and on held-out problems."""
    figure, (sampled, held_out) = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    # without supervised training, which has one policy-gradient update, and TRL, which was not evaluated
    runs = [run for run in runs if len(run["updates"]) >= WINDOW and run["held_out"]]
    methods = list(dict.fromkeys(run["method"] for run in runs))
    first = {method: next(run for run in runs if run["method"] == method) for method in methods}
    for run in runs:
        color = STYLES[methods.index(run["method"])].color
        label = run["method"] if run is first[run["method"]] else None
        values = [PERCENT * row["accuracy"] for row in run["updates"]]
        means = [statistics.mean(values[end - WINDOW : end]) for end in range(WINDOW, len(values) + 1)]
        updates = range(WINDOW, len(values) + 1)
        sampled.plot(updates, means, color=color, alpha=0.7, label=label)
        places = [row["update"] for row in run["held_out"]]
        accuracy = [PERCENT * row["accuracy"] for row in run["held_out"]]
        held_out.plot(places, accuracy, "o-", color=color, alpha=0.7, label=label)
    sampled.set_title(f"sampled for training, mean of {WINDOW} updates")
    sampled.set_ylabel("accuracy (%)")
    held_out.set_title("held-out problems, greedy")
    for axis in (sampled, held_out):
        axis.set_xlabel("policy-gradient updates")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Read the results, print the tables, and draw the plots."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path, help="directory of the results")
    directory = parser.parse_args().directory
    base, gains, curves = (
        json.loads((directory / f"{name}.json").read_text()) for name in ("base", "gains", "curves")
    )
    variants = [
        json.loads(path.read_text())["runs"]
        for path in (directory / "settings.json", directory / "shaping.json")
        if path.exists()
    ]
    print(base_table(base), gains_table(gains), *map(variants_table, variants), sep="\n\n")
    with plotting():
        plot_gains(gains, directory / "gains.svg")
        plot_curves(curves, directory / "curves.svg")


if __name__ == "__main__":
    main()
