"""Recipes as arguments of functions: a name, a file, the directory of a run, or a Config."""

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path

from llm_reinforce.config import Config, load_config
from llm_reinforce.config.recipe_file import adapt_document
from llm_reinforce.config.strict_yaml import apply_override, dump_yaml, parse_document, validate

RecipeSource = str | PathLike[str] | Config
"""The name of a built-in recipe, a recipe file, the directory of a run, or a Config."""


def config_of(recipe: RecipeSource, overrides: Sequence[str] = ()) -> Config:
    """Return the settings of the recipe after applying overrides of the form `section.key=value`.

    Raises:
        InputError: if the recipe or an override is invalid. The message has one line for each error.
    """
    if not isinstance(recipe, Config):
        return load_config(fspath(recipe), overrides)
    if not overrides:
        return recipe
    document = parse_document(dump_yaml(recipe.model_dump(mode="json", exclude_unset=True)), name="config")
    for override in overrides:
        apply_override(document, override)
    return validate(Config, document, adapt_document)


def name_of(recipe: RecipeSource) -> str:
    """Return the file name of a recipe without the suffix; for a Config, the last part of `output_dir`."""
    return Path(recipe.output_dir).name if isinstance(recipe, Config) else Path(recipe).stem
