"""Adaptation of a recipe to settings that the user changes, on the command line or in Python.

A changed setting can make another setting of the recipe invalid. For example, 10 warmup updates in the recipe
are invalid after `--set training.num_updates=2`. If the user has not changed the invalid setting, it is
removed from the recipe, so that its default is used.
"""

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ValidationError

from llm_reinforce.config.strict_yaml import KeyPath, complaints, dotted, shown_value

REPLACED: dict[KeyPath, tuple[KeyPath, ...]] = {  # for each setting, the settings that it replaces
    ("policy", "name_or_path"): (("policy", "random_init"),),
    ("policy", "random_init"): (("policy", "name_or_path"), ("policy", "lora")),
    ("problems", "train"): (("problems", "generate"),),
    ("problems", "generate"): (("problems", "train"), ("problems", "held_out")),
    ("problems", "generate", "digits"): (
        ("problems", "generate", "operands"),
        ("problems", "generate", "held_out_operands"),
    ),
    ("problems", "generate", "operands"): (("problems", "generate", "digits"),),
    ("reinforce", "clip"): (("reinforce", "importance"),),
    ("reinforce", "importance"): (("reinforce", "clip"),),
}
OPTIONAL_SECTIONS: tuple[KeyPath, ...] = (("reinforce", "clip"), ("reinforce", "value"))

# settings that are never removed, because their defaults would change how the policy learns
KEPT: tuple[KeyPath, ...] = (("training", "schedule"),)


def adapt(data: dict[str, Any], changed: Collection[KeyPath], model: type[BaseModel]) -> list[str]:
    """Remove the settings of a recipe that are not valid together with changed settings.

    Without the changes, the recipe must be valid. Some settings are not removed: changed settings, sections
    that are not in `OPTIONAL_SECTIONS`, the settings in `KEPT`, and settings whose default is not valid
    either. If one of these settings is invalid, the later validation of the recipe reports an error.

    Args:
        data: the recipe, with the changes applied. It is modified.
        changed: paths of the changed settings.
        model: settings class of the recipe.

    Returns:
        a sentence for each removed setting.
    """
    notes = []
    for chosen, replaced in REPLACED.items():
        if _is_changed(chosen, changed) and _get(data, chosen) is not None:
            for path in replaced:
                if not _is_changed(path, changed) and _get(data, path) is not None:
                    _remove(data, path)
                    notes.append(f"{dotted(path)} of the recipe is not used, because {dotted(chosen)} is set")
    removed: dict[KeyPath, tuple[Any, str]] = {}  # value and error message
    while unfit := [
        (path, message)
        for path, message in _complaints(data, model)
        if _is_removable(data, path) and not _is_changed(path, changed) and path not in KEPT
    ]:
        for path, message in unfit:
            removed[path] = (_get(data, path), message)
            _remove(data, path)
    without_valid_default = {path for path, _ in _complaints(data, model)}
    for path, (value, message) in removed.items():
        if path in without_valid_default:
            _get(data, path[:-1])[path[-1]] = value
            continue
        notes.append(
            f"{dotted(path)}: {shown_value(value)} of the recipe does not fit the changed settings "
            f"({message}); the default is used"
        )
    return notes


def _complaints(data: dict[str, Any], model: type[BaseModel]) -> list[tuple[KeyPath, str]]:
    try:
        model.model_validate(data)
    except ValidationError as error:
        return complaints(error, model)
    return []


def _is_changed(path: KeyPath, changed: Collection[KeyPath]) -> bool:
    """Return True if the user has changed the setting at `path`, or a key of the section at `path`."""
    return any(each[: len(path)] == path for each in changed)


def _is_removable(data: dict[str, Any], path: KeyPath) -> bool:
    value = _get(data, path)
    return value is not None and (not isinstance(value, dict) or path in OPTIONAL_SECTIONS)


def _get(data: Any, path: KeyPath) -> Any:
    """Return the value of a setting, or None if the setting is absent or is inside a list."""
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _remove(data: Any, path: KeyPath) -> None:
    for part in path[:-1]:
        data = data[part]
    del data[path[-1]]
