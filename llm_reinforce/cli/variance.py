"""`llm-reinforce variance RECIPE`: measure the gradient variance of each estimator, without training."""

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
from llm_reinforce.cli.options import seed_option
from llm_reinforce.console.variance_tables import ENOUGH_PROBLEMS, variance_table


def variance(
    recipe: RecipeArgument,
    policy: MeasuredPolicyOption = None,
    num_problems: Annotated[
        int, typer.Option("--problems", min=ENOUGH_PROBLEMS, help="Number of problems.")
    ] = 256,
    sketch: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Shorten each gradient to this number of components by random projection; 0: do not "
            "shorten. Default: shorten only if all gradients together would need more than 2 GiB of memory.",
        ),
    ] = None,
    seed: Annotated[
        int,
        seed_option(
            "Random seed for drawing problems, sampling episodes, projecting gradients and computing "
            "intervals."
        ),
    ] = 0,
    overrides: OverridesOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure the gradient variance with each baseline, for the policy and the problems of a recipe.

    The policy is not trained, except by the recipe's warm start.
    """
    with measuring("variance", debug=debug):
        from llm_reinforce.analysis import measure_variance

        measured = measure_variance(
            recipe,
            policy=policy,
            num_problems=num_problems,
            sketch_size=sketch,
            seed=seed,
            overrides=overrides or [],
            output_dir=output,
            show_progress=True,
        )
        show_measurement("variance", measured, variance_table(measured), output, as_json=as_json)
