"""Accuracy of a policy on a set of problems, with confidence intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from llm_reinforce.evaluation.answers import Answer, Measure, judged, measures_of
from llm_reinforce.evaluation.intervals import Interval
from llm_reinforce.policy import LanguagePolicy, OnStep, random_numbers, stream_completions
from llm_reinforce.problems import Problem
from llm_reinforce.seeds import seed_of
from llm_reinforce.verifier import Verdict

Decoding = Literal["greedy", "sampled"]


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation:
    """Answers of a policy to a set of problems, and measures of these answers such as the accuracy.

    Attributes:
        decoding: decoding mode, `greedy` or `sampled`.
        problems: the evaluated problems.
        answers: for each problem, a sequence of `samples_per_problem` answers.
        measures: mapping from the name of each measure to its value and its 95% interval; see `measures_of`.
    """

    decoding: Decoding
    problems: Sequence[Problem]
    answers: Sequence[Sequence[Answer]]
    measures: Mapping[str, Measure]

    @property
    def samples_per_problem(self) -> int:
        """Number of completions per problem."""
        return len(self.answers[0])

    @property
    def correct(self) -> int:
        """Number of completions that the verifier accepts."""
        return sum(answer.correct for row in self.answers for answer in row)

    @property
    def total(self) -> int:
        """Number of completions."""
        return sum(len(row) for row in self.answers)

    @property
    def accuracy(self) -> float:
        """Share of correct completions, in 0..1."""
        return self.measures["accuracy"].value

    @property
    def interval(self) -> Interval:
        """95% confidence interval of the accuracy."""
        return self.measures["accuracy"].interval

    @property
    def truncated(self) -> float:
        """Share of completions that were cut off at `max_new_tokens` tokens."""
        return self.measures["truncated"].value

    @property
    def mean_length(self) -> float:
        """Mean number of tokens per completion, including the end token."""
        return self.measures["mean_length"].value

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The verifier's verdict on each completion, problem by problem."""
        return tuple(answer.verdict for row in self.answers for answer in row)

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"Evaluation({self.decoding}: {self.correct:,} of {self.total:,} correct, {self.accuracy:.1%} "
            f"[{100 * low:.1f}, {100 * high:.1f}])"
        )

    def summary(self) -> dict[str, object]:
        """Return the counts and the measures as a JSON object, as logged in `evaluations.jsonl`."""
        return {
            "decoding": self.decoding,
            "correct": self.correct,
            "total": self.total,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "samples_per_problem": self.samples_per_problem,
            "truncated": self.truncated,
            "mean_length": self.mean_length,
            "measures": {
                name: {"value": measure.value, "interval": list(measure.interval)}
                for name, measure in self.measures.items()
            },
        }


@runtime_checkable
class Journal(Protocol):
    """Storage of answers, with which an interrupted evaluation can be continued."""

    @property
    def done(self) -> Mapping[int, Sequence[Answer]]:
        """Mapping from the index of each completed problem to its stored answers."""

    def record(self, index: int, problem: Problem, answers: Sequence[Answer]) -> None:
        """Store the answers to the problem with this index."""


def measure_accuracy(
    policy: LanguagePolicy,
    problems: Sequence[Problem],
    *,
    decoding: Decoding = "greedy",
    samples_per_problem: int = 1,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
    stop: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
    journal: Journal | None = None,
    on_step: OnStep | None = None,
) -> Evaluation:
    """Generate a policy's answers to problems, verify them, and return the accuracy and other measures.

    This function calls `answer_problems` and then `evaluation_of`.

    Args:
        policy, problems, decoding, samples_per_problem, max_new_tokens, temperature, seed, batch_size, stop,
            progress, journal, on_step: see `answer_problems`.

    Raises:
        ValueError: if there are no problems, or if several greedy completions per problem are requested.
    """
    answers = answer_problems(
        policy,
        problems,
        decoding=decoding,
        samples_per_problem=samples_per_problem,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
        stop=stop,
        progress=progress,
        journal=journal,
        on_step=on_step,
    )
    return evaluation_of(decoding, problems, answers, max_new_tokens)


