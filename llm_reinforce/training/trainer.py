"""Train in one call: `ReinforceTrainer(policy, problems, rewards).train()`."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from rich.console import Console

from llm_reinforce.config import Config
from llm_reinforce.config.keywords import config_from_keywords
from llm_reinforce.console.live_view import display_for
from llm_reinforce.console.run_display import RunDisplay, Silent
from llm_reinforce.errors import InputError
from llm_reinforce.evaluation import Comparison, Criterion, Evaluation, compare_evaluations
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import WeightedReward, file_being_loaded
from llm_reinforce.runs import RunDirectory, TrainState
from llm_reinforce.runs.run_comparison import first_and_last
from llm_reinforce.training.assembly import build_loop
from llm_reinforce.training.budget import is_over
from llm_reinforce.training.given import read_arguments
from llm_reinforce.training.loop import TrainingLoop, Update
from llm_reinforce.training.recording import check_can_be_recorded, check_same_run, recording


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The outcome of a run.

    Attributes:
        history: the metrics of each update of this session.
        before: by decoding, the first evaluation of the run.
        after: by decoding, its last evaluation.
        comparisons: by decoding and criterion, what changed between the two; empty without two evaluations.
        policy: the trained policy.
        state: the final train state.
        is_over: False if the run was stopped before its last update.
        seconds: duration of this session's training.
        output_dir: the run's directory; None if it is not recorded.
    """

    history: Sequence[Mapping[str, Any]]
    before: Mapping[str, Evaluation]
    after: Mapping[str, Evaluation]
    comparisons: Mapping[str, Mapping[Criterion, Comparison]]
    policy: LanguagePolicy
    state: TrainState
    is_over: bool
    seconds: float
    output_dir: Path | None


