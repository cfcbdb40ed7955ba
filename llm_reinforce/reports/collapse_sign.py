"""The sign of a policy that has collapsed: an accuracy that is far lower than in earlier updates."""

import math
from collections.abc import Sequence
from statistics import median

from llm_reinforce.reports.finding import (
    Finding,
    Row,
    RunFacts,
    finding,
    finite,
    highest_rate,
    mean,
    number,
    span,
    updates_of,
)
from llm_reinforce.reports.trend_signs import (
    LONG_STEP,
    MIN_RISE,
    NUM_ERRORS,
    against_hacking,
    movement,
    reward_changes,
)
from llm_reinforce.reports.window_signs import ZERO

COLLAPSED = 0.5  # maximum accuracy of a collapsed policy, as a share of its highest accuracy


def collapse(
    rows: Sequence[Row], facts: RunFacts, window: int, earlier: tuple[float, float] | None = None
) -> Finding | None:
    """Return a finding if the accuracy of the last updates is less than half of the highest earlier accuracy.

    The finding is `collapse` or, if the reward is higher than in the first update, `reward_hacking`.

    Args:
        rows: metrics of all updates so far.
        facts: settings of the run.
        window: number of updates over which the accuracy is averaged.
        earlier: result of `best_accuracy` for these rows. None: it is computed.
    """
    # with a curriculum, the accuracy also falls when harder problems are drawn
    if len(rows) <= window or facts.has_curriculum:
        return None
    best, num_best = earlier or best_accuracy(rows, facts, window)
    last = rows[-window:]
    accuracy = mean(last, "accuracy")
    if not has_collapsed(best, num_best, accuracy, window * facts.num_independent_episodes):
        return None
    fall = _fall(rows, best)
    what = (
        f"the accuracy reached {best:.1%}, fell below half of this value in "
        f"{span(rows[fall : fall + 1], facts)}, and is {accuracy:.1%} in {span(last, facts)}"
    )
    start, reward = number(rows[0], "reward"), mean(last, "reward")
    if reward - start > MIN_RISE * max(number(rows[0], "reward_std"), ZERO):
        return finding(
            "reward_hacking",
            updates_of(last, facts),
            f"the reward has risen from {start:.3g} in the first {facts.row_name} to {reward:.3g} in "
            f"{span(last, facts)}, but {what}",
            against_hacking(rows),
            reward_changes(rows),
        )
    around = rows[max(0, fall + 1 - window) : fall + 1]
    return finding(
        "collapse",
        updates_of(last, facts),
        f"{what}, so the policy has collapsed",
        f"start a new run with a lower training.learning_rate{_rate_to_try(around)} (in this run, "
        f"it is {highest_rate(rows):.3g})",
        [
            f"entropy: {mean(rows[:1], 'entropy'):.3g} nats per token in the first {facts.row_name}, and "
            f"{mean(last, 'entropy'):.3g} in {span(last, facts)}",
            *(f"{line} in {span(around, facts)}" for line in movement(around)),
        ],
    )


def best_accuracy(rows: Sequence[Row], facts: RunFacts, window: int) -> tuple[float, float]:
    """Return the highest accuracy before the last update, and how many independent episodes measure it.

    This is the highest mean over `window` successive updates, or the accuracy of the first update if it is
    higher. The first update counts alone, because its episodes were sampled from the initial policy.
    """
    accuracies = [number(row, "accuracy") for row in rows]
    best, num_best = accuracies[0], facts.num_independent_episodes
    for end in range(window, len(rows)):
        accuracy = sum(accuracies[end - window : end]) / window
        if accuracy > best:
            best, num_best = accuracy, window * facts.num_independent_episodes
    return best, num_best


def has_collapsed(before: float, num_before: float, after: float, num_after: float) -> bool:
    """Return True if the accuracy has more than halved, and chance alone does not explain the decrease.

    Args:
        before: accuracy of the earlier episodes.
        num_before: number of the earlier episodes, or of as many independent episodes as they are worth.
        after: accuracy of the later episodes.
        num_after: the same for the later episodes.
    """
    # standard error of the difference if both accuracies were equal, with their weighted mean as the estimate
    pooled = (before * num_before + after * num_after) / (num_before + num_after)
    error = math.sqrt(pooled * (1.0 - pooled) * (1.0 / num_before + 1.0 / num_after))
    return after < COLLAPSED * before and before - after > NUM_ERRORS * error


def _fall(rows: Sequence[Row], best: float) -> int:
    """Return the index of the update from which the accuracy stays below half of `best`."""
    high = [index for index, row in enumerate(rows) if number(row, "accuracy") >= COLLAPSED * best]
    return min(max(high, default=-1) + 1, len(rows) - 1)


def _rate_to_try(rows: Sequence[Row]) -> str:
    """Return a phrase with a learning rate to try, or "" if the steps in `rows` were not too long."""
    steps, rates = finite(rows, "step/relative_norm"), finite(rows, "learning_rate")
    if not steps or not rates or not median(steps) > LONG_STEP:
        return ""
    # the steps of Adam are proportional to the learning rate
    return f" of at most {median(rates) * LONG_STEP / median(steps):.1g}"
