"""Reference of all settings: defaults, allowed values and descriptions, read from the settings classes.

Values that can be written literally in a recipe are enclosed in backticks, as in Markdown.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

NAMES = {
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "a mapping",
    "number": "number",
    "integer": "integer",
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key of a section.

    Attributes:
        name: name of the key.
        default: default value, or "required".
        values: allowed values, in words.
        description: meaning of the key.
    """

    name: str
    default: str
    values: str
    description: str


@dataclass(frozen=True, slots=True)
class SectionEntry:
    """A section of a recipe.

    Attributes:
        paths: every path at which the section occurs, such as `problems.train`; "" is the top level.
        summary: purpose of the section, in one sentence.
        keys: keys of the section.
    """

    paths: tuple[str, ...]
    summary: str
    keys: tuple[KeyEntry, ...]


def key_reference(root: type[BaseModel]) -> list[SectionEntry]:
    """Return all sections of a settings class, in the order in which they occur in a recipe."""
    found: dict[type[BaseModel], list[str]] = {}

    def visit(model: type[BaseModel], path: str) -> None:
        found.setdefault(model, []).append(path)
        for key, field in model.model_fields.items():
            for inner, is_list in _models_in(field.annotation):
                name = f"{key}.N" if is_list else key
                visit(inner, f"{path}.{name}" if path else name)

    visit(root, "")
    return [
        SectionEntry(
            tuple(paths), " ".join((model.__doc__ or "").split("\n\n")[0].split()), key_entries(model)
        )
        for model, paths in found.items()
    ]


def key_entries(section: type[BaseModel]) -> tuple[KeyEntry, ...]:
    """Return the keys of one settings class."""
    schema = section.model_json_schema()
    return tuple(
        KeyEntry(key, _default(field), _allowed(schema["properties"][key]), field.description or "")
        for name, field in section.model_fields.items()
        for key in [field.alias or name]
    )


def _models_in(annotation: Any, *, is_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """Yield each settings class in a type annotation, with True for a class that is inside a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, is_list
    for inner in get_args(annotation):
        yield from _models_in(inner, is_list=is_list or getattr(annotation, "__origin__", None) is tuple)


def _default(field: FieldInfo) -> str:
    """Return the default of a key, as it would be written in a recipe."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, BaseModel):
        return "the section's defaults"
    if isinstance(default, tuple) and default and isinstance(default[0], BaseModel):
        items = [each.model_dump(mode="json", exclude_unset=True) for each in default]
        return (
            f"`[{', '.join('{' + ', '.join(f'{k}: {v}' for k, v in item.items()) + '}' for item in items)}]`"
        )
    if isinstance(default, tuple):
        return f"`[{', '.join(str(each) for each in default)}]`"
    if isinstance(default, float):
        return f"`{default:g}`"
    if isinstance(default, str):
        return f"`{json.dumps(default, ensure_ascii=False) if set(default) & set('{*') else default}`"
    return f"`{json.dumps(default)}`"


def _allowed(node: Schema) -> str:
    """Return a description of the values that a key can have."""
    return " or ".join(dict.fromkeys(_kind(branch) for branch in node.get("anyOf", [node])))


def _kind(node: Schema) -> str:
    """Return a description of the values that one alternative of a JSON schema allows."""
    if "$ref" in node or "allOf" in node:
        return "a section"
    if choices := node.get("enum", [node["const"]] if "const" in node else []):
        return ", ".join(
            f"`{choice if isinstance(choice, str) else json.dumps(choice)}`" for choice in choices
        )
    if node.get("type") == "array":
        if items := node.get("prefixItems"):
            return f"a list of {len(items)}: {_kind(items[0])}"
        return f"a list: {_kind(node['items'])}" if "items" in node else "a list"
    if "type" not in node:
        return "any"
    bounds = [f"{sign} {node[bound]:g}" for bound, sign in BOUNDS.items() if bound in node]
    return " ".join([NAMES[node["type"]], ", ".join(bounds)]).strip()
