"""Diagnosis of a recorded run: what is wrong, with evidence, and what to change."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from llm_reinforce.errors import InputError
from llm_reinforce.reports.collapse_sign import collapse
from llm_reinforce.reports.evaluation_signs import memorized, one_answer, small_evaluation
from llm_reinforce.reports.examples import with_example
from llm_reinforce.reports.finding import Finding, Row, RunFacts, worst_first
from llm_reinforce.reports.recorded_run import RecordedRun, find_runs, read_run
from llm_reinforce.reports.trend_signs import trend_signs
from llm_reinforce.reports.warning_signs import few_problems
from llm_reinforce.reports.window_signs import WINDOW_SIGNS, reward_failures, window_of

# a sign that is no longer visible is reported if it was visible in at least this share of the updates
MUCH = 0.5


def diagnose(run: str | PathLike[str] | RecordedRun) -> tuple[Finding, ...]:
    """Return the findings about a run, the most severe first. The tuple is empty if nothing is wrong.

    The run may be in progress. A symptom is reported if it is visible in the last updates, or in at least
    half of all updates. A symptom that another symptom explains is left out.

    Args:
        run: directory of a run, or the result of `read_one_run`.

    Raises:
        InputError: if the directory contains no run, or more than one run.
    """
    recorded = run if isinstance(run, RecordedRun) else read_one_run(run)
    facts = facts_of(recorded)
    found: list[Finding | None] = [few_problems(facts)]
    found += [_sign_of_run(sign, recorded.metrics, facts) for sign in WINDOW_SIGNS]
    found.append(collapse(recorded.metrics, facts, window_of(facts)))
    found += trend_signs(recorded.metrics, facts)
    if recorded.metrics:
        found.append(reward_failures(recorded.metrics, facts))
    found += [memorized(recorded, facts), one_answer(recorded, facts), small_evaluation(recorded)]
    return tuple(with_example(each, recorded) for each in worst_first([each for each in found if each]))


def facts_of(run: RecordedRun) -> RunFacts:
    """Return the settings of a run that a diagnosis needs. Missing or invalid settings get default values."""
    settings = run.settings or {}
    reinforce, training = _mapping(settings.get("reinforce")), _mapping(settings.get("training"))
    counted = _mapping(_mapping(run.environment.get("data")).get("training")).get("num_problems")
    is_full = _mapping(settings.get("policy")).get("dtype", "float32") == "float32"
    updates_per_batch = max(1, _integer(reinforce.get("updates_per_batch"), 1))
    return RunFacts(
        num_problems=counted if isinstance(counted, int) else None,
        problems_per_update=_integer(reinforce.get("problems_per_update"), 16),
        episodes_per_problem=_integer(reinforce.get("episodes_per_problem"), 8),
        num_updates=-(-run.summary.max_updates // updates_per_batch) or max(1, len(run.metrics)),
        num_warmup_updates=_integer(training.get("num_warmup_updates"), 0),
        is_full_precision=is_full and training.get("mixed_precision", "no") == "no",
        updates_per_batch=updates_per_batch,
        has_curriculum=bool(reinforce.get("curriculum")),
        has_refill=bool(reinforce.get("refill")),
    )


def read_one_run(run: str | PathLike[str]) -> RecordedRun:
    """Return the recorded files of the run in a directory.

    Raises:
        InputError: if the directory contains no run, or more than one run.
    """
    path = Path(run).expanduser()
    summaries = find_runs([path])
    if len(summaries) > 1:
        raise InputError(f"{path}: contains {len(summaries)} runs; give the directory of one of them")
    return read_run(summaries[0], path.name)


def _sign_of_run(
    sign: Callable[[Sequence[Row], RunFacts], Finding | None],
    rows: Sequence[Row],
    facts: RunFacts,
) -> Finding | None:
    """Return the finding of a sign, or None if it is visible neither at the end nor in much of the run.

    A sign may be visible in several sequences of successive updates. It is measured over the last sequence if
    this sequence reaches the end of the run, and otherwise over the longest sequence.
    """
    window = window_of(facts, sign)
    if len(rows) < window:
        return None
    ends = range(window, len(rows) + 1)
    visible = [sign(rows[end - window : end], facts) is not None for end in ends]
    if not visible[-1] and sum(visible) < MUCH * len(visible):
        return None
    stretches = sorted(_stretches(visible), key=lambda each: (each[1] == len(visible), each[1] - each[0]))
    first, end = stretches[-1]
    return sign(rows[first : end - 1 + window], facts) or sign(rows[end - 1 : end - 1 + window], facts)


def _stretches(visible: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yield, for each sequence of consecutive true values, its first index and the index after its end."""
    first = None
    for index, each in enumerate([*visible, False]):
        if each and first is None:
            first = index
        elif not each and first is not None:
            yield first, index
            first = None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _integer(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default
