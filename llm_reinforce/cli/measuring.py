"""What `llm-reinforce evaluate` does: read the data, ask each policy, write and show what came of it."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from llm_reinforce.cli.asking import Asking, load_asked
from llm_reinforce.config import Config
from llm_reinforce.console.evaluation_tables import comparison_table, measures_table
from llm_reinforce.console.messages import note, terminal_console
from llm_reinforce.console.progress import progress
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.evaluation import AnswerFile, Comparison, Criterion, Evaluation
    from llm_reinforce.policy import LanguagePolicy
    from llm_reinforce.problems import Problem

    Changes = Mapping[Criterion, Comparison]

SIDES = ("before", "after")  # of two policies; the folders of their answers
MAX_NAME = 100  # bytes of a data set's name in a file's
NUM_LISTED = 5  # ids of problems that a note lists


@dataclass(frozen=True, slots=True)
class Request:
    """The options of one command."""

    policies: tuple[str, ...]
    sources: tuple[str, ...]
    split: str | None
    config: str | None
    prompt_column: str | None
    answer_column: str | None
    algebra: bool
    num_problems: int | None
    decoding: Literal["greedy", "sampled"]
    samples_per_problem: int
    asking: Asking
    few_shot: int
    examples: str | None
    stop: tuple[str, ...]
    seed: int
    batch_size: int
    output: Path | None
    as_json: bool
    trust_remote_code: bool


@dataclass(frozen=True, slots=True)
class DataSet:
    """Problems as they are asked.

    Attributes:
        num_available: how many the source has.
        stop: the strings given; else, in a data set's own words, the head of its next question.
        overlap: how many of them the policies' runs trained on, by their own words.
    """

    name: str
    problems: "Sequence[Problem]"
    num_available: int
    template: str
    stop: tuple[str, ...]
    overlap: dict[str, int]


def measure_and_tell(request: Request) -> None:
    """All of it; the policies one after the other, so that one at a time is in memory.

    Raises:
        InputError: the data, a policy or the output can't be used.
    """
    if request.output is not None:
        _check_file_names(request.sources, request.decoding)
    trained_on = _training_problems(request.asking.recipes)
    sets = [_read_set(request, source, trained_on) for source in request.sources]
    sides: list[list[Evaluation]] = []
    for number, policy in enumerate(request.policies):
        started = time.monotonic()
        loaded = load_asked(
            policy, request.asking.recipes[number], trust_remote_code=request.trust_remote_code
        )
        output = _side_directory(request, number)
        sides.append(_measure(request, loaded, policy, sets, output))
        del loaded
        if output is not None:
            _write_results(request, policy, sets, sides[-1], output, time.monotonic() - started)
    changes = _compare(sides)
    if changes and request.output is not None:
        rows = {data.name: _summaries(each) for data, each in zip(sets, changes, strict=True)}
        _write_json(request.output / "comparison.json", rows)
    if request.as_json:
        _print_json(request, sets, sides, changes)
    else:
        _print_tables(request, sets, sides, changes)


def _compare(sides: "Sequence[Sequence[Evaluation]]") -> "list[Changes]":
    """What changed on each data set; nothing where there is one policy."""
    from llm_reinforce.evaluation import comparisons

    if len(sides) < 2:
        return []
    return [comparisons(before, after) for before, after in zip(*sides, strict=True)]


def _summaries(changes: "Changes") -> dict[str, Any]:
    return {criterion: comparison.summary() for criterion, comparison in changes.items()}


def _training_problems(recipes: Sequence[Config | None]) -> "list[Problem]":
    """What the runs among the policies were trained on, to look for it among what they are asked."""
    from llm_reinforce.problems import untemplated_problems

    problems: list[Problem] = []
    for number, recipe in enumerate(recipes):
        if recipe is None or recipe in recipes[:number]:
            continue
        try:
            problems += untemplated_problems(recipe).train
        except InputError as error:
            note(f"whether the run was trained on what is asked can't be told: {error}")
    return problems


def _read_set(request: Request, source: str, trained_on: "Sequence[Problem]") -> DataSet:
    from llm_reinforce.problems import (
        examples_before,
        find_overlap,
        find_problems,
        in_template,
        reads_split,
        usual_stop,
        usual_template,
    )
    from llm_reinforce.verifier import find_doubts

    if (request.split or request.config) and not any(map(reads_split, request.sources)):
        raise InputError("--split and --config are read for data sets of the hub, and all --data are files")
    found = find_problems(
        source,
        config=request.config,
        split=request.split or "test",
        prompt_column=request.prompt_column,
        answer_column=request.answer_column,
        algebra=request.algebra,
    )
    problems = found[: request.num_problems]
    overlap = find_overlap(trained_on, problems)
    for sentence in overlap.sentences():
        note(f"{source}: {sentence}")
    doubtful = [doubt.problem.id for doubt in find_doubts(problems)]
    if doubtful:
        listed = ", ".join(doubtful[:NUM_LISTED]) + (", …" if len(doubtful) > NUM_LISTED else "")
        note(f"{source}: right answers that don't verify against themselves: {len(doubtful):,} ({listed})")
    template = request.asking.template or usual_template(source)
    stop = request.stop or (() if request.asking.template else usual_stop(source))
    before = ""
    if request.few_shot:
        pool = _example_pool(request, source, trained_on)
        before = examples_before(
            pool, problems, num_examples=request.few_shot, template=template, seed=request.seed
        )
    asked = in_template(problems, template, before)
    return DataSet(source, asked, len(found), template, stop, overlap.summary() if trained_on else {})


def _example_pool(request: Request, source: str, trained_on: "Sequence[Problem]") -> "Sequence[Problem]":
    from llm_reinforce.problems import find_problems, training_part

    if request.examples is not None:
        return find_problems(request.examples, config=request.config, split="train")
    part = training_part(source)
    if part is not None:
        return find_problems(source, split=part)
    if not trained_on:
        raise InputError(
            f"--few-shot: {source} has no training split to take examples from; give some with --examples"
        )
    return trained_on


def _measure(
    request: Request,
    loaded: "LanguagePolicy",
    policy: str,
    sets: Sequence[DataSet],
    output: Path | None,
) -> "list[Evaluation]":
    from llm_reinforce.evaluation import evaluate
    from llm_reinforce.policy import check_prompts_fit

    for data in sets:
        check_prompts_fit(loaded, data.problems, request.asking.max_new_tokens)
    evaluations = []
    for data in sets:
        journal = _answer_file(request, loaded, data, output)
        if journal and journal.done:
            note(f"{data.name}: going on after {len(journal.done):,} of {len(data.problems):,} problems")
        with progress(data.name, len(data.problems)) as told:
            evaluations.append(
                evaluate(
                    loaded,
                    data.problems,
                    decoding=request.decoding,
                    samples_per_problem=request.samples_per_problem,
                    max_new_tokens=request.asking.max_new_tokens,
                    temperature=request.asking.temperature,
                    seed=request.seed,
                    batch_size=request.batch_size,
                    stop=data.stop,
                    progress=told,
                    journal=journal,
                )
            )
    return evaluations


def _side_directory(request: Request, number: int) -> Path | None:
    if request.output is None or len(request.policies) == 1:
        return request.output
    return request.output / SIDES[number]


def _answer_file(
    request: Request, loaded: "LanguagePolicy", data: DataSet, output: Path | None
) -> "AnswerFile | None":
    """Where this evaluation's answers are kept: the file's first line has all that they depend on."""
    if output is None:
        return None
    from llm_reinforce.evaluation import fingerprint, open_answers, problems_digest

    identity: dict[str, Any] = {
        "data": data.name,
        "problems": problems_digest(data.problems),
        "policy": fingerprint(loaded),
        "system_prompt": loaded.system_prompt,
        "uses_chat_template": loaded.uses_chat_template,
        "decoding": request.decoding,
        "max_new_tokens": request.asking.max_new_tokens,
        "stop": data.stop,
    }
    if request.decoding == "sampled":
        identity |= {
            "samples_per_problem": request.samples_per_problem,
            "temperature": request.asking.temperature,
            "seed": request.seed,
        }
    return open_answers(output / answer_file_name(data.name, request.decoding), identity, data.problems)


def _check_file_names(sources: Sequence[str], decoding: str) -> None:
    """Every data set has a file of its own for its answers.

    Raises:
        InputError: two would write to one.
    """
    sources_of: dict[str, str] = {}
    for source in sources:
        name = answer_file_name(source, decoding)
        if name in sources_of:
            raise InputError(
                f"--data: {sources_of[name]} and {source} would both be written to {name} in --output; "
                "give each a directory of its own"
            )
        sources_of[name] = source


def answer_file_name(data: str, decoding: str) -> str:
    """The file of a data set's answers: whatever the data set is called, a name in its own folder."""
    name = re.sub(r"[^\w.=+-]+", "_", data)
    # so many bytes of it, since that is what file systems count; the end is what tells files apart
    name = name.encode(errors="replace")[-MAX_NAME:].decode(errors="ignore").strip("_")
    return f"answers_{name}_{decoding}.jsonl"


