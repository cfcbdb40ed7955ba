"""The function `compare`, which trains and compares recipes at an equal budget of sampled tokens."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_reinforce.analysis.learning_curve_plots import plot_comparison
from llm_reinforce.analysis.learning_curves import (
    ComparedRuns,
    LearningCurve,
    compare_curves,
    learning_curve,
    mean_curve,
)
from llm_reinforce.analysis.measurement_files import check_directory
from llm_reinforce.analysis.recipe_comparison_plan import (
    PlannedRun,
    Shape,
    Variant,
    decoding_of,
    plan_runs,
    unlike_problems,
    variants_of,
)
from llm_reinforce.analysis.recipe_source import RecipeSource
from llm_reinforce.config import Config
from llm_reinforce.console.messages import is_interactive, note
from llm_reinforce.console.progress import progress
from llm_reinforce.console.run_display import Silent, write_on_stderr
from llm_reinforce.console.text import accuracy_title, shown_accuracy
from llm_reinforce.durable_files import write_whole
from llm_reinforce.errors import InputError, RunStoppedError
from llm_reinforce.problems import have_answers, untemplated_problems
from llm_reinforce.training import ReinforceTrainer, TrainingResult, with_date, with_recorded_date

if TYPE_CHECKING:
    from llm_reinforce.episodes import Episode
    from llm_reinforce.evaluation import Evaluation

Stopping = Callable[[Callable[[], None], Silent], AbstractContextManager[object]]
"""Function with the arguments `stop` and `display` that returns a context manager.

