"""The training loop of REINFORCE. Read `TrainingLoop.updates`, then `TrainingLoop._update`.

STEP 0-3 in the comments are the steps of the article "The Beauty of Reinforcement Learning (1) - Intro of
Policy Based Methods".
"""

import datetime
import gc
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from llm_reinforce.checkpoint_files import find_checkpoint
from llm_reinforce.config import (
    LEARNING_RATE,
    NUM_TRAINING_PROBLEMS_EVALUATED,
    EvaluationConfig,
    ReinforceConfig,
    SamplingConfig,
    TrainingConfig,
)
from llm_reinforce.console.run_display import Display, Silent
from llm_reinforce.console.text import visible
from llm_reinforce.durable_files import whole_directory
from llm_reinforce.episodes import Episode, EpisodeBatch, Estimate, collect_episodes, estimate_advantages
from llm_reinforce.errors import InputError, RunStoppedError
from llm_reinforce.evaluation import Decoding, Evaluation, measure_accuracy
from llm_reinforce.policy import Activations, LanguagePolicy, OnStep, random_numbers
from llm_reinforce.problems import Problem, have_answers
from llm_reinforce.reports import Finding, RunFacts, WarningSigns
from llm_reinforce.rewards import Progress, WeightedReward, correct_answer
from llm_reinforce.runs import TrainState
from llm_reinforce.runs.checkpoint import load_checkpoint, remove_old_checkpoints, save_checkpoint
from llm_reinforce.runs.run_comparison import compare_first_and_last
from llm_reinforce.runs.run_directory import RunDirectory
from llm_reinforce.seeds import seed_of
from llm_reinforce.training.budget import (
    expected_updates,
    is_evaluation_due,
    is_over,
    makes_no_more_updates,
)
from llm_reinforce.training.data_parallel import (
    broadcast_weights,
    gather_episodes,
    gather_object,
    gather_rows,
    new_accelerator,
    share_evaluation,
)
from llm_reinforce.training.gradient_step import GradientStep, UpdateOutcome
from llm_reinforce.training.host_process import fewer_collections, seeded
from llm_reinforce.training.learning_rates import learning_rate_schedule, set_learning_rates
from llm_reinforce.training.metrics import describe_episode, mean_entropy, step_metrics, update_metrics
from llm_reinforce.training.problem_order import (
    PassCounts,
    ProblemOrder,
    draw_by_pass_rate,
    pass_rate,
    with_episodes,
)
from llm_reinforce.training.reference import ReferencePolicy
from llm_reinforce.training.refill import Refills, groups_with_one_accuracy, with_replacements
from llm_reinforce.training.trackers import Trackers
from llm_reinforce.training.value_baseline import Prediction, ValueBaseline
from llm_reinforce.training.warm_start import warm_start

NUM_ANSWERS = 20  # number of problems whose answers are recorded at an evaluation within the run
RECOMPUTE_EVERY = 25  # number of updates between two measurements of `sampling_logp_difference`
NUM_TRIED, MAX_TRIED_TOKENS = 4, 32  # number of trial episodes, and their maximum number of tokens


