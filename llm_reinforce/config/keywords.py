"""Settings given in Python, as keyword arguments, become a Config by the same rules as a recipe."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from llm_reinforce.config.run_config import Config
from llm_reinforce.config.section import Section
from llm_reinforce.config.strict_yaml import Document, nearest, validate
from llm_reinforce.errors import InputError

CALLER = "ReinforceTrainer"  # shown in front of messages, as a recipe's file is


def config_from_keywords(
    base: Config | None, described: Mapping[str, Any], keywords: Mapping[str, Any]
) -> Config:
    """Compose a Config of a base, of sections that describe the caller's objects, and of keyword arguments.

    A keyword is a section (`training={"num_updates": 10}`, or `training=TrainingConfig(…)`), or a key of one:
    `num_updates=10`. Keywords take precedence over `described`, and that over `base`.

    Args:
        described: by top-level key, the value that takes the place of the base's.

    Raises:
        InputError: an unknown or ambiguous keyword, or values that a recipe could not have; one line each.
    """
    data: dict[str, Any] = base.model_dump(mode="json", exclude_unset=True) if base is not None else {}
    data |= {key: _plain(value) for key, value in described.items()}
    problems = []
    for name, value in keywords.items():
        if name in Config.model_fields:
            value = _plain(value)
            is_section = isinstance(value, Mapping) and isinstance(data.get(name), Mapping)
            data[name] = {**data[name], **value} if is_section else value
            continue
        sections = sections_with(name)
        if len(sections) != 1:
            problems.append(f"{CALLER}: {_no_place(name, sections)}")
            continue
        section = data.setdefault(sections[0], {})
        section[name] = _plain(value)
    if problems:
        raise InputError("\n".join(problems))
    return validate(Config, Document(CALLER, data))


def sections_with(key: str) -> list[str]:
    """Return the sections of a Config that a keyword of this name may mean.

    `problems` and `policy` come first, since the arguments of these names are no sections: `template=` is the
    template of the training problems, which evaluations use too.
    """
    found = [section for section, known in _keys_of_sections() if key == known]
    return [section for section in found if section in ("policy", "problems")] or found


def _keys_of_sections() -> Iterator[tuple[str, str]]:
    for name, field in Config.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section) and name != "rewards":
                yield from ((name, key) for key in kind.model_fields)


def _no_place(keyword: str, sections: list[str]) -> str:
    if sections:
        options = " or ".join(f"{section}={{{keyword!r}: …}}" for section in sections)
        return f"{keyword} is a key of {' and '.join(sections)}; write {options}"
    known = [*Config.model_fields, *(key for _, key in _keys_of_sections())]
    return f"unknown argument {keyword!r}{nearest(keyword, known)}"


def _plain(value: Any) -> Any:
    """Return the value as a recipe has it: settings classes as mappings of the keys that were set."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
