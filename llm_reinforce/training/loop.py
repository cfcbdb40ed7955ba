"""The training loop of REINFORCE. Read `TrainingLoop.updates`, then `TrainingLoop._update`.

STEP 0-3 in the comments are the steps of the article "The Beauty of Reinforcement Learning (1) - Intro of
Policy Based Methods".
"""

import datetime
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from llm_reinforce.config import EvaluationConfig, ReinforceConfig, SamplingConfig, TrainingConfig
from llm_reinforce.console.run_display import Display, Silent
from llm_reinforce.durable_files import whole_directory
from llm_reinforce.episodes import Episode, EpisodeBatch, Estimate, estimate_advantages
from llm_reinforce.errors import InputError, ProcessLostError, RunStoppedError
from llm_reinforce.evaluation import Evaluation
from llm_reinforce.policy import Activations, LanguagePolicy, check_cuda_graphs, checkpointable_layers
from llm_reinforce.problems import Problem, have_answers
from llm_reinforce.processes import sharding, why_lost
from llm_reinforce.reports import Finding, RunFacts, WarningSigns
from llm_reinforce.rewards import WeightedReward, correct_answer
from llm_reinforce.runs import TrainState
from llm_reinforce.runs.run_comparison import compare_first_and_last
from llm_reinforce.runs.run_directory import RunDirectory
from llm_reinforce.server import SamplingServer
from llm_reinforce.training.agreement import check_alike
from llm_reinforce.training.batch_sampler import BatchSampler, Sample, SamplingStoppedError
from llm_reinforce.training.budget import is_evaluation_due, is_over, makes_no_more_updates
from llm_reinforce.training.data_parallel import (
    broadcast_weights,
    gather_object,
    gather_rows,
    new_accelerator,
    own_rows,
    shard,
)
from llm_reinforce.training.gradient_step import GradientStep, UpdateOutcome
from llm_reinforce.training.metrics import (
    describe_episode,
    mean_entropy,
    run_metrics,
    step_metrics,
    update_metrics,
)
from llm_reinforce.training.optimizer import new_optimizer
from llm_reinforce.training.problem_order import ProblemOrder
from llm_reinforce.training.random_generators import seeded
from llm_reinforce.training.reference import ReferencePolicy
from llm_reinforce.training.run_checkpoints import RunCheckpoints
from llm_reinforce.training.run_checks import (
    RunChecks,
    check_answers,
    check_corrected,
    check_shares,
    try_rewards,
)
from llm_reinforce.training.run_evaluations import RunEvaluations
from llm_reinforce.training.trackers import Trackers
from llm_reinforce.training.value_baseline import Prediction, ValueBaseline
from llm_reinforce.training.warm_start import warm_start

RECOMPUTE_EVERY = 25  # number of updates between two measurements of `sampling_logp_difference`


@dataclass(frozen=True, slots=True)
class Update:
    """One update of the policy, after its gradient step.

    With `reinforce.updates_per_batch` above 1, this is the last update of a batch, and the metrics describe
    all updates of the batch.

    Attributes:
        number: number of the update in the run, from 1.
        metrics: metrics of the update by name, as in `metrics.jsonl`: `reward`, `reward_std`, `accuracy`,
            `rewards/NAME/mean`, `entropy`, `completions/mean_length`, `loss`, `grad_norm`, `learning_rate`,
            `num_tokens`, `step_time` and others. `reward`, `loss` and `grad_norm` are missing if no episode
            was scored.
        episodes: episodes of the update, of all processes. The episodes of one problem are adjacent. An
            episode has `problem`, `completion.text`, `reward`, `rewards` and `verdict.correct`.
        state: train state after the update.
        evaluations: evaluations made after this update, by decoding ("greedy" or "sampled"). Empty if no
            evaluation was due.
    """

    number: int
    metrics: Mapping[str, float]
    episodes: Sequence[Episode]
    state: TrainState
    evaluations: Mapping[str, Evaluation]


