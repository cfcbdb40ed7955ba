"""A toy policy with few possible episodes, which gives the exact variance of each estimator.

There are two prompts, each with the seven completions of at most two actions out of three, in float64:

    end | 0 end | 1 end | 0 0 | 0 1 | 1 0 | 1 1

A group consists of two episodes of one prompt in any order, so there are 2 x 28 possible groups. The
expectation of every estimate is a finite sum over these groups, weighted by their probabilities.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations_with_replacement, product
from random import Random

import numpy as np
import torch

from llm_reinforce.analysis.episode_gradients import EpisodeGradients, episode_gradients
from llm_reinforce.analysis.estimators import (
    Estimator,
    action_weights,
    estimators_for,
    with_exact_norms,
)
from llm_reinforce.analysis.gradient_statistics import IntervalEstimate, mean_cosine, random_halves
from llm_reinforce.analysis.gradient_variance import EstimatorVariance, estimator_statistics
from llm_reinforce.analysis.measured_episodes import MeasuredEpisodes
from llm_reinforce.config import ReinforceConfig
from llm_reinforce.episodes import Episode, EpisodeBatch
from llm_reinforce.policy import Completion, LanguagePolicy, TokenIds, token_log_probs
from llm_reinforce.policy_gradient import MovingAverage
from llm_reinforce.problems import Problem
from llm_reinforce.verifier import Verdict

PROMPTS = ("10", "0")
BEFORE = MovingAverage(0.3, 0.5)


def completions_of(end: int) -> list[tuple[int, ...]]:
    """Return all completions of at most two actions out of three."""
    others = [action for action in range(3) if action != end]
    return [(end,), *((action, end) for action in others), *product(others, others)]


def all_episodes(
    policy: LanguagePolicy, prompt: str, group: int = 0, is_rare: bool = False
) -> tuple[list[Episode], np.ndarray]:
    """Return every episode of a prompt, with arbitrary terminal and step rewards, and its probability.

    Args:
        is_rare: if True, one of the seven episodes has reward 1 and the others 0, as for a problem that is
            rarely solved.
    """
    (end,) = policy.end_token_ids
    completions = completions_of(end)
    prompt_ids = policy.encode_prompt(prompt)
    with torch.no_grad():
        scores = token_log_probs(
            policy.model, [prompt_ids] * len(completions), completions, pad_token_id=policy.pad_token_id
        )
    random = Random(f"rewards of {prompt}")
    step_rewards: dict[tuple[int, ...], float] = defaultdict(lambda: random.gauss(0, 1))
    norms: dict[tuple[int, ...], float] = defaultdict(lambda: random.uniform(0, 1))
    episodes, probabilities = [], []
    for row, actions in enumerate(completions):
        log_probs = scores.log_probs[row, : len(actions)].tolist()
        prefixes = [actions[: t + 1] for t in range(len(actions))]
        steps, squared_norms = (tuple(map(of.__getitem__, prefixes)) for of in (step_rewards, norms))
        completion = Completion(
            actions, tuple(log_probs), (0.0,) * len(actions), "", actions[-1] == end, squared_norms
        )
        verdict = Verdict(False, None, "different")
        reward = random.gauss(1, 1)
        if is_rare:
            steps, reward = (), float(row == 1)
        episodes.append(
            Episode(Problem(prompt, "1"), group, prompt_ids, completion, verdict, {}, reward, steps)
        )
        probabilities.append(np.exp(sum(log_probs)))
    return episodes, np.asarray(probabilities)


class Grams(dict[tuple[int, int], np.ndarray]):
    """Inner products of the groups' gradients, each computed when it is first needed."""

    def __init__(self, gradients: EpisodeGradients, groups: Sequence[int]) -> None:
        super().__init__()
        self.gradients, self.groups = gradients, groups

    def __missing__(self, pair: tuple[int, int]) -> np.ndarray:
        self[pair] = self.gradients.gram(*pair, self.groups)
        return self[pair]


