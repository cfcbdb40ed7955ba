"""The loop, and what a run keeps."""

from llm_reinforce.console.run_display import Display, Silent
from llm_reinforce.runs.checkpoint import TrainState
from llm_reinforce.runs.run_directory import RunDirectory, environment
from llm_reinforce.training.trainer import ReinforceTrainer

__all__ = ["Display", "ReinforceTrainer", "RunDirectory", "Silent", "TrainState", "environment"]
