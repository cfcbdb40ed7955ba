"""`llm-reinforce serve RECIPE`: print or run the command that starts a vLLM server for a recipe."""

import os
from typing import Annotated

import typer

from llm_reinforce.cli.common import DebugOption, quieten, reported_failures
from llm_reinforce.console.messages import note


def serve(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or name of a built-in recipe.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- OPTION…]", help="Further options for `vllm serve`. Write them after `--`."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting; repeatable."),
    ] = None,
    python: Annotated[
        str,
        typer.Option("--python", help="Python interpreter of the environment in which vLLM is installed."),
    ] = "~/vllm/bin/python",
    run: Annotated[
        bool,
        typer.Option("--run", help="Start the server instead of printing the command."),
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Print or run the command that starts a vLLM server for a recipe.

    The model is written to OUTPUT_DIR.server/model, where the server reads it.
    """
    with reported_failures("the command", debug=debug):
        from llm_reinforce.config import load_config
        from llm_reinforce.errors import InputError

        config = load_config(recipe, overrides or [])
        quieten(debug=debug)
        from llm_reinforce.server.launch import HOW_TO_INSTALL, server_command, write_model

        command = server_command(config, python, options or [])
        if command.vllm is None and run:
            raise InputError(f"--python {python}: this environment has no vLLM. {HOW_TO_INSTALL}")
        note(f"model: {write_model(config)}")
        note(f"vLLM: {command.vllm or 'not found'}")
        if command.vllm is None:
            for line in HOW_TO_INSTALL.splitlines():
                note(line)
        if run:
            variables = {**os.environ, **command.environment}
            os.execvpe(command.arguments[0], [*command.arguments], variables)  # noqa: S606
        typer.echo(str(command))
