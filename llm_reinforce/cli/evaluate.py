"""`llm-reinforce evaluate`: accuracy on data sets, and what changed between two policies."""

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_reinforce.cli.common import DebugOption, quieten, reported_failures
from llm_reinforce.cli.options import PolicyOption, RemoteCodeOption, TemperatureOption, TokensOption
from llm_reinforce.config import MAX_SEED
from llm_reinforce.console.evaluation_tables import comparison_table, measures_table
from llm_reinforce.console.messages import note, terminal_console
from llm_reinforce.console.progress import progress
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.evaluation import EvaluationReport


class Decoding(enum.StrEnum):
    """The decoding mode."""

    greedy = "greedy"
    sampled = "sampled"


def evaluate(
    policy: PolicyOption,
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            "-d",
            help="A JSONL file; a name such as gsm8k, or NAME=PATH for its published file; generate:… or "
            "reasoning_gym:…; owner/name on the hub.",
        ),
    ],
    more_data: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE_OR_NAME]…", help="More data, as after --data.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="A second policy, asked the same: what it gains and loses against --policy."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="The data sets' split; test by default.")] = None,
    config: Annotated[str | None, typer.Option(help="The hub data sets' configuration.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="The prompts' column; found by default.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="The answers' column; found by default.")] = None,
    algebra: Annotated[
        bool, typer.Option("--algebra", help="Answers may be LaTeX or algebra, judged by math-verify.")
    ] = False,
    num_problems: Annotated[int | None, typer.Option(min=1, help="Ask the first N of each only.")] = None,
    decoding: Annotated[
        Decoding, typer.Option(help="Take the likeliest token each time, or draw as training does.")
    ] = Decoding.greedy,
    samples_per_problem: Annotated[int, typer.Option(min=1, help="Completions a problem; sampled only.")] = 1,
    max_new_tokens: TokensOption = None,
    temperature: TemperatureOption = None,
    template: Annotated[
        str | None,
        typer.Option(help="How a problem is asked, around {prompt}; the run's own, else the data set's."),
    ] = None,
    few_shot: Annotated[int, typer.Option(min=0, help="Worked examples before each question.")] = 0,
    examples: Annotated[
        str | None,
        typer.Option(help="Where these come from; the data set's own training split, else the run's."),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Cut completions at this text before they are judged; repeatable."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED - 1, help="Seed of the sampling and of the examples.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Completions at once.")] = 256,
    output: Annotated[
        Path | None,
        typer.Option(help="Directory for results.json and every answer; a stopped evaluation goes on there."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a data set on stdout.")] = False,
    trust_remote_code: RemoteCodeOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure a policy's accuracy on data sets, with 95% intervals; two policies, and what changed."""
    with reported_failures("the evaluation", debug=debug):
        if decoding is Decoding.greedy and samples_per_problem > 1:
            raise InputError(
                "--samples-per-problem: greedy completions are all the same; add --decoding sampled"
            )
        if examples is not None and not few_shot:
            raise InputError("--examples: read with --few-shot only")
        if not all(stop or ()):
            raise InputError("--stop: an empty text stands everywhere; give the text to cut at")
        if template is not None and "{prompt}" not in template:
            raise InputError(f"--template {template!r}: should contain {{prompt}}")
        quieten(debug=debug)
        from llm_reinforce.evaluation import EvaluationRequest, choose_prompting, run_evaluations

        policies = [policy] if against is None else [policy, against]
        report = run_evaluations(
            EvaluationRequest(
                policies=tuple(policies),
                sources=(*data, *(more_data or [])),
                prompting=choose_prompting(policies, template, max_new_tokens, temperature),
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
