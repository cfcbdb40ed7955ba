"""Prepare texts for a page: shorten long texts, escape control characters, and hide secret settings."""

import re
from collections.abc import Mapping
from typing import Any

from llm_reinforce.config.strict_yaml import dump_yaml
from llm_reinforce.console.text import visible
from llm_reinforce.errors import SECRET_NAME

MAX_TEXT = 4_000  # maximum number of characters of a prompt or of an answer
MAX_TOKEN = 80  # maximum number of characters of a token
_PLAIN_OR_NOT = re.compile(r"([\n\t])")


def shown(text: object, max_characters: int = MAX_TEXT) -> str:
    r"""Return a text with control characters written as escapes, and without its middle if it is long.

    Line breaks and tabs are kept. Other control characters, marks that change the writing direction, and
    halves of surrogate pairs are written as escapes, such as `\x1b`. The template of the page escapes HTML.
    """
    whole = str(text)
    if len(whole) > max_characters:
        half = max_characters // 2
        whole = f"{whole[:half]}… ({len(whole):,} characters) …{whole[-half:]}"
    if whole.isprintable():
        return whole
    return "".join(part if part in "\n\t" else visible(part) for part in _PLAIN_OR_NOT.split(whole))


def without_secret_entries(value: Any) -> Any:
    """Return nested JSON values, with "(hidden)" for the values of keys such as `api_key`.

    All other texts are passed through `shown`.
    """
    if isinstance(value, dict):
        return {
            shown(key): "(hidden)" if SECRET_NAME.search(str(key)) else without_secret_entries(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [without_secret_entries(entry) for entry in value]
    return shown(value) if isinstance(value, str) else value


def shown_settings(settings: Mapping[str, Any] | None) -> str:
    """Return settings as YAML, with "(hidden)" for the values of keys such as `api_key`.

    All other texts are passed through `shown`.
    """
    if settings is None:
        return "(recipe.yaml cannot be read)"
    return dump_yaml(without_secret_entries(dict(settings)))
