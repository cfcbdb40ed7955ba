"""`llm-reinforce compare RECIPE…`: compare recipes at an equal budget of sampled tokens."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from llm_reinforce.cli.common import (
    DebugOption,
    quieten,
    reported_failures,
    start_in_one_process,
)
from llm_reinforce.cli.interruption import received_signals, stopped_by_signals
from llm_reinforce.console.comparison_tables import print_comparison
from llm_reinforce.console.messages import note, print_error, wide_console

if TYPE_CHECKING:
    from llm_reinforce.analysis import RecipeComparison


def compare(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE…", help="Names of built-in recipes, recipe files, or directories of runs."
        ),
    ],
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", min=1, help="Number of seeds per recipe. The first seed is that of the first recipe."
        ),
    ],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Budget of each run, in sampled tokens.")],
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar='"NAME: KEY=VALUE …"',
            help="Add a variant of the recipe, with a name and changed settings; repeatable.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting in all runs; repeatable."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="Directory for the runs and the results.")] = Path(
        "runs/compare"
    ),
    target: Annotated[
        float,
        typer.Option(
            "--target",
            help="Target accuracy, from 0 to 1. For each run, the number of tokens sampled until the run "
            "reaches this accuracy is reported.",
        ),
    ] = 0.9,
    evaluations: Annotated[
        int,
        typer.Option(
            "--evaluations",
            min=1,
            help="Number of evaluations per run, at equal intervals of sampled tokens.",
        ),
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    debug: DebugOption = False,
) -> None:
    """Train recipes with several seeds at an equal budget of sampled tokens, and compare them.

    The results are the final accuracy, the area under the learning curve, and
    the number of tokens to a target accuracy. Each result has a 95% interval
    over the seeds. All recipes are trained with the same seeds, and for each
    seed, each recipe is compared with the first recipe. Held-out problems that
    are drawn at random depend only on the seed. Recipes with the same problems
    are therefore evaluated on the same held-out problems.

    The runs are normal runs in the directories OUTPUT/NAME/seed-N. Ctrl-C
    stops after the current update and saves a checkpoint. To continue, run the
    same command again. It does not repeat complete runs.
    """
    with reported_failures("the comparison", debug=debug):
        start_in_one_process("compare")
        quieten(debug=debug)
        from llm_reinforce.analysis import compare as compare_recipes

        comparison = compare_recipes(
            recipes,
            seeds=seeds,
            tokens=tokens,
            variants=variants or [],
            overrides=overrides or [],
            output_dir=output,
            target=target,
            evaluations=evaluations,
            show_progress=True,
            stopping=stopped_by_signals,
        )
        if comparison.stopped_in is not None:
            done = f"number of complete runs: {comparison.num_done}. Run the same command again to continue"
            print_error(f"stopped during the run {comparison.stopped_in}; {done}")
            raise typer.Exit(128 + received_signals()[-1])
        if not comparison.has_plots:
            note(
                "no plots were written, because matplotlib is not installed; run `pip install "
                "'llm-reinforce[plots]'` and then the same command again"
            )
        if as_json:
            typer.echo(json.dumps(comparison.summary, ensure_ascii=False))
        else:
            _print(comparison)


def _print(comparison: "RecipeComparison") -> None:
    summary = comparison.summary
    what = "held-out problems" if summary["data"] == "held_out" else "the training problems"
    num = len(summary["seeds"])
    seeds = f"{num} seeds" if num > 1 else "1 seed"
    console = wide_console()
    budget = f"{summary['num_tokens']:,} sampled tokens per run, {seeds}"
    head = f"{summary['decoding']} accuracy on {what}; {budget}"
    console.print(Text(head, style="bold"))
    print_comparison(console, list(comparison.variants.values()), summary["target"], summary["num_tokens"])
    console.print(Text(f"written: {', '.join(map(str, comparison.files))}", style="dim"))
