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
        help="Maximum number of tokens per completion. Default: that of the policy's run, or "
        f"{MAX_NEW_TOKENS}.",
    ),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(min=1e-6, help="Sampling temperature. Default: that of the policy's run, or 1."),
]
RemoteCodeOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
SplitOption = Annotated[str | None, typer.Option(help="Split of hub data sets. Default: test.")]
ConfigOption = Annotated[str | None, typer.Option(help="Configuration of hub data sets.")]
PromptColumnOption = Annotated[
    str | None, typer.Option(help="Column of the prompts. Default: detected by its name.")
]
AnswerColumnOption = Annotated[
    str | None, typer.Option(help="Column of the reference answers. Default: detected by its name.")
]
AlgebraOption = Annotated[
    bool,
    typer.Option(
        "--algebra", help="Compare answers as LaTeX or algebraic expressions, with math-verify (an extra)."
    ),
]
JsonPerDataSetOption = Annotated[
    bool, typer.Option("--json", help="Print JSON instead of tables, one object per line.")
]
