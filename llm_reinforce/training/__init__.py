"""The training loop, and starting and resuming a recorded run."""

from llm_reinforce.training.loop import TrainingLoop, Update

__all__ = ["TrainingLoop", "Update"]
