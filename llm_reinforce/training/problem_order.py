"""Choice of the training problems: in a new random order in every epoch, or at random by their pass rates."""

import random
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from llm_reinforce.config import CurriculumConfig
from llm_reinforce.episodes import EpisodeBatch

PassCounts = Mapping[int, tuple[float, float]]
"""For each problem, by its index: the discounted numbers of correct episodes and of all episodes."""


class ProblemOrder:
    """Order of the training problems over all epochs.

    Each epoch is a permutation of all problems that depends only on the seed of the run and the number of the
    epoch. A resumed run therefore continues with the same problems as an uninterrupted run.
    """

    def __init__(self, num_problems: int, seed: int) -> None:
        self.num_problems, self.seed = num_problems, seed
        self._epoch = -1
        self._permutation: list[int] = []

    def index(self, position: int) -> int:
        """Return the index of the problem at a position in the order.

        Args:
            position: position, counted from 0 over all epochs.
        """
        epoch, place = divmod(position, self.num_problems)
        if epoch != self._epoch:
            self._permutation = list(range(self.num_problems))
            random.Random(f"epoch {self.seed} {epoch}").shuffle(self._permutation)
            self._epoch = epoch
        return self._permutation[place]


def pass_rate(counts: PassCounts, index: int) -> float:
    """Return the smoothed share of correct episodes among the recent episodes of a problem.

        p = (c + 1) / (n + 2)

    c and n are the discounted numbers of correct episodes and of all episodes. Before the first episode of
    the problem, p is 1/2.
    """
    correct, total = counts.get(index, (0.0, 0.0))
    return (correct + 1.0) / (total + 2.0)


def with_episodes(
    counts: PassCounts, drawn: Sequence[int], batch: EpisodeBatch, decay: float
) -> dict[int, tuple[float, float]]:
    """Return the counts of correct episodes and of all episodes of each problem, updated with a batch.

    Both counts of a problem in the batch are multiplied by `decay`. The number of the problem's correct
    episodes in the batch is then added to the first count, and the number of all its episodes in the batch to
    the second count. The counts of other problems do not change.

    Args:
        counts: the counts before the batch.
        drawn: for each group of episodes, the index of its problem.
        batch: episodes with verdicts, of all processes.
        decay: factor of the earlier counts.
    """
    added = dict(counts)
    for index in dict.fromkeys(drawn):
        correct, total = added.get(index, (0.0, 0.0))
        added[index] = (decay * correct, decay * total)
    for episode in batch.episodes:
        correct, total = added[drawn[episode.group]]
        is_correct = episode.verdict is not None and episode.verdict.correct
        added[drawn[episode.group]] = (correct + is_correct, total + 1.0)
    return added


def problem_weight(settings: CurriculumConfig, rate: float) -> float:
    """Return the weight with which a problem is drawn, given its pass rate."""
    pools = settings.pools
    if pools is None:
        return rate * (1.0 - rate)
    if rate < pools.hard_below:
        return pools.hard
    return pools.easy if rate > pools.easy_above else pools.normal


def draw_by_pass_rate(
    settings: CurriculumConfig,
    counts: PassCounts,
    num_problems: int,
    size: int,
    seed: int,
    taken: Collection[int] = (),
) -> list[int]:
    """Draw indices of problems without replacement, with probabilities proportional to the problems' weights.

    Problems with a weight of 0 are drawn only if no other problems are left. If `size` exceeds the number of
    problems, problems are drawn more than once.

    Args:
        settings: the settings of the curriculum.
        counts: for each problem, the discounted numbers of correct episodes and of all episodes.
        num_problems: number of training problems.
        size: number of problems to draw.
        seed: seed of the random choice.
        taken: indices of problems that are drawn only if no other problems are left.

    Source: Efraimidis & Spirakis 2006.
    """
    # problems that have not been drawn yet, which are most problems of a large data set, have equal weights
    weights = np.full(num_problems, problem_weight(settings, pass_rate({}, 0)))
    for index in counts:
        if index < num_problems:  # a resumed run may have fewer problems
            weights[index] = problem_weight(settings, pass_rate(counts, index))
    uniforms = np.random.default_rng(seed).random(num_problems)
    with np.errstate(divide="ignore"):
        # The problems with the largest keys u^(1/w) are drawn. The logarithm of a key is log(u) / w, which is
        # -inf for a weight of 0.
        keys = np.log(uniforms) / weights
    is_taken = np.isin(np.arange(num_problems), list(taken))
    order = np.lexsort((-uniforms, -keys, is_taken)).tolist()
    return [int(order[place % num_problems]) for place in range(size)]
