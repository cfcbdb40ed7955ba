"""Findings of a diagnosis, and the settings of a run that the diagnosis needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["severe", "moderate", "minor"]
Row = Mapping[str, Any]

# order in which findings are listed, and the severity of each kind of finding
SEVERITIES: dict[str, Severity] = {
    "not_finite": "severe",
    "collapse": "severe",
    "no_reward": "severe",
    "equal_rewards": "severe",
    "reward_hacking": "severe",
    "sampler_mismatch": "severe",
    "steps_rounded": "severe",
    "zero_gradient": "severe",
    "truncation": "moderate",
    "unscored": "moderate",
    "one_answer": "moderate",
    "no_spread": "moderate",
    "learning_rate_high": "moderate",
    "learning_rate_low": "moderate",
    "exploding_gradient": "moderate",
    "memorized": "moderate",
    "noisy_updates": "minor",
    "few_problems": "minor",
    "reward_failures": "minor",
    "small_evaluation": "minor",
}
# for each kind of finding, the kinds that make it redundant, so that it is not reported
EXPLAINED_BY = {
    "no_reward": {"collapse"},
    "equal_rewards": {"no_reward", "collapse"},
    "zero_gradient": {"no_reward", "equal_rewards", "collapse"},
    "no_spread": {"no_reward", "equal_rewards", "zero_gradient", "collapse"},
    "truncation": {"collapse"},
    "learning_rate_high": {"collapse"},
    "learning_rate_low": {"no_reward", "equal_rewards", "zero_gradient", "no_spread", "collapse"},
    "noisy_updates": {"no_reward", "equal_rewards", "zero_gradient", "no_spread", "collapse"},
    "exploding_gradient": {"not_finite"},
    "collapse": {"reward_hacking"},
    "reward_failures": {"unscored"},
    "one_answer": {"no_reward"},
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with a run.

    Attributes:
        kind: name of the symptom, such as "truncation".
        severity: "severe" if the policy cannot learn as intended, "moderate" if it learns less than it
            could, "minor" for all other symptoms, such as an evaluation with too few problems.
        sentence: what is wrong, in a clause without a period.
        evidence: measured values, one clause each.
        advice: what to change, in a clause without a period.
        updates: first and last update in which the symptom was measured; None if the symptom concerns the
            whole run.
        example: a completion or an answer that shows the symptom; None if no episode shows it.
    """

    kind: str
    severity: Severity
    sentence: str
    evidence: tuple[str, ...]
    advice: str
    updates: tuple[int, int] | None = None
    example: str | None = None

    @property
    def text(self) -> str:
        """The sentence and the advice."""
        return f"{self.sentence}; {self.advice}"


# correlation of the correctness of two episodes of a problem; in two runs of smollm2_word_problems, it was
# between 0.26 and 0.66
CORRELATION = 0.5


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Settings of a run that a diagnosis needs.

    Attributes:
        num_problems: number of training problems; None if it is not known.
        problems_per_update: number of problems per batch. By default, a batch is used for one update.
        episodes_per_problem: number of episodes of each problem.
        num_updates: expected number of batches of the whole run; by default, a batch is used for one update.
        num_warmup_updates: number of updates over which the learning rate rises.
        is_full_precision: True if the weights and the forward pass have 32 or more bits.
        updates_per_batch: number of updates per batch. Each row of metrics describes one batch.
        has_curriculum: True if the policy's earlier answers determine how often each problem is drawn.
        has_refill: True if problems that are always or never solved are replaced.
    """

    num_problems: int | None
    problems_per_update: int
    episodes_per_problem: int
    num_updates: int
    num_warmup_updates: int = 0
    is_full_precision: bool = True
    updates_per_batch: int = 1
    has_curriculum: bool = False
    has_refill: bool = False

    @property
    def num_episodes(self) -> int:
        """Number of episodes of a batch. One row of metrics describes one batch."""
        return self.problems_per_update * self.episodes_per_problem

    @property
    def num_independent_episodes(self) -> float:
        """Number of independent episodes whose accuracy is as uncertain as that of a batch.

        The episodes of a problem succeed or fail together more often than by chance. If their correctness has
        the correlation ρ, n episodes of each of P problems are worth P n / (1 + (n - 1) ρ) independent ones
        (Kish 1965).
        """
        return self.num_episodes / (1 + (self.episodes_per_problem - 1) * CORRELATION)

    @property
    def row_name(self) -> str:
        """Name of the unit that one row of metrics describes: "update" or "batch"."""
        return "update" if self.updates_per_batch == 1 else "batch"

    @property
    def row_names(self) -> str:
        """The plural of `row_name`."""
        return "updates" if self.updates_per_batch == 1 else "batches"

    @property
    def num_episodes_of_step(self) -> int:
        """Number of episodes from which the gradient of one optimizer step is computed."""
        return self.num_episodes // self.updates_per_batch


def finding(
    kind: str,
    updates: tuple[int, int] | None,
    sentence: str,
    advice: str,
    evidence: Sequence[str] = (),
    example: str | None = None,
) -> Finding:
    """Return a finding with the severity of its kind; see `Finding` for the arguments."""
    return Finding(kind, SEVERITIES[kind], sentence, tuple(evidence), advice, updates, example)


def worst_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings, the most severe first, without those that another finding makes redundant.

    If there are several findings of one kind, only the last one is returned.
    """
    of_kind = {each.kind: each for each in findings}
    kept = [each for each in of_kind.values() if not EXPLAINED_BY.get(each.kind, set()) & of_kind.keys()]
    return tuple(sorted(kept, key=lambda each: list(SEVERITIES).index(each.kind)))


def number(row: Row, name: str) -> float:
    """Return the value of a metric; NaN if the metric is missing or null.

    Args:
        row: a row of `metrics.jsonl`, in which values that are not finite are null.
        name: name of the metric.
    """
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def mean(rows: Sequence[Row], name: str) -> float:
    """Return the mean of a metric; NaN if any row lacks the metric."""
    return sum(number(row, name) for row in rows) / len(rows)


def finite(rows: Sequence[Row], name: str) -> list[float]:
    """Return the finite values of a metric."""
    return [value for row in rows if math.isfinite(value := number(row, name))]


def reward_names(rows: Sequence[Row]) -> list[str]:
    """Return the names of the reward functions, read from the names of the metrics of all updates.

    In an update, a function that scores no episode has no mean, and a function without failures has no number
    of failures.
    """
    names = {name for row in rows for name in row if name.startswith("rewards/")}
    return sorted(
        {
            name.removeprefix("rewards/").removesuffix(end)
            for name in names
            for end in ("/mean", "/num_failed")
            if name.endswith(end)
        }
    )


def highest_rate(rows: Sequence[Row]) -> float:
    """Return the highest learning rate of the updates; NaN if no learning rate was recorded."""
    return max(finite(rows, "learning_rate"), default=math.nan)


def updates_of(rows: Sequence[Row], facts: RunFacts) -> tuple[int, int]:
    """Return the numbers of the first and the last update that the rows describe.

    With several updates per batch, a row has the number of the last update of its batch.
    """
    return int(rows[0]["update"]) - facts.updates_per_batch + 1, int(rows[-1]["update"])


def span(rows: Sequence[Row], facts: RunFacts) -> str:
    """Return the updates of the rows in words, such as "updates 3–7"."""
    first, last = updates_of(rows, facts)
    return f"updates {first:,}–{last:,}" if first != last else f"update {first:,}"
