"""Evaluation pipeline: read data sets, evaluate policies on them, and write the answers and results."""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llm_reinforce.config import Config
from llm_reinforce.durable_files import write_whole
from llm_reinforce.errors import InputError
from llm_reinforce.evaluation.accuracy import Decoding, Evaluation, measure_accuracy
from llm_reinforce.evaluation.comparison import Comparison, Criterion, compare_evaluations
from llm_reinforce.evaluation.harness import TaskResult, harness_results
from llm_reinforce.evaluation.journal import (
    AnswerFile,
    fingerprint,
    open_answers,
    problems_digest,
    recorded_identity,
)
from llm_reinforce.evaluation.prompting import Prompting, load_for_evaluation
from llm_reinforce.policy import (
    ChatSettings,
    LanguagePolicy,
    check_prompts,
    check_prompts_fit,
    with_chat_settings,
)
from llm_reinforce.problems import (
    Problem,
    demonstrations_from_config,
    examples_before,
    find_overlap,
    find_problems,
    has_columns,
    in_template,
    problems_from,
    reads_split,
    training_part,
    untemplated_problems,
    usual_stop,
    usual_template,
    without_template,
)
from llm_reinforce.processes import num_processes
from llm_reinforce.verifier import find_doubts

if TYPE_CHECKING:
    from llm_reinforce.verifier.audit import AnsweredQuestion

Changes = Mapping[Criterion, Comparison]
Say = Callable[[str], None]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Function that takes the name of a data set and its number of problems, and returns a context manager.

