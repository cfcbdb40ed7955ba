"""Command-line options that several commands share."""

from typing import Annotated

import typer

from llm_reinforce.config import MAX_NEW_TOKENS

PolicyOption = Annotated[
    str,
    typer.Option(
        "--policy", "-p", help="Directory of a run or a model, a .gguf file, a model name, or a hub id."
    ),
]
TokensOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Maximum number of tokens per completion. Default: the value of the policy's run, or "
        f"{MAX_NEW_TOKENS} if there is no run.",
    ),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        min=1e-6,
        help="Sampling temperature. Default: the value of the policy's run, or 1 if there is no run.",
    ),
]
RemoteCodeOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Allow Python code that comes with the model to run.")
]
SplitOption = Annotated[str | None, typer.Option(help="Split of hub data sets. Default: test.")]
ConfigOption = Annotated[str | None, typer.Option(help="Configuration of hub data sets.")]
PromptColumnOption = Annotated[
    str | None, typer.Option(help="Column that contains the prompts. Default: prompt or question.")
]
AnswerColumnOption = Annotated[
    str | None,
    typer.Option(help="Column that contains the answers. Default: answer, solution or ground_truth."),
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