class TrainingLoop:
    """Train a policy by REINFORCE on problems whose answers can be checked.

        sample episodes from π(·; θ) → returns g_t → baselines → one gradient step → sample again

    `ReinforceTrainer` builds this loop from names, paths and settings. The arguments of this class are the
    loaded objects.

    References: Williams 1992; Sutton & Barto 2018, chapter 13; STEP 0-3 of the article named at the top of
    this module.

    Args:
        policy: the initial policy θ_0, with random (STEP 0) or pretrained weights; it is trained in place.
        problems: the training problems.
        training: settings of the training: number of updates or tokens, optimizer, checkpoints and others.
        rewards: the reward functions with their weights. Default: 1 for a correct final answer, 0 otherwise.
        reinforce: baseline, discount, batch size and other settings of the loss.
        sampling: length and temperature of the completions.
        held_out: problems for evaluation, disjoint from `problems`. If empty, evaluations use training
            problems and are logged with `data: training`.
        evaluation: settings of the evaluations of the policy.
        demonstrations: problems whose solutions are used for the warm start. If empty, the solutions of
            `problems` are used.
        run_directory: directory in which the run is recorded. None: the run is not recorded.
        display: display of the progress. Default: nothing is shown.
        seed: seed of all random generators of the run.
        server: server that samples the episodes. None: the processes of the run sample the episodes.

    Raises:
        InputError: if there are no training problems, if the problems of a batch cannot be split equally
            among the processes and the updates, or if accelerate or the policy does not support the settings.
            Also raised if a server samples the episodes, but neither importance weights nor clipping is set.
    """

    def __init__(
        self,
        policy: LanguagePolicy,
        problems: Sequence[Problem],
        training: TrainingConfig,
        *,
        rewards: Sequence[WeightedReward] = (WeightedReward("correct_answer", correct_answer()),),
        reinforce: ReinforceConfig | None = None,
        sampling: SamplingConfig | None = None,
        held_out: Sequence[Problem] = (),
        evaluation: EvaluationConfig | None = None,
        demonstrations: Sequence[Problem] = (),
        run_directory: RunDirectory | None = None,
        display: Display | None = None,
        seed: int = 0,
        server: SamplingServer | None = None,
    ) -> None:
        if not problems:
            raise InputError("there are no training problems; give at least one")
        check_answers(reinforce or ReinforceConfig(), training, problems, held_out)
        self.policy, self.problems, self.rewards, self.held_out = policy, problems, rewards, held_out
        self.reinforce = reinforce or ReinforceConfig()
        num_updates = self.reinforce.in_whole_batches(training.num_updates)
        self.training = training = training.model_copy(update={"num_updates": num_updates})
        self.sampling, self.evaluation = sampling or SamplingConfig(), evaluation or EvaluationConfig()
        self.demonstrations = demonstrations
        self.run_directory, self.display, self.seed = run_directory, display or Silent(), seed
        self.accelerator = new_accelerator(training.mixed_precision, training.process_timeout)
        self._check_processes_agree()
        check_shares(self.reinforce, self.accelerator.num_processes)
        check_corrected(self.reinforce, server)
        if training.gradient_checkpointing:
            # raises an error if the model has no layers that can be checkpointed
            checkpointable_layers(policy.model)
        # the copy is made before the policy is moved, so it is on the CPU if the policy was loaded there
        self.sharded = shard(policy.model, self.accelerator)
        policy.model.to(self.accelerator.device)
        if self.sampling.cuda_graphs:
            check_cuda_graphs(policy)
        broadcast_weights(policy.model, self.accelerator)
        if self.sharded is not None:
            self.sharded.load()
        trained = policy.model if self.sharded is None else self.sharded.module
        self.optimizer, self.schedule = new_optimizer(trained, training, self.accelerator)
        self.gradient_step = self._new_gradient_step(trained)
        self.value_baseline: ValueBaseline | None = None
        if self.reinforce.baseline == "value":
            self.value_baseline = ValueBaseline(policy, self.reinforce.value, self.accelerator, seed=seed)
        self.reference: ReferencePolicy | None = None
        if self.reinforce.kl is not None:
            self.reference = ReferencePolicy(
                policy, self.reinforce.kl, self.accelerator, self.sampling.temperature
            )
        self.sampler = self._new_sampler(server)
        self.evaluations = RunEvaluations(
            problems,
            held_out,
            self.evaluation,
            self.sampling,
            training,
            self.accelerator,
            run_directory,
            seed,
        )
        self.checkpoints = self._new_checkpoints()
        self.state = TrainState()
        self.warning_signs = WarningSigns(self._run_facts())
        self.trackers = Trackers()  # replaced by the trackers of the run while the run is recorded
        self.stop_requested = False
        self._checks = RunChecks(training, self.reinforce, self.accelerator)
        self._clock = time.monotonic()  # the time at which a run without interruptions would have started
        self._num_saved: int | None = None  # number of updates before the checkpoint saved last
        self._has_tried_rewards = False
        self._has_begun = False  # True after the warm start; later loops over `updates` continue the run
        self._is_state_current = False  # True if weights and optimizer are those of `state`

    def _check_processes_agree(self) -> None:
        """Check that all processes have the same settings, problems and policy."""
        check_alike(
            self.accelerator,
            settings={
                "reinforce": self.reinforce,
                "sampling": self.sampling,
                "training": self.training,
                "evaluation": self.evaluation,
                "rewards": [(reward.name, reward.weight) for reward in self.rewards],
                "seed": self.seed,
                "FSDP2": sharding(),
            },
            problems={
                "problems": self.problems,
                "held-out problems": self.held_out,
                "demonstrations": self.demonstrations,
            },
            model=self.policy.model,
        )

    def _new_gradient_step(self, trained: nn.Module) -> GradientStep:
        """Return the gradient step of the model whose weights the optimizer changes."""
        return GradientStep(
            self.accelerator,
            trained,
            self.optimizer,
            pad_token_id=self.policy.pad_token_id,
            temperature=self.sampling.temperature,
            reinforce=self.reinforce,
            micro_batch_tokens=self.training.micro_batch_tokens,
            max_grad_norm=self.training.max_grad_norm,
            gradient_checkpointing=self.training.gradient_checkpointing,
        )

    def _new_sampler(self, server: SamplingServer | None) -> BatchSampler:
        """Return the sampler of the batches."""
        return BatchSampler(
            self.policy,
            self.problems,
            self.rewards,
            self.training,
            self.reinforce,
            self.sampling,
            self.accelerator,
            self.gradient_step,
            ProblemOrder(len(self.problems), self.seed),
            self.seed,
            self.reference,
            server,
        )

    def _new_checkpoints(self) -> RunCheckpoints | None:
        """Return the checkpoints of the run, or None if the run is not recorded."""
        if self.run_directory is None:
            return None
        return RunCheckpoints(
            self.run_directory,
            self.policy.model,
            self.optimizer,
            self.schedule,
            self.accelerator,
            self.training,
            self.evaluation,
            self.value_baseline,
            self.reference,
            self.sharded,
        )

    def _run_facts(self) -> RunFacts:
        """Return the facts about the run that `WarningSigns` needs."""
        is_full_precision = next(self.policy.model.parameters()).dtype.itemsize >= 4
        return RunFacts(
            len(self.problems),
            self.reinforce.problems_per_update,
            self.reinforce.episodes_per_problem,
            self.training.num_updates // self.reinforce.updates_per_batch,
            self.training.num_warmup_updates,
            is_full_precision=self.training.mixed_precision == "no" and is_full_precision,
            updates_per_batch=self.reinforce.updates_per_batch,
            has_curriculum=self.reinforce.curriculum is not None,
            has_refill=self.reinforce.refill > 0,
        )

    def train(self, *, resume: bool = False) -> TrainState:
        """Iterate over `updates` to the end, and return the train state after the last update."""
        for _ in self.updates(resume=resume):
            pass
        return self.state

    def updates(self, *, resume: bool = False) -> Iterator[Update]:
        """Train, and yield an `Update` after the optimizer steps of each batch (by default, one step).

        The run ends after `training.num_updates` updates, after the update that reaches `training.num_tokens`
        sampled tokens, after the evaluation that reaches the accuracy `training.stop_at`, or after the update
        during which `stop_requested` is set. If several updates share a batch, all updates of the batch are
        made first. If the caller breaks out of the loop earlier, a checkpoint is saved.

        A second loop continues after the latest update of the first one.

        Args:
            resume: continue from the newest checkpoint in the run's directory.

        Raises:
            InputError: if a reward function fails on every trial episode, or if there is nothing to resume.
            RunStoppedError: if too many episodes of an update could not be scored, if the gradients of too
                many updates in a row were not finite, or if a sampling server failed. A checkpoint is saved,
                except during the warm start.
            ProcessLostError: if another process of the run has ended or does not answer. If possible, one of
                the remaining processes saves a checkpoint of the state after the latest update.
        """
        try:
            yield from self._updates(resume=resume)
        except RuntimeError as error:
            if (why := why_lost(error)) is None:
                raise
            if self._save_after_loss():
                why += f". The state after update {self.state.num_updates} is saved in a checkpoint"
            raise ProcessLostError(why) from error

    def _updates(self, *, resume: bool) -> Iterator[Update]:
        self.try_rewards()
        self._warn(self.warning_signs.before_first_update())
        if self.training.num_tokens is not None:
            self.display.say(f"the run ends after {self.training.num_tokens:,} sampled tokens")
        is_continued = self._restore() if resume else self._has_begun
        self._clock = time.monotonic() - self.state.seconds
        if is_continued:
            self._is_state_current = self._has_begun = True
            is_stopping = self._is_stopped()
            if self.state.pending_evaluations and not is_stopping:
                is_stopping = self._evaluate_and_save(self.state)
        else:
            # STEP 0: θ_0 is the given policy, after a supervised warm start if the settings have one
            self.warm_start()
            if self._is_stopped():  # an unfinished warm start is not saved
                return
            if self.reference is not None:
                self.reference.set_to_policy()
            self._is_state_current = self._has_begun = True
            is_stopping = self._evaluate_and_save()
        if is_over(self.training, self.state):  # the run was resumed after its last update
            self._finish()
        while not (is_over(self.training, self.state) or is_stopping):
            with seeded(self.sampler.random_number("update", self.state)):
                try:
                    update, is_stopping = self._update()
                except SamplingStoppedError:
                    self._save_unless_saved()
                    break
            try:
                yield update
            except GeneratorExit:
                if not sys.is_finalizing():  # saving is impossible while the interpreter shuts down
                    self._save_unless_saved(has_left=True)
                raise
            if self.stop_requested and self.accelerator.num_processes == 1 and not is_stopping:
                # the stop was requested by the caller's loop, or while the checkpoint was saved
                self._save_unless_saved()
                break
        self.accelerator.wait_for_everyone()  # the main process may still be evaluating or writing files

    def _update(self) -> tuple[Update, bool]:
        """Make the updates of one batch.

        Returns:
            the last update of the batch, and True if the run has to stop after this update.
        """
        before, started = self.state, time.perf_counter()
        # STEP 1: sample a fresh batch of episodes from the current policy
        # activations are not kept for the update if gradient checkpointing or FSDP is used
        num_kept = 0 if self.training.gradient_checkpointing else self.training.micro_batch_tokens
        activations = None if self.sharded else Activations(num_kept)
        self.optimizer.zero_grad()  # the gradients of the latest update are not needed while sampling
        with self._saving_if_stopped():
            sample = self.sampler.sample(
                self.state, activations, self.display.working, is_stopped=lambda: self.stop_requested
            )
        own, batch = sample.own, sample.batch  # the episodes of this process, and of all processes
        sampled = time.perf_counter()
        # STEP 2: the return and the baseline of every action
        prediction = self._predict(own, batch)
        estimate = self.estimate_batch(batch, prediction)
        with self._saving_if_stopped():
            self._checks.check_scored(self.state, sample, estimate, self.display.say)
        # STEP 3: one gradient step, or one for each part of the batch
        with self._weights_in_shards():
            outcomes = self._take_steps(own, batch, estimate, activations)
        own_estimate = estimate.part(own_rows(len(batch), self.accelerator), int(own.lengths.max()))
        # fit after the prediction, because the baseline of an episode must not depend on the episode itself
        is_fitted = self._fit_values(prediction, own_estimate)
        self.state = self._next_state(sample, estimate, outcomes, is_fitted=is_fitted)
        if self.reference is not None:
            self.reference.refresh(before.num_updates, self.state.num_updates)
        self._is_state_current = True
        metrics = self._log(sample, estimate, prediction, outcomes, started, sampled)
        with self._saving_if_stopped():
            self._checks.check_finite(before, outcomes, self.display.say)
        self._checks.check_weights(before, outcomes, self.display.say)
        self._checks.check_fitted(self.state, self.display.say, is_fitted=is_fitted)
        is_stopping = self._evaluate_and_save(before)
        if is_over(self.training, self.state):
            self._finish()
        number = self.state.num_updates
        made = self.evaluations.after(number)
        return Update(number, metrics, batch.episodes, self.state, made), is_stopping

    def _take_steps(
        self, own: EpisodeBatch, batch: EpisodeBatch, estimate: Estimate, activations: Activations | None
    ) -> list[UpdateOutcome]:
        """Take the optimizer steps of all updates of a batch, and return their outcomes.

        Args:
            own: episodes of this process.
            batch: episodes of all processes.
            estimate: advantages of the episodes of all processes.
            activations: activations kept when the episodes were sampled. They match the weights before the
                first step, so only the first update uses them. None: no activations were kept.
        """
        num_updates, outcomes = self.reinforce.updates_per_batch, []
        step = self.gradient_step
        if self.reinforce.entropy_target is not None:
            changed = {"entropy_coefficient": self._entropy_coefficient}
            step = replace(step, reinforce=self.reinforce.model_copy(update=changed))
        for number in range(num_updates):
            part, of_update = own, estimate
            if num_updates > 1:
                rows = batch.rows_of_update(number, num_updates)
                part = own.part(own.rows_of_update(number, num_updates))
                of_update = estimate.of_update(rows, self.reinforce)
            outcomes.append(
                step(
                    part,
                    of_update.part(own_rows(len(of_update.mask), self.accelerator), int(part.lengths.max())),
                    None if number else activations,
                    partial(self._show_gradient, number),
                    recomputes=self.state.num_updates // num_updates % RECOMPUTE_EVERY == 0,
                )
            )
            self._is_state_current = False
            self.schedule.step()
        return outcomes

    def _weights_in_shards(self) -> AbstractContextManager[None]:
        """Return the context in which gradient steps are made.

        With FSDP, the unsharded policy has no weights within this context, to save memory. Only its sharded
        copy has weights.
        """
        return nullcontext() if self.sharded is None else self.sharded.training()

    def fix_date(self, date: str | None = None) -> str | None:
        """Set and return the date that the chat template prints. Return None if the template prints no date.

        Args:
            date: the date, such as "2026-11-29". None: use the date of the policy in the main process.
        """
        own = self.policy.chat_template_date
        if own is None:
            return None
        day = datetime.date.fromisoformat(date) if date else own
        # processes may have started before and after midnight
        first: datetime.date = gather_object(day, self.accelerator)[0]
        self.policy = replace(self.policy, chat_template_date=first)
        self.sampler = replace(self.sampler, policy=self.policy)
        return first.isoformat()

    def _is_stopped(self) -> bool:
        """Return True if a stop was requested in any process. All processes get the same result."""
        return any(gather_object(self.stop_requested, self.accelerator))

    @property
    def _entropy_coefficient(self) -> float:
        """Weight of the entropy bonus in the next update."""
        adapted = self.state.entropy_coefficient
        return self.reinforce.entropy_coefficient if adapted is None else adapted

    def _predict(self, own: EpisodeBatch, batch: EpisodeBatch) -> Prediction | None:
        """Return the predictions of the value head for a batch, or None if there is no value head.

        The result contains the values V(s_t) for the episodes of all processes, but the features only for the
        episodes of this process.

        Args:
            own: episodes of this process.
            batch: episodes of all processes.
        """
        if self.value_baseline is None:
            return None
        prediction = self.value_baseline.predict(own)
        values = gather_rows(prediction.values, int(batch.lengths.max()), self.accelerator)
        return replace(prediction, values=values)

    def _show_gradient(self, num_updates: int, num_done: int, total: int) -> None:
        number = self.state.num_updates + num_updates + 1
        self.display.working(f"update {number:,}: gradient of micro-batch {num_done + 1:,} of {total:,}")

    def estimate_batch(self, batch: EpisodeBatch, prediction: Prediction | None) -> Estimate:
        """Return an `Estimate` with the returns, baselines and advantages of a batch.

        Args:
            batch: episodes of all processes.
            prediction: values predicted by the value head; None if the run has no value head.
        """
        values = prediction.values if prediction else None
        return estimate_advantages(batch, self.reinforce, self.state.moving_average, values=values)

    def _fit_values(self, prediction: Prediction | None, estimate: Estimate) -> bool:
        """Fit the value head, if there is one. Return False if any step of the fit was skipped."""
        if self.value_baseline is None or prediction is None:
            return True
        return self.value_baseline.fit(prediction, estimate)

    def try_rewards(self) -> None:
        """Call all reward functions on a few trial episodes, to find errors before the run starts.

        After a successful call, further calls do nothing.

        Raises:
            InputError: if a function fails on all trial episodes.
        """
        if self._has_tried_rewards:
            return
        try_rewards(self.sampler, self.state, self.display.say)
        self._has_tried_rewards = True

    def _warn(self, finding: Finding | None) -> None:
        if finding is not None:
            self.display.say(f"warning: {finding.text}")

    def _next_state(
        self, sample: Sample, estimate: Estimate, outcomes: Sequence[UpdateOutcome], *, is_fitted: bool
    ) -> TrainState:
        state = self.state
        num_in_a_row = state.num_not_finite_in_a_row
        for outcome in outcomes:
            num_in_a_row = num_in_a_row + 1 if outcome.is_not_finite else 0
        average = state.moving_average
        # the mean of huge returns may overflow, and an infinite moving average would stay infinite
        if estimate.mean_return is not None and math.isfinite(estimate.mean_return):
            average = average.updated(estimate.mean_return, self.reinforce.moving_average_decay)
        return replace(
            state,
            num_updates=state.num_updates + len(outcomes),
            num_problems=state.num_problems + sample.num_problems,
            num_tokens=state.num_tokens + sample.num_tokens,
            num_skipped_updates=state.num_skipped_updates
            + sum(outcome.skipped is not None for outcome in outcomes),
            num_skipped_fits=state.num_skipped_fits + (not is_fitted),
            num_not_finite_in_a_row=num_in_a_row,
            moving_average=average,
            pass_counts=sample.pass_counts,
            entropy_coefficient=self._next_entropy_coefficient(sample.batch),
            seconds=time.monotonic() - self._clock,
        )

    def _next_entropy_coefficient(self, batch: EpisodeBatch) -> float | None:
        """Return the weight of the entropy bonus after a batch; None if no target entropy is set."""
        target = self.reinforce.entropy_target
        if target is None:
            return None
        difference = target.value - mean_entropy(batch)
        coefficient = self._entropy_coefficient + target.rate * (
            difference if math.isfinite(difference) else 0
        )
        return min(max(coefficient, 0.0), target.max_coefficient)

    def _log(
        self,
        sample: Sample,
        estimate: Estimate,
        prediction: Prediction | None,
        outcomes: Sequence[UpdateOutcome],
        started: float,
        sampled: float,
    ) -> dict[str, Any]:
        """Compute the metrics of the latest batch, show and record them, and return them by name."""
        now, batch = time.perf_counter(), sample.batch
        metrics: dict[str, Any] = {
            "update": self.state.num_updates,
            **update_metrics(batch, estimate, prediction.values if prediction else None),
            **step_metrics(outcomes, self.reinforce),
            **run_metrics(self.state, sample, self.reinforce),
            "wall_time": time.time(),
            "step_time": now - started,
            "step_time/collect": sampled - started,
            "step_time/update": now - sampled,
        }
        # a metric logged by a reward function must not replace one of the metrics above
        metrics |= {name: value for name, value in batch.logged.items() if name not in metrics}
        if not self.accelerator.is_main_process:
            return metrics
        expected = self.training.expected_updates(self.state.num_updates, self.state.num_tokens)
        total = self.reinforce.in_whole_batches(expected)
        self.display.update(self.state.num_updates, total, metrics, batch.episodes)
        self._warn(self.warning_signs.add(metrics))
        if self.run_directory is not None:
            self.run_directory.append("metrics.jsonl", metrics)
            lines = []
            for row in range(min(self.training.logged_episodes, len(batch))):
                episode = batch.episodes[row]
                texts = self.policy.token_texts(episode.completion.token_ids)
                line = describe_episode(episode, estimate.returns[row], estimate.advantages[row], texts)
                self.run_directory.append("episodes.jsonl", {"update": self.state.num_updates, **line})
                lines.append(line)
            self.trackers.update(metrics, lines)
        return metrics

    def _evaluate_and_save(self, before: TrainState | None = None) -> bool:
        """Evaluate the policy if an evaluation is due or was interrupted. Save a checkpoint if one is due.

        Args:
            before: train state before the latest update. None: no update has been made yet.

        Returns:
            True if the run has to stop now.
        """
        is_last = makes_no_more_updates(self.training, self.state)
        was_pending = bool(self.state.pending_evaluations)
        is_due = before is None or is_last or is_evaluation_due(self.evaluation, before, self.state)
        if not was_pending and is_due and have_answers(self.held_out or self.problems):
            self.state = replace(self.state, pending_evaluations=tuple(self.evaluation.decodings))
        self.state = self.evaluations.make_pending(
            self.policy,
            self.state,
            self.display,
            self.trackers,
            is_stopped=lambda: self.stop_requested,
            is_first_or_last=before is None or self.state.num_updates == 0 or is_last,
        )
        # the evaluation may have reached the target accuracy
        is_last = makes_no_more_updates(self.training, self.state)
        self.state = replace(self.state, seconds=time.monotonic() - self._clock)
        is_stopping = self._is_stopped()
        is_due = self.checkpoints is not None and self.checkpoints.is_due(self.state, before)
        if is_due or is_last or is_stopping or was_pending:
            self.save_checkpoint()
        return is_stopping

    def save_checkpoint(self) -> None:
        """Save a checkpoint of the state after the latest update, if the run is recorded.

        Raises:
            InputError: if the warm start or an update was interrupted.
        """
        if not self._is_state_current:
            raise InputError(
                "save_checkpoint: the warm start or an update was interrupted, so the weights do not belong "
                "to any state of the run; create a new ReinforceTrainer"
            )
        self._num_saved = self.state.num_updates
        if self.checkpoints is not None:
            self.checkpoints.save(self.state)

    def _save_unless_saved(self, *, has_left: bool = False) -> None:
        """Save a checkpoint, unless there already is a checkpoint of the state after the latest update.

        Args:
            has_left: the caller has left the loop over the updates, perhaps in this process only. With FSDP,
                no process can save a checkpoint alone. The other processes are therefore told to leave the
                loop, too, when they next exchange data.
        """
        if self._num_saved != self.state.num_updates:
            if has_left and self.sharded is not None:
                gather_object("another process has left the loop over the updates", self.accelerator)
            self.save_checkpoint()

    def _save_after_loss(self) -> bool:
        """Save a checkpoint after another process was lost. Return False if no checkpoint can be saved."""
        if self.checkpoints is None or not self._is_state_current:
            return False
        state = self.state
        if not self.accelerator.is_main_process:
            # the main process may have ended before it recorded the latest evaluations
            again = {*state.pending_evaluations, *self.evaluations.after(state.num_updates)}
            pending = tuple(each for each in self.evaluation.decodings if each in again)
            state = replace(state, pending_evaluations=pending)
        try:
            return self.checkpoints.save_without_others(state)
        except (OSError, RuntimeError):  # the caller reports only that a process was lost
            return False

    @contextmanager
    def _saving_if_stopped(self) -> Iterator[None]:
        """Save a checkpoint before a `RunStoppedError` is raised."""
        try:
            yield
        except RunStoppedError:
            self.save_checkpoint()
            raise

    def _finish(self) -> None:
        """Save the policy, and compare the first and the last evaluation of the run."""
        self.save_policy()
        if self.accelerator.is_main_process and self.run_directory is not None:
            compare_first_and_last(self.run_directory, self.sampling.max_new_tokens)

    def save_policy(self) -> None:
        """Save the current policy to `policy/` in the run's directory, if the run is recorded."""
        if self.accelerator.is_main_process and self.run_directory is not None:
            with whole_directory(self.run_directory.policy) as directory:
                self.policy.save(directory)

    def warm_start(self) -> None:
        """Make the supervised updates of the warm start, if the settings have `training.warm_start`."""
        if self.training.warm_start is None:
            return
        with self._weights_in_shards():
            num_skipped = warm_start(
                self.policy,
                self.gradient_step.model,
                self.demonstrations or self.problems,
                self.training.warm_start,
                self.training,
                accelerator=self.accelerator,
                display=self.display,
                seed=self.seed,
                is_stopped=self._is_stopped,
            )
        self.state = replace(self.state, num_skipped_updates=num_skipped)
        self.sampler.policy_has_changed()

    def _restore(self) -> bool:
        """Restore the state of the newest complete checkpoint. Return False if there is no checkpoint."""
        if self.run_directory is None or self.checkpoints is None:
            raise InputError("nothing to resume: this run has no output_dir; start it without resume=True")
        state = self.checkpoints.restore(self.display.say)
        if state is not None:
            self.state = state
            self.sampler.policy_has_changed()
        if self.accelerator.is_main_process:
            updates, evaluations = map(self.run_directory.rows, ("metrics.jsonl", "evaluations.jsonl"))
            self.display.restored(updates, evaluations)
        return state is not None
