"""Learning curves of runs with equal budgets of sampled tokens, and comparisons of these curves.

The learning curve of a run is the run's accuracy as a function of the number of tokens sampled so far. A
variant is a recipe, possibly with changed settings. Every variant has one run, and therefore one curve, per
seed. Measures of a curve are, for example, its final accuracy and the area under it. The seeds are treated as
a random sample, over which the intervals of a measure are computed. Two variants are compared in pairs of
runs with the same seed.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

Interval = tuple[float, float]
MeasureName = Literal["final", "area", "tokens", "timed"]

CONFIDENCE = 0.95
# if more than this number of sign flips are possible, the sign-flip test uses this number of random flips
NUM_FLIPS = 9_999
NUM_POINTS = 201  # number of points of a mean curve
ROUNDING = 1e-12  # values that differ by at most this number are treated as equal


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """Learning curve of one run. Between two evaluations, accuracy is interpolated linearly.

    Attributes:
        num_tokens: number of tokens sampled before each evaluation. The first number is 0, and the numbers
            increase.
        accuracy: accuracy in 0..1 of each evaluation.
        seconds: total duration, in seconds, of the updates before each evaluation. Empty if the durations are
            unknown.

    Raises:
        ValueError: if the tuples differ in length, or if the numbers of tokens do not start at 0 or do not
            increase.
    """

    num_tokens: tuple[int, ...]
    accuracy: tuple[float, ...]
    seconds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.num_tokens) != len(self.accuracy) or self.num_tokens[:1] != (0,):
            raise ValueError(
                "num_tokens and accuracy of a learning curve should have the same length, and num_tokens "
                f"should start with 0; num_tokens is {self.num_tokens}, and accuracy is {self.accuracy}"
            )
        if self.seconds and len(self.seconds) != len(self.accuracy):
            raise ValueError(
                "seconds of a learning curve should be empty or have one duration for each of the "
                f"{len(self.accuracy)} accuracies, but it has {len(self.seconds)} durations"
            )
        if any(after <= before for before, after in itertools.pairwise(self.num_tokens)):
            raise ValueError(
                "num_tokens of a learning curve should increase from each evaluation to the next, but it "
                f"is {self.num_tokens}"
            )


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """Values of one measure of a variant for all seeds.

    Attributes:
        values: value for each seed.
        mean: mean of the values.
        interval: 95% interval of the mean; None if there is only one seed.
    """

    values: tuple[float, ...]
    mean: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of a measure between two variants, computed for each seed and averaged over seeds.

    Attributes:
        mean: mean of the differences over seeds.
        interval: 95% interval of the mean; None if there is only one seed.
        t_p_value: two-sided p-value of Student's paired t-test; None if there is only one seed, or if all
            differences are equal.
        flip_p_value: two-sided p-value of the sign-flip test; None if there is only one seed.
    """

    mean: float
    interval: Interval | None
    t_p_value: float | None
    flip_p_value: float | None


@dataclass(frozen=True, slots=True)
class ComparedRuns:
    """Measures of the runs of one variant (a recipe, possibly with changed settings).

    Attributes:
        name: name of the variant.
        measures: the measures by name. `final` is the final accuracy, `area` is the area under the curve
            (both are in 0..1), and `tokens` is the number of tokens to the target accuracy. `timed` is the
            accuracy after an equal time, which for each seed is the duration of the shortest run with this
            seed. `timed` is missing if there is only one variant, or if the durations of the updates are
            unknown.
        num_reached: number of runs that reached the target accuracy within the budget. For a run that did not
            reach it, the value of the measure `tokens` is the budget.
        differences: for each measure, the difference between this variant and the first variant; empty for
            the first variant.
        num_sampled: number of tokens that each run sampled. The number can exceed the budget, because a run
            stops only after an update.
    """

    name: str
    measures: Mapping[MeasureName, OverSeeds]
    num_reached: int
    differences: Mapping[MeasureName, Difference]
    num_sampled: tuple[int, ...]


def learning_curve(
    evaluations: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]], decoding: str
) -> LearningCurve:
    """Return the learning curve of a run from its logs.

    Args:
        evaluations: rows of `evaluations.jsonl`.
        metrics: rows of `metrics.jsonl`.
        decoding: decoding mode of the evaluations that are used, `greedy` or `sampled`.

    Raises:
        ValueError: if there is no evaluation with this decoding mode before the first update, or if `metrics`
            lacks an update after which the run was evaluated.
    """
    sampled = {0: 0, **{row["update"]: row["num_tokens"] for row in metrics}}
    durations = [row.get("step_time", math.nan) for row in metrics]
    seconds = {0: 0.0}
    seconds |= zip((row["update"] for row in metrics), itertools.accumulate(durations), strict=True)
    # an update has two evaluations if the run was resumed with a larger budget; the last evaluation is used
    rows = {row["update"]: row["accuracy"] for row in evaluations if row["decoding"] == decoding}
    if missing := sorted(rows.keys() - sampled.keys()):
        raise ValueError(
            f"metrics.jsonl has no line for update {missing[0]}, although evaluations.jsonl has an "
            "evaluation after this update"
        )
    if 0 not in rows:
        raise ValueError(f"evaluations.jsonl has no {decoding} evaluation before the first update")
    updates = sorted(rows)
    return LearningCurve(
        tuple(sampled[each] for each in updates),
        tuple(rows[each] for each in updates),
        () if any(map(math.isnan, durations)) else tuple(seconds[each] for each in updates),
    )


def final_accuracy(curve: LearningCurve) -> float:
    """Return the accuracy of the last evaluation, which was made after the update that reached the budget."""
    return curve.accuracy[-1]


