"""One completion as it was judged, and the numbers that an evaluation makes of them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_reinforce.evaluation.extraction import exact_match, flexible_answer, strict_answer
from llm_reinforce.evaluation.intervals import (
    Interval,
    mean_interval,
    pass_at_k,
    share_interval,
    standard_error,
)
from llm_reinforce.policy import Completion
from llm_reinforce.problems import Problem, judge
from llm_reinforce.verifier import Verdict, read_answer

PARSED = ("equal", "different")  # a verdict's reasons where one value was read and compared


@dataclass(frozen=True, slots=True)
class Answer:
    """What the policy said to a problem once, and whether it is right.

    Attributes:
        text: the completion, up to the first stop string.
        num_tokens: actions, the end token included, and what came after a stop string as well.
        terminated: the policy ended it, or a stop string did; False is truncated, out of token budget.
        verdict: the verifier's; it alone makes the accuracy.
        strict, flexible: right by the harness's two readings, see `extraction.py`.
    """

    text: str
    num_tokens: int
    terminated: bool
    verdict: Verdict
    strict: bool
    flexible: bool

    @property
    def correct(self) -> bool:
        """The verifier's verdict."""
        return self.verdict.correct

    @property
    def parsed(self) -> bool:
        """One value was found in it, right or wrong."""
        return self.verdict.reason in PARSED


@dataclass(frozen=True, slots=True)
class Measure:
    """The mean of something over the problems.

    Attributes:
        interval: 95%; clustered by problem where a problem has several samples.
        standard_error: of the mean over problems, as lm-evaluation-harness gives it.
    """

    value: float
    interval: Interval
    standard_error: float


def judged(completion: Completion, problem: Problem, stop: Sequence[str] = ()) -> Answer:
    """The verdicts on a completion, read up to the first of the stop strings."""
    text, stopped = completion.text, False
    for word in stop:
        text, found, _ = text.partition(word)
        stopped = stopped or bool(found)
    return Answer(
        text=text,
        num_tokens=len(completion.token_ids),
        terminated=completion.terminated or stopped,
        verdict=judge(text, problem),
        strict=exact_match(strict_answer(text), problem.answer),
        flexible=exact_match(flexible_answer(text), problem.answer),
    )


def measures_of(answers: Sequence[Sequence[Answer]], max_new_tokens: int) -> dict[str, Measure]:
    """The measures of an evaluation by name, from each problem's answers.

    `accuracy`, `strict`, `flexible`, `truncated` and `unparseable` are shares of the completions, and
    `mean_length` is in tokens. With n > 1 samples a problem there are also `pass@k` for k = 2, 4, … and n
    (pass@1 is the accuracy), and `maj@n`.
    """
    measures = {
        "accuracy": _share(answers, lambda answer: answer.correct),
        "strict": _share(answers, lambda answer: answer.strict),
        "flexible": _share(answers, lambda answer: answer.flexible),
        "truncated": _share(answers, lambda answer: not answer.terminated),
        "unparseable": _share(answers, lambda answer: answer.verdict.is_unparseable),
    }
    lengths = [sum(answer.num_tokens for answer in row) / len(row) for row in answers]
    interval = mean_interval(lengths, 1.0, float(max_new_tokens))
    measures["mean_length"] = Measure(_mean(lengths), interval, standard_error(lengths))
    num_samples = len(answers[0])
    for k in _ks(num_samples):
        passed = [pass_at_k(num_samples, sum(answer.correct for answer in row), k) for row in answers]
        measures[f"pass@{k}"] = _measure(passed)
    if num_samples > 1:
        measures[f"maj@{num_samples}"] = _measure([majority_at_k(row, num_samples) for row in answers])
    return measures


def majority_at_k(answers: Sequence[Answer], k: int) -> float:
    """Whether the most frequent answer among k samples of a problem is right; the mean over groups of k.

    Right answers count as one, however they are written; what could not be parsed has no vote; among equally
    frequent answers the first to come wins. The n // k groups are consecutive and disjoint, so the mean has
    no bias.

    Source: Wang et al. 2023, "Self-Consistency Improves Chain of Thought Reasoning".
    """
    groups = [answers[start : start + k] for start in range(0, len(answers) - k + 1, k)]
    if k < 1 or not groups:
        raise ValueError(f"maj@{k} of {len(answers)} samples is not defined")
    return sum(_majority_is_right(group) for group in groups) / len(groups)


def _majority_is_right(answers: Sequence[Answer]) -> bool:
    votes = Counter(_vote(answer) for answer in answers if answer.parsed)  # in the order they first came
    return bool(votes) and votes.most_common(1)[0][0] is True


def _vote(answer: Answer) -> object:
    """What it votes for: True for the right answer, a number as the verifier reads it, or a text."""
    if answer.correct:
        return True
    text = answer.verdict.extracted or ""
    value = read_answer(text).value
    return ("text", text.strip(" $.").casefold()) if value is None else ("number", value)


def _share(answers: Sequence[Sequence[Answer]], holds: Callable[[Answer], bool]) -> Measure:
    return _measure([sum(map(holds, row)) / len(row) for row in answers])


def _measure(shares: Sequence[float]) -> Measure:
    return Measure(_mean(shares), share_interval(shares), standard_error(shares))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ks(num_samples: int) -> list[int]:
    """2, 4, 8, … and the number of samples itself."""
    powers = [2**exponent for exponent in range(1, num_samples.bit_length()) if 2**exponent < num_samples]
    return [*powers, num_samples] if num_samples > 1 else []
