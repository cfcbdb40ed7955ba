"""Growth of the gradient variance with the length of the episodes.

The article "The Beauty of Reinforcement Learning (1) – Intro of Policy Based Methods" claims that the returns
of an episode are correlated, and that this adds variance in long episodes.

The first experiment tosses N coins. The variance of the number of heads is N/4 for N independent coins, and
N²/4 for a single coin whose result is counted N times.

In the second experiment, a policy tosses coins. The policy is a model with random weights. It samples T
tokens (actions) per episode and never ends an episode earlier. One of its tokens means heads. Whatever the
previous actions are, the mean of ∇log π(a_t|s_t) is 0. The log-probability gradients of different actions are
therefore uncorrelated. If the reward hardly depends on any single action, the variance of the gradient is
approximately a sum over actions. With the weight A_t of action t,

    tr Cov(ĝ) ≈ Σ_t E[‖∇log π(a_t|s_t)‖² A_t²]

Let p be the probability of heads. If the tosses are nearly independent, E[A_t²] is

    reward for               A_t: whole return     reward-to-go                      reward-to-go - V(s_t)
    each head, immediately   T² p² + T p (1 - p)   (T - t)² p² + (T - t) p (1 - p)   (T - t) p (1 - p)
    all heads, at the end    T² p² + T p (1 - p)   T² p² + T p (1 - p)               (T - t) p (1 - p)
    first toss, at the end   p                     p                                 0 for t ≥ 1

If rewards accumulate along the episode, the variance of plain REINFORCE grows as T³. Reward-to-go reduces the
variance to a third if rewards are given immediately. With the state-dependent baseline V(s_t), the variance
grows only as T². If the reward is a verdict on the first toss, the variance grows as T, although the later
actions do not affect the reward. The state-dependent baseline removes the contribution of the later actions.

The prediction is too large, because the exact variance is the sum minus the squared norms of the terms'
expectations. These are small compared with the sum, except with the baseline V(s_t).
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from llm_reinforce.analysis.episode_gradients import episode_gradients, squared_log_prob_gradients
from llm_reinforce.analysis.estimators import Estimator, action_weights
from llm_reinforce.analysis.gradient_statistics import LEVEL, IntervalEstimate, variance_with_interval
from llm_reinforce.analysis.measured_episodes import MeasuredEpisodes
from llm_reinforce.analysis.measurement_files import check_output, write_json
from llm_reinforce.analysis.variance_plots import plot_length_claim
from llm_reinforce.config import RandomInitConfig, ReinforceConfig
from llm_reinforce.console.messages import is_interactive
from llm_reinforce.console.progress import progress
from llm_reinforce.episodes import Episode, EpisodeBatch
from llm_reinforce.policy import LanguagePolicy, random_policy, sample_completions
from llm_reinforce.policy_gradient import MovingAverage
from llm_reinforce.problems import Problem
from llm_reinforce.verifier import Verdict

RewardTiming = Literal["each step", "at the end", "verdict"]
TIMINGS: tuple[RewardTiming, ...] = ("each step", "at the end", "verdict")
_SETTINGS = ReinforceConfig(baseline="none", problems_per_update=256, episodes_per_problem=2)
ESTIMATORS = (
    Estimator("whole return", _SETTINGS, credit="whole_return"),
    Estimator("reward to go", _SETTINGS),
    Estimator("leave_one_out", _SETTINGS.model_copy(update={"baseline": "leave_one_out"})),
    Estimator("value", _SETTINGS.model_copy(update={"baseline": "value"})),
)
LENGTHS = (1, 2, 4, 8, 16, 32)
NUM_GROUPS, GROUP_SIZE = _SETTINGS.problems_per_update, _SETTINGS.episodes_per_problem
NUM_TOSSES = 100_000  # number of repetitions of the toss of N coins
HEADS, NEVER = 1, -1  # the token "1", and an end token that is never sampled


@dataclass(frozen=True, slots=True)
class CoinVariance:
    """Measured and expected variance of the number of heads among N coins.

    Attributes:
        num_coins: number of coins N.
        independent: measured variance for N independent coins.
        expected_independent: expected variance for N independent coins, N/4.
        one_coin: measured variance for one coin that is counted N times.
        expected_one_coin: expected variance for one coin that is counted N times, N²/4.
    """

    num_coins: int
    independent: IntervalEstimate
    expected_independent: float
    one_coin: IntervalEstimate
    expected_one_coin: float


@dataclass(frozen=True, slots=True)
class LengthVariance:
    """Gradient variance of one estimator on episodes of one length.

    Attributes:
        paid: time at which rewards are given. "each step": each head is rewarded immediately. "at the end":
            all heads are rewarded at the end. "verdict": heads at the first toss is rewarded at the end.
        estimator: name of the estimator.
        num_actions: number of actions of each episode.
        predicted: variance tr Cov(ĝ) of one episode, predicted by the sum in the module's docstring. It is
            computed from other episodes than `measured`.
        measured: variance tr Cov(ĝ) of one episode, estimated from the gradients of the measured episodes.
    """

    paid: RewardTiming
    estimator: str
    num_actions: int
    predicted: float
    measured: IntervalEstimate


@dataclass(frozen=True, slots=True)
class LengthClaim:
    """Results of the two experiments that the module's docstring describes.

    Attributes:
        coins: variances of the number of heads for several numbers of coins.
        lengths: gradient variances, one for each combination of episode length, estimator and time of the
            rewards.
    """

    coins: tuple[CoinVariance, ...]
    lengths: tuple[LengthVariance, ...]


def measure_length_claim(
    *, seed: int = 0, output_dir: str | PathLike[str] | None = None, show_progress: bool | None = None
) -> LengthClaim:
    """Measure how the gradient variance grows with the length of the episodes.

    Args:
        seed: random seed.
        output_dir: directory for `length.json` and, if matplotlib is installed, the plot; None: write no
            files.
        show_progress: if True, show a progress bar. By default, it is shown on a terminal and in a notebook.

    Raises:
        InputError: if `output_dir` already contains files of this measurement, or can't be written to.
    """
    output = check_output(output_dir, "length")
    is_shown = is_interactive() if show_progress is None else show_progress
    coins = toss_coins(seed)
    with progress("gradients", num_measured(), what="episodes", is_shown=is_shown) as show:
        lengths = length_variances(seed, show)
    if output is not None:
        write_json(output, "length", [*coins, *lengths])
        with suppress(ModuleNotFoundError):  # matplotlib is an optional dependency
            plot_length_claim(coins, lengths, output)
    return LengthClaim(coins, lengths)


def toss_coins(seed: int = 0) -> tuple[CoinVariance, ...]:
    """Return the variance of the number of heads for N independent coins and for one coin counted N times."""
    random = np.random.default_rng(seed)
    rows = []
    for num in LENGTHS:
        heads = random.binomial(num, 0.5, size=NUM_TOSSES).astype(float)
        same = num * random.integers(2, size=NUM_TOSSES).astype(float)
        rows.append(CoinVariance(num, _sample_variance(heads), num / 4, _sample_variance(same), num**2 / 4))
    return tuple(rows)


def _sample_variance(values: Float[np.ndarray, " toss"]) -> IntervalEstimate:
    """Return the sample variance of `values`, with an interval from their fourth central moment."""
    variance = float(values.var(ddof=1))
    fourth = float(((values - values.mean()) ** 4).mean())
    error = float(np.sqrt(max(0.0, fourth - variance**2) / len(values)))
    reach = float(stats.norm.ppf((1 + LEVEL) / 2)) * error
    return IntervalEstimate(variance, variance - reach, variance + reach)


def coin_policy(seed: int) -> LanguagePolicy:
    """Return a policy that tosses coins: a small transformer with random weights.

    The policy never ends an episode. Its token "1" means heads.
    """
    shape = RandomInitConfig(
        alphabet="01=", num_layers=2, num_heads=2, hidden_size=32, intermediate_size=64, max_length=64
    )
    return replace(random_policy(shape, seed=seed), end_token_ids=(NEVER,))


def length_variances(
    seed: int = 0, progress: Callable[[int], None] = lambda done: None
) -> tuple[LengthVariance, ...]:
    """Return the measured and the predicted gradient variance for each length of the episodes.

    The prediction and the measurement are computed from different episodes.

    Args:
        seed: random seed.
        progress: function that is called with the number of completed episodes, at most `num_measured()`.
    """
    policy = coin_policy(seed)
    others = _tossed(policy, max(LENGTHS), 2 * seed)
    squares = squared_log_prob_gradients(policy, others.episodes, progress)
    chances = _heads(others).mean(dim=0)
    rows: list[LengthVariance] = []
    done = len(others)
    for num_actions in LENGTHS:
        batch = _tossed(policy, num_actions, 2 * seed + 1)
        weights = _weights(batch, chances)
        # the policy never ends an episode, so prefixes of the longest episodes can be used as shorter
        # episodes
        of_others = _weights(_cut(others, num_actions), chances)
        gradients = episode_gradients(
            policy, batch.episodes, torch.stack([*weights.values()]), progress=_after(done, progress)
        )
        done += len(batch)
        for index, (timing, name) in enumerate(weights):
            gram = gradients.gram(index, index, batch.groups.tolist())
            # Σ_t E[‖∇log π(a_t|s_t)‖² A_t²]; the weights in `of_others` are A_t divided by the size of a
            # group
            predicted = (squares[:, :num_actions] * (GROUP_SIZE * of_others[timing, name]) ** 2).sum(dim=1)
            measured = variance_with_interval(gram, GROUP_SIZE, seed)
            rows.append(LengthVariance(timing, name, num_actions, float(predicted.mean()), measured))
    return tuple(rows)


def num_measured() -> int:
    """Return the number of episodes whose gradients `length_variances` computes."""
    return (1 + len(LENGTHS)) * NUM_GROUPS * GROUP_SIZE


def _after(done: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    return lambda more: progress(done + more)


def _weights(
    batch: EpisodeBatch, chances: Float[Tensor, " longest"]
) -> dict[tuple[RewardTiming, str], Float[Tensor, "episode token"]]:
    """Return the weight A_t of every action, for each reward timing and each estimator.

    Args:
        batch: the episodes.
        chances: probability of heads for each toss of an episode.
    """
    weights = {}
    for timing in TIMINGS:
        values = _values(batch, timing, chances)
        collected = MeasuredEpisodes((_rewarded(batch, timing),), MovingAverage(), (values,))
        for estimator in ESTIMATORS:
            weights[timing, estimator.name] = action_weights(estimator, collected)
    return weights


def _tossed(policy: LanguagePolicy, num_actions: int, seed: int) -> EpisodeBatch:
    """Sample `NUM_GROUPS` groups of episodes, all with the same prompt and without rewards."""
    prompt = policy.encode_prompt("=")
    completions = sample_completions(
        policy,
        [prompt] * NUM_GROUPS,
        num_completions=GROUP_SIZE,
        max_new_tokens=num_actions,
        generator=torch.Generator().manual_seed(1000 * num_actions + seed),
    )
    nothing = Verdict(False, None, "no_answer")
    return EpisodeBatch.of(
        [
            Episode(Problem("=", "1"), index // GROUP_SIZE, prompt, completion, nothing, {}, 0.0)
            for index, completion in enumerate(completions)
        ]
    )


def _heads(batch: EpisodeBatch) -> Float[Tensor, "episode token"]:
    """Return a tensor that is 1 for each action that is heads, and 0 for each other action."""
    return torch.tensor(
        [[float(action == HEADS) for action in episode.completion.token_ids] for episode in batch.episodes]
    )


def _rewarded(batch: EpisodeBatch, timing: RewardTiming) -> EpisodeBatch:
    episodes = []
    for episode, heads in zip(batch.episodes, _heads(batch).tolist(), strict=True):
        match timing:
            case "each step":
                episodes.append(replace(episode, step_rewards=tuple(heads)))
            case "at the end":
                episodes.append(replace(episode, reward=sum(heads)))
            case "verdict":
                episodes.append(replace(episode, reward=heads[0]))
    return EpisodeBatch.of(episodes)


def _cut(batch: EpisodeBatch, num_actions: int) -> EpisodeBatch:
    """Return a copy of the episodes in which each episode is cut to its first `num_actions` actions."""
    cut = []
    for episode in batch.episodes:
        whole = episode.completion
        beginning = replace(
            whole,
            token_ids=whole.token_ids[:num_actions],
            log_probs=whole.log_probs[:num_actions],
            entropies=whole.entropies[:num_actions],
            squared_logit_gradient_norms=whole.squared_logit_gradient_norms[:num_actions],
        )
        cut.append(replace(episode, completion=beginning))
    return EpisodeBatch.of(cut)


def _values(
    batch: EpisodeBatch, timing: RewardTiming, chances: Float[Tensor, " longest"]
) -> Float[Tensor, "episode token"]:
    """Return V(s_t), the expected return after state s_t, assuming that the tosses are independent."""
    tosses = _heads(batch)
    own = chances[: tosses.shape[1]]
    if timing == "verdict":
        return torch.cat([own[0].expand_as(tosses[:, :1]), tosses[:, :1].expand_as(tosses[:, 1:])], dim=1)
    to_come = own.flip(0).cumsum(0).flip(0).expand_as(tosses)
    return to_come if timing == "each step" else to_come + tosses.cumsum(1) - tosses
