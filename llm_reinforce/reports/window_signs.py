"""Signs that a policy does not learn, in the metrics of a few successive updates.

The warnings of a run in progress and the diagnosis of a recorded run use the same signs.
"""

import math
from collections.abc import Callable, Sequence
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
    reward_names,
    span,
    updates_of,
)

NUM_UPDATES = 5  # number of updates over which most signs are measured
MIN_UPDATES = 2  # minimum number of updates over which a sign is measured
ZERO = 1e-6  # a gradient norm, or a difference of rewards, is a rounding error up to this value
MANY_TRUNCATED, MANY_UNSCORED = 0.5, 0.1  # minimum share of truncated, and of unscored, episodes
FALLING = 0.95  # a truncated share that falls to less than this part of its earlier value is not reported
PATIENCE, MAX_PATIENCE = 20, 50  # signs in PATIENT are measured over 1/20 of the run, at most 50 updates
NO_SPREAD = 0.95  # minimum share of problems whose episodes have equal rewards, for a sign
STUCK = 0.75  # at this accuracy or above, no_spread, zero_gradient and a low entropy are not reported
SOLVED = 0.9  # accuracy from which most problems count as solved, so that the reward need not rise
NO_ENTROPY = 0.01  # maximum entropy of a collapsed policy, in nats per token
MIN_CHANGED = 0.5  # a step should change at least this share of the weights that have a gradient
# differences of log-probabilities up to these numbers of nats are considered to be rounding errors
MAX_ROUNDING, MAX_ROUNDING_IN_HALF = 0.01, 1.0

Sign = Callable[[Sequence[Row], RunFacts], Finding | None]


