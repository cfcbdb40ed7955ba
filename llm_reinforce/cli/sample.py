"""`llm-reinforce sample`: see what a policy answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from llm_reinforce.cli.asking import (
    PolicyOption,
    RemoteCodeOption,
    TemperatureOption,
    TokensOption,
    how_to_ask,
    load_asked,
)
from llm_reinforce.cli.common import DebugOption, quieten, reported_failures
from llm_reinforce.config import MAX_SEED
from llm_reinforce.console.messages import terminal_console
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.policy import Completion


def sample(
    policy: PolicyOption,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT…", help="What the policy is asked.")],
    num: Annotated[int | None, typer.Option("--num", "-n", min=1, help="Completions a prompt; 4.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="The likeliest token each time.")] = False,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED - 1, help="Seed of the sampling.")] = 0,
    no_template: Annotated[
        bool, typer.Option("--no-template", help="Ask the prompt as it stands: no template, no chat format.")
    ] = False,
    trust_remote_code: RemoteCodeOption = False,
    debug: DebugOption = False,
) -> None:
    """Show what a policy answers."""
    with reported_failures("sampling", debug=debug):
        if greedy and (num or 1) > 1:
            raise InputError(
                "--num: greedy completions of a prompt are all the same; leave out one of the two"
            )
        asking = how_to_ask([policy], "{prompt}" if no_template else None, max_new_tokens, temperature)
        quieten(debug=debug)
        loaded = load_asked(
            policy, asking.recipes[0], trust_remote_code=trust_remote_code, as_it_stands=no_template
        )
        import torch

        from llm_reinforce.policy import check_prompts_fit, sample_completions
        from llm_reinforce.problems import Problem, in_template

        asked = in_template(
            [Problem(prompt, "", id=prompt) for prompt in prompts], asking.template or "{prompt}"
        )
        check_prompts_fit(loaded, asked, asking.max_new_tokens)
        num_completions = 1 if greedy else num or 4
        completions = sample_completions(
            loaded,
            loaded.encode_prompts([problem.prompt for problem in asked]),
            num_completions=num_completions,
            max_new_tokens=asking.max_new_tokens,
            temperature=asking.temperature,
            greedy=greedy,
            generator=torch.Generator(loaded.device).manual_seed(seed),
        )
        _print_completions(prompts, completions, num_completions)


def _print_completions(prompts: Sequence[str], completions: "Sequence[Completion]", num: int) -> None:
    from llm_reinforce.console.text import visible

    console = terminal_console()
    for index, completion in enumerate(completions):
        if index % num == 0:
            gap = "\n" if index else ""
            console.print(Text(f"{gap}{visible(prompts[index // num])}", style="bold"), soft_wrap=True)
        note = "" if completion.terminated else " [truncated]"
        lines = "\n     ".join(visible(line) for line in completion.text.split("\n"))
        console.print(
            Text.assemble((f"{index % num + 1:>3}  ", "dim"), lines, (note, "yellow")), soft_wrap=True
        )
