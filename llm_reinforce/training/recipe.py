"""Recipes: the settings of a run, read from a YAML file, as in `load_recipe("quickstart").train()`."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from llm_reinforce.config import Config, dump_config, load_config
from llm_reinforce.training.trainer import ReinforceTrainer, TrainingResult


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of a run. `print(recipe)` shows the settings as YAML.

    Attributes:
        config: all settings, grouped in sections. An example is `recipe.config.training.num_updates`.
    """

    config: Config

    def trainer(self, **arguments: Any) -> ReinforceTrainer:
        """Return a trainer with the settings of this recipe.

        Args:
            arguments: arguments of `ReinforceTrainer`, which take precedence over the settings of the recipe.
        """
        return ReinforceTrainer(config=self.config, **arguments)

    def train(
        self, *, resume: bool = False, overwrite: bool = False, progress: bool | None = None
    ) -> TrainingResult:
        """Train to the last update and return the result.

        The run is recorded in `config.output_dir`.

        Args:
            resume: continue the run in `config.output_dir` from its newest checkpoint.
            overwrite: delete the run in `config.output_dir` and start a new one.
            progress: True to show progress, False to hide it. Default: shown on a terminal and in a notebook.

        Raises:
            InputError: if the run cannot be started; see `ReinforceTrainer` and `ReinforceTrainer.train`.
            RunStoppedError: if the run cannot continue; see `ReinforceTrainer.train`.
        """
        return self.trainer(progress=progress).train(resume=resume, overwrite=overwrite)

    def __str__(self) -> str:
        """Return the settings as YAML, including those with default values."""
        return dump_config(self.config)


def load_recipe(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

        load_recipe("quickstart", ["training.num_updates=10"]).train()

    Args:
        path: name of a built-in recipe, path of a YAML file, or directory of a run.
        overrides: changes of the form `section.key=value`, like `--set` on the command line.

    Raises:
        InputError: if the recipe does not exist or is invalid. All invalid settings are reported together,
            one line each.
    """
    return Recipe(load_config(Path(path) if isinstance(path, PathLike) else path, overrides))
