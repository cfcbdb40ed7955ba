"""Signs in the evaluations of a run: memorized problems, one answer to all problems, too few problems."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

from llm_reinforce.reports.finding import Finding, Row, RunFacts, finding, finite, span, updates_of
from llm_reinforce.reports.recorded_run import RecordedRun

# for `memorized`: the gap between the accuracies on training and on held-out problems is reported if the
# lower end of its confidence interval is at least GAP; the high confidence level makes false alarms rare
GAP = 0.1
CONFIDENCE = 0.999
NEIGHBORS = 5  # number of batches before an evaluation whose episodes are compared with the evaluation
POWER, LEVEL = 0.8, 0.05  # power and significance level of a comparison
# for `one_answer`: minimum share of the most frequent answer, and maximum share of the most frequent correct
# answer
ONE_ANSWER, FEW_EQUAL = 0.9, 0.5
MIN_ANSWERS = 20  # minimum number of answers that `one_answer` examines


def problems_needed(changed: float, difference: float, power: float = POWER, level: float = LEVEL) -> int:
    """Return the number of problems that McNemar's test needs to detect a difference of two accuracies.

        n = ((z₁ √p + z₂ √(p - d²)) / d)²

    where p is the share of problems that exactly one of the two policies solves, d is the difference of the
    accuracies, and z₁ and z₂ are the normal quantiles of 1 - level/2 and of the power.

    Source: Connor 1987, "Sample size for testing differences in proportions for the paired-sample design".

    Args:
        changed: p.
        difference: d, with 0 < |d| ≤ p.
        power: probability with which the difference is detected.
        level: significance level of the two-sided test.
    """
    z_level, z_power = NormalDist().inv_cdf(1.0 - level / 2.0), NormalDist().inv_cdf(power)
    spread = z_level * math.sqrt(changed) + z_power * math.sqrt(max(0.0, changed - difference**2))
    return math.ceil((spread / difference) ** 2)


def problems_needed_for_means(error: float, num: int, difference: float) -> int:
    """Return the number of problems that are needed if each problem has several completions.

        n = N ((z₁ + z₂) s / d)²

    where s is the standard error of the difference with N problems, d is the difference, and z₁ and z₂ are
    the normal quantiles of 1 - LEVEL/2 and of POWER.

    Args:
        error: s.
        num: N.
        difference: d, not 0.
    """
    z_level, z_power = NormalDist().inv_cdf(1.0 - LEVEL / 2.0), NormalDist().inv_cdf(POWER)
    return math.ceil(num * ((z_level + z_power) * error / difference) ** 2)


def wilson(share: float, num: int, confidence: float) -> tuple[float, float]:
    """Return the Wilson confidence interval of a share that was measured on `num` problems."""
    z = NormalDist().inv_cdf((1.0 + confidence) / 2.0)
    center, scale = share + z * z / (2 * num), 1.0 + z * z / num
    half = z * math.sqrt(share * (1.0 - share) / num + z * z / (4 * num * num))
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def gap_interval(
    first: float, num_first: int, second: float, num_second: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return a confidence interval for the difference of two independent shares.

    Source: Newcombe 1998, method 10.

    Args:
        first: first share.
        num_first: number of problems on which the first share was measured.
        second: second share, which is subtracted.
        num_second: number of problems on which the second share was measured.
        confidence: confidence level of the interval.
    """
    (low_1, high_1), (low_2, high_2) = (
        wilson(first, num_first, confidence),
        wilson(second, num_second, confidence),
    )
    gap = first - second
    return (
        gap - math.hypot(first - low_1, high_2 - second),
        gap + math.hypot(high_1 - first, second - low_2),
    )


def memorized(run: RecordedRun, facts: RunFacts) -> Finding | None:
    """Return a finding if training problems are solved much more often than held-out problems.

    The training problems are those of the last updates before the evaluation. Each problem counts once,
    because the episodes of one problem are not independent. The episodes are sampled at the temperature of
    training. Greedy decoding is usually more accurate than sampling, so the gap to a greedy evaluation is
    underestimated. With `refill`, there is no finding, because the metric `accuracy` only describes the
    problems that remain after the replacements.
    """
    if facts.has_refill:
        return None
    evaluations = [row for row in run.evaluations if row.get("data") == "held_out" and row.get("total")]
    if not evaluations or not run.metrics:
        return None
    sampled = [row for row in evaluations if row["decoding"] == "sampled"]
    last = (sampled or evaluations)[-1]
    first = last["update"] - NEIGHBORS * facts.updates_per_batch
    rows = [row for row in run.metrics if first < row["update"] <= last["update"]]
    accuracies = finite(rows, "accuracy")
    if not accuracies or facts.num_problems is None:
        return None
    training = sum(accuracies) / len(accuracies)
    num_problems = min(facts.num_problems, len(accuracies) * facts.problems_per_update)
    num_held_out = round(last["total"] / (last.get("samples_per_problem") or 1))
    held_out = float(last["accuracy"])
    low, high = gap_interval(training, num_problems, held_out, num_held_out, CONFIDENCE)
    if low < GAP:
        return None
    low, high = gap_interval(training, num_problems, held_out, num_held_out)
    return finding(
        "memorized",
        updates_of(rows, facts),
        f"the accuracy on training problems in {span(rows, facts)} is {training:.1%}, but the accuracy on "
        f"held-out problems after update {last['update']:,} is {held_out:.1%}, so the policy has memorized "
        "training problems",
        "use more training problems, weight decay (training.weight_decay) or fewer updates, and choose the "
        "checkpoint with the best held-out accuracy (training.keep_best)",
        [
            f"difference of the two accuracies: {100 * (training - held_out):.1f} points, 95% interval "
            f"[{100 * low:.1f}, {100 * high:.1f}], measured on {num_problems:,} training problems and "
            f"{num_held_out:,} held-out problems",
            f"each training problem was used {_uses(run, facts):.1f} times on average",
        ],
    )


