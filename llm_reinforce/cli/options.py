"""Options that several commands share."""

from typing import Annotated

import typer

from llm_reinforce.config import MAX_NEW_TOKENS

PolicyOption = Annotated[
    str, typer.Option("--policy", "-p", help="A run's directory, a model's, a .gguf file, or a name.")
]
TokensOption = Annotated[
    int | None, typer.Option(min=1, help=f"Longest completion; the run's own, else {MAX_NEW_TOKENS}.")
]
TemperatureOption = Annotated[
    float | None, typer.Option(min=1e-6, help="Divides the logits; the run's own, else 1.")
]
RemoteCodeOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
