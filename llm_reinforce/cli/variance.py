"""`llm-reinforce variance RECIPE`: the gradient's variance at fixed weights, estimator by estimator."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llm_reinforce.cli.common import DebugOption, quieten
from llm_reinforce.cli.figures import JsonOption, OutputOption, cell, measuring, number, tell_figures
from llm_reinforce.config import MAX_SEED, Config, load_config
from llm_reinforce.console.messages import note
from llm_reinforce.console.progress import progress
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.analysis import Collected, EstimatorFigures, VarianceFigures
    from llm_reinforce.training import ReinforceTrainer

MIN_PROBLEMS = 32  # with fewer, or fewer that have a gradient, the intervals are too short


def variance(
    recipe: Annotated[str, typer.Argument(help="A recipe's file, or a built-in recipe's name.")],
    policy: Annotated[
        str | None,
        typer.Option(
            help="Measure at this policy's weights: a run, a directory, a name. Else at those that "
            "the recipe's first update would find."
        ),
    ] = None,
    num_problems: Annotated[
        int, typer.Option("--problems", min=MIN_PROBLEMS, help="Problems whose episodes are measured.")
    ] = 256,
    sketch: Annotated[
        int | None,
        typer.Option(
            min=0, help="Fold each gradient up to so many numbers; 0: keep it whole. Else as memory allows."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED - 1, help="Seed of problems, episodes, sketch and intervals.")
    ] = 0,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one of its settings; repeatable."),
    ] = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure how noisy each baseline's gradient is, on your policy and your problems; nothing is trained."""
    with measuring("variance", "variance", output, debug=debug) as output:
        loaded = check_group_size(at_policy(load_config(recipe, overrides or []), policy))
        quieten(debug=debug)
        figures = _measure(loaded, num_problems, sketch, seed)
        from llm_reinforce.analysis import plot_variance

        tell_figures(
            "variance",
            asdict(figures),
            variance_table(figures),
            output,
            lambda folder: plot_variance(figures, folder),
            as_json=as_json,
        )


def at_policy(recipe: Config, name_or_path: str | None) -> Config:
    """The recipe with these weights instead of its own, and without a warm start."""
    if name_or_path is None:
        return recipe
    changes = {"name_or_path": name_or_path, "random_init": None, "revision": None}
    path = Path(name_or_path).expanduser()
    if any((folder / "adapter_config.json").is_file() for folder in (path, path / "policy")):
        changes["lora"] = None  # it is an adapter already
    policy = recipe.policy.model_copy(update=changes)
    training = recipe.training.model_copy(update={"warm_start": None})
    return recipe.model_copy(update={"policy": policy, "training": training})


def check_group_size(recipe: Config) -> Config:
    """The recipe, which has more than one episode a problem.

    Raises:
        InputError: it hasn't.
    """
    if recipe.reinforce.episodes_per_problem < 2:
        raise InputError(
            "reinforce.episodes_per_problem should be at least 2: baselines compare the episodes of one "
            "problem (--set reinforce.episodes_per_problem=4)"
        )
    return recipe


def ready_to_measure(recipe: Config) -> "ReinforceTrainer":
    """A trainer that has done nothing but the recipe's warm start."""
    from llm_reinforce.training import ReinforceTrainer

    trainer = ReinforceTrainer(config=recipe)
    if recipe.training.warm_start is not None:
        note(f"warm start: {recipe.training.warm_start.num_updates:,} supervised updates")
        trainer.loop.warm_start()
    return trainer


def collect_told(trainer: "ReinforceTrainer", num_problems: int, seed: int) -> "Collected":
    """Episodes of the trainer's policy, with progress."""
    from llm_reinforce.analysis import collect_updates

    with progress("collecting", 2 * num_problems) as tell:
        return collect_updates(
            trainer.policy,
            trainer.problems,
            trainer.rewards,
            trainer.config.reinforce,
            trainer.config.sampling,
            num_problems=num_problems,
            seed=seed,
            progress=tell,
        )


def _measure(recipe: Config, num_problems: int, sketch: int | None, seed: int) -> "VarianceFigures":
    from llm_reinforce.analysis import estimators_beside, measure_variance

    trainer = ready_to_measure(recipe)
    collected = collect_told(trainer, num_problems, seed)
    with progress("gradients", len(collected.batch), what="episodes") as tell:
        return measure_variance(
            trainer.policy,
            collected,
            estimators_beside(recipe.reinforce),
            temperature=recipe.sampling.temperature,
            sketch_size=sketch,
            seed=seed,
            progress=tell,
        )


def variance_table(figures: "VarianceFigures") -> RenderableType:
    """A row an estimator, each figure above its 95% interval."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("estimator", no_wrap=True)
    for title in ("variance", "SNR", "noise scale", "cosine", "bias"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in figures.estimators:
        shown = (each.variance, each.snr, each.noise_scale, each.cosine)
        cells = (cell(measured, digits=2) for measured in shown)
        table.add_row(Text(each.name, style="bold"), *cells, _bias(each))
    head = (
        f"{figures.num_problems:,} problems x {figures.episodes_per_problem} episodes, mean return "
        f"{figures.mean_return:.3f}, accuracy {figures.accuracy:.1%}; {figures.num_parameters:,} parameters"
    )
    norm = figures.squared_norm
    notes = [f"‖∇J‖² = {number(norm.value)} [{number(norm.low)}, {number(norm.high)}]"]
    if figures.sketch_error:
        error = f"{figures.sketch_error:.1%}"
        notes.append(f"gradients are sketched: a squared length is off by {error} (one deviation) at most")
    if figures.num_with_gradient < MIN_PROBLEMS:
        few = f"{figures.num_with_gradient} of {figures.num_problems:,} problems"
        notes.append(f"only {few} have a gradient: the intervals are too short, ask more (--problems)")
    if figures.num_unscored:
        notes.append(f"{figures.num_unscored:,} episodes could not be scored and are left out")
    notes += [
        f"variance: of an episode; SNR: of an update of {figures.episodes_per_update:,} episodes; noise "
        "scale: episodes at which it is 1; cosine: of two halves of these episodes; below each its 95% "
        "interval",
        "bias: the expected gradient's distance from ∇J over ‖∇J‖; along: its component along ∇J",
    ]
    return Group(Text(head, style="bold"), table, *(Text(line, style="dim") for line in notes))


def _bias(each: "EstimatorFigures") -> Text:
    if each.bias is None or each.along is None:
        return Text("none", style="dim")
    return Text.assemble(cell(each.bias, digits=2), (f"\nalong {each.along.value:.2f}", "dim"))