def area_under(curve: LearningCurve, budget: int) -> float:
    """Return the mean accuracy from 0 tokens to the budget B, in 0..1.

        (1/B) ∫ accuracy(n) dn over n from 0 to B

    After the last evaluation, the accuracy is assumed to be constant.
    """
    inside = [number for number in curve.num_tokens if number < budget]
    at = np.array([*inside, budget], dtype=float)
    return float(np.trapezoid(heights(curve, at), at)) / budget


def tokens_to(curve: LearningCurve, target: float, budget: int) -> float | None:
    """Return the number of tokens at which the curve first reaches the target; None if not within the budget.

    The curve is linear between evaluations.
    """
    if curve.accuracy[0] >= target:
        return 0.0
    for index, (low, high) in enumerate(itertools.pairwise(curve.accuracy)):
        if low < target <= high:
            before, after = curve.num_tokens[index : index + 2]
            reached = before + (after - before) * (target - low) / (high - low)
            return reached if reached <= budget else None
    return None


def accuracy_after(curve: LearningCurve, seconds: float) -> float:
    """Return the accuracy after `seconds` of training. The curve is linear between evaluations."""
    return float(np.interp(seconds, curve.seconds, curve.accuracy))


def heights(curve: LearningCurve, num_tokens: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the accuracy at the given token counts. The curve is constant after the last evaluation."""
    at: np.ndarray = np.interp(np.asarray(num_tokens, dtype=float), curve.num_tokens, curve.accuracy)
    return at


def mean_curve(
    curves: Sequence[LearningCurve], budget: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return the mean of several learning curves, with its 95% interval.

    Returns:
        token counts from 0 to the budget, the mean accuracy at each count, and the lower and the upper limit
        of the mean's 95% interval at each count. Both limits are None if there is only one curve.
    """
    at = np.linspace(0, budget, NUM_POINTS)
    each = np.stack([heights(curve, at) for curve in curves])
    if len(curves) < 2:
        return at, each[0], None, None
    mean, half = each.mean(axis=0), _half_width(each)
    return at, mean, np.maximum(0.0, mean - half), np.minimum(1.0, mean + half)


def mean_interval(values: Sequence[float], least: float, most: float) -> Interval | None:
    """Return Student's 95% interval of the mean, clipped to [least, most]; None if there is only one value.

        mean ± t(0.975, n - 1) s / √n

    n is the number of values and s is their standard deviation. If all values are equal, s is 0, and both
    limits are equal to the mean.
    """
    if len(values) < 2:
        return None
    mean, half = math.fsum(values) / len(values), float(_half_width(np.array(values)))
    return max(least, mean - half), min(most, mean + half)


def _half_width(values: np.ndarray) -> np.ndarray:
    """Return half the width of the mean's confidence interval. The mean is taken over the first axis."""
    error = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    half: np.ndarray = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error
    return half


def difference_of(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Return the mean of the differences `values` minus `others`, with its interval and p-values.

    The two sequences contain one value per seed, for the same seeds in the same order. The interval and
    `t_p_value` come from Student's paired t-test.

    `flip_p_value` comes from the sign-flip test (Fisher 1935), computed by scipy's permutation test. The
    signs of n differences can be chosen in 2ⁿ ways. The p-value is the share of these choices for which the
    mean is at least as far from 0 as the observed mean. The sign-flip test makes fewer assumptions than the
    t-test, but its p-value is never below 2 / 2ⁿ, which is 0.06 for five seeds.

    Raises:
        ValueError: if the two sequences differ in length.
    """
    differences = [value - other for value, other in zip(values, others, strict=True)]
    mean = math.fsum(differences) / len(differences)
    if len(differences) < 2:
        return Difference(mean, None, None, None)
    flips = _flip_p_value(differences)
    if max(differences) - min(differences) <= ROUNDING:  # Student's test would divide by 0
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
    variants: Mapping[str, Sequence[LearningCurve]], budget: int, target: float
) -> list[ComparedRuns]:
    """Return the measures of each variant, with their differences from the measures of the first variant.

    The final accuracy is measured after the update that reached the budget. The area and the number of tokens
    to the target accuracy are computed from the curve up to the budget. If a run does not reach the target,
    its number of tokens is set to the budget. The mean number of tokens is then a lower bound. Durations
    include only updates, not evaluations.

    Args:
        variants: mapping from the name of each variant to its curves, one per seed. All variants have the
            same seeds in the same order.
        budget: budget of each run, in sampled tokens.
        target: target accuracy.

    Raises:
        ValueError: if there are no variants, or if the variants have different numbers of curves.
    """
    if not variants or len({len(curves) for curves in variants.values()}) > 1:
        raise ValueError(
            "a comparison needs at least one variant, and all variants must have the same number of "
            "learning curves"
        )
    limits: Mapping[MeasureName, Interval] = {
        "final": (0.0, 1.0),
        "area": (0.0, 1.0),
        "tokens": (0.0, budget),
        "timed": (0.0, 1.0),
    }
    is_timed = len(variants) > 1 and all(curve.seconds for curves in variants.values() for curve in curves)
    # for each seed, the time that the fastest variant took
    times = [
        min(one.seconds[-1] for one in of_seed) if is_timed else 0.0
        for of_seed in zip(*variants.values(), strict=True)
    ]
    compared: list[ComparedRuns] = []
    for name, curves in variants.items():
        reached = [tokens_to(curve, target, budget) for curve in curves]
        values: dict[MeasureName, list[float]] = {
            "final": [final_accuracy(curve) for curve in curves],
            "area": [area_under(curve, budget) for curve in curves],
            "tokens": [float(budget) if tokens is None else tokens for tokens in reached],
        }
        if is_timed:
            values["timed"] = [accuracy_after(*each) for each in zip(curves, times, strict=True)]
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