The context manager shows progress. On entry, it returns a function that takes the number of completed
problems.
"""

SIDES = ("before", "after")  # subdirectories for the answers of the first and the second policy
MAX_NAME = 100  # maximum length of a data set's name in a file name, in bytes
NUM_LISTED = 5  # maximum number of problem ids in a note


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Policies, data sets and settings of an evaluation.

    Attributes:
        policies: the policy to evaluate, or two policies to compare, of which the first is the baseline. Each
            is a name, a path, `(model, tokenizer)` or a LanguagePolicy.
        sources: the data sets. Each is a name, a path, a list of dicts or Problems, or a `datasets.Dataset`.
        prompting: prompt template, token budget and temperature.
        split, config, prompt_column, answer_column, algebra: options for reading the data sets; see
            `find_problems`.
        num_problems: if given, only the first `num_problems` problems of each data set are evaluated.
        decoding: decoding mode, `greedy` or `sampled`.
        samples_per_problem: number of completions per problem.
        few_shot: number of worked examples before each problem.
        examples: data set from which the worked examples are taken. None: the training split of the evaluated
            data set or, if there is none, the training problems of the policies' runs.
        stop: strings at which a completion is cut. If it is empty and the default template of the data set is
            used, the strings are those of `usual_stop`.
        seed: random seed for sampling completions and choosing worked examples.
        batch_size: number of completions generated at the same time.
        output_dir: directory for results and answers. If it contains an interrupted evaluation with equal
            settings, this evaluation is continued. None: write no files.
        trust_remote_code: if True, Python code that comes with a model may run.
    """

    policies: tuple[Any, ...]
    sources: tuple[Any, ...]
    prompting: Prompting
    split: str | None = None
    config: str | None = None
    prompt_column: str | None = None
    answer_column: str | None = None
    algebra: bool = False
    num_problems: int | None = None
    decoding: Decoding = "greedy"
    samples_per_problem: int = 1
    few_shot: int = 0
    examples: Any = None
    stop: tuple[str, ...] = ()
    seed: int = 0
    batch_size: int = 256
    output_dir: Path | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """Result of an evaluation request.

    Attributes:
        request: the request.
        data_sets: the evaluated data sets.
        evaluations: for each policy, a sequence with its evaluation on each data set.
        changes: for each data set, the comparisons of the second policy with the first policy. The sequence
            is empty if the request has one policy.
    """

    request: EvaluationRequest
    data_sets: "Sequence[DataSet]"
    evaluations: Sequence[Sequence[Evaluation]]
    changes: Sequence[Changes]

    def rows(self) -> list[dict[str, Any]]:
        """Return the results as JSON objects, one per data set and policy, and one per comparison."""
        rows: list[dict[str, Any]] = []
        for place, data in enumerate(self.data_sets):
            for policy, evaluations in zip(self.request.policies, self.evaluations, strict=True):
                row = {"data": data.name, "policy": policy_name(policy), **evaluations[place].summary()}
                row |= _settings(self.request, data)
                rows.append(row | ({"overlap": data.overlap} if data.overlap else {}))
            if self.changes:
                before, after = map(policy_name, self.request.policies)
                row = {"data": data.name, "policy": after, "baseline": before}
                rows.append({**row, "comparison": _summaries(self.changes[place])})
        return rows


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set whose problems are formatted for an evaluation.

    Attributes:
        name: name of the data set.
        problems: the problems to evaluate. Their prompts are already inserted into the template.
        num_available: number of problems in the whole data set.
        template: prompt template, with `{prompt}` in place of the problem.
        stop: strings at which a completion is cut.
        overlap: number of problems that are also training problems or demonstrations of the policies' runs,
            for each kind of overlap; empty if none of these are known.
    """

    name: str
    problems: Sequence[Problem]
    num_available: int
    template: str
    stop: tuple[str, ...]
    overlap: dict[str, int]


def _ignore(sentence: str) -> None:
    """Ignore a message. This function is the default of `say`."""


def _no_progress(name: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda done: None)


def run_evaluations(
    request: EvaluationRequest, *, say: Say = _ignore, progress: Progress = _no_progress
) -> EvaluationReport:
    """Evaluate policies on data sets, and return the results.

    If the request has an `output_dir`, the results are also written to files. The policies are evaluated one
    after another, so that only one policy is in memory at a time.

    Args:
        request: policies, data sets and settings.
        say: function that is called with messages for the user, for example about overlap with training
            problems, or about reference answers that the verifier rejects.
        progress: function that is called for each policy and data set to show progress; see `Progress`.

    Raises:
        InputError: if a data set or a policy can't be loaded, if the output directory can't be used, or if it
            is given although several processes run this function.
    """
    if request.output_dir is not None:
        if num_processes() > 1:
            raise InputError(
                f"output_dir {request.output_dir}: this process is one of {num_processes()}, and all of them "
                "would write to this directory; call `evaluate` without output_dir, or evaluate in a "
                "program that is started without torchrun, accelerate launch or mpirun"
            )
        _check_file_names(request.sources, request.decoding)
    trained_on = _training_problems(request.prompting.recipes, say)
    data_sets = [_read_set(request, source, trained_on, say) for source in request.sources]
    sides: list[list[Evaluation]] = []
    for number, policy in enumerate(request.policies):
        started = time.monotonic()
        loaded = load_for_evaluation(
            policy,
            request.prompting.recipes[number],
            chat=request.prompting.chat,
            trust_remote_code=request.trust_remote_code,
        )
        output = _side_directory(request, number)
        sides.append(_measure(request, loaded, data_sets, output, say, progress))
        del loaded
        if output is not None:
            seconds = time.monotonic() - started
            _write_results(request, policy_name(policy), data_sets, sides[-1], output, seconds)
    changes = [compare_evaluations(*pair) for pair in zip(*sides, strict=True)] if len(sides) > 1 else []
    if changes and request.output_dir is not None:
        rows = {data.name: _summaries(each) for data, each in zip(data_sets, changes, strict=True)}
        _write_json(request.output_dir / "comparison.json", rows)
    return EvaluationReport(request, data_sets, sides, changes)


def policy_name(policy: Any) -> str:
    """Return the name of a policy in results: the given name or path, or the class name of a model object."""
    if isinstance(policy, str | PathLike):
        return str(policy)
    model = policy.model if isinstance(policy, LanguagePolicy) else policy[0]
    return type(model).__name__


def _summaries(changes: Changes) -> dict[str, Any]:
    return {criterion: comparison.summary() for criterion, comparison in changes.items()}


def _training_problems(recipes: Sequence[Config | None], say: Say) -> list[Problem]:
    """Return the problems and demonstrations that the policies were trained on.

    Unreadable ones are reported by `say`.
    """
    problems: list[Problem] = []
    for number, recipe in enumerate(recipes):
        if recipe is None or recipe in recipes[:number]:
            continue
        for what, read in (("training problems", _own_problems), ("demonstrations", _own_demonstrations)):
            try:
                problems += read(recipe)
            except InputError as error:
                say(
                    f"can't check whether evaluated problems are {what} of the run, because these can't be "
                    f"read: {error}"
                )
    return problems


def _own_problems(recipe: Config) -> Sequence[Problem]:
    return untemplated_problems(recipe).train


def _own_demonstrations(recipe: Config) -> Sequence[Problem]:
    return without_template(demonstrations_from_config(recipe), recipe.problems.template)


def _read_set(request: EvaluationRequest, source: Any, trained_on: Sequence[Problem], say: Say) -> DataSet:
    is_named = isinstance(source, str | PathLike)
    named = [str(each) for each in request.sources if isinstance(each, str | PathLike)]
    if (request.split or request.config) and not any(map(reads_split, named)):
        raise InputError(
            "`split` and `config` (--split and --config on the command line) select part of a data set, but "
            "none of the given data sets has splits; omit these settings"
        )
    name = str(source) if is_named else "problems"
    if is_named:
        found = find_problems(
            name,
            config=request.config,
            split=request.split or "test",
            prompt_column=request.prompt_column,
            answer_column=request.answer_column,
            algebra=request.algebra,
            say=say,
        )
    else:
        columns = {"prompt_column": request.prompt_column, "answer_column": request.answer_column}
        found = problems_from(source, name=name, **columns, say=say)
        if request.algebra:
            found = tuple(replace(problem, algebra=True) for problem in found)
    problems = found[: request.num_problems]
    overlap = find_overlap(trained_on, problems)
    for sentence in overlap.sentences():
        say(f"{name}: {sentence}")
    doubtful = [doubt.problem.id for doubt in find_doubts(cast("Sequence[AnsweredQuestion]", problems))]
    if doubtful:
        listed = ", ".join(doubtful[:NUM_LISTED]) + (", …" if len(doubtful) > NUM_LISTED else "")
        say(
            f"{name}: the verifier rejects the reference answers of {len(doubtful):,} problems ({listed}); "
            "check them with `llm-reinforce verify`"
        )
    template = request.prompting.template or (usual_template(name) if is_named else "{prompt}")
    stop = request.stop or (() if request.prompting.template or not is_named else usual_stop(name))
    before = ""
    if request.few_shot:
        pool = _example_pool(request, name if is_named else None, trained_on)
        before = examples_before(
            pool, problems, num_examples=request.few_shot, template=template, seed=request.seed
        )
    templated = in_template(problems, template, before)
    return DataSet(name, templated, len(found), template, stop, overlap.summary() if trained_on else {})


def _example_pool(
    request: EvaluationRequest, name: str | None, trained_on: Sequence[Problem]
) -> Sequence[Problem]:
    columns: dict[str, Any] = {
        "prompt_column": request.prompt_column,
        "answer_column": request.answer_column,
    }
    if request.examples is not None and not isinstance(request.examples, str | PathLike):
        return problems_from(request.examples, name="examples", **columns)
    if request.examples is not None:
        source = str(request.examples)
        own = columns if has_columns(source) else {}
        return find_problems(source, config=request.config, split="train", **own)
    part = training_part(name) if name is not None else None
    if name is not None and part is not None:
        return find_problems(name, split=part)
    if not trained_on:
        raise InputError(
            f"few_shot: {name or 'a list of problems'} has no training split from which worked examples can "
            "be taken; give a data set as `examples` (--examples on the command line)"
        )
    return trained_on


def _measure(
    request: EvaluationRequest,
    loaded: LanguagePolicy,
    data_sets: Sequence[DataSet],
    output: Path | None,
    say: Say,
    progress: Progress,
) -> list[Evaluation]:
    for data in data_sets:
        check_prompts_fit(loaded, data.problems, request.prompting.max_new_tokens)
        for note in check_prompts(loaded, data.problems):
            say(f"{data.name}: {note}")
    evaluations = []
    for data in data_sets:
        loaded = _with_date_of_answers(request, loaded, data, output)
        journal = _answer_file(request, loaded, data, output)
        if journal and journal.done:
            say(f"{data.name}: continuing after {len(journal.done):,} of {len(data.problems):,} problems")
        with progress(data.name, len(data.problems)) as show:
            evaluations.append(
                measure_accuracy(
                    loaded,
                    data.problems,
                    decoding=request.decoding,
                    samples_per_problem=request.samples_per_problem,
                    max_new_tokens=request.prompting.max_new_tokens,
                    temperature=request.prompting.temperature,
                    seed=request.seed,
                    batch_size=request.batch_size,
                    stop=data.stop,
                    progress=show,
                    journal=journal,
                )
            )
    return evaluations


def _side_directory(request: EvaluationRequest, number: int) -> Path | None:
    if request.output_dir is None or len(request.policies) == 1:
        return request.output_dir
    return request.output_dir / SIDES[number]


def _with_date_of_answers(
    request: EvaluationRequest, loaded: LanguagePolicy, data: DataSet, output: Path | None
) -> LanguagePolicy:
    """Return the policy with the chat-template date that was used for the answers in `output`.

    The chat template prints this date as the current date. If an evaluation is continued on another day, the
    remaining prompts must contain the same date. The policy is returned unchanged if the request sets a date,
    or if `output` contains no answers.
    """
    given = request.prompting.chat
    if output is None or (given and given.chat_template_date is not None):
        return loaded
    recorded = recorded_identity(output / answer_file_name(data.name, request.decoding))
    return with_chat_settings(loaded, ChatSettings(chat_template_date=recorded.get("chat_template_date")))


def _answer_file(
    request: EvaluationRequest, loaded: LanguagePolicy, data: DataSet, output: Path | None
) -> AnswerFile | None:
    """Open the file for the policy's answers to a data set; None if there is no output directory."""
    if output is None:
        return None
    identity: dict[str, Any] = {
        "data": data.name,
        "problems": problems_digest(data.problems),
        "policy": fingerprint(loaded),
        "system_prompt": loaded.system_prompt,
        "uses_chat_template": loaded.uses_chat_template,
        **_chat_settings(loaded),
        "decoding": request.decoding,
        "max_new_tokens": request.prompting.max_new_tokens,
        "stop": data.stop,
    }
    if request.decoding == "sampled":
        identity |= {
            "samples_per_problem": request.samples_per_problem,
            "temperature": request.prompting.temperature,
            "seed": request.seed,
        }
    if any(problem.algebra for problem in data.problems):
        identity["algebra"] = True
    return open_answers(output / answer_file_name(data.name, request.decoding), identity, data.problems)


