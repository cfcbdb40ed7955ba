"""Write docs/settings.md from the settings classes.

python docs/generate_settings.py
"""

from pathlib import Path

from llm_reinforce.config import BUILT_IN_REWARD_ARGUMENTS, Config
from llm_reinforce.config.key_reference import KeyEntry, key_entries, key_reference

PAGE = Path(__file__).with_name("settings.md")

HEAD = """\
# Settings

This page lists every setting of a recipe with its default, its allowed values and its meaning.

The page is generated from the settings classes by `python docs/generate_settings.py`. In a recipe, a setting
is a YAML key of its section. On the command line, a setting is given as `--set section.key=value`. In Python,
a setting is a keyword argument; see [Python](python.md#settings).

Three commands help to write a recipe:

- `llm-reinforce recipes keys` prints this page, and `llm-reinforce recipes keys training` prints one section.
- `llm-reinforce recipes validate FILE` reports all errors in a recipe.
- `llm-reinforce recipes keys --json-schema` prints a JSON schema, which editors use to complete and check
  keys. Save its output as `recipe.schema.json`, and begin a recipe with the line
  `# yaml-language-server: $schema=recipe.schema.json`.

The file `recipe.yaml` in a run's directory shows the values of all settings, including defaults.
"""

ARGUMENTS_HEAD = """\
## Arguments of the built-in rewards

These keys belong to `arguments` of a built-in reward. See
[Reward functions](reward-functions.md#built-in-rewards) for their meaning.

| reward | key | default | values |
|---|---|---|---|
"""


def settings_page() -> str:
    """Return the text of docs/settings.md."""
    parts = [HEAD]
    for section in key_reference(Config):
        title = " and ".join(f"`{path}`" for path in section.paths if path) or "Top level"
        parts.append(f"## {title}\n\n{section.summary}\n\n{table(section.keys)}")
    rows = [
        f"| `{name}` | `{key.name}` | {cell(key.default)} | {cell(key.values)} |"
        for name, arguments in BUILT_IN_REWARD_ARGUMENTS.items()
        for key in key_entries(arguments)
    ]
    parts.append(ARGUMENTS_HEAD + "\n".join(rows))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def table(keys: tuple[KeyEntry, ...]) -> str:
    """Return the keys of a section as a Markdown table."""
    rows = [
        f"| `{key.name}` | {cell(key.default)} | {cell(key.values)} | {cell(key.description)} |"
        for key in keys
    ]
    return "\n".join(["| key | default | values | description |", "|---|---|---|---|", *rows])


def cell(text: str) -> str:
    """Return the text as a cell of a Markdown table; `<` outside code is escaped."""
    parts = text.replace("|", "\\|").replace("\n", " ").split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
