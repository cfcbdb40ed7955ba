"""Tables and plots of word problems: `python tests/benchmarks/word_problems_plot.py DIRECTORY`.

The directory contains base.json, gains.json, pairs.json and curves.json, written by `word_problems.py`, and
can also contain shaping.json and format.json. The script prints the tables of the page
"Results" of the documentation, and draws gains.svg and curves.svg in the directory.
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
from llm_reinforce.evaluation import KINDS

WINDOW = 10  # a point of a learning curve is a mean over 10 updates
BETWEEN_SEEDS = 0.15  # distance of the points of two seeds, as a share of the distance of two methods
END = 5  # the start and the end of a run are means over 5 updates
PERCENT = 100
NAMES = {  # names of the problems in the tables
    "dev": "dev.jsonl",
    "svamp_test": "SVAMP",
    "multiarith_test": "MultiArith",
    "gsm8k_test": "GSM8K",
}


def read_results(directory: Path) -> dict[str, Any]:
    """Return the contents of the JSON files in a directory, by the names of the files."""
    return {path.stem: json.loads(path.read_text()) for path in directory.glob("*.json")}


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of the page "Results" in Markdown, by the name in the comment above each table."""
    before = [row for row in results["base"] if row["data"] != "dev"]
    found = {
        "templates": templates_table([row for row in results["base"] if row["data"] == "dev"]),
        "before training": before_table(before),
        "gains": gains_table([row for row in results["gains"] if row["method"] == "recipe"]),
        "methods": methods_table(results["gains"]),
        "similar": similar_table([row for row in results["gains"] if row["data"] != "dev"]),
        "pairs": pairs_table(results["pairs"]),
    }
    variants = [name for name in ("shaping", "format") if name in results]
    return found | {name: variants_table(results[name]["runs"]) for name in variants}


def templates_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the accuracy with each template and each maximum length."""
    head = ["text around the question", "maximum length", "accuracy", "truncated", "without a number"]
    cells = [
        [
            words_around(row["template"]) + examples_in(row),
            f"{row['max_new_tokens']} tokens",
            *(measure(row, name) for name in ("accuracy", "truncated", "unparseable")),
        ]
        for row in rows
    ]
    return markdown(head, cells)


def words_around(template: str) -> str:
    """Return the text that a template adds before and after a question."""
    before, after = (part.strip() for part in template.split("{prompt}"))
    parts = [f"`{text}` {place} it" for text, place in ((before, "before"), (after, "after")) if text]
    return ", ".join(parts) or "none"


def examples_in(row: Mapping[str, Any]) -> str:
    """Return the number of worked examples in words, to follow other words; empty if there are none."""
    return f", {row['few_shot']} examples" if "few_shot" in row else ""


def measure(row: Mapping[str, Any], name: str) -> str:
    """Return a measure of an evaluation with its interval; empty if it was not measured."""
    found = row["measures"].get(name)
    return shown_accuracy(found["value"], found["interval"]) if found else ""


def before_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the accuracy before training, and the shares of the kinds of wrong answers."""
    cells = []
    for row in rows:
        num = row["samples_per_problem"]
        decoding = row["decoding"] if num == 1 else f"{row['decoding']}, {num} per problem"
        decoding += examples_in(row)
        kinds = [f"{row['failures'][kind] / row['total']:.1%}" for kind in KINDS]
        measures = [measure(row, name) for name in ("accuracy", "pass@8")]
        cells.append([NAMES[row["data"]], str(row["total"] // num), decoding, *measures, *kinds])
    return markdown(["problems", "number", "decoding", "accuracy", "pass@8", *KINDS], cells)


def points(change: Mapping[str, Any]) -> str:
    """Return a difference with its interval, in percentage points."""
    low, high = change["interval"]
    return f"{in_points(change['difference'])} [{PERCENT * low:.1f}, {PERCENT * high:.1f}]"


def in_points(difference: float) -> str:
    """Return a difference of two shares in percentage points, with its sign."""
    # 6 / 160 is 3.7499999999999996% or 3.75%, depending on how it was computed; both should look the same
    return f"{round(PERCENT * difference, 6):+.1f}"


def gains_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the differences to the accuracy before training, and their parts."""
    cells, order = [], list(dict.fromkeys(row["data"] for row in rows))
    for row in sorted(rows, key=lambda row: order.index(row["data"])):
        change = row["change"]
        parts = [in_points(change["parts"][kind]["difference"]) for kind in KINDS]
        both = [f"{change[key]:.1%}" for key in ("before", "after")]
        cells.append([NAMES[row["data"]], str(row["seed"]), *both, points(change), *parts])
    head = ["problems", "seed", "before training", "after the run", "difference in points"]
    return markdown([*head, *KINDS], cells)


def methods_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the accuracy after training with each method and seed."""
    sets = list(dict.fromkeys(row["data"] for row in rows))
    cells = []
    for (method, seed), found in by_run(rows).items():
        seconds = found[sets[0]]["seconds"]
        minutes = "" if seconds is None else f"{seconds / 60:.0f}"
        accuracy = [found[data]["accuracy"] for data in sets]
        shown = [shown_accuracy(each["accuracy"], each["interval"]) for each in accuracy]
        cells.append([method, str(seed), minutes, *shown])
    return markdown(["method", "seed", "minutes", *(NAMES[data] for data in sets)], cells)


def by_run(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], dict[str, Mapping[str, Any]]]:
    """Return the rows by (method, seed), then by data set."""
    found: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["method"], row["seed"]), {})[row["data"]] = row
    return found


