"""Training: the loop, the gradient step, metrics, and starting or resuming a recorded run."""

from llm_reinforce.training.loop import TrainingLoop, Update
from llm_reinforce.training.preview import Preview
from llm_reinforce.training.recipe import Recipe, load_recipe
from llm_reinforce.training.recording import check_same_run, differing_settings, with_date, with_recorded_date
from llm_reinforce.training.trainer import ReinforceTrainer, TrainingResult

__all__ = [
    "Preview",
    "Recipe",
    "ReinforceTrainer",
    "TrainingLoop",
    "TrainingResult",
    "Update",
    "check_same_run",
    "differing_settings",
    "load_recipe",
    "with_date",
    "with_recorded_date",
]