def no_reward(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if no answer is correct and the mean reward of every update is at most 0.

    There is no finding if the rewards differ within more than half of the groups, because the policy can
    learn from these differences.
    """
    rewards = [number(row, "reward") for row in rows]
    if not all(reward <= 0 for reward in rewards) or any(number(row, "accuracy") != 0 for row in rows):
        return None
    is_constant = max(rewards) - min(rewards) <= ZERO and all(
        number(row, "reward_std") <= ZERO for row in rows
    )
    if not is_constant and mean(rows, "frac_reward_zero_std") < 0.5:
        return None  # a policy can learn from negative rewards that differ
    what = (
        f"all episodes in {span(rows, facts)} have the reward {rewards[-1]:.6g}"
        if is_constant
        else (f"the mean reward is never above 0 in {span(rows, facts)}")
    )
    return finding(
        "no_reward",
        updates_of(rows, facts),
        f"{what} and no answer is correct, so there is nothing to learn from",
        "check the format of the answers and the reward function, or use easier problems, a warm start, or "
        "a higher reinforce.episodes_per_problem",
        verdicts(rows),
    )


def equal_rewards(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if all episodes have the same reward, unless all answers are correct."""
    rewards = [number(row, "reward") for row in rows]
    if not all(map(math.isfinite, rewards)) or all(number(row, "accuracy") == 1.0 for row in rows):
        return None
    tiny = ZERO * max(1.0, *(abs(reward) for reward in rewards))
    if max(rewards) - min(rewards) > tiny or any(not number(row, "reward_std") <= tiny for row in rows):
        return None
    accuracy = mean(rows, "accuracy")
    return finding(
        "equal_rewards",
        updates_of(rows, facts),
        f"all episodes in {span(rows, facts)} have the reward {rewards[-1]:.6g}"
        + (f", although {accuracy:.1%} of the answers are correct" if accuracy > 0 else "")
        + ", so there is nothing to learn from",
        f"fix the reward function {' or '.join(reward_names(rows))}, which gives correct answers the same "
        "reward as wrong answers: compare the answer format that the function requires with the "
        "completions, and check that the policy can write this format"
        if accuracy > 0
        else "check the reward function, or use easier problems, a warm start, or a higher "
        "reinforce.episodes_per_problem",
        verdicts(rows),
    )


def zero_gradient(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if the gradient of every update is zero, although many answers are wrong."""
    if mean(rows, "accuracy") >= STUCK:
        return None
    if not all(number(row, "grad_norm") <= ZERO for row in rows):
        return None
    return finding(
        "zero_gradient",
        updates_of(rows, facts),
        f"the gradient is zero in {span(rows, facts)}, so the policy does not change",
        "check the metric frac_reward_zero_std, which should be below 1 so that the episodes of some "
        "problems have different rewards, and the metric entropy, which is near 0 if the policy no longer "
        "explores",
        [
            f"problems whose episodes all have the same reward: {mean(rows, 'frac_reward_zero_std'):.0%}",
            f"entropy: {mean(rows, 'entropy'):.3g} nats per token",
        ],
    )


def no_spread(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if, for nearly every problem, all episodes have the same reward.

    Such a problem gives no gradient if the baseline is computed from the episodes of the problem. There is no
    finding if the accuracy is at least `STUCK`, because equal rewards are then usual.
    """
    share = mean(rows, "frac_reward_zero_std")
    if not share >= NO_SPREAD or not mean(rows, "accuracy") < STUCK or facts.episodes_per_problem < 2:
        return None
    return finding(
        "no_spread",
        updates_of(rows, facts),
        f"for {share:.0%} of the problems in {span(rows, facts)}, all episodes of the problem have the same "
        "reward, so these problems give no gradient if the baseline is computed from the episodes of a "
        "problem",
        "use problems that the policy solves sometimes, a reward with partial credit, a higher "
        "reinforce.episodes_per_problem, or a higher sampling.temperature",
        [
            f"accuracy: {mean(rows, 'accuracy'):.1%}",
            f"episodes per problem: {facts.episodes_per_problem}",
            f"entropy: {mean(rows, 'entropy'):.3g} nats per token",
        ],
    )


def no_entropy(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if the entropy of the policy is nearly zero, although many answers are wrong."""
    entropy = mean(rows, "entropy")
    if not entropy < NO_ENTROPY or not mean(rows, "accuracy") < STUCK:
        return None
    return finding(
        "collapse",
        updates_of(rows, facts),
        f"the entropy in {span(rows, facts)} is {entropy:.2g} nats per token and the accuracy is "
        f"{mean(rows, 'accuracy'):.1%}, so the policy has collapsed and no longer explores",
        f"start a new run with a lower training.learning_rate (in this run, it is {highest_rate(rows):.3g}) "
        "or with a higher reinforce.entropy_coefficient",
        [
            f"problems whose episodes all have the same reward: {mean(rows, 'frac_reward_zero_std'):.0%}",
            *verdicts(rows),
        ],
    )


def truncation(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if at least half of the completions are truncated, and this share does not fall.

    A falling share is not a symptom: a policy with random weights first has to learn to end its completions.
    """
    half, name = len(rows) // 2, "completions/clipped_ratio"
    truncated, before, after = (mean(part, name) for part in (rows, rows[:half], rows[half:]))
    if not after >= max(MANY_TRUNCATED, FALLING * before):  # False if a share is missing
        return None
    return finding(
        "truncation",
        updates_of(rows, facts),
        f"{truncated:.0%} of the completions in {span(rows, facts)} are cut off by sampling.max_new_tokens, "
        "and correct answers may be cut off too",
        "raise sampling.max_new_tokens, ask for shorter answers in the prompt, or reward shorter answers",
        [
            f"mean length: {mean(rows, 'completions/mean_length'):.1f} tokens; longest completion: "
            f"{max(finite(rows, 'completions/max_length'), default=math.nan):.0f} tokens",
            f"accuracy: {mean(rows[:half], 'accuracy'):.1%} in the first half of {span(rows, facts)}, "
            f"{mean(rows[half:], 'accuracy'):.1%} in the second half",
        ],
    )


def unscored(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if many episodes could not be scored."""
    share = mean(rows, "num_unscored") / facts.num_episodes
    if not share >= MANY_UNSCORED:
        return None
    failed = sorted({name for row in rows for name in row if name.endswith("/num_failed")})
    return finding(
        "unscored",
        updates_of(rows, facts),
        f"{share:.0%} of the episodes in {span(rows, facts)} could not be scored and are left out of the "
        "updates",
        "fix the reward functions; their failures are recorded in episodes.jsonl",
        [f"{name}: {sum(finite(rows, name)):.0f}" for name in failed]
        or ["no reward function failed, but all of them returned None"],
    )


def reward_failures(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if reward functions failed on some episodes of the run."""
    failed = {name: sum(finite(rows, f"rewards/{name}/num_failed")) for name in reward_names(rows)}
    failed = {name: num for name, num in failed.items() if num}
    if not failed:
        return None
    num_episodes = len(rows) * facts.num_episodes
    return finding(
        "reward_failures",
        updates_of(rows, facts),
        f"the reward function {' or '.join(failed)} failed on some episodes",
        "fix the reward function; its error messages are recorded in episodes.jsonl",
        [f"{name}: failed on {num:,.0f} of {num_episodes:,} episodes" for name, num in failed.items()],
    )


def not_finite(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if the gradients of at least two updates were not finite."""
    bad = [row for row in rows if "grad_norm" in row and not math.isfinite(number(row, "grad_norm"))]
    if len(bad) < 2:
        return None
    return finding(
        "not_finite",
        updates_of(rows, facts),
        f"the gradients of {len(bad)} of {len(rows)} {facts.row_names} in {span(rows, facts)} are not "
        "finite, so updates were skipped",
        f"start a new run with a lower training.learning_rate (in this run, it is {highest_rate(rows):.3g}), "
        "with smaller rewards, or with a higher-precision policy.dtype or training.mixed_precision",
        [f"{int(number(rows[-1], 'num_skipped_updates'))} updates of the run were skipped"]
        if math.isfinite(number(rows[-1], "num_skipped_updates"))
        else [],
    )


def steps_rounded(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if few half-precision weights changed in the updates after the warm-up."""
    full = [row for row in rows if row["update"] > facts.num_warmup_updates]
    shares = finite(full, "frac_weights_changed")
    if 2 * len(shares) <= len(rows) or not sum(shares) / len(shares) < MIN_CHANGED:
        return None
    rate = number(full[-1], "learning_rate")
    return finding(
        "steps_rounded",
        updates_of(full, facts),
        f"only {sum(shares) / len(shares):.2%} of the weights with a nonzero gradient changed in "
        f"{span(full, facts)}, because the weights are in half precision, where most steps with the learning "
        f"rate {rate:.3g} are rounded to zero",
        "set training.master_weights: true, or train an adapter (policy.lora) instead of the weights",
        [f"smallest share of changed weights in an update: {min(shares):.2%}"],
    )


def sampler_mismatch(rows: Sequence[Row], facts: RunFacts) -> Finding | None:
    """Return a finding if the log-probabilities in sampling and in the update differ too much.

    Differences that can be rounding errors are ignored. With `sampling.server.sync_every`, a server samples
    some batches from older weights on purpose. These batches are ignored too.
    """
    age = "server/num_batches_since_sync"
    has_server = any(age in row for row in rows)
    rows = [row for row in rows if not number(row, age) > 0]
    differences = finite(rows, "sampling/sampling_logp_difference/max")
    limit = MAX_ROUNDING if facts.is_full_precision else MAX_ROUNDING_IN_HALF
    if not differences or median(differences) <= limit:
        return None
    if has_server:
        remedy = (
            "check that no other run uses the server, and that the server was started with `llm-reinforce "
            "serve`"
        )
    else:
        remedy = (
            "check for parts of the model that behave differently in sampling and in the update, such as "
            "dropout or the cache of a custom model; "
        ) + (
            "if there are no such parts, report this as a bug of the toolkit"
            if facts.is_full_precision
            else "check whether the difference is smaller with policy.dtype: float32"
        )
    return finding(
        "sampler_mismatch",
        updates_of(rows, facts),
        "the log-probabilities of the same action in sampling and in the update differ by up to "
        f"{max(differences):.3g} nats in {span(rows, facts)}, so the update does not use the distribution "
        "from which the action was sampled",
        remedy,
        [
            f"median of the largest differences of the {facts.row_names}: {median(differences):.3g}",
            f"differences up to {limit:g} nats can be rounding errors",
        ],
    )


WINDOW_SIGNS: tuple[Sign, ...] = (
    not_finite,
    no_reward,
    equal_rewards,
    zero_gradient,
    no_entropy,
    truncation,
    unscored,
    no_spread,
    steps_rounded,
    sampler_mismatch,
)
# a policy may show these signs for some updates and lose them while it learns, so they are measured longer
PATIENT = {truncation, no_spread}


def window_of(facts: RunFacts, sign: Sign | None = None) -> int:
    """Return the number of updates over which a sign is measured.

    In a run with fewer updates than this number, the sign is not measured.
    """
    window = max(MIN_UPDATES, min(NUM_UPDATES, facts.num_updates))
    if sign is truncation:  # compares the two halves of the updates
        window = max(NUM_UPDATES, min(2 * NUM_UPDATES, facts.num_updates))
    return max(window, min(facts.num_updates // PATIENCE, MAX_PATIENCE)) if sign in PATIENT else window


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Return a line of text with the share of each verdict; empty if no verdicts were recorded."""
    names = {name for row in rows for name in row if name.startswith("verdicts/")}
    shares = {name: sum(finite(rows, name)) / len(rows) for name in names}
    ordered = sorted(shares.items(), key=lambda each: (-each[1], each[0]))
    words = [f"{name.removeprefix('verdicts/')} {share:.1%}" for name, share in ordered if share > 0]
    return [f"verdicts: {', '.join(words)}"] if words else []
