"""`llm-reinforce claims …`: what the article says of REINFORCE's variance, measured beside its prediction."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llm_reinforce.cli.common import DebugOption, quieten
from llm_reinforce.cli.figures import JsonOption, OutputOption, cell, measuring, number, tell_figures
from llm_reinforce.cli.variance import (
    MIN_PROBLEMS,
    at_policy,
    check_group_size,
    collect_told,
    ready_to_measure,
)
from llm_reinforce.config import MAX_SEED, load_config
from llm_reinforce.console.progress import progress

if TYPE_CHECKING:
    from llm_reinforce.analysis import (
        ClassifierFigures,
        CoinFigures,
        ConstantFigures,
        LengthFigures,
    )

claims = typer.Typer(
    no_args_is_help=True,
    help="Measure what the article says of REINFORCE's variance, beside what theory predicts. Its price in "
    "learning is `llm-reinforce compare`'s.",
)
EXPLAINED = "below each figure its 95% interval; ≈ what theory predicts, from other episodes"
TITLES = {
    "each step": "a reward for each head, as it falls",
    "at the end": "a reward for all heads, at the end",
    "verdict": "a verdict at the end: whether the first toss was heads",
}
SeedOption = Annotated[int, typer.Option(min=0, max=MAX_SEED - 1, help="Seed of all that is drawn.")]


@claims.command()
def constant(
    recipe: Annotated[str, typer.Argument(help="A recipe's file, or a built-in recipe's name.")],
    policy: Annotated[
        str | None, typer.Option(help="Measure at this policy's weights: a run, a directory, a name.")
    ] = None,
    num_problems: Annotated[
        int, typer.Option("--problems", min=2 * MIN_PROBLEMS, help="Half predict, half are measured.")
    ] = 512,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one of its settings; repeatable."),
    ] = None,
    seed: SeedOption = 0,
    output: OutputOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """No unified baseline: a constant added to every reward, and which baselines pay for it."""
    with measuring("claims", "constant", output, debug=debug) as output:
        loaded = check_group_size(at_policy(load_config(recipe, overrides or []), policy))
        quieten(debug=debug)
        from llm_reinforce.analysis import measure_constants, plot_constant

        trainer = ready_to_measure(loaded)
        collected = collect_told(trainer, num_problems, seed)
        with progress("gradients", len(collected.batch), what="episodes") as tell:
            figures = measure_constants(
                trainer.policy,
                collected,
                loaded.reinforce,
                temperature=loaded.sampling.temperature,
                seed=seed,
                progress=tell,
            )
        tell_figures(
            "constant",
            [asdict(each) for each in figures],
            constant_table(figures),
            output,
            lambda folder: plot_constant(figures, folder),
            as_json=as_json,
        )


@claims.command()
def classifier(
    seed: SeedOption = 0, output: OutputOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Classification is one-step reinforcement learning: where the rewards begin decides the variance."""
    with measuring("claims", "classifier", output, debug=debug) as output:
        from llm_reinforce.analysis import measure_classifier, plot_classifier

        figures = measure_classifier(seed)
        tell_figures(
            "classifier",
            [asdict(each) for each in figures],
            classifier_table(figures),
            output,
            lambda folder: plot_classifier(figures, folder),
            as_json=as_json,
        )


@claims.command()
def length(
    seed: SeedOption = 0, output: OutputOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Correlated returns: coins, and then the gradient's variance against the length of the episodes."""
    with measuring("claims", "length", output, debug=debug) as output:
        quieten(debug=debug)
        from llm_reinforce.analysis import NUM_TO_MEASURE, measure_lengths, plot_length, toss_coins

        coins = toss_coins(seed)
        with progress("gradients", NUM_TO_MEASURE, what="episodes") as tell:
            figures = measure_lengths(seed, tell)
        table = Group(coins_table(coins), Text(""), length_table(figures))
        tell_figures(
            "length",
            [*map(asdict, coins), *map(asdict, figures)],
            table,
            output,
            lambda folder: plot_length(coins, figures, folder),
            as_json=as_json,
        )


def constant_table(figures: "Sequence[ConstantFigures]") -> RenderableType:
    """A row a constant; the baselines beside what is predicted of none."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("constant", justify="right")
    names = list(dict.fromkeys(each.baseline for each in figures))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for value in dict.fromkeys(each.constant for each in figures):
        row = {each.baseline: each for each in figures if each.constant == value}
        table.add_row(
            f"{value:+g}",
            *(cell(row[name].measured, row[name].predicted) for name in names),
        )
    head = "the gradient's variance, an episode's, with a constant added to every reward"
    return Group(Text(head, style="bold"), table, Text(EXPLAINED, style="dim"))


def classifier_table(figures: "Sequence[ClassifierFigures]") -> RenderableType:
    """A row a way to place the rewards."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("rewards, wrong and right", "reinforced", "to the label", "‖E ĝ‖", "variance"):
        table.add_column(title, justify="left" if title.startswith("rewards") else "right")
    for each in figures:
        table.add_row(
            each.name,
            f"{each.share_reinforced:.0%}",
            f"{each.share_to_label:.0%}",
            number(each.signal),
            cell(each.measured, each.predicted),
        )
    notes = "reinforced: of the returns that aren't 0, those that make the action taken likelier"
    return Group(table, Text(f"{notes}; {EXPLAINED}", style="dim"))


def coins_table(figures: "Sequence[CoinFigures]") -> RenderableType:
    """A row a number of coins."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("coins", "N/4", "independent", "N²/4", "one coin, N times"):
        table.add_column(title, justify="right")
    for each in figures:
        table.add_row(
            str(each.num_coins),
            f"{each.expected_independent:g}",
            cell(each.independent),
            f"{each.expected_one_coin:g}",
            cell(each.one_coin),
        )
    return Group(Text("the variance of the number of heads", style="bold"), table)


def length_table(figures: "Sequence[LengthFigures]") -> RenderableType:
    """A block a way to pay, a row a length; what is measured above what is predicted."""
    blocks: list[RenderableType] = [Text("the gradient's variance, an episode's", style="bold")]
    for paid in dict.fromkeys(each.paid for each in figures):
        blocks.append(Text(f"\n{TITLES[paid]}"))
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("T", justify="right")
        names = list(dict.fromkeys(each.estimator for each in figures))
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for num in dict.fromkeys(each.num_actions for each in figures):
            row = {each.estimator: each for each in figures if (each.paid, each.num_actions) == (paid, num)}
            table.add_row(str(num), *(cell(row[name].measured, row[name].predicted) for name in names))
        blocks.append(table)
    return Group(*blocks, Text(EXPLAINED, style="dim"))
