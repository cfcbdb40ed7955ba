"""Findings about a run in progress. Each kind of finding is reported once."""

from collections.abc import Mapping
from typing import Any

from llm_reinforce.reports.collapse_sign import collapse
from llm_reinforce.reports.finding import Finding, Row, RunFacts, finding, mean, number, worst_first
from llm_reinforce.reports.trend_signs import trend_signs
from llm_reinforce.reports.window_signs import MAX_PATIENCE, WINDOW_SIGNS, window_of

TREND_EVERY = 20  # number of updates between two searches for trends
# metrics that are kept for all updates
KEPT = ("learning_rate", "accuracy", "reward", "reward_std", "entropy", "grad_norm")


class WarningSigns:
    """Search for signs that the policy of a run in progress does not learn. Report each kind of sign once.

    Args:
        facts: settings of the run. They determine over how many updates a sign is measured.
    """

    def __init__(self, facts: RunFacts) -> None:
        self._facts, self._window = facts, window_of(facts)
        self._rows: list[Row] = []
        self._best: tuple[float, float] | None = None
        self._found: dict[str, Finding] = {}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings so far, the most severe first."""
        return worst_first(list(self._found.values()))

    @property
    def sentences(self) -> tuple[str, ...]:
        """All findings so far, one sentence each, with the advice."""
        return tuple(each.text for each in self.findings)

    def before_first_update(self) -> Finding | None:
        """Return the finding of `few_problems`; None if there is none, or if it was returned before."""
        return self._worst_unseen([few_problems(self._facts)])

    def add(self, row: Row) -> Finding | None:
        """Add the metrics of the next update, and return the most severe new finding; None if there is none.

        A finding is new if no earlier call has made a finding of this kind.
        """
        self._rows.append(row)
        rows, facts = self._rows, self._facts
        if len(rows) > MAX_PATIENCE:
            rows[-MAX_PATIENCE - 1] = _trimmed(rows[-MAX_PATIENCE - 1])
        # the result of `best_accuracy`, computed without going through all updates again
        if self._best is None:
            self._best = number(row, "accuracy"), facts.num_independent_episodes
        elif len(rows) > self._window:
            accuracy = mean(rows[-self._window - 1 : -1], "accuracy")
            if accuracy > self._best[0]:
                self._best = accuracy, self._window * facts.num_independent_episodes
        found: list[Finding | None] = []
        for sign in WINDOW_SIGNS:
            window = window_of(facts, sign)
            if len(rows) >= window:
                found.append(sign(rows[-window:], facts))
        if "collapse" not in self._found:
            found.append(collapse(rows, facts, self._window, self._best))
        if len(rows) % TREND_EVERY == 0:
            found += trend_signs(rows, facts)
        return self._worst_unseen(found)

    def _worst_unseen(self, found: list[Finding | None]) -> Finding | None:
        """Record the findings of new kinds, and return the most severe of them; None if there are none."""
        seen = list(self._found.values())
        known = worst_first([*seen, *(each for each in found if each and each.kind not in self._found)])
        unseen = [each for each in known if each.kind not in self._found]
        self._found |= {each.kind: each for each in unseen}
        return unseen[0] if unseen else None


def few_problems(facts: RunFacts) -> Finding | None:
    """Return a finding if the run has fewer training problems than an update needs."""
    if facts.num_problems is None or facts.num_problems >= facts.problems_per_update:
        return None
    return finding(
        "few_problems",
        None,
        f"{'an' if facts.row_name == 'update' else 'a'} {facts.row_name} needs {facts.problems_per_update} "
        f"problems, but there are only {facts.num_problems} training problems, so each {facts.row_name} uses "
        "some problems several times",
        "use more training problems, or lower reinforce.problems_per_update",
    )


def _trimmed(row: Row) -> Mapping[str, Any]:
    """Return only the metrics that are needed to find trends, to save memory in runs of many updates."""
    return {
        name: value
        for name, value in row.items()
        if name == "update" or name in KEPT or name.startswith("step/") or name.endswith("/mean")
    }
