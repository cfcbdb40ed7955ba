"""Results in the format of lm-evaluation-harness's `results_….json`, for tools that read these files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_reinforce.evaluation.accuracy import Evaluation

# names of the metric and the filter with which the harness reports a measure; other measures keep their names
# and have the filter "none"
NAMES = {
    "strict": ("exact_match", "strict-match"),
    "flexible": ("exact_match", "flexible-extract"),
}
LESS_IS_BETTER = ("truncated", "unparseable")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """Evaluation of a policy on one data set.

    Attributes:
        task: name of the data set.
        evaluation: the evaluation.
        num_available: number of problems in the data set, which can exceed the number of evaluated problems.
        num_fewshot: number of worked examples before each question.
        settings: settings of the evaluation, such as the template and the token budget.
    """

    task: str
    evaluation: Evaluation
    num_available: int
    num_fewshot: int
    settings: Mapping[str, Any]


def harness_results(
    results: Sequence[TaskResult], policy: str, *, batch_size: int, limit: int | None, seconds: float
) -> dict[str, Any]:
    """Return results as a dict in the format of lm-evaluation-harness 0.4.

    Among the keys of the dict are `results`, `configs`, `versions` and `n-shot`. For each metric, the results
    also contain a 95% interval, which the harness does not report. The key of the interval has the suffix
    `_interval`.

    Args:
        policy: name of the policy.
        batch_size: number of completions generated at the same time.
        limit: maximum number of problems per data set; None: evaluate all problems.
        seconds: duration of the evaluation.
    """
    tasks = {result.task: result for result in results}
    return {
        "results": {task: _metrics(result) for task, result in tasks.items()},
        "group_subtasks": {task: [] for task in tasks},
        "configs": {task: _config(result) for task, result in tasks.items()},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": {task: result.num_fewshot for task, result in tasks.items()},
        "higher_is_better": {task: _directions(result) for task, result in tasks.items()},
        "n-samples": {
            task: {"original": result.num_available, "effective": len(result.evaluation.problems)}
            for task, result in tasks.items()
        },
        "config": {
            "model": "llm_reinforce",
            "model_args": f"pretrained={policy}",
            "batch_size": batch_size,
            "limit": limit,
        },
        "model_source": "llm_reinforce",
        "model_name": policy,
        "total_evaluation_time_seconds": f"{seconds:.1f}",
    }


def _metrics(result: TaskResult) -> dict[str, Any]:
    row: dict[str, Any] = {"alias": result.task}
    for name, measure in result.evaluation.measures.items():
        metric, reading = NAMES.get(name, (name, "none"))
        row[f"{metric},{reading}"] = measure.value
        row[f"{metric}_stderr,{reading}"] = measure.standard_error
        row[f"{metric}_interval,{reading}"] = list(measure.interval)
    return row


def _config(result: TaskResult) -> dict[str, Any]:
    evaluation = result.evaluation
    settings = result.settings
    return {
        "task": result.task,
        "output_type": "generate_until",
        "num_fewshot": result.num_fewshot,
        "repeats": evaluation.samples_per_problem,
        "generation_kwargs": {
            "until": list(settings.get("stop", ())),
            "max_gen_toks": settings.get("max_new_tokens"),
            "do_sample": evaluation.decoding == "sampled",
            "temperature": settings.get("temperature", 0.0) if evaluation.decoding == "sampled" else 0.0,
        },
        "doc_to_text": settings.get("template"),
    }


def _directions(result: TaskResult) -> dict[str, bool]:
    names = {NAMES.get(name, (name, "none"))[0]: name for name in result.evaluation.measures}
    return {metric: name not in LESS_IS_BETTER for metric, name in names.items() if name != "mean_length"}