@dataclass(frozen=True, slots=True)
class Update:
    """One update of the policy, after its gradient step.

    With `reinforce.updates_per_batch` above 1, this is the last update of a batch, and the metrics describe
    all updates of the batch.

    Attributes:
        number: number of the update in the run, from 1.
        metrics: metrics of the update by name, as in `metrics.jsonl`: `reward`, `reward_std`, `accuracy`,
            `rewards/NAME/mean`, `entropy`, `completions/mean_length`, `loss`, `grad_norm`, `learning_rate`,
            `num_tokens`, `step_time` and others. `reward` is missing if no episode was scored.
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


class Sample(NamedTuple):
    """The episodes of a batch, and counts of the problems and tokens that were sampled for it.

    Attributes:
        own: episodes of this process.
        batch: episodes of all processes.
        num_problems: number of problems drawn, including those that were replaced.
        num_tokens: number of tokens sampled, including those of problems that were replaced.
        pass_counts: counts of the curriculum after these episodes.
        refills: counts of the replacements.
    """

    own: EpisodeBatch
    batch: EpisodeBatch
    num_problems: int
    num_tokens: int
    pass_counts: PassCounts
    refills: Refills


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
        demonstrations: problems on whose solutions a warm start trains. If empty, it trains on `problems`.
        run_directory: directory in which the run is recorded. None: the run is not recorded.
        display: display of the progress. Default: nothing is shown.
        seed: seed of all random generators of the run.

    Raises:
        InputError: if there are no training problems, if `problems_per_update` is not a multiple of the
            number of processes, or if accelerate or the policy does not support the settings.
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
    ) -> None:
        if not problems:
            raise InputError("there are no training problems; give at least one")
        _check_answers(reinforce or ReinforceConfig(), training, problems, held_out)
        self.policy, self.problems, self.rewards, self.held_out = policy, problems, rewards, held_out
        self.reinforce = reinforce or ReinforceConfig()
        num_updates = self.reinforce.in_whole_batches(training.num_updates)
        self.training = training = training.model_copy(update={"num_updates": num_updates})
        self.sampling = sampling or SamplingConfig()
        self.evaluation = evaluation or EvaluationConfig()
        self.demonstrations = demonstrations
        self.run_directory, self.display, self.seed = run_directory, display or Silent(), seed
        self.accelerator = new_accelerator(training.mixed_precision)
        num_shares = self.accelerator.num_processes * self.reinforce.updates_per_batch
        if self.reinforce.problems_per_update % num_shares:
            in_each = "" if self.reinforce.updates_per_batch == 1 else " times reinforce.updates_per_batch"
            raise InputError(
                f"reinforce.problems_per_update ({self.reinforce.problems_per_update}) must be a multiple of "
                f"the number of processes{in_each} ({num_shares})"
            )
        policy.model.to(self.accelerator.device)
        broadcast_weights(policy.model, self.accelerator)
        optimizer = torch.optim.AdamW(
            [parameter for parameter in policy.model.parameters() if parameter.requires_grad],
            lr=LEARNING_RATE if training.learning_rate is None else training.learning_rate,
            betas=training.betas,
            weight_decay=training.weight_decay,
            fused=self.accelerator.device.type in ("cpu", "cuda"),
        )
        self.optimizer = self.accelerator.prepare(optimizer)
        self.schedule = learning_rate_schedule(
            training.schedule,
            optimizer,
            training.num_warmup_updates,
            training.num_updates,
        )
        self.gradient_step = GradientStep(
            self.accelerator,
            policy.model,
            self.optimizer,
            pad_token_id=policy.pad_token_id,
            temperature=self.sampling.temperature,
            reinforce=self.reinforce,
            micro_batch_tokens=training.micro_batch_tokens,
            max_grad_norm=training.max_grad_norm,
        )
        self.value_baseline: ValueBaseline | None = None
        if self.reinforce.baseline == "value":
            self.value_baseline = ValueBaseline(policy, self.reinforce.value, self.accelerator, seed=seed)
        self.reference: ReferencePolicy | None = None
        if self.reinforce.kl is not None:
            self.reference = ReferencePolicy(
                policy, self.reinforce.kl, self.accelerator, self.sampling.temperature
            )
        self.state = TrainState()
        self.warning_signs = WarningSigns(
            RunFacts(
                len(problems),
                self.reinforce.problems_per_update,
                self.reinforce.episodes_per_problem,
                training.num_updates // self.reinforce.updates_per_batch,
                training.num_warmup_updates,
                is_full_precision=training.mixed_precision == "no"
                and next(policy.model.parameters()).dtype.itemsize >= 4,
                updates_per_batch=self.reinforce.updates_per_batch,
            )
        )
        self.trackers = Trackers()  # replaced while a run is recorded
        self.stop_requested = False
        # the first and the latest evaluation made by this object, by decoding and number of updates
        self.evaluations: dict[str, dict[int, Evaluation]] = {}
        self._order = ProblemOrder(len(problems), seed)
        self._clock = time.monotonic()  # the time at which a run without interruptions would have started
        self._num_saved: int | None = None  # number of updates before this object's latest checkpoint
        self._has_reported_failure = False
        self._has_tried_rewards = False

    def train(self, *, resume: bool = False) -> TrainState:
        """Make all updates, as `updates` does, and return the train state after the last update."""
        for _ in self.updates(resume=resume):
            pass
        return self.state

    def updates(self, *, resume: bool = False) -> Iterator[Update]:
        """Train, and yield an `Update` after each optimizer step, or after the optimizer steps of each batch.

        The run ends after `training.num_updates` updates, after the update that reaches `training.num_tokens`
        sampled tokens, or after the update during which `stop_requested` is set. If a batch is shared by
        several updates, the run ends after the last of them. If the caller breaks out of the loop earlier, a
        checkpoint is saved.

        Args:
            resume: continue from the newest checkpoint in the run's directory.

        Raises:
            InputError: if a reward function fails on every trial episode, or if there is nothing to resume.
            RunStoppedError: if too many episodes of an update could not be scored, or if the gradients of too
                many updates in a row were not finite. A checkpoint is saved, except during the warm start.
        """
        self.try_rewards()
        self._warn(self.warning_signs.before_first_update())
        if self.training.num_tokens is not None:
            self.display.say(f"the run ends after {self.training.num_tokens:,} sampled tokens")
        is_restored = resume and self._restore()
        self._clock = time.monotonic() - self.state.seconds
        if is_restored:
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
            is_stopping = self._evaluate_and_save()
        gc.collect()  # later collections skip the objects that exist now; see `fewer_collections`
        if is_over(self.training, self.state):  # the run was resumed after its last update
            self._finish()
        while not (is_over(self.training, self.state) or is_stopping):
            with fewer_collections(), seeded(self._random_number("update")):
                update, is_stopping = self._update()
            try:
                yield update
            except GeneratorExit:
                # saving is impossible while the interpreter shuts down; an earlier checkpoint remains
                if self._num_saved != self.state.num_updates and not sys.is_finalizing():
                    self.save_checkpoint()
                raise
            if self.stop_requested and self.accelerator.num_processes == 1 and not is_stopping:
                # the stop was requested by the caller's loop, or while the checkpoint was saved
                if self._num_saved != self.state.num_updates:
                    self.save_checkpoint()
                break
        self.accelerator.wait_for_everyone()  # the main process may still be evaluating or writing files

    def _update(self) -> tuple[Update, bool]:
        """Make the updates of one batch. Return the last of them, and True if the run stops after it."""
        before, started = self.state, time.perf_counter()
        # STEP 1: sample a fresh batch of episodes from the current policy
        activations = Activations(self.training.micro_batch_tokens)
        sample = self._sample(activations)
        own, batch = sample.own, sample.batch  # the episodes of this process, and of all processes
        sampled = time.perf_counter()
        # STEP 2: the return and the baseline of every action
        prediction = self._predict(own, batch)
        estimate = self.estimate_batch(batch, prediction)
        self._check_scored(batch, estimate)
        # STEP 3: one gradient step, or one for each part of the batch
        outcomes = self._take_steps(own, batch, estimate, activations)
        own_estimate = estimate.part(self._own_rows(len(batch)), int(own.lengths.max()))
        # fit after the prediction, because the baseline of an episode must not depend on the episode itself
        is_fitted = self._fit_values(prediction, own_estimate)
        self.state = self._next_state(sample, estimate, outcomes, is_fitted=is_fitted)
        if self.reference is not None:
            self.reference.refresh(before.num_updates, self.state.num_updates)
        metrics = self._log(sample, estimate, prediction, outcomes, started, sampled)
        self._check_finite(before, outcomes)
        self._check_fitted(is_fitted)
        is_stopping = self._evaluate_and_save(before)
        if is_over(self.training, self.state):
            self._finish()
        number = self.state.num_updates
        evaluations = {name: made[number] for name, made in self.evaluations.items() if number in made}
        return Update(self.state.num_updates, metrics, batch.episodes, self.state, evaluations), is_stopping

    def _take_steps(
        self, own: EpisodeBatch, batch: EpisodeBatch, estimate: Estimate, activations: Activations
    ) -> list[UpdateOutcome]:
        """Take the optimizer step of each update of the batch, and return the outcomes.

        Args:
            own: episodes of this process.
            batch: episodes of all processes.
            estimate: advantages of the episodes of all processes.
            activations: activations kept when the episodes were sampled. They match the weights before the
                first step, so only the first update uses them.
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
                    of_update.part(self._own_rows(len(of_update.mask)), int(part.lengths.max())),
                    None if number else activations,
                    partial(self._show_gradient, number),
                    recomputes=self.state.num_updates // num_updates % RECOMPUTE_EVERY == 0,
                )
            )
            self.schedule.step()
        return outcomes

    def fix_date(self, date: str | None = None) -> str | None:
        """Set and return the date that the chat template prints, or None if the template prints no date.

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
        return first.isoformat()

    def _is_stopped(self) -> bool:
        """Return True if a stop was requested in any process. All processes get the same result."""
        return any(gather_object(self.stop_requested, self.accelerator))

    def _sample(self, activations: Activations) -> Sample:
        """Sample the episodes of a batch, with replacements for problems that have one accuracy."""
        size, settings = self.reinforce.problems_per_update, self.reinforce
        drawn = self._draw_problems(size)
        own, batch = self._collect_from_all(drawn, activations)
        counts = self._count_passes(self.state.pass_counts, drawn, batch)
        refills = Refills()
        num_tokens = batch.num_tokens
        for number in range(1, settings.refill + 1):
            num_missing = len(groups_with_one_accuracy(batch))
            if not num_missing:
                break
            more = self._draw_problems(num_missing, drawn)
            _, found = self._collect_from_all(more, refill=number)
            counts = self._count_passes(counts, more, found)
            refills, drawn = refills.after(found, len(more)), [*drawn, *more]
            num_tokens += found.num_tokens
            batch = with_replacements(batch, found)
        if refills.num_batches:
            rows = torch.arange(len(batch))[self._own_rows(len(batch))]
            own = batch.part(rows)
        return Sample(own, batch, len(drawn), num_tokens, counts, refills)

    def _collect_from_all(
        self, drawn: Sequence[int], activations: Activations | None = None, *, refill: int = 0
    ) -> tuple[EpisodeBatch, EpisodeBatch]:
        """Sample episodes of the problems with these indices.

        Returns:
            the episodes of this process, and those of all processes.
        """
        problems = [self.problems[index] for index in drawn]
        on_step = partial(self._show_sampling, len(problems))
        # the last processes may have a smaller share of a refill, or none
        size = -(-len(problems) // self.accelerator.num_processes)
        first = self.accelerator.process_index * size
        own = EpisodeBatch.of(())
        if share := problems[first : first + size]:
            own = self.collect(share, activations, on_step=on_step, first_group=first, refill=refill)
            if self.reference is not None:
                micro_batches = self.gradient_step.micro_batches(own, range(len(own)))
                own = self.reference.with_log_probs(own, micro_batches)
        return own, gather_episodes(own, problems, self.accelerator)

    def _draw_problems(self, size: int, drawn: Sequence[int] = ()) -> list[int]:
        """Return the indices of the next problems: in the order of `ProblemOrder`, or by their pass rates.

        Args:
            size: number of problems.
            drawn: problems that have been drawn for the same batch.
        """
        if self.reinforce.curriculum is None:
            first = self.state.num_problems + len(drawn)
            return [self._order.index(position) for position in range(first, first + size)]
        seed = self._random_number(f"curriculum {len(drawn)}", process=0)
        counts, num_problems = self.state.pass_counts, len(self.problems)
        return draw_by_pass_rate(self.reinforce.curriculum, counts, num_problems, size, seed, drawn)

    def _count_passes(self, counts: PassCounts, drawn: Sequence[int], batch: EpisodeBatch) -> PassCounts:
        """Return the counts of the curriculum after the episodes of a batch."""
        curriculum = self.reinforce.curriculum
        return counts if curriculum is None else with_episodes(counts, drawn, batch, curriculum.decay)

    @property
    def _entropy_coefficient(self) -> float:
        """Weight of the entropy bonus in the next update."""
        adapted = self.state.entropy_coefficient
        return self.reinforce.entropy_coefficient if adapted is None else adapted

    def _share(self, problems: Sequence[Problem]) -> Sequence[Problem]:
        """Select the problems of this process from the problems of all processes."""
        return problems[self._own_rows(len(problems))]

    def _own_rows(self, num_rows: int) -> slice:
        """Return the rows of this process among `num_rows` rows of all processes."""
        num_own = num_rows // self.accelerator.num_processes
        first = self.accelerator.process_index * num_own
        return slice(first, first + num_own)

    def _process_of(self, episode: Episode) -> str:
        """Return "process N: " for an episode if several processes train together, and otherwise ""."""
        num_processes = self.accelerator.num_processes
        process = episode.group * num_processes // self.reinforce.problems_per_update
        return f"process {process}: " if num_processes > 1 else ""

    def _predict(self, own: EpisodeBatch, batch: EpisodeBatch) -> Prediction | None:
        """Return the values for all processes' episodes, and the features for this process's episodes.

        The result is None if there is no value head.
        """
        if self.value_baseline is None:
            return None
        prediction = self.value_baseline.predict(own)
        values = gather_rows(prediction.values, int(batch.lengths.max()), self.accelerator)
        return replace(prediction, values=values)

    def collect(
        self,
        problems: Sequence[Problem],
        activations: Activations | None = None,
        *,
        is_trial: bool = False,
        on_step: OnStep | None = None,
        first_group: int | None = None,
        refill: int = 0,
    ) -> EpisodeBatch:
        """Sample episodes from the current policy, for the problems that this process has to sample.

        If `is_trial` is True, one short episode of each problem is sampled. For `on_step`, see
        `collect_episodes`. `first_group` is the number of the first problem among those of all processes; by
        default, the processes have equal shares. `refill` is the number of the refill for which the problems
        were drawn; 0: none.
        """
        max_new_tokens = self.sampling.max_new_tokens
        if is_trial:
            max_new_tokens = min(max_new_tokens, MAX_TRIED_TOKENS)
        num_episodes = 1 if is_trial else self.reinforce.episodes_per_problem
        if first_group is None:
            first_group = self.accelerator.process_index * len(problems)
        generator = self._generator("trial" if is_trial else f"refill {refill}" if refill else "episodes")
        # all processes share one sequence of random numbers, so the episodes do not depend on their number
        for _ in range(first_group):
            random_numbers(num_episodes, max_new_tokens, generator)
        with self.accelerator.autocast():
            return collect_episodes(
                self.policy,
                problems,
                self.rewards,
                episodes_per_problem=num_episodes,
                max_new_tokens=max_new_tokens,
                temperature=self.sampling.temperature,
                generator=generator,
                batch_size=self.sampling.batch_size,
                first_group=first_group,
                progress=Progress(
                    self.state.num_updates,
                    self.reinforce.in_whole_batches(expected_updates(self.training, self.state)),
                    self.state.num_problems / len(self.problems),
                    self._random_number("update"),
                ),
                with_greedy=self.reinforce.baseline == "greedy" and not is_trial,
                activations=activations,
                on_step=on_step,
                length_penalty=None if is_trial else self.reinforce.length_penalty,
            )

    def _show_sampling(self, num_problems: int, num_completions: int, num_tokens: int) -> None:
        number = self.state.num_updates + 1
        total = num_problems * self.reinforce.episodes_per_problem // self.accelerator.num_processes
        self.display.working(
            f"update {number:,}: {num_completions:,} of {total:,} episodes sampled, {num_tokens:,} tokens"
        )

    def _show_gradient(self, num_updates: int, num_done: int, total: int) -> None:
        number = self.state.num_updates + num_updates + 1
        self.display.working(f"update {number:,}: gradient of micro-batch {num_done + 1:,} of {total:,}")

    def estimate_batch(self, batch: EpisodeBatch, prediction: Prediction | None) -> Estimate:
        """Return the returns, baselines and advantages of a batch.

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

        If an earlier call of this method succeeded, nothing is done.

        Raises:
            InputError: if a function fails on all trial episodes.
        """
        if self._has_tried_rewards:
            return
        tried, num_processes = self.problems[:NUM_TRIED], self.accelerator.num_processes
        own = self.collect(tried, is_trial=True)
        batch = gather_episodes(own, [*tried] * num_processes, self.accelerator)
        for process in range(num_processes):  # all processes stop together
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
        if self.reinforce.standardize_rewards:
            batch.standardized_rewards()  # rejects step rewards
        if not batch.scored.any():
            self.display.say("every reward function returned None on all trial episodes")
        self._has_tried_rewards = True

    def _generator(self, purpose: str) -> torch.Generator:
        """Return a generator with the same seed in all processes."""
        return torch.Generator(self.policy.device).manual_seed(self._random_number(purpose, process=0))

    def _random_number(self, purpose: str, process: int | None = None) -> int:
        """Return a seed that depends only on the run's seed, the update, the purpose and the process.

        A resumed run therefore draws the same random numbers as an uninterrupted one.

        Args:
            purpose: name of what the random numbers are used for.
            process: index of the process. None: the index of this process.
        """
        index = self.accelerator.process_index if process is None else process
        return seed_of(purpose, self.seed, self.state.num_updates, index)

    def _check_scored(self, batch: EpisodeBatch, estimate: Estimate) -> None:
        """Report the first failure of a reward, and stop the run if too many episodes are unscored.

        Raises:
            InputError: if no episode of the run's first update could be scored.
            RunStoppedError: if the fraction of unscored episodes is above `training.max_unscored_share`. A
                checkpoint is saved first.
        """
        failed = [episode for episode in (*batch.episodes, *batch.greedy) if episode.failures]
        why = "every reward function returned None"
        if failed:
            why = self._process_of(failed[0]) + visible(failed[0].failure or "", 400)
        if failed and not self._has_reported_failure:
            self._has_reported_failure = True
            self.display.say(f"an episode could not be scored and is left out: {why}")
            for line in _lines(failed[0].traceback):
                self.display.say(line)
        if self.state.num_updates == 0 and not batch.scored.any():
            raise InputError(f"no episode of the first update could be scored: {why}")
        if self.state.num_updates == 0 and estimate.mean_return is None:
            raise InputError(
                "reinforce.truncated: all scored episodes of the first update are truncated, so mask leaves "
                "none to learn from; increase sampling.max_new_tokens, or use truncated: count"
            )
        share = 1.0 - float(batch.scored.float().mean())
        if share > self.training.max_unscored_share:
            self.save_checkpoint()
            raise RunStoppedError(
                f"{share:.0%} of the episodes of update {self.state.num_updates + 1} could not be scored "
                f"({why}), but training.max_unscored_share is {self.training.max_unscored_share:.0%}; the "
                "state before this update is saved in a checkpoint. Fix the reward function, then resume the "
                "run",
                can_resume=True,
            )

    def _check_finite(self, before: TrainState, outcomes: Sequence[UpdateOutcome]) -> None:
        """Report an update whose gradient is not finite, and stop the run after too many such updates.

        If the gradients of several updates in a row are not finite, only the first of these updates is
        reported.

        Raises:
            RunStoppedError: if the gradients of `training.max_not_finite` updates in a row were not finite. A
                checkpoint is saved first.
        """
        in_a_row, limit = self.state.num_not_finite_in_a_row, self.training.max_not_finite
        not_finite = [number for number, each in enumerate(outcomes) if each.is_not_finite]
        if not_finite and (not_finite[0] > 0 or before.num_not_finite_in_a_row == 0):
            first, number = outcomes[not_finite[0]], before.num_updates + not_finite[0] + 1
            self.display.say(
                f"update {number} is skipped: its gradient is not finite (norm {first.grad_norm:.3g}, loss "
                f"{first.loss:.3g}); the weights are unchanged"
            )
        if in_a_row >= limit:
            self.save_checkpoint()
            raise RunStoppedError(
                f"the gradients of the last {in_a_row} updates were not finite; the weights before these "
                "updates are saved in a checkpoint. Start a new run with a lower training.learning_rate, or "
                "with a higher-precision dtype or mixed_precision"
            )

    def _warn(self, finding: Finding | None) -> None:
        if finding is not None:
            self.display.say(f"warning: {finding.text}")

    def _check_fitted(self, is_fitted: bool) -> None:
        """Report the first update in which value-head steps were skipped.

        The metric `value/num_skipped_fits` counts all such updates.
        """
        if not is_fitted and self.state.num_skipped_fits == 1:
            self.display.say(
                f"value-head steps of update {self.state.num_updates} were skipped, because the loss or the "
                "gradient of the value head was not finite. This happens if returns are huge. The metric "
                "value/num_skipped_fits counts such updates"
            )

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
        """Return the weight of the entropy bonus after a batch; None if there is no target of the entropy."""
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
        """Compute the metrics of the update, show and record them, and return them by name."""
        now, batch = time.perf_counter(), sample.batch
        metrics: dict[str, Any] = {
            "update": self.state.num_updates,
            **update_metrics(batch, estimate, prediction.values if prediction else None),
            **step_metrics(outcomes, self.reinforce),
            "num_tokens": self.state.num_tokens,
            "num_skipped_updates": self.state.num_skipped_updates,
            "wall_time": time.time(),
            "step_time": now - started,
            "step_time/collect": sampled - started,
            "step_time/update": now - sampled,
        }
        if self.value_baseline:
            metrics["value/num_skipped_fits"] = self.state.num_skipped_fits
        if self.state.entropy_coefficient is not None:
            metrics["entropy_coefficient"] = self.state.entropy_coefficient
        if self.reinforce.refill:
            metrics |= sample.refills.metrics(batch, self.reinforce.problems_per_update)
        if self.reinforce.curriculum:
            rates = [pass_rate(sample.pass_counts, index) for index in sample.pass_counts]
            metrics |= {
                "curriculum/num_problems": len(rates),
                "curriculum/pass_rate": math.fsum(rates) / len(rates),
            }
        # a metric logged by a reward function must not replace one of the metrics above
        metrics |= {name: value for name, value in batch.logged.items() if name not in metrics}
        if not self.accelerator.is_main_process:
            return metrics
        total = self.reinforce.in_whole_batches(expected_updates(self.training, self.state))
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
        """Evaluate the policy if an evaluation is due or pending, and save a checkpoint if one is due.

        Args:
            before: train state before the latest update. None: no update has been made yet.

        Returns:
            True if the run has to stop now.
        """
        num_updates, is_last = self.state.num_updates, makes_no_more_updates(self.training, self.state)
        was_pending = bool(self.state.pending_evaluations)
        is_due = before is None or is_last or is_evaluation_due(self.evaluation, before, self.state)
        if not was_pending and is_due and have_answers(self.held_out or self.problems):
            self.state = replace(self.state, pending_evaluations=tuple(self.evaluation.decodings))
        self._evaluate(is_first_or_last=before is None or num_updates == 0 or is_last)
        is_last = makes_no_more_updates(self.training, self.state)  # the accuracy may have been reached
        self.state = replace(self.state, seconds=time.monotonic() - self._clock)
        is_stopping = self._is_stopped()
        every = self.training.checkpoint_every
        earlier = -1 if before is None else before.num_updates
        is_save_due = every is not None and earlier // every < num_updates // every
        is_warm = num_updates == 0 and self.training.warm_start is not None
        is_best = self._best_update == num_updates and not self.state.pending_evaluations
        if is_save_due or is_last or is_stopping or is_warm or was_pending or is_best:
            self.save_checkpoint()
        return is_stopping

    @property
    def _best_update(self) -> int | None:
        """Number of updates of the best checkpoint; None if it is not kept, or if there is none."""
        best = self.state.best_evaluation.get(self.evaluation.decodings[0])
        return best.update if best is not None and self.training.keep_best else None

    def save_checkpoint(self) -> None:
        """Save a checkpoint of the state after the latest update, if the run is recorded."""
        self._num_saved = self.state.num_updates
        if self.accelerator.is_main_process and self.run_directory is not None:
            self.run_directory.sync_logs()
            save_checkpoint(
                self.run_directory.checkpoints,
                self.state,
                self.policy.model,
                self.optimizer,
                self.schedule,
                keep=self.training.num_checkpoints_kept,
                scaler=self.accelerator.scaler,
                value_head=self.value_baseline.tensors() if self.value_baseline else None,
                reference=self.reference.tensors() if self.reference else None,
                best=self._best_update,
            )

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

    def _evaluate(self, *, is_first_or_last: bool) -> None:
        """Make the pending evaluations in the main process, and share the results with all processes.

        If a stop is requested, the evaluation in progress and the following ones remain pending.
        """
        data = "held_out" if self.held_out else "training"
        num_problems = self.evaluation.num_problems or (
            None if self.held_out else NUM_TRAINING_PROBLEMS_EVALUATED
        )
        problems = (self.held_out or self.problems)[:num_problems]
        is_main = self.accelerator.is_main_process
        for decoding in [
            each for each in self.evaluation.decodings if each in self.state.pending_evaluations
        ]:
            own = self._measure_accuracy(problems, decoding) if is_main else None
            evaluation = share_evaluation(own, problems, self.accelerator)
            if evaluation is None:
                return
            self.state = self.state.with_evaluation(decoding, evaluation.accuracy)
            if self.training.stop_at is not None and decoding == self.evaluation.decodings[0]:
                reached = max(self.state.accuracy_reached, evaluation.interval[0])
                self.state = replace(self.state, accuracy_reached=reached)
            made = self.evaluations.setdefault(decoding, {})
            for number in list(made)[1:]:
                del made[number]
            made[self.state.num_updates] = evaluation
            if not is_main:
                continue
            self.display.evaluation(self.state.num_updates, data, evaluation)
            if self.run_directory is not None:
                where = {"update": self.state.num_updates, "data": data}
                self.run_directory.append("evaluations.jsonl", {**where, **evaluation.summary()})
                is_complete = is_first_or_last or makes_no_more_updates(self.training, self.state)
                num_answers = None if is_complete else NUM_ANSWERS
                self.run_directory.append_answers(where, evaluation, num_answers)
                self.trackers.evaluation(self.state.num_updates, evaluation)

    def _measure_accuracy(self, problems: Sequence[Problem], decoding: Decoding) -> Evaluation | None:
        """Return an evaluation, or None if a stop is requested before the evaluation is complete."""
        with self.accelerator.autocast(), suppress(_EvaluationStoppedError):
            return measure_accuracy(
                self.policy,
                problems,
                decoding=decoding,
                samples_per_problem=self.evaluation.samples_per_problem if decoding == "sampled" else 1,
                max_new_tokens=self.sampling.max_new_tokens,
                temperature=self.sampling.temperature,
                seed=self.seed,
                batch_size=self.evaluation.batch_size,
                stop=self.evaluation.stop,
                progress=lambda done: self.display.evaluating(done, len(problems)),
                on_step=self._check_stop,
            )
        return None

    def _check_stop(self, *_: int) -> None:
        if self.stop_requested:
            raise _EvaluationStoppedError

    def warm_start(self) -> None:
        """Make the supervised updates of the warm start, if the settings have `training.warm_start`."""
        if self.training.warm_start is None:
            return
        num_skipped = warm_start(
            self.policy,
            self.demonstrations or self.problems,
            self.training.warm_start,
            accelerator=self.accelerator,
            display=self.display,
            seed=self.seed,
            is_stopped=self._is_stopped,
            max_not_finite=self.training.max_not_finite,
        )
        self.state = replace(self.state, num_skipped_updates=num_skipped)

    def _restore(self) -> bool:
        """Load the newest complete checkpoint. Return False if there is none.

        The log lines of updates after the checkpoint are removed, because the resumed run writes them again.
        """
        if self.run_directory is None:
            raise InputError("nothing to resume: this run has no output_dir")
        directory, faults = find_checkpoint(self.run_directory.checkpoints)
        for fault in faults:
            self.display.say(f"skipped checkpoint {fault}")
        if directory is None:
            self.display.say("no complete checkpoint: the run starts from the beginning")
        else:
            self.state = load_checkpoint(
                directory, self.policy.model, self.optimizer, self.schedule, self.accelerator.scaler
            )
            set_learning_rates(self.optimizer, self.schedule)
            self.display.say(f"resuming from {directory.name}")
            if self.value_baseline:
                self.value_baseline.restore(directory, self.display.say)
            if self.reference:
                self.reference.restore(directory)
        if self.accelerator.is_main_process:
            if directory is not None:  # a run may be killed after a save, before old checkpoints are removed
                remove_old_checkpoints(directory, self.training.num_checkpoints_kept, self._best_update)
            num_updates = -1 if directory is None else self.state.num_updates
            self.run_directory.cut_logs(num_updates, self.state.pending_evaluations)
            updates, evaluations = map(self.run_directory.rows, ("metrics.jsonl", "evaluations.jsonl"))
            self.display.restored(updates, evaluations)
        return directory is not None


def _check_answers(
    reinforce: ReinforceConfig,
    training: TrainingConfig,
    problems: Sequence[Problem],
    held_out: Sequence[Problem],
) -> None:
    """Check that problems have answers if a setting depends on the accuracy.

    Raises:
        InputError: if answers are missing, or if there are no held-out problems.
    """
    of_batches = {"refill": reinforce.refill > 0, "curriculum": reinforce.curriculum is not None}
    for name, is_set in of_batches.items():
        if is_set and not have_answers(problems):
            raise InputError(
                f"reinforce.{name}: needs training problems with answers, because it depends on whether "
                "episodes are correct; give the answers, or remove this setting"
            )
    of_evaluations = {"keep_best": training.keep_best, "stop_at": training.stop_at is not None}
    for name, is_set in of_evaluations.items():
        if is_set and not (held_out and have_answers(held_out)):
            raise InputError(
                f"training.{name}: needs held-out problems with answers, on which the accuracy is measured; "
                "give held-out problems, or remove this setting"
            )


class _EvaluationStoppedError(Exception):
    """Raised within an evaluation to end it, because a stop of the run was requested."""


def _lines(traceback: str) -> list[str]:
    """Return the lines of a traceback, indented for display below a message."""
    return [f"    {visible(line, 200)}" for line in traceback.splitlines()]
