"""Warning signs in the metrics of a run, which suggest that the policy is not learning."""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NUM_UPDATES = 5  # number of updates over which a sign is measured
MIN_UPDATES = 2  # a shorter run has no signs
ZERO = 1e-6  # a gradient norm, or a difference of rewards, that is only rounding error
MANY_TRUNCATED, MANY_UNSCORED = 0.5, 0.1  # shares of the episodes
NUM_ERRORS = 4.0  # a collapse is a loss of accuracy of more than this number of standard errors, …
COLLAPSED = 0.5  # … to below this share of the earlier accuracy

Row = Mapping[str, Any]


class WarningSigns:
    """Find the warning signs during a run. Each kind of sign is reported only once.

    Args:
        num_problems: number of training problems.
        problems_per_update: number of problems of an update.
        episodes_per_problem: number of episodes of each problem of an update.
        num_updates: number of updates of the run. A run of fewer than `NUM_UPDATES` updates is measured over
            all its updates.
    """

    def __init__(
        self, num_problems: int, problems_per_update: int, episodes_per_problem: int, num_updates: int
    ) -> None:
        self._num_problems, self._problems_per_update = num_problems, problems_per_update
        self._num_episodes = problems_per_update * episodes_per_problem
        self._rows: deque[Row] = deque(maxlen=max(MIN_UPDATES, min(NUM_UPDATES, num_updates)))
        self._best: tuple[float, int] | None = None  # highest accuracy so far, and its number of episodes
        self._found: dict[str, str] = {}

    @property
    def sentences(self) -> tuple[str, ...]:
        """All signs that have been found, one sentence each."""
        return tuple(self._found.values())

    def before_first_update(self) -> list[str]:
        """Return the signs that are visible before the first update and were not found by earlier calls."""
        signs = {}
        if self._num_problems < self._problems_per_update:
            signs["few_problems"] = (
                f"an update asks for {self._problems_per_update} problems, but there are only "
                f"{self._num_problems} training problems, so each update uses some problems several times; "
                "give more problems, or lower reinforce.problems_per_update"
            )
        return self._unseen(signs)

    def add(self, row: Row) -> list[str]:
        """Add the metrics of the next update, and return the sentences of the signs that are new."""
        self._rows.append(row)
        full = len(self._rows) == self._rows.maxlen
        rows = list(self._rows)
        signs = dict(_signs(rows, self._num_episodes)) if full else {}
        # the first update is compared too, because its episodes are those of the initial policy
        compared = rows if full else rows[:1]
        accuracy, count = _mean(compared, "accuracy"), len(compared) * self._num_episodes
        if full and self._best and has_collapsed(*self._best, accuracy, count):
            signs["collapse"] = (
                f"accuracy in {_span(rows)} is {accuracy:.1%}, down from {self._best[0]:.1%}, so the policy "
                "has collapsed; start a new run with a lower training.learning_rate (it is "
                f"{_number(row, 'learning_rate'):.3g})"
            )
        if self._best is None or accuracy > self._best[0]:
            self._best = accuracy, count
        return self._unseen(signs)

    def _unseen(self, signs: Mapping[str, str]) -> list[str]:
        unseen = {kind: sentence for kind, sentence in signs.items() if kind not in self._found}
        self._found |= unseen
        return list(unseen.values())


def has_collapsed(before: float, num_before: int, after: float, num_after: int) -> bool:
    """Return True if an accuracy has at least halved, and chance alone does not explain the decrease.

    Args:
        before: accuracy of the earlier episodes.
        num_before: number of the earlier episodes.
        after: accuracy of the later episodes.
        num_after: number of the later episodes.
    """
    error = math.sqrt(before * (1.0 - before) / num_before + after * (1.0 - after) / num_after)
    return after < COLLAPSED * before and before - after > NUM_ERRORS * error


def _signs(rows: Sequence[Row], num_episodes: int) -> Iterator[tuple[str, str]]:
    """Yield the kind and the sentence of each sign in the metrics of successive updates."""
    if sentence := _no_gradient(rows):
        yield "no_gradient", sentence
    truncated = _mean(rows, "completions/clipped_ratio")
    if truncated >= MANY_TRUNCATED:
        yield (
            "truncation",
            f"{truncated:.0%} of the completions in {_span(rows)} are truncated by "
            "sampling.max_new_tokens, so most of them have no answer and no end token; raise "
            "sampling.max_new_tokens, or prompt or reward shorter answers",
        )
    unscored = _mean(rows, "num_unscored") / num_episodes
    if unscored >= MANY_UNSCORED:
        yield (
            "unscored",
            f"{unscored:.0%} of the episodes in {_span(rows)} could not be scored and are left out of the "
            "updates; fix the reward function, whose failures are in episodes.jsonl",
        )


def _no_gradient(rows: Sequence[Row]) -> str | None:
    """Return a sentence if the rewards of successive updates give the policy nothing to learn.

    Rewards that are equal because all answers are right are not a sign.
    """
    rewards = [_number(row, "reward") for row in rows]
    if not all(map(math.isfinite, rewards)) or all(_number(row, "accuracy") == 1.0 for row in rows):
        return None
    tiny = ZERO * max(1.0, *(abs(reward) for reward in rewards))
    if max(rewards) - min(rewards) <= tiny and all(_number(row, "reward_std") <= tiny for row in rows):
        return (
            f"all episodes in {_span(rows)} have the reward {rewards[-1]:.6g}, so there is nothing to learn "
            "from; check the reward function, or use easier problems, a warm start, or more "
            "reinforce.episodes_per_problem"
        )
    if all(_number(row, "grad_norm") <= ZERO for row in rows):
        return (
            f"the gradient is zero in {_span(rows)}, so the policy does not change; the episodes of each "
            "problem may have equal rewards, or the policy may no longer explore (see frac_reward_zero_std "
            "and entropy in metrics.jsonl)"
        )
    return None


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(_number(row, name) for row in rows) / len(rows)


def _number(row: Row, name: str) -> float:
    """Return a metric; NaN if it is missing, or null in `metrics.jsonl` because it was not finite."""
    value = row.get(name)
    return math.nan if value is None else float(value)


def _span(rows: Sequence[Row]) -> str:
    return f"updates {rows[0]['update']}–{rows[-1]['update']}"
