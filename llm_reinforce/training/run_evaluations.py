"""Make, show and record the evaluations of a run."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from accelerate import Accelerator

from llm_reinforce.config import (
    NUM_TRAINING_PROBLEMS_EVALUATED,
    EvaluationConfig,
    SamplingConfig,
    TrainingConfig,
)
from llm_reinforce.console.run_display import Display
from llm_reinforce.evaluation import Answer, Decoding, Evaluation, answer_problems, evaluation_of
from llm_reinforce.policy import LanguagePolicy
from llm_reinforce.problems import Problem
from llm_reinforce.runs import TrainState
from llm_reinforce.runs.run_directory import RunDirectory
from llm_reinforce.training.budget import makes_no_more_updates
from llm_reinforce.training.data_parallel import gather_object
from llm_reinforce.training.trackers import Trackers

NUM_ANSWERS = 20  # number of problems whose answers are recorded, except in the first and last evaluation


@dataclass(frozen=True)
class RunEvaluations:
    """Measure the accuracy of the policy during a run.

    Attributes:
        problems: training problems, which are used if there are no held-out problems.
        held_out: held-out problems.
        settings: settings of the evaluations.
        sampling, training: settings of the run.
        accelerator: the accelerator of the run.
        run_directory: directory in which the run is recorded. None: the run is not recorded.
        seed: seed of the run.
        made: the first and the latest evaluation of each decoding. The keys are the decoding ("greedy" or
            "sampled") and then the number of updates before the evaluation.
    """

    problems: Sequence[Problem]
    held_out: Sequence[Problem]
    settings: EvaluationConfig
    sampling: SamplingConfig
    training: TrainingConfig
    accelerator: Accelerator
    run_directory: RunDirectory | None
    seed: int
    made: dict[str, dict[int, Evaluation]] = field(default_factory=dict)

    def make_pending(
        self,
        policy: LanguagePolicy,
        state: TrainState,
        display: Display,
        trackers: Trackers,
        *,
        is_stopped: Callable[[], bool],
        is_first_or_last: bool,
    ) -> TrainState:
        """Make the evaluations that are due or were interrupted, which are in `state.pending_evaluations`.

        Each process answers its share of the problems. If a stop is requested in any process, the evaluation
        in progress is abandoned. This evaluation and the evaluations after it remain pending.

        Args:
            policy: the policy.
            state: train state with the pending evaluations.
            display: display of the run.
            trackers: trackers of the run.
            is_stopped: function that returns True if a stop of the run was requested in this process.
            is_first_or_last: True if this is the first or the last evaluation of the run. The answers to all
                problems are then recorded.

        Returns:
            the train state after the evaluations.
        """
        data = "held_out" if self.held_out else "training"
        num_problems = self.settings.num_problems or (
            None if self.held_out else NUM_TRAINING_PROBLEMS_EVALUATED
        )
        problems = (self.held_out or self.problems)[:num_problems]
        is_main = self.accelerator.is_main_process
        for decoding in [each for each in self.settings.decodings if each in state.pending_evaluations]:
            own = self._answer_share(policy, problems, decoding, display, is_stopped)
            answers: dict[int, Sequence[Answer]] = {}
            for of_process in (shares := gather_object(own, self.accelerator)):
                answers |= of_process or {}
            if None in shares:
                break
            evaluation = evaluation_of(decoding, problems, answers, self.sampling.max_new_tokens)
            state = state.with_evaluation(decoding, evaluation.accuracy)
            if self.training.stop_at is not None and decoding == self.settings.decodings[0]:
                reached = max(state.accuracy_reached, evaluation.interval[0])
                state = replace(state, accuracy_reached=reached)
            made = self.made.setdefault(decoding, {})
            for number in list(made)[1:]:
                del made[number]
            made[state.num_updates] = evaluation
            if is_main:
                display.evaluation(state.num_updates, data, evaluation)
                is_complete = is_first_or_last or makes_no_more_updates(self.training, state)
                self._record(state.num_updates, data, evaluation, is_complete=is_complete)
                trackers.evaluation(state.num_updates, evaluation)
        return state

    def after(self, num_updates: int) -> dict[str, Evaluation]:
        """Return the evaluations that were made after `num_updates` updates, by decoding."""
        return {name: made[num_updates] for name, made in self.made.items() if num_updates in made}

    def _record(self, num_updates: int, data: str, evaluation: Evaluation, *, is_complete: bool) -> None:
        """Write an evaluation to the run's directory, with all answers or with the first `NUM_ANSWERS`."""
        if self.run_directory is not None:
            where = {"update": num_updates, "data": data}
            self.run_directory.append("evaluations.jsonl", {**where, **evaluation.summary()})
            self.run_directory.append_answers(where, evaluation, None if is_complete else NUM_ANSWERS)

    def _answer_share(
        self,
        policy: LanguagePolicy,
        problems: Sequence[Problem],
        decoding: Decoding,
        display: Display,
        is_stopped: Callable[[], bool],
    ) -> dict[int, Sequence[Answer]] | None:
        """Answer the problems of this process. Return the answers by problem index, or None after a stop."""
        index, num_processes = self.accelerator.process_index, self.accelerator.num_processes

        def check_stop(*_: int) -> None:
            if is_stopped():
                raise _EvaluationStoppedError

        with self.accelerator.autocast(), suppress(_EvaluationStoppedError):
            return answer_problems(
                policy,
                problems,
                decoding=decoding,
                samples_per_problem=self.settings.samples_per_problem if decoding == "sampled" else 1,
                max_new_tokens=self.sampling.max_new_tokens,
                temperature=self.sampling.temperature,
                seed=self.seed,
                batch_size=self.settings.batch_size,
                stop=self.settings.stop,
                progress=lambda done: display.evaluating(done, -(-len(problems) // num_processes)),
                on_step=check_stop,
                share=(index, num_processes),
            )
        return None


class _EvaluationStoppedError(Exception):
    """Raised within an evaluation to end it, because a stop of the run was requested."""