class ReinforceTrainer:
    """Fine-tunes a language model by REINFORCE on problems whose answers can be checked.

        def short_and_right(completion, problem):
            return float(verify(completion, problem.answer).correct and len(completion) < 20)

        trainer = ReinforceTrainer("smollm2-135m", "gsm8k", short_and_right, num_updates=50)
        result = trainer.train()

    or, with the loop in the caller's hands:

        for update in trainer.updates():
            print(update.number, update.metrics["reward"])

    All further settings are keyword arguments with the names of a recipe: a key that only one section has
    (`num_updates=50`, `learning_rate=1e-5`, `max_new_tokens=128`, `problems_per_update`,
    `episodes_per_problem`, `baseline`, `seed`, …), or a whole section (`evaluation={"every": 10}`,
    `training=TrainingConfig(…)`). Every setting has a default; the same settings give the same run as a
    recipe.

    Args:
        policy: a name that `llm-reinforce fetch` knows ("smollm2-135m"), a directory, a .gguf file, a hub
            id, an earlier run's directory, `(model, tokenizer)` of transformers, a LanguagePolicy, a
            PolicyConfig, or a RandomInitConfig. A model is trained in place.
        problems: a data set's name ("gsm8k", "generate:digits=2"), a file, a hub id, a list of dicts with a
            prompt (or question) and an answer, a list of Problems, a `datasets.Dataset`, or a settings class.
        rewards: a function `f(completion, problem)` or one with TRL's signature, a built-in name
            ("correct_answer", "answer_format", "conciseness", "readability", "intermediate_steps"),
            "path/to/file.py:function", a list of these, or a dict from these to weights; by default 1 for a
            correct final answer, else 0.
        held_out: problems for evaluation, in the same forms; by default some are held out of `problems`
            (`num_held_out`).
        output_dir: the run's directory, as the command line writes it; None: the run is not recorded.
        config: all settings at once, as `load_recipe(…).config` has them; arguments take precedence. Its own
            `output_dir`, if it was set, is used.
        progress: show progress; by default on a terminal and in a notebook. A Display of one's own is used.

    Attributes:
        config: all settings of the run.
        policy: the policy that is trained.
        problems, held_out: the training and held-out problems, prompts in their template.
        rewards: the reward functions with their names and weights.

    Raises:
        InputError: an argument can't be used; one line for each.
    """

    def __init__(
        self,
        policy: Any = None,
        problems: Any = None,
        rewards: Any = None,
        *,
        held_out: Any = None,
        output_dir: str | PathLike[str] | None = None,
        config: Config | None = None,
        progress: bool | RunDisplay | None = None,
        **settings: Any,
    ) -> None:
        if file := file_being_loaded():
            raise InputError(
                f"{file}: this file trains when it is imported, and it is being imported for a reward "
                "function in "
                'it; put the training below `if __name__ == "__main__":`'
            )
        given = read_arguments(policy, problems, rewards, held_out, output_dir, config, settings)
        self.config = config_from_keywords(config, given.sections, given.keywords)
        self._given = given
        self._directory: RunDirectory | None = None
        if "output_dir" in self.config.model_fields_set:
            self._directory = RunDirectory(Path(self.config.output_dir).expanduser())
            check_can_be_recorded(given.policy, given.problems)
        self._shows_progress = progress
        self._display = _display_for(progress, self.config)
        self._loop = build_loop(
            self.config,
            policy=given.policy,
            problems=given.problems,
            rewards=given.rewards,
            run_directory=self._directory,
            display=self._display,
        )

    @property
    def policy(self) -> LanguagePolicy:
        return self._loop.policy

    @property
    def problems(self) -> Sequence[Problem]:
        return self._loop.problems

    @property
    def held_out(self) -> Sequence[Problem]:
        return self._loop.held_out

    @property
    def rewards(self) -> Sequence[WeightedReward]:
        return self._loop.rewards

    @property
    def state(self) -> TrainState:
        """The run's state after the latest update."""
        return self._loop.state

    @property
    def loop(self) -> TrainingLoop:
        """The training loop, complete: the objects behind this trainer."""
        return self._loop

    @property
    def directory(self) -> RunDirectory | None:
        """The run's directory; None if the run is not recorded."""
        return self._directory

    def train(self, *, resume: bool = False, overwrite: bool = False) -> TrainingResult:
        """Train to the end and return the result.

        Args:
            resume: continue the run in `output_dir` from its newest checkpoint.
            overwrite: replace the run in `output_dir`.

        Raises:
            InputError: `output_dir` can't be used so, or a reward function fails on every trial episode.
            RunStoppedError: the run can't go on (see `max_unscored_share`, `max_not_finite`); it is saved.
        """
        started = time.monotonic()
        with self._recording(resume=resume, overwrite=overwrite), self._display:
            history = [update.metrics for update in self._loop.updates(resume=resume)]
        return self.result(history, seconds=time.monotonic() - started)

    def updates(self, *, resume: bool = False, overwrite: bool = False) -> Iterator[Update]:
        """Yield after each update: its metrics, its episodes, the run's state, and evaluations if any were
        made.

        The caller may leave the loop at any time: a checkpoint is saved, and the run can be resumed. Progress
        is shown only if the trainer was made with `progress=True`. Arguments and errors as for `train`.
        """
        if self._shows_progress is None:
            self._loop.display = Silent()
        with self._recording(resume=resume, overwrite=overwrite):
            yield from self._loop.updates(resume=resume)

    def result(self, history: Sequence[Mapping[str, Any]] = (), *, seconds: float = 0.0) -> TrainingResult:
        """Return the result so far, for a caller who runs the loop over `updates` himself."""
        loop = self._loop
        pairs = {
            decoding: (before, loop.last_evaluations[decoding])
            for decoding, before in loop.first_evaluations.items()
        }
        if self._directory is not None and (
            recorded := first_and_last(self._directory, self.config.sampling.max_new_tokens)
        ):
            pairs = recorded  # its first evaluation may be that of an earlier session
        return TrainingResult(
            history=tuple(history),
            before={decoding: before for decoding, (before, _) in pairs.items()},
            after={decoding: after for decoding, (_, after) in pairs.items()},
            comparisons={
                decoding: compare_evaluations(before, after)
                for decoding, (before, after) in pairs.items()
                if before is not after
            },
            policy=loop.policy,
            state=loop.state,
            is_over=is_over(loop.training, loop.state),
            seconds=seconds,
            output_dir=self._directory.path if self._directory else None,
        )

    def stop(self) -> None:
        """Make the run stop after the update in progress, with a checkpoint; callable from another thread."""
        self._loop.stop_requested = True

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the state after the latest update, from which the run can be resumed."""
        self._loop.save_checkpoint()

    def save_policy(self) -> None:
        """Write the policy as it is now to `policy/` in `output_dir`; a run that ends does so itself."""
        self._loop.save_policy()

    @contextmanager
    def _recording(self, *, resume: bool, overwrite: bool) -> Iterator[None]:
        if resume and overwrite:
            raise InputError("resume continues a run and overwrite replaces it: give one of the two")
        if self._directory is None:
            if resume or overwrite:
                raise InputError("resume and overwrite need the output_dir of a run")
            yield
            return
        if resume:
            check_same_run(self._directory, self.config)
        is_main = self._loop.accelerator.is_main_process
        if is_main:
            self._directory.check(resume=resume, overwrite=overwrite)
        # before the directory changes: overwrite removes the old run
        self._loop.try_rewards()
        if not is_main:
            yield
            return
        with recording(
            self._directory,
            self.config,
            policy=self._given.policy,
            problems=self._given.problems,
            device=str(self._loop.accelerator.device),
            resume=resume,
            overwrite=overwrite,
        ):
            yield


def _display_for(progress: bool | RunDisplay | None, config: Config) -> RunDisplay:
    """Return the display of a run: the caller's own, or one that suits the terminal, or none."""
    if not isinstance(progress, bool | None):
        return progress
    console = Console()
    is_shown = (console.is_terminal or console.is_jupyter) if progress is None else progress
    if not is_shown or os.environ.get("RANK", "0") != "0":
        return Silent()
    num_processes = int(os.environ.get("WORLD_SIZE") or 1)
    name = config.policy.name_or_path or "random weights"
    return display_for(console, f"{name} · {config.output_dir}", num_processes=num_processes)