Within the context, signal handlers call `stop`, which stops the current run. `display` shows the progress of
this run. The command line passes such a function to `compare`.
"""


@dataclass(frozen=True, slots=True)
class RecipeComparison:
    """Result of a comparison.

    Attributes:
        variants: mapping from the name of each variant to the measures of its runs, such as the final
            accuracy, with the differences from the first variant.
        curves: mapping from the name of each variant to its learning curves, one per seed.
        summary: the contents of `comparison.json`.
        files: the files that were written.
        has_plots: True if plots were written, which needs matplotlib.
        num_done: number of complete runs.
        stopped_in: variant and seed of the run during which a signal stopped the comparison; None if the
            comparison is complete. If a signal stopped the comparison, all other attributes except `num_done`
            are empty.
    """

    variants: Mapping[str, ComparedRuns]
    curves: Mapping[str, Sequence[LearningCurve]]
    summary: Mapping[str, Any]
    files: Sequence[Path] = ()
    has_plots: bool = False
    num_done: int = 0
    stopped_in: str | None = None


def compare(
    recipes: RecipeSource | Sequence[RecipeSource],
    *,
    seeds: int,
    tokens: int,
    variants: Sequence[str] | Mapping[str, Sequence[str]] = (),
    overrides: Sequence[str] = (),
    output_dir: str | PathLike[str] = "runs/compare",
    target: float = 0.9,
    evaluations: int = 20,
    show_progress: bool | None = None,
    stopping: Stopping | None = None,
) -> RecipeComparison:
    """Train several recipes, or variants of one recipe, with several seeds at an equal budget of tokens.

        compare("price", seeds=5, tokens=80_000,
                variants={"leave_one_out": [], "none": ["reinforce.baseline=none"]})

    Each run has the directory `output_dir/NAME/seed-N`, and can be used like any other run. If the function
    is called again, complete runs are kept, and an interrupted run is resumed. `comparison.json`,
    `curves.json` and, with matplotlib, two plots are written to `output_dir`.

    Args:
        recipes: names of built-in recipes, recipe files, directories of runs, or Configs. In the results, a
            Config is named after the last part of its `output_dir`.
        seeds: number of seeds per variant.
        tokens: budget of each run, in sampled tokens.
        variants: variants of a single recipe, as a mapping from names to lists of `section.key=value`, or as
            strings `"NAME: section.key=value …"`.
        overrides: changes of the settings of all variants, each of the form `section.key=value`.
        output_dir: directory for the runs and the results.
        target: target accuracy, above 0 and at most 1. One of the measures is the number of tokens after
            which a run reaches this accuracy.
        evaluations: number of evaluations per run, at equal intervals of sampled tokens.
        show_progress: if True, show progress bars and messages. By default, they are shown on a terminal and
            in a notebook.
        stopping: function that installs handlers of the signals that stop the comparison, as the command line
            does; see `Stopping`.

    Raises:
        InputError: if an argument or a recipe is invalid, or if the directory of a run contains files that
            do not belong to the run.
        RunStoppedError: if a run had to be stopped, for the reasons given in `ReinforceTrainer.train`.
    """
    if not 0 < target <= 1:
        raise InputError(f"target: should be above 0 and at most 1, not {target:g}")
    for name, value in (("seeds", seeds), ("tokens", tokens), ("evaluations", evaluations)):
        if value < 1:
            raise InputError(f"{name}: should be at least 1, not {value}")
    given = [recipes] if isinstance(recipes, str | PathLike | Config) else recipes
    chosen = variants_of(given, variants)
    output = check_directory(output_dir)
    runs = plan_runs(chosen, overrides, Shape(seeds, tokens, evaluations, Path(output_dir)))
    is_shown = is_interactive() if show_progress is None else show_progress
    if is_shown and (sentence := unlike_problems(runs)):
        note(sentence)
    num_done, stopped_in = _run_all(runs, tokens, is_shown=is_shown, stopping=stopping)
    if stopped_in is not None:
        return RecipeComparison({}, {}, {}, num_done=num_done, stopped_in=stopped_in)
    return _compare(runs, chosen, tokens, target, output)


def _run_all(
    runs: Sequence[PlannedRun], num_tokens: int, *, is_shown: bool, stopping: Stopping | None
) -> tuple[int, str | None]:
    """Train all runs that are not complete, one after another.

    Returns:
        the number of complete runs, and the variant and seed of the run that a signal stopped, or None.
    """
    say = note if is_shown else _ignore
    waiting = [run for run in runs if run.progress != "done"]
    num_done = len(runs) - len(waiting)
    if num_done:
        say(f"{num_done} of {len(runs)} runs are complete")
    if not waiting:
        return num_done, None
    _check_answers(waiting)
    said: set[str] = set()
    total, done = len(runs) * num_tokens, num_done * num_tokens
    date = _recorded_date(runs)
    with progress("comparison", total, what="tokens", done=done, is_shown=is_shown) as show:
        for run in waiting:
            display = _RunOfMany(say, said, show, num_done * num_tokens, num_tokens)
            result = _run(run, display, stopping, date)
            date = date or _recorded_date([run])
            num_done += result.is_over
            if not result.is_over:
                return num_done, run.title
            show(num_done * num_tokens)
            say(f"{run.title}: {display.accuracy}; {num_done} of {len(runs)} runs are complete")
    return num_done, None


def _check_answers(runs: Sequence[PlannedRun]) -> None:
    """Check that accuracy can be measured in every run.

    Raises:
        InputError: if the problems of a run have no reference answers.
    """
    checked: list[Any] = []
    for run in runs:
        if run.recipe.problems.generate is not None or run.recipe.problems in checked:
            continue
        checked.append(run.recipe.problems)
        split = untemplated_problems(run.recipe)
        if not have_answers(split.held_out or split.train):
            raise InputError(
                f"{run.title}: the problems have no reference answers, so recipes cannot be compared by "
                "accuracy; set answer_column, or set problems.held_out to problems that have answers"
            )


def _recorded_date(runs: Sequence[PlannedRun]) -> str | None:
    """Return the chat-template date of the first run that has recorded a date; None if no run has."""
    of_runs = (with_recorded_date(run.directory, run.recipe).policy.chat_template_date for run in runs)
    return next(filter(None, of_runs), None)


def _run(
    run: PlannedRun, display: "_RunOfMany", stopping: Stopping | None, date: str | None
) -> TrainingResult:
    recipe = with_date(run.recipe, run.recipe.policy.chat_template_date or date)
    try:
        trainer = ReinforceTrainer(config=recipe, progress=display)
        with stopping(trainer.stop, display) if stopping else nullcontext():
            return trainer.train(resume=run.progress == "begun")
    except (InputError, RunStoppedError) as error:
        raise type(error)(f"{run.title}: {error}") from error
    except OSError as error:  # the error for a full disk does not name a file
        error.filename = error.filename or str(run.directory.path)
        raise


def _ignore(sentence: str) -> None:
    """Ignore a message. This function replaces `note` if progress is hidden."""


class _RunOfMany(Silent):
    """Display of one run of a comparison.

    It shows the progress of the whole comparison. Messages that an earlier run has printed are not repeated.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        said: set[str],
        show: Callable[[int], None],
        before: int,
        budget: int,
    ) -> None:
        self._say, self._said, self._show = say, said, show
        self._before, self._budget = before, budget  # tokens of previous runs, and token budget of this run
        self.accuracy = ""  # the latest accuracy, as text

    def say(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(sentence)

    def update(
        self, num_updates: int, total: int, metrics: Mapping[str, Any], episodes: "Sequence[Episode]"
    ) -> None:
        self._show(self._before + min(int(metrics["num_tokens"]), self._budget))

    def evaluation(self, num_updates: int, data: str, evaluation: "Evaluation") -> None:
        shown = shown_accuracy(evaluation.accuracy, evaluation.interval)
        self.accuracy = f"{accuracy_title(data)}, {evaluation.decoding}: {shown}"

    def stopping(self, sentence: str) -> None:
        write_on_stderr(sentence)


def _compare(
    runs: Sequence[PlannedRun], variants: Sequence[Variant], num_tokens: int, target: float, output: Path
) -> RecipeComparison:
    """Read the learning curves of the runs, compare them, and write the results to `output`."""
    decoding = decoding_of(runs)
    curves = {
        variant.name: [_curve(run, decoding) for run in runs if run.variant == variant.name]
        for variant in variants
    }
    compared = compare_curves(curves, num_tokens, target)
    seeds = sorted({run.seed for run in runs})
    summary = {
        "num_tokens": num_tokens,
        "target": target,
        "decoding": decoding,
        "data": runs[0].directory.rows("evaluations.jsonl")[-1]["data"],
        "seeds": seeds,
        "intervals": "95%, Student's t over seeds",
        "against": compared[0].name,
        "runs": [
            {"recipe": variant.recipe_name, "overrides": list(variant.overrides), **asdict(each)}
            for variant, each in zip(variants, compared, strict=True)
        ],
    }
    files = [output / "comparison.json", output / "curves.json"]
    text = json.dumps(summary, indent=2, ensure_ascii=False)
    write_whole(files[0], text + "\n")
    write_whole(files[1], json.dumps(_curves_json(curves, seeds, num_tokens)) + "\n")
    plots: list[Path] = []
    with suppress(ModuleNotFoundError):  # matplotlib is an optional dependency
        plots = plot_comparison(curves, compared, num_tokens, target, output)
    return RecipeComparison(
        {each.name: each for each in compared},
        curves,
        json.loads(text),
        [*files, *plots],
        has_plots=bool(plots),
        num_done=len(runs),
    )


def _curve(run: PlannedRun, decoding: str) -> LearningCurve:
    rows = run.directory.rows
    try:
        return learning_curve(rows("evaluations.jsonl"), rows("metrics.jsonl"), decoding)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{run.directory.path}: the logs are incomplete ({error}); delete the directory to repeat the run"
        ) from None


def _curves_json(
    curves: Mapping[str, Sequence[LearningCurve]], seeds: Sequence[int], num_tokens: int
) -> dict[str, Any]:
    """Return the contents of `curves.json`: for each variant, the curve of each seed, and the mean curve."""
    data: dict[str, Any] = {}
    for name, each in curves.items():
        at, mean, low, high = mean_curve(each, num_tokens)
        data[name] = {
            "seeds": {
                str(seed): {"num_tokens": curve.num_tokens, "accuracy": curve.accuracy}
                for seed, curve in zip(seeds, each, strict=True)
            },
            "num_tokens": at.tolist(),
            "mean": mean.tolist(),
            "low": None if low is None else low.tolist(),
            "high": None if high is None else high.tolist(),
        }
    return data
