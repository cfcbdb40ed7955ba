"""Checks before the first update of a run, and after the sampling and the gradient steps of each batch.

If a check raises a `RunStoppedError`, `TrainingLoop` saves a checkpoint.
"""

from collections.abc import Callable, Sequence

from accelerate import Accelerator

from llm_reinforce.config import ReinforceConfig, TrainingConfig
from llm_reinforce.console.text import visible
from llm_reinforce.episodes import Estimate
from llm_reinforce.errors import InputError, RunStoppedError
from llm_reinforce.problems import Problem, have_answers
from llm_reinforce.runs import TrainState
from llm_reinforce.server import SamplingServer, ServerError
from llm_reinforce.training.batch_sampler import BatchSampler, Sample
from llm_reinforce.training.data_parallel import gather_episodes
from llm_reinforce.training.gradient_step import UpdateOutcome

NUM_TRIED = 4  # number of trial episodes


def check_answers(
    reinforce: ReinforceConfig,
    training: TrainingConfig,
    problems: Sequence[Problem],
    held_out: Sequence[Problem],
) -> None:
    """Check that the problems have the reference answers that the settings need.

    Raises:
        InputError: if `refill` or `curriculum` is set and the training problems have no reference answers, or
            if `keep_best` or `stop_at` is set and there are no held-out problems with reference answers.
    """
    of_batches = {"refill": reinforce.refill > 0, "curriculum": reinforce.curriculum is not None}
    for name, is_set in of_batches.items():
        if is_set and not have_answers(problems):
            raise InputError(
                f"reinforce.{name}: needs training problems with answers, because this setting depends on "
                "whether episodes are correct; give the answers, or remove this setting"
            )
    of_evaluations = {"keep_best": training.keep_best, "stop_at": training.stop_at is not None}
    for name, is_set in of_evaluations.items():
        if is_set and not (held_out and have_answers(held_out)):
            raise InputError(
                f"training.{name}: needs held-out problems with answers, on which the accuracy is measured; "
                "give held-out problems, or remove this setting"
            )


def check_corrected(reinforce: ReinforceConfig, server: SamplingServer | None) -> None:
    """Check that the loss has importance weights or clipping if a server samples the episodes.

    The probabilities of the server differ slightly from those of the policy, so the episodes are off-policy.

    Raises:
        InputError: if neither importance weights nor clipping is set.
    """
    if server is not None and reinforce.importance is None and not reinforce.clip:
        raise InputError(
            "reinforce: the probabilities of the server that samples the episodes differ from those of the "
            "policy, and nothing corrects these differences; set importance: {level: per_decision}"
        )


def check_shares(reinforce: ReinforceConfig, num_processes: int) -> None:
    """Check that the problems of a batch can be split equally among the processes and the updates.

    Raises:
        InputError: if the problems cannot be split equally.
    """
    num_shares = num_processes * reinforce.updates_per_batch
    if reinforce.problems_per_update % num_shares:
        in_each = "" if reinforce.updates_per_batch == 1 else " times reinforce.updates_per_batch"
        raise InputError(
            f"reinforce.problems_per_update ({reinforce.problems_per_update}) must be a multiple of the "
            f"number of processes{in_each}, which is {num_shares}; change reinforce.problems_per_update"
        )


def try_rewards(sampler: BatchSampler, state: TrainState, say: Callable[[str], None]) -> None:
    """Call all reward functions on a few trial episodes, to find errors before the run starts.

    Args:
        sampler: sampler of the run.
        state: train state before the first update.
        say: function that shows a message to the user.

    Raises:
        InputError: if a function fails on all trial episodes, or if the sampling server fails.
    """
    try:
        own = sampler.try_sampling(sampler.problems[:NUM_TRIED], state)
    except ServerError as error:
        raise InputError(f"sampling.server: {error}") from error
    tried, num_processes = sampler.problems[:NUM_TRIED], sampler.accelerator.num_processes
    batch = gather_episodes(own, [*tried] * num_processes, sampler.accelerator)
    for process in range(num_processes):  # a failure in one process stops all processes
        episodes = batch.episodes[process * len(own) : (process + 1) * len(own)]
        failing = [name for name in episodes[0].rewards if all(name in one.failures for one in episodes)]
        if failing:
            why = visible(episodes[0].failures[failing[0]], 400)
            where = f" of process {process}" if num_processes > 1 else ""
            message = (
                f"reward {failing[0]!r} failed on all {len(own)} trial episodes{where}; fix the function "
                f"or remove it from `rewards`: {why}"
            )
            raise InputError("\n".join([message, *_lines(episodes[0].traceback)]))
    if sampler.reinforce.standardize_rewards:
        batch.standardized_rewards(batch.scored)  # raises an error for step rewards
    if not batch.scored.any():
        say(
            "every reward function returned None on all trial episodes; check that one of the functions "
            "applies to the problems"
        )


