"""How often a 95% interval holds the truth, by simulation: `python tests/benchmarks/interval_coverage.py`.

Each row of a table is a kind of policy, or of change between two: each problem's chance to be answered
rightly is drawn anew for every repetition, then its samples. The truth is the mean over all such problems.
`--repeats` sets the precision: 1,000 give a standard error of 0.7 points. With one sample a problem a
difference's coverage is exact: the chances of all numbers of problems gained and lost, added up.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from llm_reinforce.evaluation import difference_interval, mcnemar, share_interval

Interval = Callable[[Sequence[float]], tuple[float, float]]
Beta = tuple[float, float]

RATES = (  # a beta distribution of the problems' chances, and what it is like
    (0.1, 1.9, "most hopeless, a few sure: 5%"),
    (0.05, 4.95, "nearly all hopeless: 1%"),
    (0.1, 0.9, "10%, in a few problems"),
    (1.0, 9.0, "10%, all problems hard"),
    (0.3, 1.2, "20%"),
    (0.5, 0.5, "50%, most sure or hopeless"),
    (0.1, 0.1, "50%, nearly all sure or hopeless"),
    (2.0, 2.0, "50%, all kinds"),
    (20.0, 20.0, "50%, all alike"),
    (9.0, 1.0, "90%"),
    (1.9, 0.1, "95%"),
)
CHANGES = (  # the chance that a problem is gained, and that it is lost
    (0.3, 0.3),
    (0.5, 0.02),
    (0.3, 0.05),
    (0.2, 0.1),
    (0.1, 0.05),
    (0.05, 0.05),
    (0.02, 0.02),
    (0.2, 0.0),
    (0.1, 0.0),
    (0.05, 0.0),
    (0.5, 0.0),
    (0.9, 0.0),
    (0.8, 0.1),
)
RATES_OF_CHANGE = (
    0,
    0.005,
    0.01,
    0.02,
    0.03,
    0.05,
    0.08,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.98,
)
SHIFTS: tuple[
    tuple[Beta, float, Beta, str], ...
] = (  # before; the share drawn recompute_products, from what; what it is like
    ((20.0, 20.0), 1.0, (20.0, 20.0), "all problems alike, no change"),
    ((4.0, 16.0), 1.0, (8.0, 12.0), "all alike, 20% to 40%"),
    ((0.1, 0.1), 1.0, (0.1, 0.1), "sure or hopeless, drawn anew"),
    ((0.5, 0.5), 0.0, (1.0, 1.0), "most sure or hopeless, no change"),
    ((0.3, 1.2), 0.1, (9.0, 1.0), "20%, a tenth of the problems learned"),
    ((0.1, 1.9), 0.5, (9.0, 1.0), "5%, half of them learned"),
    ((0.1, 1.9), 0.05, (9.0, 1.0), "5%, a twentieth learned"),
    ((1.9, 0.1), 0.1, (1.0, 9.0), "95%, a tenth forgotten"),
    ((0.01, 9.99), 0.9, (19.0, 1.0), "hopeless, nine tenths learned"),
)


def coverage(interval: Interval, rows: np.ndarray, truth: float) -> tuple[float, float]:
    """The share of the rows whose interval holds the truth, and the intervals' mean width."""
    ends = np.array([interval(row.tolist()) for row in rows])
    held = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
    return float(held.mean()), float((ends[:, 1] - ends[:, 0]).mean())


@functools.cache
def paired_interval(gained: int, lost: int, total: int) -> tuple[float, float]:
    """Of so many problems gained and lost, one sample a problem."""
    return difference_interval([1.0] * gained + [-1.0] * lost + [0.0] * (total - gained - lost))


