"""`llm-reinforce claims …`: the article's claims about REINFORCE's variance, measured beside predictions."""

from typing import Annotated

import typer

from llm_reinforce.cli.common import DebugOption
from llm_reinforce.cli.measurement import (
    JsonOption,
    MeasuredPolicyOption,
    OutputOption,
    OverridesOption,
    RecipeArgument,
    measuring,
    show_measurement,
)
from llm_reinforce.config import MAX_SEED
from llm_reinforce.console.variance_tables import (
    ENOUGH_PROBLEMS,
    classifier_table,
    constant_table,
    length_table,
)

claims = typer.Typer(
    no_args_is_help=True,
    help="Measure the article's claims about REINFORCE's variance, beside theoretical predictions. "
    "`llm-reinforce compare` measures its effect on learning.",
)
SeedOption = Annotated[int, typer.Option(min=0, max=MAX_SEED - 1, help="Seed of all random numbers.")]


@claims.command()
def constant(
    recipe: RecipeArgument,
    policy: MeasuredPolicyOption = None,
    num_problems: Annotated[
        int,
        typer.Option(
            "--problems",
            min=2 * ENOUGH_PROBLEMS,
            help="Number of problems; half of them predict, half are measured.",
        ),
    ] = 512,
    overrides: OverridesOption = None,
    seed: SeedOption = 0,
    output: OutputOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """No unified baseline: the variance with a constant added to every reward, baseline by baseline."""
    with measuring("claims", debug=debug):
        from llm_reinforce.analysis import measure_constant_claim

        rows = measure_constant_claim(
            recipe,
            policy=policy,
            num_problems=num_problems,
            seed=seed,
            overrides=overrides or [],
            output_dir=output,
            show_progress=True,
        )
        show_measurement("constant", rows, constant_table(rows), output, as_json=as_json)


@claims.command()
def classifier(
    seed: SeedOption = 0, output: OutputOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Classification as one-step reinforcement learning: the variance depends on the rewards' offset."""
    with measuring("claims", debug=debug):
        from llm_reinforce.analysis import measure_classifier_claim

        rows = measure_classifier_claim(seed=seed, output_dir=output)
        show_measurement("classifier", rows, classifier_table(rows), output, as_json=as_json)


@claims.command()
def length(
    seed: SeedOption = 0, output: OutputOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Correlated returns: the variance of coins, and of the gradient by the length of the episodes."""
    with measuring("claims", debug=debug):
        from llm_reinforce.analysis import measure_length_claim

        claim = measure_length_claim(seed=seed, output_dir=output, show_progress=True)
        rows = [*claim.coins, *claim.lengths]
        show_measurement("length", rows, length_table(claim), output, as_json=as_json)