def one_answer(run: RecordedRun, facts: RunFacts) -> Finding | None:
    """Return a finding if the policy gives the same final answer to nearly all of the latest problems."""
    answers, where = _last_answers(run, facts)
    given = Counter(str(each) for each, _ in answers if each is not None)
    correct = Counter(answer for _, answer in answers)
    if len(answers) < MIN_ANSWERS or not given:
        return None
    (most, count), (_, count_correct) = given.most_common(1)[0], correct.most_common(1)[0]
    if count < ONE_ANSWER * len(answers) or count_correct > FEW_EQUAL * len(answers):
        return None
    return finding(
        "one_answer",
        None,
        f"the policy gives the same final answer, {most[:40]!r}, to {count:,} of {len(answers):,} problems "
        f"{where}",
        "start a new run with a lower training.learning_rate or a higher reinforce.entropy_coefficient, and "
        "check that the reward depends on the problem",
        [
            f"the {len(answers):,} problems have {len(correct):,} different correct answers, of which the "
            f"most frequent occurs {count_correct:,} times"
        ],
    )


def small_evaluation(run: RecordedRun) -> Finding | None:
    """Return a finding if an evaluation has too few problems to tell a gain in accuracy from chance."""
    for decoding, criteria in run.comparison.items():
        paired = criteria.get("accuracy") if isinstance(criteria, dict) else None
        totals = [
            row["total"] / (row.get("samples_per_problem") or 1)
            for row in run.evaluations
            if row.get("decoding") == decoding and row.get("total")
        ]
        if not isinstance(paired, dict) or not totals:
            continue
        total, gain = round(totals[-1]), float(paired["difference"])
        low, high = paired["interval"]
        if gain <= 0 or low > 0:
            continue
        if paired.get("test") == "sign_flip":  # several completions per problem
            error = (high - low) / (2 * NormalDist().inv_cdf(0.975))
            needed = problems_needed_for_means(error, total, gain)
            evidence = f"the standard error of the gain is {100 * error:.1f} points"
        else:
            changed = (len(paired.get("gained", [])) + len(paired.get("lost", []))) / max(1, total)
            if gain > changed:  # the recorded comparison is damaged
                continue
            needed = problems_needed(changed, gain)
            evidence = (
                f"{changed:.1%} of the problems are solved only in the first or only in the last evaluation"
            )
        if needed <= total:
            continue
        return finding(
            "small_evaluation",
            None,
            f"the gain in {decoding} accuracy is {100 * gain:+.1f} points, 95% interval [{100 * low:+.1f}, "
            f"{100 * high:+.1f}], so {total:,} problems are too few to distinguish this gain from chance",
            f"evaluate on {needed:,} problems or more, for example with `llm-reinforce evaluate`",
            [
                f"{evidence}, so {needed:,} problems are needed to detect a gain of {100 * gain:.1f} points "
                f"with a probability of {POWER:.0%}"
            ],
        )
    return None


def _uses(run: RecordedRun, facts: RunFacts) -> float:
    return len(run.metrics) * facts.problems_per_update / max(1, facts.num_problems or 1)


def _last_answers(run: RecordedRun, facts: RunFacts) -> tuple[list[tuple[Any, str]], str]:
    """Return the policy's latest answers, and a phrase that says where they come from.

    Each answer is a pair (final answer of the policy, correct answer). The answers are from the last
    evaluation. If fewer than `MIN_ANSWERS` of its answers are recorded, they are from the last episodes.
    """
    rows: Sequence[Row] = [row for row in run.answers if row.get("completions")]
    if rows:
        last = max(row["update"] for row in rows)
        decoding = next(row["decoding"] for row in rows if row["update"] == last)
        chosen = [row for row in rows if row["update"] == last and row["decoding"] == decoding]
        if len(chosen) >= MIN_ANSWERS:
            return (
                [(row["completions"][0].get("extracted"), str(row.get("answer"))) for row in chosen],
                f"of the {decoding} evaluation after update {last:,}",
            )
    end = run.episodes[-1]["update"] if run.episodes else 0
    recent = [row for row in run.episodes if row["update"] > end - NEIGHBORS * facts.updates_per_batch]
    return [
        (row.get("extracted"), str(row.get("answer"))) for row in recent
    ], f"in the last {NEIGHBORS} {facts.row_names}"