class RunChecks:
    """Report faults in the episodes and updates of a run, and stop the run after too many faults.

    Args:
        training, reinforce: settings of the run.
        accelerator: the accelerator of the run.
    """

    def __init__(
        self, training: TrainingConfig, reinforce: ReinforceConfig, accelerator: Accelerator
    ) -> None:
        self.training, self.reinforce, self.accelerator = training, reinforce, accelerator
        self._has_reported_failure = False

    def check_scored(
        self, state: TrainState, sample: Sample, estimate: Estimate, say: Callable[[str], None]
    ) -> None:
        """Report the first failure of a reward, and stop the run if too many episodes are unscored.

        Args:
            state: train state before the update.
            sample: episodes of the batch, and counts of the failures, including those of replaced problems.
            estimate: returns and advantages of the batch.
            say: function that shows a message to the user.

        Raises:
            InputError: if no episode of the run's first update could be scored, or if all scored episodes of
                this update are left out because they are truncated.
            RunStoppedError: if the fraction of unscored episodes is above `training.max_unscored_share`.
        """
        failures = sample.failures
        why = "every reward function returned None"
        if failures.first is not None:
            process = f"process {failures.process}: " if self.accelerator.num_processes > 1 else ""
            why = process + visible(failures.first.failure or "", 400)
        if failures.first is not None and not self._has_reported_failure:
            self._has_reported_failure = True
            say(f"an episode could not be scored and is left out of the update: {why}")
            for line in _lines(failures.first.traceback):
                say(line)
        if state.num_updates == 0 and not sample.batch.scored.any():
            raise InputError(
                f"no episode of the first update could be scored ({why}); fix the reward functions"
            )
        if state.num_updates == 0 and estimate.mean_return is None:
            raise InputError(
                "reinforce.truncated: all scored episodes of the first update are truncated, and the value "
                "'mask' excludes truncated episodes; increase sampling.max_new_tokens, or set "
                "reinforce.truncated to 'count'"
            )
        share = failures.num_unscored / failures.num_episodes
        if share > self.training.max_unscored_share:
            raise RunStoppedError(
                f"{share:.0%} of the episodes of update {state.num_updates + 1} could not be scored "
                f"({why}), but training.max_unscored_share is {self.training.max_unscored_share:.0%}; the "
                "state before this update is saved in a checkpoint. Fix the reward function, then resume the "
                "run",
                can_resume=True,
            )

    def check_finite(
        self,
        before: TrainState,
        outcomes: Sequence[UpdateOutcome],
        say: Callable[[str], None],
    ) -> None:
        """Report an update whose gradient is not finite, and stop the run after too many such updates.

        If the gradients of several updates in a row are not finite, only the first of these updates is
        reported.

        Args:
            before: train state before the updates of a batch.
            outcomes: outcome of each update.
            say: function that shows a message to the user.

        Raises:
            RunStoppedError: if the gradients of `training.max_not_finite` updates in a row were not finite.
        """
        limit, in_a_row = self.training.max_not_finite, 0
        streak = before.num_not_finite_in_a_row
        for number, outcome in enumerate(outcomes, before.num_updates + 1):
            streak = streak + 1 if outcome.is_not_finite else 0
            in_a_row = max(in_a_row, streak)
            if streak == 1:
                say(
                    f"update {number} is skipped: its gradient is not finite (norm {outcome.grad_norm:.3g}, "
                    f"loss {outcome.loss:.3g}){_cause(outcome)}; the weights are unchanged"
                )
        if in_a_row >= limit:
            raise RunStoppedError(
                f"the gradients of {in_a_row} updates in a row were not finite{_cause(outcomes[-1])}; the "
                "weights, which these updates did not change, are saved in a checkpoint. Start a new run "
                "with a lower training.learning_rate, or with a higher-precision dtype or mixed_precision"
            )

    def check_weights(
        self, before: TrainState, outcomes: Sequence[UpdateOutcome], say: Callable[[str], None]
    ) -> None:
        """Report that `importance` has no effect if all weights are 1 in the first update of the run."""
        counts = outcomes[0].counts
        are_ones = counts.num > 0 and counts.total == counts.squares == counts.num
        is_on_policy = self.reinforce.importance is not None and self.reinforce.updates_per_batch == 1
        if before.num_updates == 0 and is_on_policy and are_ones:
            say(
                "reinforce.importance has no effect in this run, because the updates reuse the "
                "log-probabilities that were recorded in sampling, so that all importance weights are 1; "
                "remove the setting, or increase reinforce.updates_per_batch"
            )

    def check_fitted(self, after: TrainState, say: Callable[[str], None], *, is_fitted: bool) -> None:
        """Report the first update in which value-head steps were skipped.

        The metric `value/num_skipped_fits` counts all such updates.
        """
        if not is_fitted and after.num_skipped_fits == 1:
            say(
                f"optimizer steps of the value head were skipped in update {after.num_updates}, because the "
                "loss or the gradient of the value head was not finite. This happens if returns are huge. "
                "The metric value/num_skipped_fits counts such updates"
            )


def _cause(outcome: UpdateOutcome) -> str:
    """Return a clause that says why a gradient is not finite; empty if the cause is not known."""
    num = outcome.counts.num_infinite
    if not num:
        return ""
    return f" because {num:,} importance weights are infinite (reinforce.importance.limit would bound them)"


def _lines(traceback: str) -> list[str]:
    """Return the lines of a traceback, indented for display below a message."""
    return [f"    {visible(line, 200)}" for line in traceback.splitlines()]
