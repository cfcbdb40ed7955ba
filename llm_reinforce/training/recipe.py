"""A recipe that can be trained: `load_recipe("quickstart").train()`."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from llm_reinforce.config import Config, dump_config, load_config
from llm_reinforce.training.trainer import ReinforceTrainer, TrainingResult


@dataclass(frozen=True, slots=True)
class Recipe:
    """A run's settings, read from a file.

    Attributes:
        config: all settings, by section: `recipe.config.training.num_updates`.
    """

    config: Config

    def trainer(self, **arguments: Any) -> ReinforceTrainer:
        """Return the trainer of this recipe; arguments are those of ReinforceTrainer and take precedence."""
        return ReinforceTrainer(config=self.config, **arguments)

    def train(
        self, *, resume: bool = False, overwrite: bool = False, progress: bool | None = None
    ) -> TrainingResult:
        """Train as the recipe says and return the result; see `ReinforceTrainer.train`."""
        return self.trainer(progress=progress).train(resume=resume, overwrite=overwrite)

    def __str__(self) -> str:
        """The recipe as YAML, defaults included."""
        return dump_config(self.config)


def load_recipe(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: a built-in name, a YAML file, or a run's directory.

        load_recipe("quickstart", ["training.num_updates=10"]).train()

    Args:
        overrides: `section.key=value`, as after `--set` on the command line.

    Raises:
        InputError: one line for each thing that is wrong.
    """
    return Recipe(load_config(Path(path) if isinstance(path, PathLike) else path, overrides))
