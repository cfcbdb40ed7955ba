"""A recipe: a run's settings as a YAML file.

It is valid as a whole or refused: unknown keys, wrong types and incompatible settings are reported all at
once, each with its file, line and the nearest known key. Nothing here loads a model or touches a device.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_reinforce.config.problems_config import FILE_SUFFIXES
from llm_reinforce.config.reinforce_config import READ_WITH_BASELINE
from llm_reinforce.config.run_config import Config
from llm_reinforce.config.strict_yaml import apply_override, dump_yaml, nearest, parse_document, validate
from llm_reinforce.errors import InputError


def builtin_recipes() -> dict[str, Path]:
    """The recipes that come along, by name: from the installed package, or else from the checkout."""
    here = Path(__file__).resolve()
    for folder in (here.parents[1] / "recipes", here.parents[2] / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe's file, or a built-in recipe by its name; `section.key=value` overrides come on top.

    A reward's or a data file is sought from the current directory first, then beside the recipe.

    Raises one InputError with a line for each thing that is wrong.
    """
    file = _find_recipe(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: can't be read as a text file: {error}") from None
    document = parse_document(text, name=str(file))
    document.data.setdefault("output_dir", f"runs/{file.stem}")
    for override in overrides:
        apply_override(document, override)
    _find_files_beside(document.data, file.parent)
    return validate(Config, document)


def dump_config(recipe: Config) -> str:
    """The recipe as YAML, defaults written out; it loads back as an equal recipe."""
    data = recipe.model_dump(mode="json")
    for key, baseline in READ_WITH_BASELINE.items():
        if recipe.reinforce.baseline != baseline:
            del data["reinforce"][key]  # no other baseline reads it, so a file can't give it
    return dump_yaml(data)


def _find_files_beside(data: Mapping[str, Any], folder: Path) -> None:
    """Name the files that aren't found from here, but beside the recipe, by where they are."""

    def beside(name: object, suffixes: tuple[str, ...]) -> Path | None:
        there = folder.resolve() / name if isinstance(name, str) and name.endswith(suffixes) else None
        return there if there and there.is_file() and not Path(str(name)).expanduser().is_file() else None

    problems, rewards = data.get("problems"), data.get("rewards")
    for key in ("train", "held_out"):
        source = problems.get(key) if isinstance(problems, dict) else None
        if isinstance(source, dict) and (file := beside(source.get("data"), FILE_SUFFIXES)):
            source["data"] = str(file)
    for reward in rewards if isinstance(rewards, list) else ():
        if isinstance(reward, dict):
            origin, _, name = str(reward.get("function")).rpartition(":")
            if file := beside(origin, (".py",)):
                reward["function"] = f"{file}:{name}"


def _find_recipe(path: str | Path) -> Path:
    file, built_in = Path(path), builtin_recipes()
    if file.is_file():
        return file
    if (file / "recipe.yaml").is_file():  # a run's directory
        return file / "recipe.yaml"
    if str(path) in built_in:
        return built_in[str(path)]
    hint = nearest(file.stem, built_in) or f"; the built-in recipes are {', '.join(built_in) or 'none'}"
    raise InputError(f"{path}: there is no such file or built-in recipe{hint}")