def _settings(request: Request, data: DataSet) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "template": data.template,
        "max_new_tokens": request.asking.max_new_tokens,
        "few_shot": request.few_shot,
        "stop": list(data.stop),
    }
    if request.decoding == "sampled":
        settings |= {"temperature": request.asking.temperature, "seed": request.seed}
    return settings


def _write_results(
    request: Request,
    policy: str,
    sets: Sequence[DataSet],
    evaluations: "Sequence[Evaluation]",
    output: Path,
    seconds: float,
) -> None:
    from llm_reinforce.evaluation import TaskResult, harness_results

    results = [
        TaskResult(data.name, evaluation, data.num_available, request.few_shot, _settings(request, data))
        for data, evaluation in zip(sets, evaluations, strict=True)
    ]
    whole = harness_results(
        results, policy, batch_size=request.batch_size, limit=request.num_problems, seconds=seconds
    )
    _write_json(output / "results.json", whole)


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _print_json(
    request: Request,
    sets: Sequence[DataSet],
    sides: "Sequence[Sequence[Evaluation]]",
    changes: "Sequence[Changes]",
) -> None:
    for place, data in enumerate(sets):
        for policy, evaluations in zip(request.policies, sides, strict=True):
            row: dict[str, Any] = {"data": data.name, "policy": policy, **evaluations[place].summary()}
            row |= _settings(request, data)
            row |= {"overlap": data.overlap} if data.overlap else {}
            typer.echo(json.dumps(row))
        if changes:
            before, after = request.policies
            row = {"data": data.name, "policy": before, "against": after}
            typer.echo(json.dumps({**row, "comparison": _summaries(changes[place])}))


def _print_tables(
    request: Request,
    sets: Sequence[DataSet],
    sides: "Sequence[Sequence[Evaluation]]",
    changes: "Sequence[Changes]",
) -> None:
    console = terminal_console()
    for place, data in enumerate(sets):
        if place:
            console.print()
        columns = [
            (policy, evaluations[place]) for policy, evaluations in zip(request.policies, sides, strict=True)
        ]
        console.print(measures_table(data.name, columns))
        for comparison in changes[place].values() if changes else ():
            console.print(comparison_table(comparison))