def exact_coverage(num_problems: int, gained: float, lost: float) -> tuple[float, float]:
    """The chance that the interval of a difference holds it, and its mean width; one sample a problem."""
    held = width = 0.0
    law = stats.multinomial(num_problems, [gained, lost, max(0.0, 1 - gained - lost)])
    for num_gained in range(num_problems + 1):
        rest = num_problems - num_gained
        counts = np.array([(num_gained, num_lost, rest - num_lost) for num_lost in range(rest + 1)])
        for (_, num_lost, _), chance in zip(counts.tolist(), law.pmf(counts).tolist(), strict=True):
            if chance > 1e-9:
                low, high = paired_interval(num_gained, num_lost, num_problems)
                held += chance * (low - 1e-9 <= gained - lost <= high + 1e-9)
                width += chance * (high - low)
    return held, width


def print_grid(num_problems: Sequence[int]) -> None:
    """Exact coverage over all pairs of rates with five or more problems to be expected to change."""
    cases = [
        (total, gained, lost)
        for total, gained, lost in itertools.product(num_problems, RATES_OF_CHANGE, RATES_OF_CHANGE)
        if lost <= gained and gained + lost <= 1 and total * (gained + lost) >= 5
    ]
    held = [exact_coverage(*case)[0] for case in cases]
    within = np.mean([0.93 <= share <= 0.97 for share in held])
    print(f"\nof {len(cases)} pairs of rates where 5 problems or more change, {within:.0%} within 93-97%")
    for which in (int(np.argmin(held)), int(np.argmax(held))):
        total, gained, lost = cases[which]
        print(f"{held[which]:.1%}  {total} problems, {gained:.1%} gained, {lost:.1%} lost", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--problems", type=int, nargs="+", default=[20, 50, 200])
    parser.add_argument("--samples", type=int, nargs="+", default=[4, 8])
    options = parser.parse_args()
    random = np.random.default_rng(0)
    print("accuracy, clustered by problem\nproblems  samples  coverage  width  chances")
    for num_problems, samples in itertools.product(options.problems, options.samples):
        for a, b, what in RATES:
            chances = random.beta(a, b, size=(options.repeats, num_problems))
            held, width = coverage(share_interval, random.binomial(samples, chances) / samples, a / (a + b))
            print(f"{num_problems:>8}  {samples:>7}  {held:>8.1%}  {width:.3f}  {what}", flush=True)
    print("\ndifference, one sample a problem, exactly\nproblems  coverage  width  gained, lost, both")
    for num_problems, (gained, lost) in itertools.product(options.problems, CHANGES):
        held, width = exact_coverage(num_problems, gained, lost)
        changed = num_problems * (gained + lost)
        print(
            f"{num_problems:>8}  {held:>8.1%}  {width:.3f}  {gained:.0%}, {lost:.0%}, {changed:.0f}",
            flush=True,
        )
    print_grid(options.problems)
    print("\ndifference, clustered by problem\nproblems  samples  coverage  width  chances")
    for num_problems, samples in itertools.product(options.problems, options.samples):
        for before, share, recompute_products, what in SHIFTS:
            shape = (options.repeats, num_problems)
            early = random.beta(*before, size=shape)
            late = np.where(random.random(shape) < share, random.beta(*anew, size=shape), early)
            rows = (random.binomial(samples, late) - random.binomial(samples, early)) / samples
            truth = share * (anew[0] / sum(recompute_products) - before[0] / sum(before))
            held, width = coverage(difference_interval, rows, truth)
            print(f"{num_problems:>8}  {samples:>7}  {held:>8.1%}  {width:.3f}  {what}", flush=True)
    print("\nMcNemar: how often p < 0.05 where there is no difference (at most 5%, the test is exact)")
    for num_problems, rate in itertools.product(options.problems, (0.05, 0.3)):
        counts = random.multinomial(num_problems, [rate, rate, 1 - 2 * rate], size=options.repeats)
        share = np.mean([mcnemar(int(row[0]), int(row[1])) < 0.05 for row in counts])
        print(f"{num_problems:>8} problems, {rate:.0%} gained and as many lost: {share:.1%}", flush=True)


if __name__ == "__main__":
    main()