@dataclass(frozen=True)
class Toy:
    """All groups of two episodes, with their probabilities and their contributions to each gradient."""

    estimators: Sequence[Estimator]
    probabilities: np.ndarray  # [group]
    gradients: EpisodeGradients
    groups: Sequence[int]  # of each episode

    @cached_property
    def grams(self) -> "Grams":
        """Inner products ⟨h_k, h'_l⟩ as [group, group], by two estimators."""
        return Grams(self.gradients, self.groups)

    def gram(self, name: str, other: str | None = None) -> np.ndarray:
        """Return the inner products for two estimators, given by name."""
        names = [estimator.name for estimator in self.estimators]
        return self.grams[names.index(name), names.index(other or name)]

    def only(self, names: Sequence[str]) -> "Toy":
        """Return a toy with some of the estimators, given by name."""
        kept = [index for index, estimator in enumerate(self.estimators) if estimator.name in names]
        gradients = replace(self.gradients, coefficients=self.gradients.coefficients[kept])
        return replace(self, estimators=[self.estimators[index] for index in kept], gradients=gradients)

    def squared_norm(self, name: str, other: str | None = None) -> float:
        """Return ⟨E h, E h'⟩ for two estimators, given by name."""
        return float(self.probabilities @ self.gram(name, other) @ self.probabilities)

    def variance(self, name: str) -> float:
        """Return the variance per episode, 2 tr Cov(h)."""
        return 2 * (float(self.probabilities @ np.diagonal(self.gram(name))) - self.squared_norm(name))

    def draw(self, num_groups: int, seed: int) -> np.ndarray:
        """Return the indices of groups drawn at random."""
        return np.random.default_rng(seed).choice(
            len(self.probabilities), size=num_groups, p=self.probabilities
        )

    def measure(
        self, num_groups: int, seed: int
    ) -> tuple[tuple[EstimatorVariance, ...], IntervalEstimate, int]:
        """Return the measurements of `num_groups` groups that are drawn at random."""
        drawn = self.draw(num_groups, seed)
        return estimator_statistics(
            lambda one, other: self.grams[one, other][np.ix_(drawn, drawn)], self.estimators, seed=seed
        )

    def truth(self, name: str, cosine: float) -> dict[str, float]:
        """Return the exact value of each statistic of an estimator; the cosine is given by simulation."""
        reference = self.squared_norm("leave_one_out")
        own, cross = self.squared_norm(name), self.squared_norm(name, "leave_one_out")
        variance = self.variance(name)
        return {
            "variance": variance,
            "snr": 2 * own / variance,
            "noise_scale": variance / own,
            "cosine": cosine,
            "along": cross / reference,
            "bias": math.sqrt(max(0.0, own - 2 * cross + reference) / reference),
        }

    def cosine(self, name: str, num_groups: int, num_draws: int = 4000) -> float:
        """Return the expected cosine of the means of two halves, to about a hundredth of its spread."""
        gram, total = self.gram(name), 0.0
        for seed in range(num_draws):
            drawn = self.draw(num_groups, 10**6 + seed)
            halves = random_halves(num_groups, 1, seed)
            total += mean_cosine(gram[np.ix_(drawn, drawn)], halves)[0]
        return total / num_draws


def make_toy(
    policy: LanguagePolicy,
    settings: ReinforceConfig | None = None,
    *,
    is_rare: bool = False,
    names: Sequence[str] = (),
) -> Toy:
    """Return the toy with the weights of this policy. Each group is an update of its own.

    Args:
        policy: a policy over the alphabet "01".
        settings: settings of the estimators.
        is_rare: see `all_episodes`.
        names: names of the estimators; all by default.
    """
    settings = settings or ReinforceConfig(problems_per_update=1, episodes_per_problem=2)
    updates, values, probabilities = [], [], []
    for prompt in PROMPTS:
        episodes, chances = all_episodes(policy, prompt, is_rare=is_rare)
        learned = arbitrary_values(prompt)
        for one, two in combinations_with_replacement(range(len(episodes)), 2):
            number = len(updates)
            pair = [replace(episodes[row], group=number) for row in (one, two)]
            updates.append(EpisodeBatch.of(pair, greedy=[replace(episodes[2], group=number)]))
            values.append(padded([learned(episode.completion.token_ids) for episode in pair]))
            num_orders = 1 if one == two else 2
            probabilities.append(num_orders * chances[one] * chances[two] / len(PROMPTS))
    collected = MeasuredEpisodes(tuple(updates), BEFORE, tuple(values))
    estimators = tuple(each for each in estimators_for(settings) if not names or each.name in names)
    weights = torch.stack([action_weights(estimator, collected) for estimator in estimators])
    batch = collected.batch
    groups = batch.groups.tolist()
    gradients = episode_gradients(policy, batch.episodes, weights)
    gradients = with_exact_norms(gradients, estimators, groups)
    return Toy(estimators, np.asarray(probabilities), gradients, groups)


def arbitrary_values(prompt: str) -> Callable[[TokenIds], list[float]]:
    """Return a function from the actions of an episode to arbitrary values V(s_t)."""
    random = Random(f"values of {prompt}")
    of_states: dict[TokenIds, float] = defaultdict(lambda: random.gauss(1, 1))
    return lambda actions: [of_states[actions[:t]] for t in range(len(actions))]


def padded(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    """Pad rows with zeros to the length of the longest."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows])
