"""Accuracy on problems that training never showed, with its uncertainty."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from llm_reinforce.evaluation.answers import Answer, Measure, judged, measures_of
from llm_reinforce.evaluation.intervals import Interval
from llm_reinforce.policy import LanguagePolicy, stream_completions
from llm_reinforce.problems import Problem
from llm_reinforce.seeds import seed_of
from llm_reinforce.verifier import Verdict

Decoding = Literal["greedy", "sampled"]


@dataclass(frozen=True, slots=True, repr=False)
class Evaluation:
    """A policy's answers to problems, and what was measured on them.

    Attributes:
        decoding: `greedy`, or `sampled` at a temperature.
        problems: the problems, in order.
        answers: `samples_per_problem` answers to each.
        measures: by name, each with its 95% interval, see `measures_of`.
    """

    decoding: Decoding
    problems: Sequence[Problem]
    answers: Sequence[Sequence[Answer]]
    measures: Mapping[str, Measure]

    @property
    def samples_per_problem(self) -> int:
        """Completions a problem."""
        return len(self.answers[0])

    @property
    def correct(self) -> int:
        """How many completions the verifier found right."""
        return sum(answer.correct for row in self.answers for answer in row)

    @property
    def total(self) -> int:
        """How many completions there are."""
        return sum(len(row) for row in self.answers)

    @property
    def accuracy(self) -> float:
        """The share of completions that are right."""
        return self.measures["accuracy"].value

    @property
    def interval(self) -> Interval:
        """The accuracy's 95% confidence interval."""
        return self.measures["accuracy"].interval

    @property
    def truncated(self) -> float:
        """The share of completions that ran out of token budget."""
        return self.measures["truncated"].value

    @property
    def mean_length(self) -> float:
        """Tokens a completion, the end token included."""
        return self.measures["mean_length"].value

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The verifier's, completion by completion."""
        return tuple(answer.verdict for row in self.answers for answer in row)

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"Evaluation({self.decoding}: {self.correct:,} of {self.total:,} correct, {self.accuracy:.1%} "
            f"[{100 * low:.1f}, {100 * high:.1f}])"
        )

    def summary(self) -> dict[str, object]:
        """The numbers, as a line of `evaluations.jsonl` has them."""
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


class Journal(Protocol):
    """Where answers are kept as they come, so that a stopped evaluation can go on."""

    @property
    def done(self) -> Mapping[int, Sequence[Answer]]:
        """The answers that are there already, by the problem's place."""

    def record(self, index: int, problem: Problem, answers: Sequence[Answer]) -> None:
        """Keep the answers to a problem."""


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
    """Sample the policy's answers to every problem and measure them.

    The longest prompts come first, and as soon as some completions have ended the next prompts take their
    slots. Each problem has random numbers of its own, so its answers depend, apart from rounding, only on the
    policy, the
    seed and its position: a resumed evaluation gives the answers that an uninterrupted one gives.

    Args:
        decoding: greedy takes the likeliest token each time; sampled draws, as training does.
        samples_per_problem: completions a problem; greedy has one.
        seed: of the sampling.
        batch_size: completions at once.
        stop: strings at which a completion is cut before it is judged, such as the start of the next
            question, which a model that is no chat model goes on to write.
        progress: called with the number of problems done, now and then.
        journal: has the answers of an interrupted evaluation, and records each new one.

    Raises:
        ValueError: there are no problems, or several greedy completions are asked for.
    """
    if not problems:
        raise ValueError("an evaluation needs problems")
    if decoding == "greedy" and samples_per_problem != 1:
        raise ValueError("greedy completions of a problem are all the same: samples_per_problem must be 1")
    prompts = policy.encode_prompts([problem.prompt for problem in problems])
    answers: dict[int, Sequence[Answer]] = dict(journal.done) if journal else {}
    # the longest first, so that what is too large fails at once
    waiting = sorted(
        set(range(len(problems))) - set(answers), key=lambda index: (-len(prompts[index]), index)
    )

    def uniforms(place: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of("evaluation", seed, waiting[place]))
        return torch.rand((samples_per_problem, max_new_tokens), generator=generator, dtype=torch.float64)

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
