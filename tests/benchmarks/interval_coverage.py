"""Coverage of the 95% intervals of accuracies, by simulation: `python tests/benchmarks/interval_coverage.py`.

Each row of a table describes a kind of policy, or a kind of change between two policies. In every repetition,
each problem's chance of a correct answer is drawn from a distribution, and samples are then drawn with this
chance. The true accuracy is the mean of the distribution. `--repeats` sets the precision: 1,000 repetitions
give a standard error of 0.7 points. With one sample per problem, the coverage of a difference is computed
exactly, as a sum over all possible numbers of gained and lost problems, weighted by their probabilities.

A problem is gained if only the second policy solves it, and lost if only the first policy solves it.
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

RATES = (  # parameters a and b, and description, of a beta distribution of chances of a correct answer
    (0.1, 1.9, "5%, most near 0%, a few near 100%"),
    (0.05, 4.95, "1%, nearly all near 0%"),
    (0.1, 0.9, "10%, from a few problems"),
    (1.0, 9.0, "10%, all problems hard"),
    (0.3, 1.2, "20%"),
    (0.5, 0.5, "50%, most near 0% or 100%"),
    (0.1, 0.1, "50%, nearly all near 0% or 100%"),
    (2.0, 2.0, "50%, widely spread"),
    (20.0, 20.0, "50%, all similar"),
    (9.0, 1.0, "90%"),
    (1.9, 0.1, "95%"),
)
CHANGES = (  # probability that a problem is gained, and probability that a problem is lost
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
# beta distribution of the chances with the first policy, share of the problems whose chance is drawn again
# for the second policy, beta distribution of these new chances, and description
SHIFTS: tuple[tuple[Beta, float, Beta, str], ...] = (
    ((20.0, 20.0), 1.0, (20.0, 20.0), "all problems similar, no change"),
    ((4.0, 16.0), 1.0, (8.0, 12.0), "all similar, 20% to 40%"),
    ((0.1, 0.1), 1.0, (0.1, 0.1), "near 0% or 100%, all redrawn"),
    ((0.5, 0.5), 0.0, (1.0, 1.0), "most near 0% or 100%, no change"),
    ((0.3, 1.2), 0.1, (9.0, 1.0), "20%, a tenth of the problems learned"),
    ((0.1, 1.9), 0.5, (9.0, 1.0), "5%, half of them learned"),
    ((0.1, 1.9), 0.05, (9.0, 1.0), "5%, a twentieth learned"),
    ((1.9, 0.1), 0.1, (1.0, 9.0), "95%, a tenth forgotten"),
    ((0.01, 9.99), 0.9, (19.0, 1.0), "near 0%, nine tenths learned"),
)


def coverage(interval: Interval, rows: np.ndarray, truth: float) -> tuple[float, float]:
    """Return the share of the rows whose interval contains the true value, and the intervals' mean width."""
    ends = np.array([interval(row.tolist()) for row in rows])
    held = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
    return float(held.mean()), float((ends[:, 1] - ends[:, 0]).mean())


@functools.cache
def paired_interval(gained: int, lost: int, total: int) -> tuple[float, float]:
    """Return the interval of a difference of accuracies, with one sample per problem.

    Args:
        gained: number of gained problems.
        lost: number of lost problems.
        total: number of all problems.
    """
    return difference_interval([1.0] * gained + [-1.0] * lost + [0.0] * (total - gained - lost))


def exact_coverage(num_problems: int, gained: float, lost: float) -> tuple[float, float]:
    """Return the exact coverage and the mean width of the interval of a difference.

    Each problem has one sample.

    Args:
        num_problems: number of problems.
        gained: probability that a problem is gained.
        lost: probability that a problem is lost.
    """
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
    """Print a summary of the exact coverage for many pairs of rates of gained and lost problems.

    Pairs are omitted if fewer than five changed problems are expected.
    """
    cases = [
        (total, gained, lost)
        for total, gained, lost in itertools.product(num_problems, RATES_OF_CHANGE, RATES_OF_CHANGE)
        if lost <= gained and gained + lost <= 1 and total * (gained + lost) >= 5
    ]
    held = [exact_coverage(*case)[0] for case in cases]
    within = np.mean([0.93 <= share <= 0.97 for share in held])
    print(
        f"\n{within:.0%} of {len(cases)} pairs of rates with 5 or more changed problems have a coverage of "
        "93% to 97%"
    )
    for which in (int(np.argmin(held)), int(np.argmax(held))):
        total, gained, lost = cases[which]
        print(f"{held[which]:.1%}  {total} problems, {gained:.1%} gained, {lost:.1%} lost", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=1000, help="repetitions per row")
    parser.add_argument("--problems", type=int, nargs="+", default=[20, 50, 200], help="numbers of problems")
    parser.add_argument("--samples", type=int, nargs="+", default=[4, 8], help="samples per problem")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    print("accuracy, clustered by problem\nproblems  samples  coverage  width  chances")
    for num_problems, samples in itertools.product(options.problems, options.samples):
        for a, b, what in RATES:
            chances = random.beta(a, b, size=(options.repeats, num_problems))
            held, width = coverage(share_interval, random.binomial(samples, chances) / samples, a / (a + b))
            print(f"{num_problems:>8}  {samples:>7}  {held:>8.1%}  {width:.3f}  {what}", flush=True)
    print("\ndifference, one sample per problem, exact\nproblems  coverage  width  gained, lost, changed")
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
        for before, share, redrawn, what in SHIFTS:
            shape = (options.repeats, num_problems)
            early = random.beta(*before, size=shape)
            late = np.where(random.random(shape) < share, random.beta(*redrawn, size=shape), early)
            rows = (random.binomial(samples, late) - random.binomial(samples, early)) / samples
            truth = share * (redrawn[0] / sum(redrawn) - before[0] / sum(before))
            held, width = coverage(difference_interval, rows, truth)
            print(f"{num_problems:>8}  {samples:>7}  {held:>8.1%}  {width:.3f}  {what}", flush=True)
    print("\nMcNemar: share of p < 0.05 if there is no difference (at most 5%, since the test is exact)")
    for num_problems, rate in itertools.product(options.problems, (0.05, 0.3)):
        counts = random.multinomial(num_problems, [rate, rate, 1 - 2 * rate], size=options.repeats)
        share = np.mean([mcnemar(int(row[0]), int(row[1])) < 0.05 for row in counts])
        print(f"{num_problems:>8} problems, {rate:.0%} gained and as many lost: {share:.1%}", flush=True)


if __name__ == "__main__":
    main()
