"""Runs on disk: directory, lock, logs, checkpoints and train state."""

from llm_reinforce.runs.run_directory import RunDirectory, environment
from llm_reinforce.runs.train_state import BestEvaluation, TrainState

__all__ = ["BestEvaluation", "RunDirectory", "TrainState", "environment"]
