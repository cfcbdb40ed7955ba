"""The article's third example: returns within an episode are correlated, and the more the longer it is.

First N coins: the number of heads of independent ones has the variance N/4, of one coin counted N times N²/4.
Then a policy that tosses: a random model acts T times and never ends, one of its tokens is heads. Its scores
s_t = ∇log π(a_t|s_t) have mean 0 whatever came before, so those of two actions are uncorrelated, and where a
reward hardly depends on any one action the variance is a sum over actions,

    tr Cov(ĝ) ≈ Σ_t E[‖s_t‖² A_t²]

of what each is weighted by. With p the chance of heads, and the tosses nearly independent, E[A_t²] is

    paid                        whole return            what follows            less V(s_t)
    each head as it falls       T² p² + T p (1 - p)     the same for T - t      (T - t) p (1 - p)
    all heads at the end        T² p² + T p (1 - p)     the same                (T - t) p (1 - p)
    the first toss, at the end  p                       the same                0, from the second action on

so that plain REINFORCE grows as T³ where returns add up along an episode, a third of that if each action is
weighted by what follows it alone, and as T² with a baseline that knows the state. For a verdict it grows as
T, though all but the first action have no part in it: a baseline that knows the state can tell.

From each term its squared expectation is taken in truth. The prediction leaves that out: it is small, but
where V(s_t) leaves little else.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from llm_reinforce.analysis.measured_episodes import Collected
from llm_reinforce.analysis.episode_gradients import episode_gradients, squared_scores
from llm_reinforce.analysis.gradient_statistics import LEVEL, Measured, measured_variance
from llm_reinforce.analysis.gradient_variance import Estimator, action_weights
from llm_reinforce.config import RandomInitConfig, ReinforceConfig
from llm_reinforce.episodes import Episode, EpisodeBatch
from llm_reinforce.policy import LanguagePolicy, random_policy, sample_completions
from llm_reinforce.policy_gradient import MovingAverage
from llm_reinforce.problems import Problem
from llm_reinforce.verifier import Verdict

Paid = Literal["each step", "at the end", "verdict"]
PAID: tuple[Paid, ...] = ("each step", "at the end", "verdict")
_SETTINGS = ReinforceConfig(baseline="none", problems_per_update=256, episodes_per_problem=2)
ESTIMATORS = (
    Estimator("whole return", _SETTINGS, credit="whole_return"),
    Estimator("reward to go", _SETTINGS),
    Estimator("leave_one_out", _SETTINGS.model_copy(update={"baseline": "leave_one_out"})),
    Estimator("value", _SETTINGS.model_copy(update={"baseline": "value"})),
)
LENGTHS = (1, 2, 4, 8, 16, 32)
NUM_GROUPS, GROUP_SIZE = _SETTINGS.problems_per_update, _SETTINGS.episodes_per_problem
NUM_TOSSES = 100_000  # of N coins
HEADS, NEVER = 1, -1  # the token of "1", and an end token that no policy has


@dataclass(frozen=True, slots=True)
class CoinFigures:
    """The variance of the heads of N coins, and what it is expected to be."""

    num_coins: int
    independent: Measured
    expected_independent: float
    one_coin: Measured
    expected_one_coin: float


@dataclass(frozen=True, slots=True)
class LengthFigures:
    """One estimator on episodes of one length.

    Attributes:
        paid: when the rewards come.
        estimator: the credit of an action, and the baseline.
        predicted: tr Cov(ĝ) of an episode as the sum above, of other episodes.
        measured: the same from the gradients.
    """

    paid: Paid
    estimator: str
    num_actions: int
    predicted: float
    measured: Measured


def toss_coins(seed: int = 0) -> tuple[CoinFigures, ...]:
    """N coins, each its own toss, and N times the same."""
    random = np.random.default_rng(seed)
    found = []
    for num in LENGTHS:
        heads = random.binomial(num, 0.5, size=NUM_TOSSES).astype(float)
        same = num * random.integers(2, size=NUM_TOSSES).astype(float)
        found.append(CoinFigures(num, _sample_variance(heads), num / 4, _sample_variance(same), num**2 / 4))
    return tuple(found)


def _sample_variance(values: Float[np.ndarray, " toss"]) -> Measured:
    """With the interval that the fourth moment gives."""
    variance = float(values.var(ddof=1))
    fourth = float(((values - values.mean()) ** 4).mean())
    error = float(np.sqrt(max(0.0, fourth - variance**2) / len(values)))
    reach = float(stats.norm.ppf((1 + LEVEL) / 2)) * error
    return Measured(variance, variance - reach, variance + reach)


def coin_policy(seed: int) -> LanguagePolicy:
    """A small transformer of random weights that never ends; its token "1" is heads."""
    shape = RandomInitConfig(
        alphabet="01=", num_layers=2, num_heads=2, hidden_size=32, intermediate_size=64, max_length=64
    )
    return replace(random_policy(shape, seed=seed), end_token_ids=(NEVER,))


def measure_lengths(
    seed: int = 0, progress: Callable[[int], None] = lambda done: None
) -> tuple[LengthFigures, ...]:
    """The gradient's variance against the length of the episodes.

    What is predicted comes from other episodes than what is measured.

    Args:
        progress: is told how many episodes are done, of `NUM_TO_MEASURE`.
    """
    policy = coin_policy(seed)
    others = _tossed(policy, max(LENGTHS), 2 * seed)
    squares = squared_scores(policy, others.episodes, progress)
    chances = _heads(others).mean(dim=0)
    found: list[LengthFigures] = []
    done = len(others)
    for num_actions in LENGTHS:
        batch = _tossed(policy, num_actions, 2 * seed + 1)
        weights = _weights(batch, chances)
        # the policy never ends, so shorter episodes are the beginnings of longer ones
        of_others = _weights(_cut(others, num_actions), chances)
        gradients = episode_gradients(
            policy, batch.episodes, torch.stack([*weights.values()]), progress=_after(done, progress)
        )
        done += len(batch)
        for index, (paid, name) in enumerate(weights):
            gram = gradients.gram(index, index, batch.groups.tolist())
            # Σ_t E[‖s_t‖² A_t²]; the weights are A divided by the group's size
            each = (squares[:, :num_actions] * (GROUP_SIZE * of_others[paid, name]) ** 2).sum(dim=1)
            measured = measured_variance(gram, GROUP_SIZE, seed)
            found.append(LengthFigures(paid, name, num_actions, float(each.mean()), measured))
    return tuple(found)


NUM_TO_MEASURE = (1 + len(LENGTHS)) * NUM_GROUPS * GROUP_SIZE


def _after(done: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    return lambda more: progress(done + more)


def _weights(
    batch: EpisodeBatch, chances: Float[Tensor, " token"]
) -> dict[tuple[Paid, str], Float[Tensor, "episode token"]]:
    """Of each action, for every way to pay and to weigh.

    Args:
        chances: of heads, toss by toss.
    """
    found = {}
    for paid in PAID:
        values = _values(batch, paid, chances)
        collected = Collected((_paid(batch, paid),), MovingAverage(), (values,))
        for estimator in ESTIMATORS:
            found[paid, estimator.name] = action_weights(estimator, collected)
    return found


def _tossed(policy: LanguagePolicy, num_actions: int, seed: int) -> EpisodeBatch:
    """Return groups of episodes of one prompt, without rewards."""
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
    """1 for each toss that is heads."""
    return torch.tensor(
        [[float(action == HEADS) for action in episode.completion.token_ids] for episode in batch.episodes]
    )


def _paid(batch: EpisodeBatch, paid: Paid) -> EpisodeBatch:
    episodes = []
    for episode, heads in zip(batch.episodes, _heads(batch).tolist(), strict=True):
        match paid:
            case "each step":
                episodes.append(replace(episode, step_rewards=tuple(heads)))
            case "at the end":
                episodes.append(replace(episode, reward=sum(heads)))
            case "verdict":
                episodes.append(replace(episode, reward=heads[0]))
    return EpisodeBatch.of(episodes)


def _cut(batch: EpisodeBatch, num_actions: int) -> EpisodeBatch:
    """Return the episodes cut after so many actions."""
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
    batch: EpisodeBatch, paid: Paid, chances: Float[Tensor, " token"]
) -> Float[Tensor, "episode token"]:
    """V(s_t), the return that is expected of s_t on, for tosses that don't depend on one another."""
    tosses = _heads(batch)
    own = chances[: tosses.shape[1]]
    if paid == "verdict":
        return torch.cat([own[0].expand_as(tosses[:, :1]), tosses[:, :1].expand_as(tosses[:, 1:])], dim=1)
    to_come = own.flip(0).cumsum(0).flip(0).expand_as(tosses)
    return to_come if paid == "each step" else to_come + tosses.cumsum(1) - tosses