def answer_problems(
    policy: LanguagePolicy,
    problems: Sequence[Problem],
    *,
    decoding: Decoding = "greedy",
    samples_per_problem: int = 1,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
    stop: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
    journal: Journal | None = None,
    on_step: OnStep | None = None,
    share: tuple[int, int] = (0, 1),
) -> dict[int, Sequence[Answer]]:
    """Generate a policy's answers to problems, and verify them.

    The longest prompts are processed first. When a completion ends, the next prompt takes its place in the
    batch. Random numbers are drawn separately for each problem. Apart from rounding, the answers to a problem
    therefore depend only on the policy, the seed and the index of the problem. Resuming an evaluation, or
    sharing it among several processes, does not change the answers.

    Args:
        decoding: `greedy` takes the most likely token at each step. `sampled` samples from the policy, as in
            training.
        samples_per_problem: number of completions per problem; must be 1 if `decoding` is `greedy`.
        seed: random seed of the sampling.
        batch_size: number of completions generated at the same time.
        stop: strings at which a completion is cut before it is verified. A base model, for example, often
            continues with another question after its answer.
        progress: function that is called after each problem with the number of completed problems.
        journal: storage of the answers. Problems whose answers are already stored are skipped.
        on_step: function that is called after each step of the sampler; see `stream_completions`. If it
            raises an exception, the evaluation ends.
        share: (index, number of shares). Only the problems in the share with this index are answered. Every
            share has problems with long prompts and problems with short prompts, so that all shares take a
            similar time.

    Returns:
        mapping from the index of each answered problem to its answers.

    Raises:
        ValueError: if there are no problems, or if several greedy completions per problem are requested.
    """
    if not problems:
        raise ValueError("there are no problems to evaluate the policy on; give at least one problem")
    if decoding == "greedy" and samples_per_problem != 1:
        raise ValueError(
            f"samples_per_problem must be 1 for greedy decoding, not {samples_per_problem}, because all "
            "greedy completions of a problem are equal"
        )
    prompts = policy.encode_prompts([problem.policy_prompt for problem in problems])
    answers: dict[int, Sequence[Answer]] = dict(journal.done) if journal else {}
    # with the longest prompts first, a batch that does not fit into memory fails at the start
    longest_first = sorted(
        set(range(len(problems))) - set(answers), key=lambda index: (-len(prompts[index]), index)
    )
    own, num_shares = share
    waiting = longest_first[own::num_shares]

    def uniforms(place: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of("evaluation", seed, waiting[place]))
        return random_numbers(samples_per_problem, max_new_tokens, generator)

    for place, completions in stream_completions(
        policy,
        [prompts[index] for index in waiting],
        num_completions=samples_per_problem,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        uniforms=None if decoding == "greedy" else uniforms,
        batch_size=batch_size,
        on_step=on_step,
    ):
        index = waiting[place]
        answers[index] = tuple(judged(completion, problems[index], stop) for completion in completions)
        if journal:
            journal.record(index, problems[index], answers[index])
        if progress:
            progress(len(answers))
    return answers


def evaluation_of(
    decoding: Decoding,
    problems: Sequence[Problem],
    answers: Mapping[int, Sequence[Answer]],
    max_new_tokens: int,
) -> Evaluation:
    """Return an Evaluation that contains the answers and the measures computed from them.

    Args:
        decoding: decoding mode in which the answers were generated.
        problems: the evaluated problems.
        answers: mapping from the index of each problem to its answers.
        max_new_tokens: maximum number of tokens of a completion.
    """
    in_order = [answers[index] for index in range(len(problems))]
    return Evaluation(decoding, problems, in_order, measures_of(in_order, max_new_tokens))
