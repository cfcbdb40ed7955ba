"""`llm-reinforce sample`: print completions of a policy."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from llm_reinforce.cli.common import DebugOption, quieten, reported_failures, start_in_one_process
from llm_reinforce.cli.options import (
    PolicyOption,
    RemoteCodeOption,
    SystemPromptOption,
    TemperatureOption,
    TemplateArgumentOption,
    TemplateDateOption,
    TokensOption,
    seed_option,
    template_arguments,
)
from llm_reinforce.console.messages import terminal_console
from llm_reinforce.console.text import visible
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.policy import Completion


def sample(
    policy: PolicyOption,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT…", help="Prompts for the policy.")],
    num: Annotated[
        int | None,
        typer.Option(
            "--num", "-n", min=1, help="Number of completions per prompt. Default: 4; with --greedy: 1."
        ),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Take the most likely token at each step, instead of sampling.")
    ] = False,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    seed: Annotated[int, seed_option("Random seed of the sampling.")] = 0,
    no_template: Annotated[
        bool,
        typer.Option(
            "--no-template",
            help="Use the prompts unchanged, without the run's prompt template and without a chat template.",
        ),
    ] = False,
    system_prompt: SystemPromptOption = None,
    chat_template_kwarg: TemplateArgumentOption = None,
    chat_template_date: TemplateDateOption = None,
    trust_remote_code: RemoteCodeOption = False,
    debug: DebugOption = False,
) -> None:
    """Sample completions of prompts from a policy, and print them."""
    with reported_failures("sampling", debug=debug):
        if greedy and (num or 1) > 1:
            raise InputError(
                "--num and --greedy can't be used together, because all greedy completions of a "
                "prompt are equal; omit one of the two"
            )
        start_in_one_process("sample")
        quieten(debug=debug)
        from llm_reinforce.evaluation import sample as sample_policy

        completions = sample_policy(
            policy,
            prompts,
            num_completions=num or 4,
            greedy=greedy,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            plain=no_template,
            system_prompt=system_prompt,
            chat_template_kwargs=template_arguments(chat_template_kwarg),
            chat_template_date=chat_template_date,
            seed=seed,
            trust_remote_code=trust_remote_code,
        )
        _print_completions(prompts, completions)


def _print_completions(prompts: Sequence[str], completions: "Sequence[Sequence[Completion]]") -> None:
    console = terminal_console()
    for index, (prompt, of_prompt) in enumerate(zip(prompts, completions, strict=True)):
        gap = "\n" if index else ""
        console.print(Text(f"{gap}{visible(prompt)}", style="bold"), soft_wrap=True)
        for number, completion in enumerate(of_prompt, 1):
            note = "" if completion.terminated else " [truncated]"
            lines = "\n     ".join(visible(line) for line in completion.text.split("\n"))
            console.print(Text.assemble((f"{number:>3}  ", "dim"), lines, (note, "yellow")), soft_wrap=True)
