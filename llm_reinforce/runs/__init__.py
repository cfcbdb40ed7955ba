"""Runs on disk: directory, lock, logs, checkpoints, train state and summaries.

The train state is imported when it is first used, so that summaries of runs do not import torch.
"""

from typing import TYPE_CHECKING

from llm_reinforce.runs.environment import environment
from llm_reinforce.runs.run_directory import RunDirectory
from llm_reinforce.runs.run_summary import RunSummary, list_runs, summarize_run

if TYPE_CHECKING:
    from llm_reinforce.runs.train_state import BestEvaluation, TrainState

__all__ = [
    "BestEvaluation",
    "RunDirectory",
    "RunSummary",
    "TrainState",
    "environment",
    "list_runs",
    "summarize_run",
]


def __getattr__(name: str) -> object:
    if name in ("BestEvaluation", "TrainState"):
        from llm_reinforce.runs import train_state

        return getattr(train_state, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
