"""Signs in the trends of a run's metrics, such as a reward that rises while the accuracy does not.

A trend is the difference between the means over the last and over the first third of the updates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from llm_reinforce.reports.finding import (
    Finding,
    Row,
    RunFacts,
    finding,
    finite,
    highest_rate,
    mean,
    reward_names,
    span,
    updates_of,
)
from llm_reinforce.reports.window_signs import SOLVED, ZERO

MIN_TREND = 30  # minimum number of updates of a run in which trends are measured
MIN_RISE_TREND = 20  # the same for a rise of the reward, which is visible earlier than its absence
# a flat reward is reported only after this share of the run, or after this number of updates if that is less
MIN_FLAT, MAX_FLAT = 0.5, 100
NUM_ERRORS = 4.0  # a difference of more than this number of standard errors is not attributed to chance
FLAT = 0.05  # the accuracy is flat if its rise plus two standard errors is below this number
MIN_RISE = 0.5  # minimum rise of the reward, in standard deviations of the rewards
MANY_TIMES = 10.0  # factor by which an exploding gradient norm grows
LONG_STEP = 0.01  # a step is too long from this norm on, relative to the norm of the weights
SHORT_PATH = 1e-3  # all steps are too short if the sum of their relative norms is below this number
MEMORY = 10  # number of updates over which Adam averages gradients: 1 / (1 - β₁) for β₁ = 0.9

Trend = Callable[[Sequence[Row], RunFacts], Finding | None]


@dataclass(frozen=True, slots=True)
class Change:
    """Change of a metric from the first to the last third of a run.

    Attributes:
        first: mean over the first third of the updates.
        last: mean over the last third.
        error: standard error of the difference, from the variation between updates.
    """

    first: float
    last: float
    error: float

    @property
    def difference(self) -> float:
        """The difference of the means."""
        return self.last - self.first

    def exceeds(self, num_errors: float) -> bool:
        """Return True if the metric has risen by more than `num_errors` standard errors."""
        return self.difference > num_errors * self.error

    def __str__(self) -> str:
        return (
            f"{self.first:.3g} → {self.last:.3g} from the first to the last third of the updates (standard "
            f"error of the difference {self.error:.1g})"
        )


def change_of(rows: Sequence[Row], name: str) -> Change | None:
    """Return the change of a metric; None if the first or the last third has fewer than two values."""
    third = len(rows) // 3
    first, last = finite(rows[:third], name), finite(rows[len(rows) - third :], name)
    if min(len(first), len(last)) < 2:
        return None
    error = math.sqrt(stdev(first) ** 2 / len(first) + stdev(last) ** 2 / len(last))
    return Change(fmean(first), fmean(last), error)


def reward_hacking(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if the reward rises but the accuracy does not, unless most problems are solved."""
    reward, accuracy = change_of(rows, "reward"), change_of(rows, "accuracy")
    if reward is None or accuracy is None or not accuracy.last < SOLVED:
        return None
    spread = fmean(finite(rows[: len(rows) // 3], "reward_std") or [math.inf])
    if not reward.exceeds(NUM_ERRORS) or not reward.difference >= MIN_RISE * spread:
        return None
    if not accuracy.difference + 2.0 * accuracy.error < FLAT:
        return None
    falls = accuracy.difference < -3.0 * accuracy.error
    return finding(
        "reward_hacking",
        updates_of(rows, facts),
        f"the reward rises from {reward.first:.3g} to {reward.last:.3g} in {span(rows, facts)}, while the "
        f"accuracy {'falls' if falls else 'does not clearly rise'} ({accuracy.first:.1%} to "
        f"{accuracy.last:.1%})",
        against_hacking(rows),
        reward_changes(rows),
    )


def against_hacking(rows: Sequence[Row]) -> str:
    """Return advice for a run in which wrong answers earn a reward."""
    names = reward_names(rows)
    if len(names) == 1:
        return (
            f"read the completions with high rewards, and change the reward function {names[0]} so that "
            "wrong answers get lower rewards than correct answers"
        )
    return (
        "read the completions with high rewards, then change the reward functions: give rewards only to "
        "correct answers, lower the weights of the functions that reward wrong answers, or limit the values "
        "of these functions"
    )


def reward_changes(rows: Sequence[Row]) -> list[str]:
    """Return a line of text for the change of the reward, of the accuracy, and of each reward function."""
    names = ["reward", "accuracy", *(f"rewards/{name}/mean" for name in reward_names(rows))]
    return [f"{name}: {change}" for name in names if (change := change_of(rows, name))]


def exploding_gradient(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if the gradient norm grows more than tenfold and the accuracy does not rise."""
    norms = finite(rows, "grad_norm")
    third = len(norms) // 3
    before, after = median(norms[:third]), median(norms[len(norms) - third :])
    accuracy = change_of(rows, "accuracy")
    if not after > MANY_TIMES * max(before, ZERO) or accuracy is None or accuracy.exceeds(2.0):
        return None
    return finding(
        "exploding_gradient",
        updates_of(rows, facts),
        f"the gradient norm grows from {before:.3g} to {after:.3g} in {span(rows, facts)}, and the accuracy "
        "does not rise",
        "start a new run with a lower training.learning_rate, leave training.max_grad_norm set, and limit "
        "the size of the rewards",
        [f"largest gradient norm: {max(norms):.3g}", f"accuracy: {accuracy}"],
    )


def learning_rate_high(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if the steps are long relative to the weights and the reward does not rise."""
    steps, reward = finite(rows, "step/relative_norm"), _flat_reward(rows, facts)
    if not steps or reward is None or not median(steps) >= LONG_STEP:
        return None
    return finding(
        "learning_rate_high",
        updates_of(rows, facts),
        f"the median optimizer step moves the weights by {median(steps):.1%} of their norm, and the reward "
        f"does not rise in {span(rows, facts)}",
        f"start a new run with a training.learning_rate of {highest_rate(rows) / 10:.2g} instead of "
        f"{highest_rate(rows):.2g}",
        [*movement(rows), f"reward: {reward}"],
    )


def learning_rate_low(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if all steps together hardly move the weights and the reward does not rise."""
    steps, reward = finite(rows, "step/relative_norm"), _flat_reward(rows, facts)
    if not steps or reward is None or not _path(rows, facts) < SHORT_PATH:
        return None
    rate, path = highest_rate(rows), _path(rows, facts)
    # the steps of Adam are proportional to the learning rate
    needed = f" to {_rounded_up(rate * SHORT_PATH / path):.2g} or more" if path > 0 else ""
    return finding(
        "learning_rate_low",
        updates_of(rows, facts),
        f"all optimizer steps together move the weights by at most {path:.2g} of their norm, and the reward "
        f"does not rise in {span(rows, facts)}",
        f"raise training.learning_rate from {rate:.2g}{needed}, so that all steps of the run together move "
        f"the weights by more than {SHORT_PATH:g} of their norm",
        [*movement(rows), f"reward: {reward}"],
    )


def _rounded_up(number: float) -> float:
    """Return a positive number, rounded up to two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit


def noisy_updates(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if the gradients can't be distinguished from noise and the reward does not rise."""
    steps, shares = finite(rows, "step/relative_norm"), finite(rows, "step/signal_share")
    reward = _flat_reward(rows, facts)
    if reward is None or len(shares) < 3 * MEMORY:
        return None
    share, error = signal_of(shares)
    if share > 2.0 * error or _path(rows, facts) < SHORT_PATH or median(steps) >= LONG_STEP:
        return None
    return finding(
        "noisy_updates",
        updates_of(rows, facts),
        f"the gradients of {span(rows, facts)} can't be distinguished from noise, and the reward does "
        "not rise",
        "measure the noise scale with `llm-reinforce variance`. If the noise scale is far above the number "
        "of episodes of an update, raise reinforce.problems_per_update or reinforce.episodes_per_problem, or "
        "use a baseline that leaves less variance, or easier problems. Otherwise, the gradient changes "
        "faster than Adam averages it, so lower training.learning_rate",
        [*_signal(rows, facts), f"reward: {reward}"],
    )


TREND_SIGNS: dict[Trend, int] = {  # each with the minimum number of updates
    reward_hacking: MIN_RISE_TREND,
    exploding_gradient: MIN_TREND,
    learning_rate_high: MIN_TREND,
    learning_rate_low: MIN_TREND,
    noisy_updates: MIN_TREND,
}


def trend_signs(rows: Sequence[Row], facts: RunFacts) -> list[Finding]:
    """Return the findings in the trends of a run; empty if the run has too few updates."""
    num_updates = len(finite(rows, "grad_norm"))
    found = [sign(rows, facts) for sign, minimum in TREND_SIGNS.items() if num_updates >= minimum]
    return [each for each in found if each is not None]


def signal_of(shares: Sequence[float]) -> tuple[float, float]:
    """Return the mean of the signal shares (metric `step/signal_share`) and its standard error.

    Adam's moments of successive updates are correlated, so only one in `MEMORY` values is counted as
    independent.
    """
    return fmean(shares), stdev(shares) / math.sqrt(len(shares) / MEMORY)


def noise_scale(share: float, num_episodes: int) -> float:
    """Return the number of episodes at which signal and noise of an update's gradient are equal.

    With signal share s and a batch of B episodes,

        tr Σ / |G|² = B (1 - s) / s

    where Σ is the covariance and G is the mean of the gradient of one episode.

    Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training".
    """
    return num_episodes * (1.0 - share) / share


def _signal(rows: Sequence[Row], facts: RunFacts) -> list[str]:
    shares = finite(rows, "step/signal_share")
    if len(shares) < 3 * MEMORY:
        return []
    share, error = signal_of(shares)
    is_measured = share > 2.0 * error
    episodes = noise_scale(
        min(1.0, share if is_measured else max(share, 0.0) + 2.0 * error), facts.num_episodes_of_step
    )
    return [
        f"share of the squared gradient that is signal, not noise: {share:.1%} ± {error:.1%}",
        f"an update has {facts.num_episodes_of_step:,} episodes, and signal would equal noise with "
        + (f"about {episodes:,.0f} episodes" if is_measured else f"{episodes:,.0f} episodes or more"),
    ]


def movement(rows: Sequence[Row]) -> list[str]:
    """Return a line of text with the median relative norm of a step; empty if no norms were recorded."""
    steps = finite(rows, "step/relative_norm")
    return (
        [f"norm of an optimizer step divided by the norm of the weights: median {median(steps):.2g}"]
        if steps
        else []
    )


def _path(rows: Sequence[Row], facts: RunFacts) -> float:
    """Return the sum of the norms of all steps, relative to the norm of the weights."""
    return fmean(finite(rows, "step/relative_norm")) * len(rows) * facts.updates_per_batch


def _flat_reward(rows: Sequence[Row], facts: RunFacts) -> Change | None:
    """Return the change of the reward if the reward does not rise, and None otherwise.

    Also return None if the run is too short to judge, or if most problems are solved.
    """
    change = change_of(rows, "reward")
    is_early = len(rows) < min(MIN_FLAT * facts.num_updates, MAX_FLAT)
    return None if is_early or change is None or change.exceeds(2.0) or _is_solved(rows) else change


def _is_solved(rows: Sequence[Row]) -> bool:
    return mean(rows[len(rows) - len(rows) // 3 :], "accuracy") >= SOLVED
