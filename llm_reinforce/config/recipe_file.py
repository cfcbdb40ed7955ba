"""Functions that read and write recipes. A recipe is a YAML file with the settings of a run.

If a recipe is invalid, all of its errors are reported at once: unknown keys, wrong types and incompatible
settings. Each message contains the file and the line. For an unknown key, the message also suggests the most
similar known key. No model is loaded and no device is used.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm_reinforce.config.adaptation import adapt
from llm_reinforce.config.reinforce_config import READ_WITH_BASELINE
from llm_reinforce.config.run_config import Config
from llm_reinforce.config.strict_yaml import (
    Document,
    apply_override,
    dump_yaml,
    parse_document,
    validate,
)
from llm_reinforce.data_sets import has_file_suffix
from llm_reinforce.errors import InputError, nearest

RUN_RECIPE, RUN_ENVIRONMENT = "recipe.yaml", "environment.json"
"""Names of two files in the directory of a run."""
PATHS: tuple[tuple[str, ...], ...] = (
    ("policy", "name_or_path"),
    ("problems", "train", "data"),
    ("problems", "held_out", "data"),
    ("reinforce", "kl", "reference"),
    ("training", "warm_start", "data"),
)
"""Settings whose value may be the path of a file or folder."""


def builtin_recipes() -> dict[str, Path]:
    """Return the built-in recipes as a mapping from names to paths.

    The recipes are in the installed package, or in the repository if the package is run from a checkout.
    """
    here = Path(__file__).resolve()
    for folder in (here.parents[1] / "recipes", here.parents[2] / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and return it as a Config.

    A recipe can name data files, directories of models, and Python files with reward functions. Each of them
    is looked up in the current directory first, and then in the directory of the recipe.

    Args:
        path: a recipe file, a run directory, or the name of a built-in recipe.
        overrides: changes of the form `section.key=value`. Their values replace the values in the file. If
            they make another setting of the file invalid, its default is used, and a warning is issued.

    Raises:
        InputError: if the recipe does not exist or is invalid. The message has one line for each error.
    """
    file = _find_recipe(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as a text file: {error}") from None
    document = parse_document(text, name=str(file))
    if Path(path) != file and (file.parent / RUN_ENVIRONMENT).is_file():
        _follow_moved_run(document.data, file.parent)
    document.data.setdefault("output_dir", f"runs/{file.stem}")
    is_adaptable = bool(overrides) and _is_valid(document)
    for override in overrides:
        apply_override(document, override)
    _find_files_beside(document.data, file.parent)
    return validate(Config, document, adapt_document) if is_adaptable else validate(Config, document)


def adapt_document(document: Document) -> None:
    """Remove each setting that the user's changes have made invalid, and issue a warning about it."""
    for note in adapt(document.data, document.changed, Config):
        warnings.warn(note, stacklevel=4)


def dump_config(recipe: Config) -> str:
    """Return a Config as the YAML text of a recipe, including all defaults.

    Loading this recipe returns an equal Config.
    """
    data = recipe.model_dump(mode="json")
    for key, baseline in READ_WITH_BASELINE.items():
        if recipe.reinforce.baseline != baseline:
            del data["reinforce"][key]  # the key is invalid in a recipe with another baseline
    return dump_yaml(data)


def _is_valid(document: Document) -> bool:
    try:
        Config.model_validate(document.data)
    except ValidationError:
        return False
    return not document.problems


def _follow_moved_run(data: dict[str, Any], folder: Path) -> None:
    """Correct the paths in the recipe of a run whose directory was moved after the run was started.

    The recipe contains the path of the run's directory and the paths of files in this directory. These paths
    are replaced by paths in `folder`, the directory in which the recipe was found. The old paths may be
    relative to the directory in which the run was started.
    """
    if not isinstance(data.get("output_dir"), str):
        return
    before = Path(data["output_dir"]).expanduser()
    data["output_dir"] = str(folder)

    for keys in PATHS:
        section = _section(data, keys[:-1])
        path = Path(str(section.get(keys[-1]))).expanduser()
        if any(path.is_relative_to(before / kept) for kept in ("initial_policy", "problems")):
            section[keys[-1]] = str(folder / path.relative_to(before))


def _section(data: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return the section of a recipe at the path `keys`. Empty if the recipe has no such section."""
    found: Any = data
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _find_files_beside(data: Mapping[str, Any], folder: Path) -> None:
    """Replace names of files and folders beside the recipe by full paths.

    Names are replaced if they exist in `folder`, the directory of the recipe, but not in the current
    directory.
    """

    def beside(name: object) -> Path | None:
        there = folder.resolve() / name if isinstance(name, str) else None
        return there if there and there.exists() and not Path(str(name)).expanduser().exists() else None

    for path in PATHS:
        section = _section(data, path[:-1])
        name = str(section.get(path[-1]))
        found = beside(name) if path[-1] in section else None
        # a name without a slash may be the name of a data set or of a model, or the reference `start`
        if found and (has_file_suffix(name) or "/" in name or (_is_model(found) and name != "start")):
            section[path[-1]] = str(found)
    rewards = data.get("rewards")
    for reward in rewards if isinstance(rewards, list) else ():
        if isinstance(reward, dict):
            origin, _, name = str(reward.get("function")).rpartition(":")
            if origin.lower().endswith(".py") and (file := beside(origin)):
                reward["function"] = f"{file}:{name}"


def _is_model(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("config.json", "adapter_config.json"))


def _find_recipe(path: str | Path) -> Path:
    file, built_in = Path(path), builtin_recipes()
    if file.is_file():
        return file
    if (file / RUN_RECIPE).is_file():
        return file / RUN_RECIPE
    if str(path) in built_in:
        return built_in[str(path)]
    hint = nearest(file.stem, built_in) or f"; the built-in recipes are {', '.join(built_in) or 'none'}"
    raise InputError(f"{path}: no such file or built-in recipe{hint}")
