"""Accuracy of a policy on a set of problems, with confidence intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from llm_reinforce.evaluation.answers import Answer, Measure, judged, measures_of
from llm_reinforce.evaluation.intervals import Interval
from llm_reinforce.policy import LanguagePolicy, random_numbers, stream_completions
from llm_reinforce.problems import Problem
from llm_reinforce.seeds import seed_of
from llm_reinforce.verifier import Verdict

Decoding = Literal["greedy", "sampled"]


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation:
    """Answers of a policy to problems, and their measures.

    Attributes:
        decoding: `greedy`, or `sampled` at a temperature.
        problems: the evaluated problems.
        answers: for each problem, its `samples_per_problem` answers.
        measures: the measures of `measures_of` by name, each with its 95% interval.
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
        """Share of completions that reached `max_new_tokens` without ending."""
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
        """Return the numbers as a JSON object, as logged in `evaluations.jsonl`."""
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
    """Store of answers from which an interrupted evaluation continues."""

    @property
    def done(self) -> Mapping[int, Sequence[Answer]]:
        """The stored answers, by the index of the problem."""

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
) -> Evaluation:
    """Evaluate a policy on problems: generate its answers and compute their measures.

    The longest prompts are processed first. As soon as completions end, the next prompts take their places in
    the batch. Random numbers are drawn for each problem separately. Apart from rounding, the answers to a
    problem therefore depend only on the policy, the seed and the index of the problem. A resumed evaluation
    gives the same answers as an uninterrupted one.

    Args:
        decoding: `greedy` takes the most likely token at each step; `sampled` samples from the policy, as
            training does.
        samples_per_problem: number of completions per problem; must be 1 if `decoding` is `greedy`.
        seed: random seed of the sampling.
        batch_size: number of completions generated at the same time.
        stop: strings at which a completion is cut before it is verified. A base model, for example, may
            continue with another question after its answer.
        progress: called with the number of completed problems after each problem.
        journal: store of the answers. Problems whose answers are already stored are skipped.

    Raises:
        ValueError: if there are no problems, or several greedy completions per problem are requested.
    """
    if not problems:
        raise ValueError("there are no problems to evaluate the policy on; give at least one")
    if decoding == "greedy" and samples_per_problem != 1:
        raise ValueError(
            f"samples_per_problem must be 1 for greedy decoding, not {samples_per_problem}: all greedy "
            "completions of a problem are equal"
        )
    prompts = policy.encode_prompts([problem.prompt for problem in problems])
    answers: dict[int, Sequence[Answer]] = dict(journal.done) if journal else {}
    # the longest prompts first: a batch that does not fit into memory fails at the start
    waiting = sorted(
        set(range(len(problems))) - set(answers), key=lambda index: (-len(prompts[index]), index)
    )

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
    ):
        index = waiting[place]
        answers[index] = tuple(judged(completion, problems[index], stop) for completion in completions)
        if journal:
            journal.record(index, problems[index], answers[index])
        if progress:
            progress(len(answers))
    in_order = [answers[index] for index in range(len(problems))]
    return Evaluation(decoding, problems, in_order, measures_of(in_order, max_new_tokens))
