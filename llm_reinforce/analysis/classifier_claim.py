"""The article's second example: classification is reinforcement learning in one step.

A state x with the label y, a policy π(1|x) = σ(θ·x), one action, one reward, and the gradient r ∇log π(a|x).
In every state the right class is worth w more than the wrong one, so the expected gradient is the same

    E ĝ = E_x[w p (1 - p) u],   p = π(y|x),   u = x for y = 1, -x for y = 0

wherever the rewards begin. Where they begin, c(x), is what decides the variance. The right class has the
score (1 - p) u, the wrong one -p u, and so

    E‖ĝ‖² = E_x[(p (1 - p)² (w + c)² + (1 - p) p² c²) ‖x‖²]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from llm_reinforce.analysis.gradient_statistics import Measured, measured_variance

NUM_STATES, NUM_FEATURES, NUM_EPISODES = 400, 8, 2000
REWARD = 1.0  # w


@dataclass(frozen=True, slots=True)
class ClassifierFigures:
    """One way to place the rewards.

    Attributes:
        share_reinforced: of the returns that aren't 0, how many make the action taken likelier.
        share_to_label: of the same, how many push the policy towards the state's label.
        signal: ‖E ĝ‖ exactly.
        predicted: tr Cov(ĝ) of an episode by the formula above.
        measured: the same from sampled episodes.
    """

    name: str
    share_reinforced: float
    share_to_label: float
    signal: float
    predicted: float
    measured: Measured


def measure_classifier(seed: int = 0) -> tuple[ClassifierFigures, ...]:
    """A half-trained logistic policy on random states, with five ways to place the same rewards."""
    random = np.random.default_rng(seed)
    states = random.standard_normal((NUM_STATES, NUM_FEATURES))
    true = random.standard_normal(NUM_FEATURES)
    labels = random.random(NUM_STATES) < expit(states @ true)
    towards = np.where(labels[:, None], states, -states)  # u
    p_right = expit(towards @ (0.5 * true))
    half = random.permutation(NUM_STATES) < NUM_STATES // 2
    offsets: Sequence[tuple[str, Float[np.ndarray, " state"]]] = (
        ("w or 0 everywhere", np.zeros(NUM_STATES)),
        ("w or 0 here, 0 or -w there", np.where(half, 0.0, -REWARD)),
        ("w/2 or -w/2 everywhere", np.full(NUM_STATES, -REWARD / 2)),
        ("w or 0, plus 2 or minus 2", np.where(half, 2.0, -2.0)),
        ("each state's optimal baseline", -REWARD * (1 - p_right)),
    )
    return tuple(_figures(name, towards, p_right, offset, random, seed) for name, offset in offsets)


def _figures(
    name: str,
    towards: Float[np.ndarray, "state feature"],
    p_right: Float[np.ndarray, " state"],
    offset: Float[np.ndarray, " state"],
    random: np.random.Generator,
    seed: int,
) -> ClassifierFigures:
    right, wrong = REWARD + offset, offset  # what the two classes are worth
    squares = (towards**2).sum(axis=1)
    mean = (REWARD * p_right * (1 - p_right))[:, None] * towards
    # E‖ĝ‖² = E_x[(p (1 - p)² (w + c)² + (1 - p) p² c²) ‖x‖²]
    mean_square = (p_right * (1 - p_right) ** 2 * right**2 + (1 - p_right) * p_right**2 * wrong**2) * squares
    signal = np.linalg.norm(mean.mean(axis=0))
    # a right answer with a positive return, or a wrong one with a negative, pushes towards the label
    reinforced = p_right * (right > 0) + (1 - p_right) * (wrong > 0)
    to_label = p_right * (right > 0) + (1 - p_right) * (wrong < 0)
    not_zero = p_right * (right != 0) + (1 - p_right) * (wrong != 0)

    drawn = random.integers(len(p_right), size=NUM_EPISODES)
    is_right = random.random(NUM_EPISODES) < p_right[drawn]
    score = np.where(is_right, 1 - p_right[drawn], -p_right[drawn])[:, None] * towards[drawn]
    gradients = np.where(is_right, right[drawn], wrong[drawn])[:, None] * score
    gram = gradients @ gradients.T
    return ClassifierFigures(
        name=name,
        share_reinforced=float(reinforced.sum() / not_zero.sum()),
        share_to_label=float(to_label.sum() / not_zero.sum()),
        signal=float(signal),
        predicted=float(mean_square.mean() - signal**2),
        measured=measured_variance(gram, 1.0, seed),
    )
