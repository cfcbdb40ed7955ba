"""Draw the problems of a batch, and sample their episodes in all processes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from accelerate import Accelerator

from llm_reinforce.config import ReinforceConfig, SamplingConfig, TrainingConfig
from llm_reinforce.episodes import Episode, EpisodeBatch, collect_episodes
from llm_reinforce.policy import (
    Activations,
    LanguagePolicy,
    OnStep,
    TokenIds,
    random_numbers,
    sample_completions,
)
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import Progress, WeightedReward
from llm_reinforce.runs import TrainState
from llm_reinforce.seeds import seed_of
from llm_reinforce.server import SamplingServer, ServerError
from llm_reinforce.training.data_parallel import gather_episodes, gather_object, own_rows
from llm_reinforce.training.gradient_step import GradientStep
from llm_reinforce.training.problem_order import (
    PassCounts,
    ProblemOrder,
    draw_by_pass_rate,
    with_episodes,
)
from llm_reinforce.training.reference import ReferencePolicy
from llm_reinforce.training.refill import Refills, groups_with_one_accuracy, with_replacements

MAX_TRIED_TOKENS = 32  # maximum number of tokens of a trial episode
NUM_PROBES = 4  # number of training prompts with which the weights of a server are checked

Value = TypeVar("Value")


class SamplingStoppedError(Exception):
    """Raised in all processes during sampling if a stop of the run was requested in any process."""


class Failures(NamedTuple):
    """Counts of all sampled episodes of a batch, and of the episodes that could not be scored.

    Attributes:
        num_episodes: number of sampled episodes, including the episodes of problems that were replaced.
        num_unscored: number of episodes without a reward.
        first: the first episode for which a reward function failed; None if no function failed.
        process: index of the process that sampled the episode `first`.
    """

    num_episodes: int = 0
    num_unscored: int = 0
    first: Episode | None = None
    process: int = 0


class Sample(NamedTuple):
    """Episodes of a batch, and counts of the sampled problems and tokens, including replaced problems.

    Attributes:
        own: episodes of this process.
        batch: episodes of all processes.
        num_problems: number of problems drawn.
        num_tokens: number of tokens sampled.
        pass_counts: counts of the curriculum after this batch: for each problem, the discounted numbers of
            correct episodes and of all episodes.
        refills: counts of the problems that were sampled to replace other problems.
        failures: counts of the episodes that could not be scored.
        server_metrics: metrics of the transfer of the weights to a server, by name. Empty without a server.
    """

    own: EpisodeBatch
    batch: EpisodeBatch
    num_problems: int
    num_tokens: int
    pass_counts: PassCounts
    refills: Refills
    failures: Failures
    server_metrics: Mapping[str, float]


@dataclass(frozen=True)
class BatchSampler:
    """Sampler of the batches of a run.

    The samples depend only on the policy, the seed and the train state, unless a server samples the episodes.

    Attributes:
        policy: the policy, which is trained in place.
        problems: the training problems.
        rewards: the reward functions with their weights.
        training, reinforce, sampling: settings of the run.
        accelerator: the accelerator of the run.
        gradient_step: the gradient step, which divides episodes into micro-batches for the reference policy.
        order: order in which the problems are drawn; not used with a curriculum.
        seed: seed of the run.
        reference: the reference policy; None if `reinforce.kl` is not set.
        server: server that samples the episodes. None: the processes of the run sample the episodes.
    """

    policy: LanguagePolicy
    problems: Sequence[Problem]
    rewards: Sequence[WeightedReward]
    training: TrainingConfig
    reinforce: ReinforceConfig
    sampling: SamplingConfig
    accelerator: Accelerator
    gradient_step: GradientStep
    order: ProblemOrder
    seed: int
    reference: ReferencePolicy | None
    server: SamplingServer | None = None

    def sample(
        self,
        state: TrainState,
        activations: Activations | None,
        show: Callable[[str], None],
        is_stopped: Callable[[], bool],
    ) -> Sample:
        """Sample the episodes of a batch, and replace problems as `reinforce.refill` requires.

        Args:
            state: train state before the batch.
            activations: object that keeps activations for the gradient step. None: nothing is kept.
            show: function that shows the progress.
            is_stopped: function that returns True if a stop of the run was requested in this process.

        Raises:
            ServerError: if the server fails for any process. All processes raise the error.
            SamplingStoppedError: if there are several processes and a stop was requested in any of them.
                Sampling then ends before the batch is complete, because a launcher kills processes that take
                too long to end.
        """
        server_metrics = self._prepare_server(state, show)
        drawn = self._draw(state, self.reinforce.problems_per_update)
        own, batch = self._collect_from_all(state, drawn, show, is_stopped, activations)
        counts = self._count_passes(state.pass_counts, drawn, batch)
        failures = self._count_failures(Failures(), batch, len(drawn))
        refills = Refills()
        num_tokens = batch.num_tokens
        for number in range(1, self.reinforce.refill + 1):
            num_missing = len(groups_with_one_accuracy(batch, self.reinforce))
            if not num_missing:
                break
            more = self._draw(state, num_missing, drawn)
            _, found = self._collect_from_all(state, more, show, is_stopped, refill=number)
            counts = self._count_passes(counts, more, found)
            failures = self._count_failures(failures, found, len(more))
            refills, drawn = refills.after(found, len(more)), [*drawn, *more]
            num_tokens += found.num_tokens
            batch = with_replacements(batch, found, self.reinforce)
        if refills.num_batches:
            own = batch.part(torch.arange(len(batch))[own_rows(len(batch), self.accelerator)])
        return Sample(own, batch, len(drawn), num_tokens, counts, refills, failures, server_metrics)

    def _prepare_server(self, state: TrainState, show: Callable[[str], None]) -> Mapping[str, float]:
        """Transfer the weights to the server if a transfer is due, and return the server's metrics by name.

        Without a server, nothing is transferred, and the result is empty.
        """
        server = self.server
        if server is None:
            return {}
        update = f"update {state.num_updates + 1:,}"
        show(f"{update}: transferring the weights to {server.settings.url}")
        num_tokens = self.sampling.max_new_tokens
        metrics = self._in_main_process(
            server, lambda: server.before_batch(self.policy, self._probes(), num_tokens)
        )
        show(f"{update}: the server samples the episodes")
        return metrics

    def try_sampling(self, problems: Sequence[Problem], state: TrainState) -> EpisodeBatch:
        """Sample one short episode of each problem in this process, to find errors before the run starts.

        If there is a server, it gets the weights of the policy first. The first batch uses these weights too,
        unless the policy changes before the first batch; see `policy_has_changed`.

        Raises:
            ServerError: if the server fails for any process. All processes raise the error.
        """
        server = self.server
        if server is not None:

            def transfer() -> float:
                server.check(self._max_num_tokens())
                return server.sync(self.policy, self._probes(), self.sampling.max_new_tokens)

            self._in_main_process(server, transfer)
        return self._or_error_of_all(lambda: self.collect(problems, state, is_trial=True))

    def check_server(self) -> str | None:
        """Return one line about the model that the server serves, without changing the server.

        Return None if there is no server.

        Raises:
            ServerError: if the server does not answer, or if its context is too short for a problem.
        """
        return None if self.server is None else self.server.check(self._max_num_tokens())

    def policy_has_changed(self) -> None:
        """Record that the policy has changed, so that the next batch is sampled from the new weights.

        If there is a server, the weights are transferred to it just before the next batch.
        """
        if self.server is not None:
            self.server.expire()

    def _max_num_tokens(self) -> int:
        """Return the largest number of tokens that a prompt and its completion can have."""
        prompts = self.policy.encode_prompts([problem.policy_prompt for problem in self.problems])
        return max(map(len, prompts)) + self.sampling.max_new_tokens

    def _probes(self) -> Sequence[TokenIds]:
        return self.policy.encode_prompts([problem.policy_prompt for problem in self.problems[:NUM_PROBES]])

    def _in_main_process(self, server: SamplingServer, work: Callable[[], Value]) -> Value:
        """Call `work`, which transfers weights, in the main process. All processes return its result.

        If `work` raises a ServerError, all processes raise it.
        """

        def call() -> Value | None:
            with self.accelerator.autocast():
                return work() if self.accelerator.is_main_process else None

        result = gather_object(self._or_error_of_all(call), self.accelerator)[0]
        server.served = gather_object(server.served, self.accelerator)[0]
        assert result is not None  # the first result is that of the main process
        return result

    def _or_error_of_all(self, work: Callable[[], Value]) -> Value:
        """Return the result of `work`. If `work` raises a ServerError in any process, all processes raise it.

        All processes must call this method.
        """
        if self.server is None:
            return work()
        error: ServerError | None = None
        try:
            result = work()
        except ServerError as raised:
            error = raised
        messages = gather_object(str(error) if error else None, self.accelerator)
        if message := next(filter(None, messages), None):
            # transfer the weights again when the run is resumed: the server may have been restarted
            self.server.expire()
            raise ServerError(message) from error
        return result

    def _draw(self, state: TrainState, size: int, drawn: Sequence[int] = ()) -> list[int]:
        """Return the indices of the next problems in order or, with a curriculum, of randomly drawn problems.

        Args:
            state: train state before the batch.
            size: number of problems.
            drawn: indices of the problems that have already been drawn for this batch.
        """
        if self.reinforce.curriculum is None:
            first = state.num_problems + len(drawn)
            return [self.order.index(position) for position in range(first, first + size)]
        seed = self.random_number(f"curriculum {len(drawn)}", state, process=0)
        counts, num_problems = state.pass_counts, len(self.problems)
        return draw_by_pass_rate(self.reinforce.curriculum, counts, num_problems, size, seed, drawn)

    def _count_passes(self, counts: PassCounts, drawn: Sequence[int], batch: EpisodeBatch) -> PassCounts:
        """Return the curriculum's counts of correct episodes and of all episodes, updated with a batch.

        Without a curriculum, the counts are returned unchanged.

        Args:
            counts: for each problem, the discounted numbers of correct episodes and of all episodes before
                the batch.
            drawn: for each group of the batch, the index of its problem.
            batch: episodes of all processes.
        """
        curriculum = self.reinforce.curriculum
        return counts if curriculum is None else with_episodes(counts, drawn, batch, curriculum.decay)

    def _size_of_share(self, num_problems: int) -> int:
        """Return the number of problems per process. The last processes may get fewer problems, or none."""
        size: int = -(-num_problems // self.accelerator.num_processes)
        return size

    def _count_failures(self, before: Failures, found: EpisodeBatch, num_problems: int) -> Failures:
        """Return the counts of sampled and of unscored episodes after additional episodes were sampled.

        Args:
            before: counts before the additional episodes were sampled.
            found: the additional episodes, of all processes.
            num_problems: number of problems for which the additional episodes were sampled.
        """
        first, process = before.first, before.process
        if first is None:
            first = next((each for each in (*found.episodes, *found.greedy) if each.failures), None)
            process = first.group // self._size_of_share(num_problems) if first else 0
        num_unscored = before.num_unscored + int((~found.scored).sum())
        return Failures(before.num_episodes + len(found), num_unscored, first, process)

    def _collect_from_all(
        self,
        state: TrainState,
        drawn: Sequence[int],
        show: Callable[[str], None],
        is_stopped: Callable[[], bool],
        activations: Activations | None = None,
        *,
        refill: int = 0,
    ) -> tuple[EpisodeBatch, EpisodeBatch]:
        """Divide the problems with the indices `drawn` among all processes, and sample their episodes.

        Returns:
            the episodes of this process, and the episodes of all processes.
        """
        problems, num_processes = [self.problems[index] for index in drawn], self.accelerator.num_processes
        size = self._size_of_share(len(problems))
        first = self.accelerator.process_index * size
        share = problems[first : first + size]
        total = len(problems) * self.reinforce.episodes_per_problem // num_processes

        def on_step(num_completions: int, num_tokens: int) -> None:
            show(
                f"update {state.num_updates + 1:,}: {num_completions:,} of {total:,} episodes sampled, "
                f"{num_tokens:,} tokens"
            )
            if num_processes > 1 and is_stopped():
                raise SamplingStoppedError

        def collect() -> EpisodeBatch | None:
            if not share:
                return EpisodeBatch.of(())
            with suppress(SamplingStoppedError):
                return self.collect(
                    share, state, activations, on_step=on_step, first_group=first, refill=refill
                )
            return None

        own = self._or_error_of_all(collect)
        if any(gather_object(own is None, self.accelerator)) or own is None:
            raise SamplingStoppedError
        if self.reference is not None and len(own):
            own = self.reference.with_log_probs(own, self.gradient_step.micro_batches(own, range(len(own))))
        return own, gather_episodes(own, problems, self.accelerator)

    def collect(
        self,
        problems: Sequence[Problem],
        state: TrainState,
        activations: Activations | None = None,
        *,
        is_trial: bool = False,
        on_step: OnStep | None = None,
        first_group: int | None = None,
        refill: int = 0,
    ) -> EpisodeBatch:
        """Sample episodes of the given problems from the current policy, in this process only.

        Args:
            problems: this process's share of the problems.
            state: train state before the batch.
            activations: object that keeps activations for the gradient step. None: nothing is kept.
            is_trial: sample one short episode of each problem.
            on_step: function that is called after each step of the sampler, with the number of completions
                that have ended and the number of sampled tokens.
            first_group: index of this process's first problem among the problems of all processes. None:
                compute the index, assuming that all processes have equally many problems.
            refill: 0 for the original problems of a batch; k for the k-th set of replacement problems. Each
                set uses other random numbers.
        """
        max_new_tokens = self.sampling.max_new_tokens
        if is_trial:
            max_new_tokens = min(max_new_tokens, MAX_TRIED_TOKENS)
        num_episodes = 1 if is_trial else self.reinforce.episodes_per_problem
        if first_group is None:
            first_group = self.accelerator.process_index * len(problems)
        purpose = "trial" if is_trial else f"refill {refill}" if refill else "episodes"
        # all processes share one sequence of random numbers, and each process skips the numbers of the groups
        # before its own, so the episodes do not depend on the number of processes
        seed = self.random_number(purpose, state, process=0)
        generator = torch.Generator(self.policy.device).manual_seed(seed)
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
                    state.num_updates,
                    self.reinforce.in_whole_batches(
                        self.training.expected_updates(state.num_updates, state.num_tokens)
                    ),
                    state.num_problems / len(self.problems),
                    self.random_number("update", state),
                ),
                with_greedy=self.reinforce.baseline == "greedy" and not is_trial,
                activations=activations,
                on_step=on_step,
                length_penalty=None if is_trial else self.reinforce.length_penalty,
                sample=partial(sample_completions, cuda_graphs=self.sampling.cuda_graphs)
                if self.server is None
                else self.server.sample_completions,
            )

    def random_number(self, purpose: str, state: TrainState, process: int | None = None) -> int:
        """Return a seed that depends only on the run's seed, the update, the purpose and the process.

        A resumed run therefore draws the same random numbers as an uninterrupted run.

        Args:
            purpose: name of the purpose of the random numbers, such as "episodes".
            state: train state before the update.
            process: index of the process. None: the index of this process.
        """
        index = self.accelerator.process_index if process is None else process
        return seed_of(purpose, self.seed, state.num_updates, index)
