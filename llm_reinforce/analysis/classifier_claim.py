"""Gradient variance of classification as reinforcement learning with one action per episode.

This is the second example of the article "The Beauty of Reinforcement Learning (1) – Intro of Policy Based
Methods".

A state x has the label y, which is 0 or 1. The policy chooses class 1 with the probability π(1|x) = σ(θ·x).
An episode is one action with one reward r, and its gradient is ĝ = r ∇log π(a|x). Let c(x) be the reward of
the wrong class. The reward of the correct class is c(x) + w in every state. The expected gradient is

    E ĝ = E_x[w p (1 - p) u],   p = π(y|x),   u = x for y = 1, -x for y = 0

and does not depend on c(x). The variance E‖ĝ‖² - ‖E ĝ‖² depends on c(x), because its first term does. Since
∇log π is (1 - p) u for the correct class and -p u for the wrong class, this term is

    E‖ĝ‖² = E_x[(p (1 - p)² (w + c)² + (1 - p) p² c²) ‖x‖²]
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from llm_reinforce.analysis.gradient_statistics import IntervalEstimate, variance_with_interval
from llm_reinforce.analysis.measurement_files import check_output, write_json
from llm_reinforce.analysis.variance_plots import plot_classifier_claim

NUM_STATES, NUM_FEATURES, NUM_EPISODES = 400, 8, 2000
REWARD = 1.0  # w


@dataclass(frozen=True, slots=True)
class ClassifierVariance:
    """Gradient variance of a classifier, for one choice of the rewards of its two classes.

    Attributes:
        name: description of the rewards of the two classes.
        share_reinforced: share of the nonzero returns that are positive, and therefore make the sampled
            action more likely.
        share_to_label: share of the nonzero returns that move the policy towards the label of the state.
        signal: norm of the expected gradient, ‖E ĝ‖, computed exactly.
        predicted: variance tr Cov(ĝ) of one episode, computed from the formula in the module's docstring.
        measured: variance tr Cov(ĝ) of one episode, estimated from sampled episodes.
    """

    name: str
    share_reinforced: float
    share_to_label: float
    signal: float
    predicted: float
    measured: IntervalEstimate


def measure_classifier_claim(
    *, seed: int = 0, output_dir: str | PathLike[str] | None = None
) -> tuple[ClassifierVariance, ...]:
    """Measure the gradient variance of a partly trained logistic policy, for five choices of the rewards.

    Args:
        seed: random seed.
        output_dir: directory for `classifier.json` and, if matplotlib is installed, the plot; None: write no
            files.

    Raises:
        InputError: if `output_dir` already contains files of this measurement, or can't be written to.
    """
    output = check_output(output_dir, "classifier")
    rows = classifier_variances(seed)
    if output is not None:
        write_json(output, "classifier", rows)
        with suppress(ModuleNotFoundError):  # matplotlib is an optional dependency
            plot_classifier_claim(rows, output)
    return rows


def classifier_variances(seed: int = 0) -> tuple[ClassifierVariance, ...]:
    """Return the gradient variance of a partly trained logistic policy, for five choices of the rewards."""
    random = np.random.default_rng(seed)
    states = random.standard_normal((NUM_STATES, NUM_FEATURES))
    true = random.standard_normal(NUM_FEATURES)
    labels = random.random(NUM_STATES) < expit(states @ true)
    towards = np.where(labels[:, None], states, -states)  # u
    p_correct = expit(towards @ (0.5 * true))
    is_first_half = random.permutation(NUM_STATES) < NUM_STATES // 2
    offsets: Sequence[tuple[str, Float[np.ndarray, " state"]]] = (
        ("w or 0 everywhere", np.zeros(NUM_STATES)),
        ("w or 0 here, 0 or -w there", np.where(is_first_half, 0.0, -REWARD)),
        ("w/2 or -w/2 everywhere", np.full(NUM_STATES, -REWARD / 2)),
        ("w or 0, plus 2 or minus 2", np.where(is_first_half, 2.0, -2.0)),
        ("each state's optimal baseline", -REWARD * (1 - p_correct)),
    )
    return tuple(variance_at(name, towards, p_correct, offset, random, seed) for name, offset in offsets)


def variance_at(
    name: str,
    towards: Float[np.ndarray, "state feature"],
    p_correct: Float[np.ndarray, " state"],
    offset: Float[np.ndarray, " state"],
    random: np.random.Generator,
    seed: int,
) -> ClassifierVariance:
    """Return the predicted and the measured gradient variance for one choice of the rewards.

    Args:
        name: description of the rewards.
        towards: vector u of each state. The label of the state becomes more likely if the parameters move in
            this direction.
        p_correct: probability p of the label of each state.
        offset: reward c of the wrong class in each state.
        random: random generator for sampling episodes.
        seed: random seed of the bootstrap interval.
    """
    correct_reward, wrong_reward = REWARD + offset, offset
    squares = (towards**2).sum(axis=1)
    mean = (REWARD * p_correct * (1 - p_correct))[:, None] * towards
    # E‖ĝ‖² = E_x[(p (1 - p)² (w + c)² + (1 - p) p² c²) ‖x‖²]
    mean_square = (
        p_correct * (1 - p_correct) ** 2 * correct_reward**2
        + (1 - p_correct) * p_correct**2 * wrong_reward**2
    ) * squares
    signal = np.linalg.norm(mean.mean(axis=0))
    # a correct action with a positive return, or a wrong action with a negative return, moves the policy
    # towards the label
    reinforced = p_correct * (correct_reward > 0) + (1 - p_correct) * (wrong_reward > 0)
    to_label = p_correct * (correct_reward > 0) + (1 - p_correct) * (wrong_reward < 0)
    not_zero = p_correct * (correct_reward != 0) + (1 - p_correct) * (wrong_reward != 0)

    sampled = random.integers(len(p_correct), size=NUM_EPISODES)
    is_correct = random.random(NUM_EPISODES) < p_correct[sampled]
    factors = np.where(is_correct, 1 - p_correct[sampled], -p_correct[sampled])
    log_prob_gradients = factors[:, None] * towards[sampled]
    returns = np.where(is_correct, correct_reward[sampled], wrong_reward[sampled])
    gradients = returns[:, None] * log_prob_gradients
    return ClassifierVariance(
        name=name,
        share_reinforced=float(reinforced.sum() / not_zero.sum()),
        share_to_label=float(to_label.sum() / not_zero.sum()),
        signal=float(signal),
        predicted=float(mean_square.mean() - signal**2),
        measured=variance_with_interval(gradients @ gradients.T, 1.0, seed),
    )
