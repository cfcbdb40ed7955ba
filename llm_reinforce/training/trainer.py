"""The Python interface of training: `ReinforceTrainer(policy, problems, rewards).train()`."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from rich.console import Console

from llm_reinforce.checkpoint_files import find_checkpoint
from llm_reinforce.config import Config
from llm_reinforce.config.keywords import config_from_keywords
from llm_reinforce.console.live_view import display_for
from llm_reinforce.console.run_display import RunDisplay, Silent
from llm_reinforce.errors import InputError
from llm_reinforce.evaluation import Comparison, Criterion, Evaluation
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.problems import Problem
from llm_reinforce.processes import is_main_process
from llm_reinforce.reports import report
from llm_reinforce.rewards import WeightedReward, file_being_loaded
from llm_reinforce.runs import RunDirectory, TrainState
from llm_reinforce.runs.model_card import write_model_card
from llm_reinforce.runs.run_comparison import compare_evaluations_of_run, recorded_evaluations
from llm_reinforce.training.assembly import build_loop
from llm_reinforce.training.budget import is_over
from llm_reinforce.training.given import read_arguments
from llm_reinforce.training.loop import TrainingLoop, Update
from llm_reinforce.training.preview import Preview, preview_run
from llm_reinforce.training.recording import (
    check_can_be_recorded,
    check_same_run,
    recording,
    with_date,
    with_recorded_date,
)
from llm_reinforce.training.run_record import run_record
from llm_reinforce.training.trackers import check_trackers, tracking


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Outcome of a training run.

        result = trainer.train()
        print(result)  # a summary of a few lines
        print(result.history[-1]["reward"], result.after["greedy"].accuracy)
        print(result.comparisons["greedy"]["accuracy"].interval)

    Attributes:
        history: `Update.metrics` of each update that was made by the call of `train`, oldest first. The
            metrics of updates made before a resume are only in `metrics.jsonl`.
        before: first evaluation of the run, as a dict from decoding ("greedy" or "sampled") to Evaluation. It
            is made before the first update, but after the warm start if there is one. An Evaluation has
            `accuracy`, `interval` (95%), `correct` and `total`.
        after: last evaluation of the run, as a dict like `before`.
        comparisons: difference between `before` and `after`, by decoding and then by criterion; empty if
            there is only one evaluation. The criterion "accuracy" counts all correct answers. The criterion
            "strict" counts only correct answers after `####`, as in GSM8K. It is left out if no completion
            contains a correct answer after `####`.
        warnings: signs that the policy did not learn, one sentence each, such as a gradient that was zero in
            several updates in a row. During the run, only the worst new sign after each update is shown.
        policy: the trained policy.
        state: train state at the end of the call. It contains the numbers of updates and of sampled tokens,
            among other things.
        is_over: True if the run has made its last update. False if the run was stopped earlier.
        seconds: duration of the call, in seconds.
        output_dir: directory of the run; None if the run is not recorded.
    """

    history: Sequence[Mapping[str, Any]] = field(repr=False)
    before: Mapping[str, Evaluation]
    after: Mapping[str, Evaluation]
    comparisons: Mapping[str, Mapping[Criterion, Comparison]]
    warnings: Sequence[str]
    policy: LanguagePolicy = field(repr=False)
    state: TrainState
    is_over: bool
    seconds: float
    output_dir: Path | None

    def __str__(self) -> str:
        """Return a summary: number of updates, accuracy before and after, warnings, and directory."""
        state, end = self.state, "finished" if self.is_over else "stopped"
        lines = [f"{end} after update {state.num_updates:,}, with {state.num_tokens:,} sampled tokens"]
        for decoding, before in self.before.items():
            after = self.after[decoding]
            low, high = after.interval
            lines.append(
                f"{decoding} accuracy: {before.accuracy:.1%} before, {after.accuracy:.1%} "
                f"[{100 * low:.1f}, {100 * high:.1f}] after, on {len(after.problems):,} problems"
            )
        lines += [f"warning: {sentence}" for sentence in self.warnings]
        return "\n".join([*lines, *([f"recorded in {self.output_dir}"] if self.output_dir else [])])


