"""`llm-reinforce compare RECIPE…`: recipes side by side at an equal budget of sampled tokens."""

import os
from collections.abc import Callable, Mapping, MutableSet, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from llm_reinforce.analysis.recipe_comparison_plan import PlannedRun, Shape, kinds_of, plan_runs
from llm_reinforce.cli.common import DebugOption, check_one_process, quieten, reported_failures
from llm_reinforce.cli.compare_report import tell_comparison
from llm_reinforce.cli.figures import check_directory
from llm_reinforce.cli.running import Ended, run_training
from llm_reinforce.console.messages import note, print_error
from llm_reinforce.console.progress import progress
from llm_reinforce.errors import InputError, RunStoppedError

if TYPE_CHECKING:
    from llm_reinforce.episodes import Episode
    from llm_reinforce.evaluation import Evaluation


def compare(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE…", help="Recipes' files, or built-in recipes' names.")
    ],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each, from its seed on.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Sampled tokens of each run: the budget.")],
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar='"NAME: KEY=VALUE …"',
            help="Compare variants of the one recipe; repeatable.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting of all; repeatable."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="Where the runs and what they come to go.")] = Path(
        "runs/compare"
    ),
    target: Annotated[
        float, typer.Option("--target", help="The accuracy whose price in tokens is told, in 0..1.")
    ] = 0.9,
    evaluations: Annotated[
        int, typer.Option("--evaluations", min=1, help="Of each run, at equal distances in tokens.")
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    debug: DebugOption = False,
) -> None:
    """Run recipes side by side, each with several seeds, at an equal budget of sampled tokens.

    It tells final accuracy, area under the learning curve and tokens to a target, each with a 95% interval
    over the seeds, and how each recipe differs from the first, seed by seed. All kinds of run have the same
    seeds. Which problems are held out follows from the seed where a recipe draws them, so they differ from
    seed to seed and are the same for all recipes with the same problems at one seed.

    Each run is a normal run in OUTPUT/NAME/seed-N. The same command again goes on where it was stopped: runs
    that are done are taken as they are. Ctrl-C ends the run in hand after its update and saves it.
    """
    with reported_failures("the comparison", debug=debug):
        if not 0 < target <= 1:
            raise InputError(f"--target: should be above 0 and at most 1, not {target:g}")
        check_one_process("compare")
        check_directory(output)
        kinds = kinds_of(recipes, variants or [])
        quieten(debug=debug)
        shape = Shape(seeds, tokens, evaluations, output)
        runs = plan_runs(kinds, overrides or [], shape)
        _run_all(runs, tokens)
        tell_comparison(runs, kinds, tokens, target, output.expanduser(), as_json=as_json)


def _run_all(runs: Sequence[PlannedRun], num_tokens: int) -> None:
    """Run what isn't done.

    Raises:
        typer.Exit: a signal has stopped a run, saved.
        RunStoppedError: a run must not go on.
    """
    waiting = [run for run in runs if run.progress != "done"]
    num_done = len(runs) - len(waiting)
    if num_done:
        note(f"{num_done} of {len(runs)} runs are done already")
    if not waiting:
        return
    said: set[str] = set()
    with progress("comparison", len(runs) * num_tokens, what="tokens", done=num_done * num_tokens) as told:
        for run in waiting:
            display = _Watching(said, told, num_done * num_tokens, num_tokens)
            ended = _run(run, display)
            num_done += ended.is_over
            far = f"{num_done} of {len(runs)} runs"
            if ended.signal is not None:
                print_error(f"stopped in {run.title}; {far} are done, and the same command goes on")
                raise typer.Exit(128 + ended.signal)
            told(num_done * num_tokens)
            note(f"{run.title}: {display.accuracy}; {far}")


def _run(run: PlannedRun, display: "_Watching") -> Ended:
    """Run one, or what is left of it."""
    from accelerate.state import AcceleratorState

    # its settings, mixed precision say, are the process's: those of the last run are not this one's
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return run_training(
            run.recipe, run.directory, display, resume=run.progress == "begun", overwrite=False
        )
    except (InputError, RunStoppedError) as error:
        raise type(error)(f"{run.title}: {error}") from error
    except OSError as error:  # that of a full disk names no file
        error.filename = error.filename or str(run.directory.path)
        raise


class _Watching:
    """Passes on what the loop tells of one run among many: how far all are, and what wasn't said before."""

    def __init__(self, said: MutableSet[str], told: Callable[[int], None], before: int, budget: int) -> None:
        self.said, self.told = said, told
        self.before, self.budget = before, budget  # tokens: of the runs before this one, and its own
        self.accuracy = ""  # the latest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def say(self, sentence: str) -> None:
        if sentence not in self.said:
            self.said.add(sentence)
            note(sentence)

    def warm_start(self, num_updates: int, total: int, loss: float) -> None: ...

    def update(
        self, num_updates: int, total: int, metrics: Mapping[str, float], episodes: "Sequence[Episode]"
    ) -> None:
        self.told(self.before + min(int(metrics["num_tokens"]), self.budget))

    def evaluating(self, num_problems: int, total: int) -> None: ...

    def evaluation(self, num_updates: int, data: str, evaluation: "Evaluation") -> None:
        from llm_reinforce.console.text import accuracy_title, shown_accuracy

        shown = shown_accuracy(evaluation.accuracy, evaluation.interval)
        self.accuracy = f"{accuracy_title(data)}, {evaluation.decoding}: {shown}"

    def stopping(self, sentence: str) -> None:
        """Called from a signal handler, where a print may be under way: so written past all buffers."""
        with suppress(OSError):
            os.write(2, f"{sentence}\n".encode())
