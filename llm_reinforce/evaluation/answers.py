"""Verified answers of a policy, and the measures of an evaluation that are computed from these answers."""

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

PARSED = ("equal", "different")  # reasons of verdicts in which a value was extracted and compared


@dataclass(frozen=True, slots=True)
class Answer:
    """One verified completion of a problem.

    Attributes:
        text: text of the completion, up to the first stop string.
        num_tokens: number of sampled tokens, including the end token and tokens after a stop string.
        terminated: True if the end token or a stop string ended the completion, False if the completion was
            truncated at the token budget.
        verdict: the verdict of the verifier, which defines the accuracy.
        strict, flexible: True if the strict (or the flexible) extraction of lm-evaluation-harness finds a
            correct answer; see `extraction.py`.
    """

    text: str
    num_tokens: int
    terminated: bool
    verdict: Verdict
    strict: bool
    flexible: bool

    @property
    def correct(self) -> bool:
        """True if the verifier accepts the answer."""
        return self.verdict.correct

    @property
    def parsed(self) -> bool:
        """True if the verifier extracted exactly one value, correct or not."""
        return self.verdict.reason in PARSED


@dataclass(frozen=True, slots=True)
class Measure:
    """Mean of a quantity over the problems.

    Attributes:
        value: the mean.
        interval: 95% confidence interval of the mean. If problems have several samples, the interval treats
            the problems, and not the samples, as independent.
        standard_error: standard error of the mean over problems, as reported by lm-evaluation-harness.
    """

    value: float
    interval: Interval
    standard_error: float


def judged(completion: Completion, problem: Problem, stop: Sequence[str] = ()) -> Answer:
    """Cut a completion at the first stop string, and return it as a verified answer."""
    start = completion.opened_reasoning
    text, stopped = completion.text[len(start) :], False
    for word in stop:
        text, found, _ = text.partition(word)
        stopped = stopped or bool(found)
    text = start + text
    terminated = completion.terminated or stopped
    return Answer(
        text=text,
        num_tokens=len(completion.token_ids),
        terminated=terminated,
        verdict=judge(text, problem, truncated=not terminated),
        strict=exact_match(strict_answer(text), problem.answer or ""),
        flexible=exact_match(flexible_answer(text), problem.answer or ""),
    )


def measures_of(answers: Sequence[Sequence[Answer]], max_new_tokens: int) -> dict[str, Measure]:
    """Compute the measures of an evaluation from the answers to each problem.

    The keys of the result are the names of the measures. `accuracy`, `strict`, `flexible`, `truncated` and
    `unparseable` are shares of the completions, and `mean_length` is in tokens. If there are n > 1 samples
    per problem, the result also contains `pass@k` for k = 2, 4, 8, … and n, and `maj@n`, the accuracy of the
    majority vote. `pass@1` is left out, because it equals the accuracy.
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
    for k in _values_of_k(num_samples):
        passed = [pass_at_k(num_samples, sum(answer.correct for answer in row), k) for row in answers]
        measures[f"pass@{k}"] = _measure(passed)
    if num_samples > 1:
        measures[f"maj@{num_samples}"] = _measure([majority_at_k(row, num_samples) for row in answers])
    return measures


def majority_at_k(answers: Sequence[Answer], k: int) -> float:
    """Return an unbiased estimate of the probability that the majority vote of k samples is correct.

    The n samples of a problem are divided into n // k disjoint groups of k consecutive samples. The result is
    the share of groups whose majority vote is correct. In each group, the most frequent answer wins. If
    several answers are equally frequent, the answer that occurs first wins. All correct answers count as the
    same answer, whatever their form. An answer that could not be parsed has no vote.

    Raises:
        ValueError: if k is less than 1 or greater than the number of samples.

    Source: Wang et al. 2023, "Self-Consistency Improves Chain of Thought Reasoning".
    """
    groups = [answers[start : start + k] for start in range(0, len(answers) - k + 1, k)]
    if k < 1 or not groups:
        raise ValueError(
            f"maj@{k} is not defined for {len(answers)} samples; k should be from 1 to {len(answers)}"
        )
    return sum(_majority_is_correct(group) for group in groups) / len(groups)


def _majority_is_correct(answers: Sequence[Answer]) -> bool:
    # among equal counts, `most_common` returns the vote that occurs first
    votes = Counter(_vote(answer) for answer in answers if answer.parsed)
    return bool(votes) and votes.most_common(1)[0][0] is True


def _vote(answer: Answer) -> object:
    """Return the value that an answer votes for in the majority vote.

    All correct answers vote for True. A wrong answer votes for its number or, if it is not a number, for its
    text.
    """
    if answer.correct:
        return True
    text = answer.verdict.extracted or ""
    value = read_answer(text).value
    return ("text", text.strip(" $.").casefold()) if value is None else ("number", value)


def _share(answers: Sequence[Sequence[Answer]], predicate: Callable[[Answer], bool]) -> Measure:
    return _measure([sum(map(predicate, row)) / len(row) for row in answers])


def _measure(shares: Sequence[float]) -> Measure:
    return Measure(_mean(shares), share_interval(shares), standard_error(shares))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _values_of_k(num_samples: int) -> list[int]:
    """Return each k for which pass@k is reported: 2, 4, 8, … and the number of samples, unless it is 1."""
    powers = [2**exponent for exponent in range(1, num_samples.bit_length()) if 2**exponent < num_samples]
    return [*powers, num_samples] if num_samples > 1 else []