class ReinforceTrainer:
    """Fine-tune a language model by REINFORCE on problems whose answers can be checked.

    Train to the end in one call:

        from llm_reinforce import ReinforceTrainer, verify

        def short_and_right(completion, problem):
            return float(verify(completion, problem.answer).correct and len(completion) < 20)

        trainer = ReinforceTrainer("smollm2-135m", "gsm8k", short_and_right, num_updates=50)
        result = trainer.train()
        print(result.before["greedy"].accuracy, result.after["greedy"].accuracy)

    or iterate over the updates:

        for update in trainer.updates():
            print(update.number, update.metrics["accuracy"])

    Each update samples `problems_per_update` x `episodes_per_problem` completions, computes their rewards,
    and takes one optimizer step. With `updates_per_batch`, the completions are divided among several updates.

    Further settings are keyword arguments. They have the names and defaults of a recipe's keys. With the same
    settings, Python, YAML and the command line give bit-identical runs. The most common settings are:

    - `num_updates=100`: number of optimizer steps.
    - `num_tokens=None`: number of sampled tokens after which the run stops.
    - `learning_rate`: 1e-5 by default, but 1e-4 for LoRA adapters and 5e-4 for random weights.
    - `problems_per_update=16`, `episodes_per_problem=8`: number of problems of an update, and number of
      completions that are sampled for each problem.
    - `max_new_tokens=256`, `temperature=1.0`: maximum length of a completion, and temperature of sampling.
    - `lora=None`: train all weights. With `lora={"rank": 8}`, a LoRA adapter of rank 8 is trained instead.
    - `baseline="leave_one_out"`: the baseline subtracted from the returns.
    - `num_held_out`: number of problems held out for evaluation. The default is 200, or a fifth of the
      problems if this is less.
    - `checkpoint_every=None`: number of updates between checkpoints. A checkpoint is always saved at the end.
    - `seed=0`: seed of all random generators.

    A keyword may also be a whole section, such as `evaluation={"every": 10}` or
    `training=TrainingConfig(...)`. If several sections have a key with the same name, give the key within its
    section. The attribute `config` shows all settings.

    Args:
        policy: the model to train, given as a directory, a `.gguf` file, a hub id, the directory of an
            earlier run, the name of a model downloaded by `llm-reinforce fetch` ("smollm2-135m"), a
            `(model, tokenizer)` pair of transformers, a LanguagePolicy, a PolicyConfig, or a RandomInitConfig
            (a small Llama with random weights). A model object is trained in place.
        problems: the training problems, given as a data-set name ("gsm8k", "svamp", "generate:digits=2"), a
            file or folder (JSONL, JSON, CSV, TSV, Parquet, Arrow), a hub id, a list of dicts with the keys
            `prompt` (or `question`) and `answer`, a list of Problems, a `datasets.Dataset`, a DataFrame of
            pandas, or a ProblemsConfig, DataConfig or GenerateConfig. For columns with other names, set
            `prompt_column` and `answer_column`. If problems have no answers, all reward functions have to
            work without answers, and no accuracy is measured.
        rewards: the reward, given as a function such as `f(completion: str, problem: Problem) -> float |
            None | StepRewards`, a function with TRL's signature, a built-in name ("correct_answer",
            "answer_format", "conciseness", "readability", "intermediate_steps"), "path/to/file.py:function",
            a list of these, or a dict that maps any of these to weights, such as `{my_function: 1.0,
            "conciseness": 0.2}`. A `RewardConfig(function="answer_format", arguments={"form": "boxed"})`
            passes arguments to the function. A function with TRL's signature takes `prompts`, `completions`,
            `completion_ids` and the columns of the problems as keywords, and returns a list. The reward of an
            episode is the weighted sum of the values of all functions. A function may return None if it does
            not apply to a problem. An episode is left out of the update if a function raises an exception, or
            if all functions return None. Default: 1 for a correct final answer, 0 otherwise.
        held_out: problems for evaluation, given as a name, file, hub id, list, `datasets.Dataset` or
            DataConfig. This argument can be used only together with `problems`. Default: `num_held_out` of
            the `problems` are held out.
        output_dir: directory in which the run is recorded, with the same files as a run from the command
            line. The directory has to be empty or new, unless `train` is called with `resume` or `overwrite`.
            Default: the run is not recorded.
        config: all settings at once, such as `load_recipe("quickstart").config`. The other arguments take
            precedence over the config. If the config sets `output_dir`, the run is recorded in this
            directory.
        progress: True to show progress, False to print nothing. Default: the trainer prints a description of
            the problems and of the policy, and `train` shows progress, but `updates` does not. On a terminal,
            progress is a live view. An object with the methods of `RunDisplay` is used as the display.

    Attributes:
        config: all settings of the run.
        policy: the policy that is trained.
        problems, held_out: the training problems and the held-out problems, respectively, with the prompt
            template applied.
        rewards: the reward functions with their names and weights.

    Raises:
        InputError: if arguments are missing, unknown or invalid. Invalid settings are reported together, one
            line each.
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
                f"{file}: this file starts training when it is imported, but it is being imported only for "
                'its reward function; put the training below `if __name__ == "__main__":`'
            )
        given = read_arguments(policy, problems, rewards, held_out, output_dir, config, settings)
        self.config = config_from_keywords(config, given.sections, given.keywords)
        check_trackers(self.config.training)
        self._given = given
        self._directory: RunDirectory | None = None
        if "output_dir" in self.config.model_fields_set:
            self._directory = RunDirectory(Path(self.config.output_dir).expanduser())
            check_can_be_recorded(given.policy, given.problems)
        elif self.config.training.trackers:
            raise InputError("training.trackers: used only for a recorded run; set output_dir")
        self._shows_progress = progress
        self._is_running = False  # True while an iterator of `updates` is open
        self._has_run = False
        self._display = _display_for(progress, self.config)
        self._loop = build_loop(
            self.config,
            policy=given.policy,
            problems=given.problems,
            rewards=given.rewards,
            run_directory=self._directory,
            display=self._display,
        )
        if self._directory is not None and (script := _script_without_guard(self.config)):
            self._display.say(
                f"{script}: this script defines a reward function, so a resumed run imports the script; put "
                'the training below `if __name__ == "__main__":`, so that the import does not start training'
            )

    @property
    def policy(self) -> LanguagePolicy:
        """Policy that is trained."""
        return self._loop.policy

    @property
    def problems(self) -> Sequence[Problem]:
        """Training problems, with the prompt template applied."""
        return self._loop.problems

    @property
    def held_out(self) -> Sequence[Problem]:
        """Held-out problems, with the prompt template applied."""
        return self._loop.held_out

    @property
    def rewards(self) -> Sequence[WeightedReward]:
        """Reward functions with their names and weights."""
        return self._loop.rewards

    @property
    def state(self) -> TrainState:
        """Train state after the latest update."""
        return self._loop.state

    @property
    def loop(self) -> TrainingLoop:
        """Training loop of the run. Its attributes include the optimizer and the learning-rate schedule."""
        return self._loop

    @property
    def directory(self) -> RunDirectory | None:
        """Directory of the run, as an object that reads its files and logs. None: the run is not recorded.

        The path of the directory is `directory.path`.
        """
        return self._directory

    def train(self, *, resume: bool = False, overwrite: bool = False) -> TrainingResult:
        """Train to the last update and return the result.

        The policy is evaluated before the first update, every `evaluation.every` updates (or sampled tokens,
        see `evaluation.unit`), and after the last update.

        Args:
            resume: continue the run in `output_dir` from its newest checkpoint. The settings of the trainer
                must equal those of the run, except that `num_updates`, `num_tokens` and `stop_at` may be
                larger, and `trackers`, `process_timeout`, `cuda_graphs` and the settings of a server (all but
                `sync_every`) may differ.
            overwrite: delete the run in `output_dir` and start a new one.

        Raises:
            InputError: if `output_dir` is not empty and neither `resume` nor `overwrite` is set, if there is
                no run to resume, if the run to resume has other settings, or if a reward function fails on
                every trial episode.
            RunStoppedError: if the fraction of an update's episodes that could not be scored exceeds
                `max_unscored_share`, if the gradients of `max_not_finite` updates in a row were not finite,
                or if a sampling server failed. A checkpoint is saved, except during the warm start.
        """
        started = time.monotonic()
        self._loop.display = self._display
        with self._running(resume=resume, overwrite=overwrite), self._display:
            history = [update.metrics for update in self._loop.updates(resume=resume)]
        return self.result(history, seconds=time.monotonic() - started)

    def updates(self, *, resume: bool = False, overwrite: bool = False) -> Iterator[Update]:
        """Train, and yield an `Update` after the optimizer steps of each batch (by default, one step).

            for update in trainer.updates():
                if update.metrics["accuracy"] > 0.9:
                    break

        The caller may break out of the loop. If the run is recorded, a checkpoint is then saved, and
        `resume=True` continues from this checkpoint. Only a run that reaches its end writes the directory
        `policy/` and makes a final evaluation. After a `break`, call `save_policy()` to write the policy, and
        `evaluate(trainer.policy, …)` to measure its accuracy. After the loop, `result()` returns the
        evaluations. Progress is shown only if the trainer was created with `progress=True` or with a display.

        Args:
            resume: continue the run in `output_dir` from its newest checkpoint; see `train`.
            overwrite: delete the run in `output_dir` and start a new one.

        Raises:
            InputError: if the run cannot be started or resumed; see `train`.
            RunStoppedError: if the run cannot continue; see `train`.
        """
        self._loop.display = Silent() if self._shows_progress is None else self._display
        with self._running(resume=resume, overwrite=overwrite):
            yield from self._loop.updates(resume=resume)

    def result(self, history: Sequence[Mapping[str, Any]] = (), *, seconds: float = 0.0) -> TrainingResult:
        """Return the result so far. This method can be called during or after a loop over `updates`.

        Args:
            history: metrics of each update, which become the attribute `history` of the result.
            seconds: duration of training, which becomes the attribute `seconds` of the result.
        """
        loop = self._loop
        evaluations: dict[str, dict[int, Evaluation]] = {}  # by decoding and number of updates
        if self._directory is not None:  # a resumed run may also have evaluations of earlier processes
            evaluations = recorded_evaluations(self._directory, self.config.sampling.max_new_tokens)
        for decoding, made in loop.evaluations.made.items():
            evaluations.setdefault(decoding, {}).update(made)
        return TrainingResult(
            history=tuple(history),
            before={decoding: made[min(made)] for decoding, made in evaluations.items()},
            after={decoding: made[max(made)] for decoding, made in evaluations.items()},
            comparisons=compare_evaluations_of_run(evaluations),
            warnings=loop.warning_signs.sentences,
            policy=loop.policy,
            state=loop.state,
            is_over=is_over(loop.training, loop.state),
            seconds=seconds,
            output_dir=self._directory.path if self._directory else None,
        )

    def preview(self, *, num_problems: int = 2, num_episodes: int = 2) -> Preview:
        """Sample a few episodes and call the reward functions, without training or writing files.

        If the run uses a server, the server is only asked which model it serves.

        Args:
            num_problems: number of training problems to use, starting with the first problem.
            num_episodes: number of episodes per problem.
        """
        return preview_run(self._loop, num_problems=num_problems, num_episodes=num_episodes)

    def stop(self) -> None:
        """Stop the run after the current update, or during the current evaluation, and save a checkpoint.

        A resumed run repeats an evaluation that was not completed.

        This method may be called from another thread, from a signal handler, or within a loop over `updates`.
        Such a loop can also be left with `break`.
        """
        self._loop.stop_requested = True

    def save_checkpoint(self) -> None:
        """Save a checkpoint of the state after the latest update, in `output_dir`.

        If several processes train with FSDP, all of them must call this method.

        Raises:
            InputError: if the trainer has no `output_dir` or has not run yet, or if the warm start or an
                update was interrupted.
        """
        self._check_recorded("save_checkpoint")
        self._loop.save_checkpoint()

    def save_policy(self) -> None:
        """Save the current policy to `policy/` in `output_dir`.

        After the last update of a run, the policy is saved automatically.

        Raises:
            InputError: if the trainer has no `output_dir` or has not run yet. Use
                `trainer.policy.save(directory)` instead.
        """
        self._check_recorded("save_policy")
        self._loop.save_policy()
        if self._directory is not None and self._loop.accelerator.is_main_process:
            write_model_card(self._directory)

    def _check_recorded(self, method: str) -> None:
        if self._directory is None:
            raise InputError(
                f"{method}: this trainer has no output_dir; create it with output_dir=…, or save the policy "
                "with trainer.policy.save(directory)"
            )
        if not self._has_run:  # the directory may contain another run
            raise InputError(
                f"{method}: this trainer has not run yet; train first, or save the policy with "
                "trainer.policy.save(directory)"
            )

    @contextmanager
    def _running(self, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """Check that the trainer can run, and hold the lock of the run's directory within the context."""
        if self._is_running:
            raise InputError(
                "a loop over updates() of this trainer is still open; leave the loop with break, or close "
                "its iterator"
            )
        if self._has_run and overwrite:
            raise InputError(
                "overwrite: the new run would start from the policy that this trainer has already trained; "
                "create a new ReinforceTrainer"
            )
        if self._has_run and not resume and is_over(self._loop.training, self.state):
            raise InputError(
                f"the run of this trainer is over after update {self.state.num_updates}; create a new "
                "ReinforceTrainer to train again"
            )
        directory = self._directory
        if self._has_run and resume and directory and find_checkpoint(directory.checkpoints)[0] is None:
            raise InputError(
                f"{directory.path}: there is no checkpoint to resume from, and the policy of this trainer "
                "has already been trained; call save_checkpoint() first, or create a new ReinforceTrainer"
            )
        self._is_running = True
        try:
            with self._recording(resume=resume, overwrite=overwrite):
                self._has_run = True
                yield
        finally:
            self._is_running = False
            self._loop.stop_requested = False  # the next loop over the updates continues

    @contextmanager
    def _recording(self, *, resume: bool, overwrite: bool) -> Iterator[None]:
        if resume and overwrite:
            raise InputError("resume continues a run and overwrite replaces it; set only one of the two")
        if self._directory is None:
            if resume or overwrite:
                raise InputError("resume and overwrite need a recorded run; set output_dir")
            yield
            return
        if resume:
            check_same_run(self._directory, self.config)
            self.config = with_recorded_date(self._directory, self.config)
        date = self._loop.fix_date(self.config.policy.chat_template_date)
        self.config = with_date(self.config, date)  # so that the date is written to `recipe.yaml`
        is_main = self._loop.accelerator.is_main_process
        if is_main:
            self._directory.check(resume=resume, overwrite=overwrite)
        # try the rewards before the directory changes, because `overwrite` deletes the old run
        self._loop.try_rewards()
        if not is_main:
            yield
            return
        say = self._loop.display.say
        with recording(
            self._directory,
            self.config,
            policy=self._given.policy,
            problems=self._given.problems,
            record=run_record(
                self.config,
                problems=self.problems,
                held_out=self.held_out,
                rewards=self.rewards,
                device=str(self._loop.accelerator.device),
                num_processes=self._loop.accelerator.num_processes,
            ),
            resume=resume,
            overwrite=overwrite,
            say=say,
        ):
            with tracking(self.config, self._directory, say) as self._loop.trackers:
                yield
            if is_over(self._loop.training, self._loop.state):
                write_model_card(self._directory)
        # written after the lock is released, because a report shows a run whose lock is held as still running
        self._write_report(self._directory.path)

    def _write_report(self, path: Path) -> None:
        try:
            report(path)
        except Exception as error:  # the run is complete even without a report
            self._loop.display.say(f"note: the report could not be written ({type(error).__name__}: {error})")


def _script_without_guard(config: Config) -> str | None:
    """Return the path of the running script if a resumed run would start the training by importing it.

    A resumed run imports the script if the script defines a reward function. The import starts the training
    if the script has no `__main__` guard. The result is None if there is no such script.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is None or not Path(script).is_file():
        return None
    has_reward = any(reward.function.startswith(f"{Path(script).resolve()}:") for reward in config.rewards)
    is_guarded = "__main__" in Path(script).read_text(encoding="utf-8", errors="replace")
    return script if has_reward and not is_guarded else None


def _display_for(progress: bool | RunDisplay | None, config: Config) -> RunDisplay:
    """Return the display of a run: the caller's, a display that suits the console, or a silent display."""
    if not isinstance(progress, bool | None):
        return progress
    console = Console()
    if progress is False or not is_main_process():
        return Silent()
    name = config.policy.name_or_path or "random weights"
    title = f"{name} · {config.output_dir}"
    return display_for(console, title, num_tokens=config.training.num_tokens)
