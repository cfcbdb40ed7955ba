"""Learning curves at an equal budget of sampled tokens: what they come to, and how two kinds of run differ.

Pure functions: a run's curve is accuracy against the tokens sampled so far, and every kind of run has one
curve a seed. What is drawn at random are the seeds, so an interval is one over seeds, and two kinds of run
are compared seed by seed.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

Interval = tuple[float, float]
MeasureName = Literal["final", "area", "tokens"]

CONFIDENCE = 0.95
NUM_FLIPS = 9_999  # of the seeds' signs, where there are too many to try all
NUM_POINTS = 201  # of a mean curve
ROUNDING = 1e-12  # differences that differ by no more are equal


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """One run's: `accuracy[i]` was measured once `num_tokens[i]` actions had been sampled.

    Attributes:
        num_tokens: rising, from 0, where the policy is as it started; between two, accuracy is a line.
        accuracy: shares in 0..1.

    Raises:
        ValueError: the two differ in length, there is nothing at 0 tokens, or the tokens don't rise.
    """

    num_tokens: tuple[int, ...]
    accuracy: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.num_tokens) != len(self.accuracy) or self.num_tokens[:1] != (0,):
            raise ValueError("a learning curve has one accuracy for each number of tokens, from 0 on")
        if any(after <= before for before, after in itertools.pairwise(self.num_tokens)):
            raise ValueError(f"the tokens of a learning curve rise, and these don't: {self.num_tokens}")


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """One number of a kind of run.

    Attributes:
        values: a number a seed.
        mean: their mean.
        interval: its 95% interval; None of one seed.
    """

    values: tuple[float, ...]
    mean: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Difference:
    """One kind of run less another, seed by seed.

    Attributes:
        mean: of the seeds' differences.
        interval: its 95% interval; None of one seed.
        t_p_value: of Student's paired test, two-sided; None of one seed, or of differences without spread.
        flip_p_value: of flipping the differences' signs, two-sided; None of one seed.
    """

    mean: float
    interval: Interval | None
    t_p_value: float | None
    flip_p_value: float | None


@dataclass(frozen=True, slots=True)
class ComparedRuns:
    """What the runs of one kind come to.

    Attributes:
        name: of the kind.
        measures: `final` accuracy, `area` under the curve (both in 0..1), `tokens` to the target.
        num_reached: runs that reached the target within the budget; the others count with the budget.
        differences: of each measure from the first kind's; empty for the first itself.
        num_sampled: tokens that each run sampled: the budget, and what its last update went beyond it.
    """

    name: str
    measures: Mapping[MeasureName, OverSeeds]
    num_reached: int
    differences: Mapping[MeasureName, Difference]
    num_sampled: tuple[int, ...]


def learning_curve(
    evaluations: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]], decoding: str
) -> LearningCurve:
    """The curve that a run's logs hold: the lines of `evaluations.jsonl` and of `metrics.jsonl`.

    Raises:
        ValueError: they hold no evaluation of that decoding before the first update, or one after an update
            that isn't logged.
    """
    sampled = {0: 0, **{row["update"]: row["num_tokens"] for row in metrics}}
    # of several in one place (a budget that was raised) the last one counts
    rows = {row["update"]: row["accuracy"] for row in evaluations if row["decoding"] == decoding}
    if missing := sorted(rows.keys() - sampled.keys()):
        raise ValueError(f"metrics.jsonl lacks update {missing[0]}, after which accuracy was measured")
    if 0 not in rows:
        raise ValueError(f"evaluations.jsonl has no {decoding} evaluation before the first update")
    updates = sorted(rows)
    return LearningCurve(tuple(sampled[each] for each in updates), tuple(rows[each] for each in updates))


def final_accuracy(curve: LearningCurve) -> float:
    """The last accuracy measured: that after the update which reached the budget."""
    return curve.accuracy[-1]


def area_under(curve: LearningCurve, budget: int) -> float:
    """The mean height of the curve from 0 to the budget, in 0..1.

        (1/B) ∫ accuracy(n) dn over n from 0 to B

    Where the curve ends before the budget, it goes on level.
    """
    inside = [number for number in curve.num_tokens if number < budget]
    at = np.array([*inside, budget], dtype=float)
    return float(np.trapezoid(heights(curve, at), at)) / budget


def tokens_to(curve: LearningCurve, target: float, budget: int) -> float | None:
    """Tokens until the curve first reaches the target, between two evaluations by the line; None: it doesn't.

    What is reached beyond the budget is not reached.
    """
    if curve.accuracy[0] >= target:
        return 0.0
    for index, (low, high) in enumerate(itertools.pairwise(curve.accuracy)):
        if low < target <= high:
            before, after = curve.num_tokens[index : index + 2]
            reached = before + (after - before) * (target - low) / (high - low)
            return reached if reached <= budget else None
    return None


def heights(curve: LearningCurve, num_tokens: Sequence[float] | np.ndarray) -> np.ndarray:
    """The curve's accuracy at these numbers of tokens; beyond its last evaluation it is level."""
    at: np.ndarray = np.interp(np.asarray(num_tokens, dtype=float), curve.num_tokens, curve.accuracy)
    return at


