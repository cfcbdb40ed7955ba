"""A recipe as an argument: a name, a file, a run's directory, or its settings."""

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path

from llm_reinforce.config import Config, load_config
from llm_reinforce.config.strict_yaml import apply_override, dump_yaml, parse_document, validate

RecipeSource = str | PathLike[str] | Config
"""A built-in recipe's name, a recipe's file, a run's directory, or a Config."""


def config_of(recipe: RecipeSource, overrides: Sequence[str] = ()) -> Config:
    """Return the recipe's settings with overrides, `section.key=value`, applied.

    Raises:
        InputError: one line for each thing that is wrong.
    """
    if not isinstance(recipe, Config):
        return load_config(fspath(recipe), overrides)
    if not overrides:
        return recipe
    document = parse_document(dump_yaml(recipe.model_dump(mode="json", exclude_unset=True)), name="config")
    for override in overrides:
        apply_override(document, override)
    return validate(Config, document)


def name_of(recipe: RecipeSource) -> str:
    """Return the name of a file or directory without its suffix; of a Config, that of its `output_dir`."""
    return Path(recipe.output_dir).name if isinstance(recipe, Config) else Path(recipe).stem