def similar_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the accuracy on problems that are similar to training problems, and on the others."""
    first = {row["data"]: row["by_similarity"] for row in rows}
    head = [
        f"{NAMES[data]}, {each['total']} {part}"
        for data, parts in first.items()
        for part, each in parts.items()
    ]
    cells = [
        [method, str(seed)]
        + [
            shown_accuracy(each["accuracy"], each["interval"])
            for row in found.values()
            for each in row["by_similarity"].values()
        ]
        for (method, seed), found in by_run(rows).items()
    ]
    return markdown(["method", "seed", *head], cells)


def pairs_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the differences in accuracy between two methods, for each seed and in the mean."""
    cells = [
        [
            f"{row['first']} → {row['second']}",
            NAMES[row["data"]],
            "; ".join(f"{change['seed']}: {in_points(change['difference'])}" for change in row["changes"]),
            *(points(row[part]) if part in row else "" for part in ("mean", "similar", "other")),
        ]
        for row in rows
    ]
    head = ["methods", "problems", "difference of each seed", "mean difference", "similar", "other"]
    return markdown(head, cells)


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
    names = ["variant", "seed", "updates", "reward", "sampled accuracy", "tokens per answer"]
    return markdown([*names, "greedy accuracy before", "greedy accuracy after", "symptoms"], cells)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|" for line in lines)


def plot_gains(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the accuracy of each method and seed on the test problems."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    tests = [data for data in dict.fromkeys(row["data"] for row in rows) if data != "dev"]
    figure, axes = plt.subplots(1, len(tests), figsize=(9, 3.5), sharey=True)
    for axis, data in zip(axes, tests, strict=True):
        shown = [row for row in rows if row["data"] == data]
        before = PERCENT * shown[0]["change"]["before"]
        axis.axhline(before, color="gray", linestyle=":", label="before training")
        for row in shown:
            value, (low, high) = row["accuracy"]["accuracy"], row["accuracy"]["interval"]
            place = names.index(row["method"]) + BETWEEN_SEEDS * row["seed"]
            bars = [[PERCENT * (value - low)], [PERCENT * (high - value)]]
            style = STYLES[row["seed"] % len(STYLES)]
            label = f"seed {row['seed']}" if row["method"] == names[0] else None
            axis.errorbar(
                place, PERCENT * value, bars, fmt=style.marker, color=style.color, capsize=2, label=label
            )
        middle = BETWEEN_SEEDS * max(row["seed"] for row in rows) / 2
        axis.set_xticks([each + middle for each in range(len(names))], names, rotation=30, ha="right")
        axis.set_title(NAMES[data])
    axes[0].set_ylabel("greedy accuracy (%)")
    axes[0].legend(ncols=2)
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
    results = read_results(directory)
    for name, table in tables(results).items():
        print(f"<!-- table: {name} -->\n{table}\n")
    with plotting():
        plot_gains(results["gains"], directory / "gains.svg")
        plot_curves(results["curves"], directory / "curves.svg")


if __name__ == "__main__":
    main()