def _chat_settings(loaded: LanguagePolicy) -> dict[str, Any]:
    """Return the arguments and the date of the chat template as JSON values, if they are set."""
    settings: dict[str, Any] = {}
    if loaded.chat_template_kwargs:
        settings["chat_template_kwargs"] = dict(loaded.chat_template_kwargs)
    if loaded.chat_template_date is not None:
        settings["chat_template_date"] = loaded.chat_template_date.isoformat()
    return settings


def _check_file_names(sources: Sequence[Any], decoding: str) -> None:
    """Check that the answers to different data sets are written to different files.

    Raises:
        InputError: if two data sets have the same file name.
    """
    sources_of: dict[str, str] = {}
    for source in (str(each) if isinstance(each, str | PathLike) else "problems" for each in sources):
        name = answer_file_name(source, decoding)
        if name in sources_of:
            raise InputError(
                f"the answers to {sources_of[name]} and {source} would both be written to {name}; evaluate "
                "the two data sets separately, each with its own `output_dir` (--output on the command "
                "line)"
            )
        sources_of[name] = source


def answer_file_name(data: str, decoding: str) -> str:
    """Return the name of the file for a data set's answers, without characters that are special in paths."""
    name = re.sub(r"[^\w.=+-]+", "_", data)
    # File systems limit the length of file names in bytes. The end of a long path is kept, because it
    # distinguishes data sets better than the beginning.
    name = name.encode(errors="replace")[-MAX_NAME:].decode(errors="ignore").strip("_")
    return f"answers_{name}_{decoding}.jsonl"


def _settings(request: EvaluationRequest, data: DataSet) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "template": data.template,
        "max_new_tokens": request.prompting.max_new_tokens,
        "few_shot": request.few_shot,
        "stop": list(data.stop),
    }
    if request.decoding == "sampled":
        settings |= {"temperature": request.prompting.temperature, "seed": request.seed}
    return settings


def _write_results(
    request: EvaluationRequest,
    policy: str,
    sets: Sequence[DataSet],
    evaluations: Sequence[Evaluation],
    output: Path,
    seconds: float,
) -> None:
    results = [
        TaskResult(data.name, evaluation, data.num_available, request.few_shot, _settings(request, data))
        for data, evaluation in zip(sets, evaluations, strict=True)
    ]
    whole = harness_results(
        results, policy, batch_size=request.batch_size, limit=request.num_problems, seconds=seconds
    )
    _write_json(output / "results.json", whole)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