def mean_curve(
    curves: Sequence[LearningCurve], budget: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Numbers of tokens from 0 to the budget, the mean accuracy there, and its 95% limits, each for itself.

    The limits are None of one curve.
    """
    at = np.linspace(0, budget, NUM_POINTS)
    each = np.stack([heights(curve, at) for curve in curves])
    if len(curves) < 2:
        return at, each[0], None, None
    limits = [mean_interval(column, 0.0, 1.0) for column in each.T.tolist()]
    low, high = (np.array([limit[end] for limit in limits if limit]) for end in (0, 1))
    return at, each.mean(axis=0), low, high


def mean_interval(values: Sequence[float], least: float, most: float) -> Interval | None:
    """Student's 95% interval for the mean of one number a seed, within what a mean can be; None of one.

        mean ± t(0.975, n - 1) s / √n

    Equal values leave no spread to judge by: the interval is then that one number.
    """
    if len(values) < 2:
        return None
    mean, error = math.fsum(values) / len(values), float(stats.sem(values))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return max(least, mean - half), min(most, mean + half)


def difference_of(values: Sequence[float], others: Sequence[float]) -> Difference:
    """The mean of `values` less `others`, which belong to the same seeds in the same order.

    Its interval and first p-value are those of Student's paired test. The second p-value asks how many of
    the 2ⁿ ways to flip the signs of the seeds' differences make a mean as far from 0 (Fisher 1935, scipy's
    permutation test): it supposes less, and is never below 2 / 2ⁿ, 0.06 for five seeds.

    Raises:
        ValueError: there are not as many of the one as of the other.
    """
    differences = [value - other for value, other in zip(values, others, strict=True)]
    mean = math.fsum(differences) / len(differences)
    if len(differences) < 2:
        return Difference(mean, None, None, None)
    flips = _flip_p_value(differences)
    if max(differences) - min(differences) <= ROUNDING:  # no spread that Student's test could divide by
        return Difference(mean, (mean, mean), None, flips)
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(CONFIDENCE)
    return Difference(mean, (float(interval.low), float(interval.high)), float(test.pvalue), flips)


def _flip_p_value(differences: Sequence[float]) -> float:
    test = stats.permutation_test(
        (np.asarray(differences, dtype=float),),
        np.mean,
        permutation_type="samples",
        n_resamples=NUM_FLIPS,
        random_state=np.random.default_rng(0),
    )
    return min(1.0, float(test.pvalue))


def compare_curves(
    kinds: Mapping[str, Sequence[LearningCurve]], budget: int, target: float
) -> list[ComparedRuns]:
    """What each kind of run comes to, and how it differs from the first.

    Final accuracy is that after the update which reached the budget, area and tokens to the target are those
    of the curve up to the budget. A run that doesn't reach the target counts with the budget, so that the
    mean is that of min(tokens, budget), and a lower bound where not all have reached it.

    Args:
        kinds: by name, a curve a seed, of all kinds the same seeds in the same order.
        budget: tokens.
        target: an accuracy.

    Raises:
        ValueError: there are no kinds, or not as many curves of each.
    """
    if not kinds or len({len(curves) for curves in kinds.values()}) > 1:
        raise ValueError("a comparison needs kinds of runs, each with the same seeds")
    limits: Mapping[MeasureName, Interval] = {
        "final": (0.0, 1.0),
        "area": (0.0, 1.0),
        "tokens": (0.0, budget),
    }
    compared: list[ComparedRuns] = []
    for name, curves in kinds.items():
        reached = [tokens_to(curve, target, budget) for curve in curves]
        values: Mapping[MeasureName, list[float]] = {
            "final": [final_accuracy(curve) for curve in curves],
            "area": [area_under(curve, budget) for curve in curves],
            "tokens": [float(budget) if tokens is None else tokens for tokens in reached],
        }
        first = compared[0].measures if compared else {}
        compared.append(
            ComparedRuns(
                name,
                {key: _over_seeds(each, *limits[key]) for key, each in values.items()},
                sum(tokens is not None for tokens in reached),
                {key: difference_of(values[key], measure.values) for key, measure in first.items()},
                tuple(curve.num_tokens[-1] for curve in curves),
            )
        )
    return compared


def _over_seeds(values: Sequence[float], least: float, most: float) -> OverSeeds:
    mean = math.fsum(values) / len(values)
    return OverSeeds(tuple(values), mean, mean_interval(values, least, most))
