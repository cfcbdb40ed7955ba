"""Examples for findings: recorded completions that show a symptom."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from llm_reinforce.reports.finding import Finding, Row
from llm_reinforce.reports.recorded_run import RecordedRun, total_reward
from llm_reinforce.reports.shown_text import shown

MAX_PROMPT, MAX_COMPLETION = 200, 300  # maximum number of characters that are shown


def with_example(found: Finding, run: RecordedRun) -> Finding:
    """Return the finding with an example, which is a recorded episode that shows the symptom.

    If there is no such episode, the finding is returned unchanged.
    """
    choose = CHOICES.get(found.kind)
    if choose is None:
        return found
    episodes = [
        row
        for row in run.episodes
        if found.updates is None or found.updates[0] <= row["update"] <= found.updates[1]
    ]
    chosen = choose(episodes)
    return found if chosen is None else replace(found, example=described(chosen))


def described(row: Row) -> str:
    """Return a description of an episode: update, prompt, completion, verdict and reward."""
    reward = total_reward(row)
    if row.get("answer") is None:
        verdict = ["not verified, because there is no reference answer"]
    else:
        verdict = [
            f"correct answer {shown(row['answer'], MAX_PROMPT)!r}",
            f"judged {'correct' if row.get('correct') else 'wrong'} ({shown(row.get('reason', ''), 40)})",
        ]
    parts = [
        f"update {row['update']:,}",
        f"prompt {shown(row.get('prompt', ''), MAX_PROMPT)!r}",
        f"completion {shown(row.get('completion', ''), MAX_COMPLETION)!r}",
        *verdict,
        "unscored" if reward is None else f"reward {reward:.4g}",
    ]
    if row.get("failure"):
        parts.append(f"failure {shown(row['failure'], MAX_COMPLETION)!r}")
    return ", ".join(parts)


def _refused(rows: Sequence[Row]) -> Row | None:
    """Return the last episode whose answer was rejected for the most frequent reason."""
    wrong = [row for row in rows if not row.get("correct")]
    reasons = Counter(row.get("reason") for row in wrong)
    return next((row for row in reversed(wrong) if row.get("reason") == reasons.most_common(1)[0][0]), None)


def _rewarded(rows: Sequence[Row]) -> Row | None:
    """Return the last episode with the highest reward, among the episodes with wrong answers."""
    wrong = [row for row in rows if not row.get("correct") and total_reward(row) is not None]
    return max(wrong, key=lambda row: (total_reward(row) or 0.0, row["update"]), default=None)


def _unrewarded(rows: Sequence[Row]) -> Row | None:
    """Return the last episode with a correct answer or, if no answer is correct, the result of `_refused`.

    A correct answer is an example of the symptom `equal_rewards`, because wrong answers have the same reward.
    """
    return next((row for row in reversed(rows) if row.get("correct")), None) or _refused(rows)


def _truncated(rows: Sequence[Row]) -> Row | None:
    return next((row for row in reversed(rows) if not row.get("terminated")), None)


def _unscored(rows: Sequence[Row]) -> Row | None:
    return next((row for row in reversed(rows) if row.get("reward") is None), None)


def _failed(rows: Sequence[Row]) -> Row | None:
    return next((row for row in reversed(rows) if row.get("failure")), None)


CHOICES: dict[str, Callable[[Sequence[Row]], Row | None]] = {
    "no_reward": _refused,
    "equal_rewards": _unrewarded,
    "collapse": _refused,
    "one_answer": _refused,
    "no_spread": _refused,
    "reward_hacking": _rewarded,
    "truncation": _truncated,
    "unscored": _unscored,
    "reward_failures": _failed,
}
