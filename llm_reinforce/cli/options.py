"""Command-line options that several commands share."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from llm_reinforce.errors import InputError


def seed_option(help_text: str) -> Any:
    """Return the option `--seed`. A callback checks its maximum, which is too long to show in help texts."""
    return typer.Option("--seed", min=0, callback=_checked_seed, help=help_text)


def _checked_seed(seed: int) -> int:
    from llm_reinforce.config import MAX_SEED

    if seed >= MAX_SEED:
        raise typer.BadParameter(f"{seed} is not below {MAX_SEED}; give a smaller seed")
    return seed


PolicyOption = Annotated[
    str,
    typer.Option(
        "--policy",
        "-p",
        help="Policy: directory of a run or a model, a .gguf file, a model name, or a hub id.",
    ),
]
TokensOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        # the default is the constant MAX_NEW_TOKENS, which is not imported because the import takes half a
        # second
        help="Maximum number of tokens per completion. Default: the value of the policy's run, or 256 if "
        "the policy does not come from a run.",
    ),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        min=1e-6,
        help="Sampling temperature. Default: the value of the policy's run, or 1 if the policy does not come "
        "from a run.",
    ),
]
SystemPromptOption = Annotated[
    str | None,
    typer.Option(help="Text of the system message. Default: the system message of the policy's run."),
]
TemplateArgumentOption = Annotated[
    list[str] | None,
    typer.Option(
        "--chat-template-kwarg",
        metavar="NAME=VALUE",
        help="Argument of the chat template, such as enable_thinking=false; repeatable. Default: the "
        "arguments of the policy's run.",
    ),
]
TemplateDateOption = Annotated[
    str | None,
    typer.Option(
        metavar="YYYY-MM-DD",
        help="Date that the chat template prints as the current date. Default: the date of the policy's "
        "run, or today if the policy does not come from a run.",
    ),
]
RemoteCodeOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run Python code that comes with the model. Default: do not run it."
    ),
]
SplitOption = Annotated[str | None, typer.Option(help="Split of data sets on the hub. Default: test.")]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        help="Configuration (also called subset) of data sets on the hub. Default: the default configuration."
    ),
]
DATA_OPTIONS = ("prompt_column", "answer_column", "algebra: true")
"""Names of the data-set settings that commands offer as options."""
PromptColumnOption = Annotated[
    str | None,
    typer.Option(
        help="Column that contains the prompts. Default: the first of these columns that exists: prompt, "
        "question, problem, messages, conversations."
    ),
]
AnswerColumnOption = Annotated[
    str | None,
    typer.Option(
        help="Column that contains the answers. Default: the first of these columns that exists: answer, "
        "ground_truth, final_answer, reward_model.ground_truth, solution."
    ),
]
AlgebraOption = Annotated[
    bool,
    typer.Option(
        "--algebra",
        help="Compare answers as LaTeX or algebraic expressions. Requires the optional package math-verify.",
    ),
]
JsonPerDataSetOption = Annotated[
    bool, typer.Option("--json", help="Print JSON instead of tables, one object per line.")
]


def template_arguments(arguments: Sequence[str] | None) -> dict[str, Any] | None:
    """Return the arguments given with `--chat-template-kwarg`, parsed as YAML; None if there are none.

    Raises:
        InputError: if an argument does not have the form NAME=VALUE.
    """
    from llm_reinforce.config.strict_yaml import parse_document

    if not arguments:
        return None
    values: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not (equals and name.isidentifier()):
            raise InputError(f"--chat-template-kwarg {argument!r}: should have the form NAME=VALUE")
        values |= parse_document(f"{name}: {value}", f"--chat-template-kwarg {argument}").data
    return values
