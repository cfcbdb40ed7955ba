"""`llm-reinforce evaluate`: measure accuracy on data sets, and compare two policies."""

import enum
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_reinforce.cli.common import DebugOption, quieten, reported_failures, start_in_one_process
from llm_reinforce.cli.options import (
    DATA_OPTIONS,
    AlgebraOption,
    AnswerColumnOption,
    ConfigOption,
    JsonPerDataSetOption,
    PolicyOption,
    PromptColumnOption,
    RemoteCodeOption,
    SplitOption,
    SystemPromptOption,
    TemperatureOption,
    TemplateArgumentOption,
    TemplateDateOption,
    TokensOption,
    seed_option,
    template_arguments,
)
from llm_reinforce.console.evaluation_tables import comparison_table, measures_table
from llm_reinforce.console.messages import note, terminal_console
from llm_reinforce.console.progress import progress
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.evaluation import EvaluationReport


class Decoding(enum.StrEnum):
    """Decoding mode of the option --decoding."""

    greedy = "greedy"
    sampled = "sampled"


def evaluate(
    policy: PolicyOption,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA…",
            help="Data sets. Each is a JSONL file, a name such as gsm8k, NAME=PATH for a downloaded copy "
            "of a named data set, generate:… or reasoning_gym:… for generated problems, or owner/name "
            "on the hub.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="Data set, given in the same way as DATA; repeatable."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Policy with which --policy is compared, such as the policy before training."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            hidden=True,
            help="Obsolete; use --baseline. With --against NEW, --policy is the old policy, and NEW is the "
            "new policy.",
        ),
    ] = None,
    split: SplitOption = None,
    config: ConfigOption = None,
    prompt_column: PromptColumnOption = None,
    answer_column: AnswerColumnOption = None,
    algebra: AlgebraOption = False,
    num_problems: Annotated[
        int | None, typer.Option(min=1, help="Use only the first N problems of each data set.")
    ] = None,
    decoding: Annotated[
        Decoding,
        typer.Option(help="Take the most likely token at each step (greedy), or sample as in training."),
    ] = Decoding.greedy,
    samples_per_problem: Annotated[
        int,
        typer.Option(
            min=1, help="Number of completions per problem. Values above 1 need --decoding sampled."
        ),
    ] = 1,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="Template of the prompts, with {prompt} in place of the problem. Default: the template of "
            "the policy's run or, if the policy does not come from a run, of the data set."
        ),
    ] = None,
    system_prompt: SystemPromptOption = None,
    chat_template_kwarg: TemplateArgumentOption = None,
    chat_template_date: TemplateDateOption = None,
    few_shot: Annotated[int, typer.Option(min=0, help="Number of worked examples before each question.")] = 0,
    examples: Annotated[
        str | None,
        typer.Option(
            help="Data set for the worked examples. Default: the training split of the evaluated data set "
            "or, if there is no such split, the training problems of the policy's run."
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Cut completions at this text before they are verified; repeatable."),
    ] = None,
    seed: Annotated[
        int,
        seed_option("Random seed of the sampling and of the worked examples."),
    ] = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Number of completions generated at the same time.")
    ] = 256,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Directory for results.json and all answers. Run the same command again to continue an "
            "interrupted evaluation."
        ),
    ] = None,
    as_json: JsonPerDataSetOption = False,
    trust_remote_code: RemoteCodeOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure the accuracy of a policy on data sets, with 95% intervals, or compare two policies."""
    with reported_failures("the evaluation", debug=debug, options=DATA_OPTIONS):
        if decoding is Decoding.greedy and samples_per_problem > 1:
            raise InputError(
                f"--samples-per-problem {samples_per_problem} is useless with greedy decoding, because all "
                "greedy completions of a problem are equal; add --decoding sampled"
            )
        if examples is not None and not few_shot:
            raise InputError("--examples: used only with --few-shot; add --few-shot N")
        if not all(stop or ()):
            raise InputError("--stop: the text is empty; give the text at which completions are cut")
        if template is not None and "{prompt}" not in template:
            raise InputError(
                f"--template {template!r}: should contain {{prompt}}, which is replaced by the problem's text"
            )
        all_sources = (*(data or ()), *(sources or ()))
        if not all_sources:
            raise InputError(
                "no data set is given; name one, such as: llm-reinforce evaluate gsm8k --policy …"
            )
        policies = _policies(policy, baseline, against)
        arguments = template_arguments(chat_template_kwarg)
        start_in_one_process("evaluate")
        quieten(debug=debug)
        from llm_reinforce.evaluation import EvaluationRequest, choose_prompting, run_evaluations
        from llm_reinforce.policy import ChatSettings

        report = run_evaluations(
            EvaluationRequest(
                policies=policies,
                sources=all_sources,
                prompting=choose_prompting(
                    policies,
                    template,
                    max_new_tokens,
                    temperature,
                    ChatSettings(system_prompt, arguments, chat_template_date),
                    is_sampled=decoding is Decoding.sampled,
                ),
                split=split,
                config=config,
                prompt_column=prompt_column,
                answer_column=answer_column,
                algebra=algebra,
                num_problems=num_problems,
                decoding=decoding.value,
                samples_per_problem=samples_per_problem,
                few_shot=few_shot,
                examples=examples,
                stop=tuple(stop or ()),
                seed=seed,
                batch_size=batch_size,
                output_dir=output.expanduser() if output else None,
                trust_remote_code=trust_remote_code,
            ),
            say=note,
            progress=progress,
        )
        if as_json:
            for row in report.rows():
                typer.echo(json.dumps(row))
        else:
            _print_tables(report)


def _policies(policy: str, baseline: str | None, against: str | None) -> tuple[str, ...]:
    """Return the policies to evaluate, the baseline first.

    Raises:
        InputError: if both `--baseline` and its older form `--against` are given.
    """
    if baseline is not None and against is not None:
        raise InputError("--baseline and --against: both name a second policy; use only --baseline")
    if against is not None:
        note(
            "--against is obsolete; instead of --policy OLD --against NEW, write: "
            f"--policy {shlex.quote(against)} --baseline {shlex.quote(policy)}"
        )
        return policy, against
    return (policy,) if baseline is None else (baseline, policy)


def _print_tables(report: "EvaluationReport") -> None:
    console = terminal_console()
    for place, data in enumerate(report.data_sets):
        if place:
            console.print()
        columns = [
            (str(policy), evaluations[place])
            for policy, evaluations in zip(report.request.policies, report.evaluations, strict=True)
        ]
        console.print(measures_table(data.name, columns))
        for comparison in report.changes[place].values() if report.changes else ():
            console.print(comparison_table(comparison))
