"""`llm-reinforce claims`: measure the claims of an article about the variance of REINFORCE.

The article is "The Beauty of Reinforcement Learning (1)".
"""

from typing import Annotated

import typer

from llm_reinforce.cli.common import DebugOption
from llm_reinforce.cli.help_texts import App
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
from llm_reinforce.console.variance_tables import (
    ENOUGH_PROBLEMS,
    classifier_table,
    constant_table,
    length_table,
)

claims = App(
    no_args_is_help=True,
    help='Measure the claims of the article "The Beauty of Reinforcement Learning (1)" about the variance of '
    "REINFORCE, and compare them with theory. For the effect on learning, see `llm-reinforce compare`.",
)
SeedOption = Annotated[int, seed_option("Random seed.")]


@claims.command()
def constant(
    recipe: RecipeArgument,
    policy: MeasuredPolicyOption = None,
    num_problems: Annotated[
        int,
        typer.Option(
            "--problems",
            min=2 * ENOUGH_PROBLEMS,
            help="Number of problems. One half of the problems is used for the theoretical prediction, and "
            "the other half for the measurement.",
        ),
    ] = 512,
    overrides: OverridesOption = None,
    seed: SeedOption = 0,
    output: OutputOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure the gradient variance of each baseline when a constant is added to every reward.

    This tests a claim of the article "The Beauty of Reinforcement Learning
    (1)" about returns without a unified baseline: adding a constant to all
    returns changes the variance of the gradient, but not its expectation.
    """
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
    """Measure the gradient variance of a classifier for several choices of its rewards.

    This tests an example of the article "The Beauty of Reinforcement Learning
    (1)": classification as reinforcement learning with one action per episode.
    """
    with measuring("claims", debug=debug):
        from llm_reinforce.analysis import measure_classifier_claim

        rows = measure_classifier_claim(seed=seed, output_dir=output)
        show_measurement("classifier", rows, classifier_table(rows), output, as_json=as_json)


@claims.command()
def length(
    seed: SeedOption = 0, output: OutputOption = None, as_json: JsonOption = False, debug: DebugOption = False
) -> None:
    """Measure how the variance of coin tosses, and of gradients, grows with the length of an episode.

    This tests a claim of the article "The Beauty of Reinforcement Learning
    (1)": the returns of one episode are correlated, which increases the
    variance.
    """
    with measuring("claims", debug=debug):
        from llm_reinforce.analysis import measure_length_claim

        claim = measure_length_claim(seed=seed, output_dir=output, show_progress=True)
        rows = [*claim.coins, *claim.lengths]
        show_measurement("length", rows, length_table(claim), output, as_json=as_json)
