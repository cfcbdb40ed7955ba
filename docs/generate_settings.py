"""Write docs/settings.md from the settings classes.

python docs/generate_settings.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llm_reinforce.config import BUILT_IN_REWARD_ARGUMENTS, Config

PAGE = Path(__file__).with_name("settings.md")

HEAD = """\
# Settings

This page lists every setting of a recipe with its default, its allowed values and its meaning.

It is generated from the settings classes by `python docs/generate_settings.py`. In a recipe, a setting is a
YAML key of its section. On the command line, it is `--set section.key=value`. In Python, it is a keyword
argument; see [Python](python.md#settings). `llm-reinforce recipes validate FILE` checks them. The file
`recipe.yaml` in a run's directory shows their values, defaults included.
"""

ARGUMENTS_HEAD = """\
## Arguments of the built-in rewards

These keys belong to `arguments` of a built-in reward. See
[Reward functions](reward-functions.md#built-in-rewards) for their meaning.

| reward | key | default | values |
|---|---|---|---|
"""

NAMES = {
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "a mapping",
    "number": "number",
    "integer": "integer",
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

Schema = dict[str, Any]


def settings_page() -> str:
    """Return the text of docs/settings.md."""
    parts = [HEAD]
    for paths, section in sections(Config):
        title = " and ".join(f"`{path}`" for path in paths) or "Top level"
        parts.append(f"## {title}\n\n{summary(section)}\n\n{table(section)}")
    rows = [
        f"| `{name}` | `{key}` | {shown_default(field)} | {allowed(arguments, key)} |"
        for name, arguments in BUILT_IN_REWARD_ARGUMENTS.items()
        for key, field in arguments.model_fields.items()
    ]
    parts.append(ARGUMENTS_HEAD + "\n".join(rows))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def sections(root: type[BaseModel]) -> list[tuple[list[str], type[BaseModel]]]:
    """Return the settings classes in the order of the recipe, each with the paths at which it occurs."""
    found: dict[type[BaseModel], list[str]] = {}

    def visit(model: type[BaseModel], path: str) -> None:
        found.setdefault(model, []).append(path)
        for key, field in model.model_fields.items():
            for inner, is_list in models_in(field.annotation):
                name = f"{key}.N" if is_list else key
                visit(inner, f"{path}.{name}" if path else name)

    visit(root, "")
    return [(paths if paths != [""] else [], model) for model, paths in found.items()]


def models_in(annotation: Any, *, is_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    """Yield the settings classes in an annotation, each with True if it is an item of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, is_list
    for inner in get_args(annotation):
        yield from models_in(inner, is_list=is_list or getattr(annotation, "__origin__", None) is tuple)


def summary(section: type[BaseModel]) -> str:
    """Return the first paragraph of the class's docstring."""
    return " ".join((section.__doc__ or "").split("\n\n")[0].split())


def table(section: type[BaseModel]) -> str:
    """Return the settings of a class as a Markdown table."""
    rows = [
        f"| `{key}` | {shown_default(field)} | {allowed(section, key)} | {cell(field.description or '')} |"
        for key, field in section.model_fields.items()
    ]
    return "\n".join(["| key | default | values | description |", "|---|---|---|---|", *rows])


def shown_default(field: FieldInfo) -> str:
    """Return the default as a recipe writes it."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "the section's defaults"
    if isinstance(default, tuple) and default and isinstance(default[0], BaseModel):
        items = [each.model_dump(mode="json", exclude_unset=True) for each in default]
        return code(
            ", ".join("{" + ", ".join(f"{k}: {v}" for k, v in item.items()) + "}" for item in items), "[]"
        )
    if isinstance(default, tuple):
        return code(", ".join(str(each) for each in default), "[]")
    if isinstance(default, float):
        return code(f"{default:g}")
    if isinstance(default, str):
        return code(json.dumps(default, ensure_ascii=False) if "{" in default or "*" in default else default)
    return code(json.dumps(default))


def code(text: str, brackets: str = "") -> str:
    """Return the text in code font, between the two brackets if there are any."""
    return f"`{brackets[:1]}{text}{brackets[1:]}`"


def allowed(section: type[BaseModel], key: str) -> str:
    """Return the allowed values of a setting, in words."""
    schema = section.model_json_schema()
    node = schema["properties"][key]
    kinds = dict.fromkeys(kind(branch, schema) for branch in node.get("anyOf", [node]))
    return cell(" or ".join(kinds))


def kind(node: Schema, root: Schema) -> str:
    """Return one alternative of a setting's type, in words."""
    if "$ref" in node or "allOf" in node:
        return "a section"
    if choices := node.get("enum", [node["const"]] if "const" in node else []):
        return ", ".join(code(choice) for choice in choices)
    if node.get("type") == "array":
        if items := node.get("prefixItems"):
            return f"a list of {len(items)}: {kind(items[0], root)}"
        return f"a list: {kind(node['items'], root)}" if "items" in node else "a list"
    if "type" not in node:
        return "any"
    bounds = [f"{sign} {node[bound]:g}" for bound, sign in BOUNDS.items() if bound in node]
    return " ".join([NAMES[node["type"]], ", ".join(bounds)]).strip()


def cell(text: str) -> str:
    """Return the text as a cell of a Markdown table; `<` outside code is escaped."""
    parts = text.replace("|", "\\|").replace("\n", " ").split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
