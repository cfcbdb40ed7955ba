"""Exceptions of the toolkit, and removal of secrets from messages, logs and tracebacks."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
MIN_SECRET = 8  # characters; shorter values could occur in ordinary text by chance


class InputError(ValueError):
    """Invalid input of the user, such as a file, a column or a key of a recipe.

    Commands show the message without a traceback and exit with code 2. The message therefore names the file,
    the key or the value, and says how to fix it.
    """


def short_repr(value: object) -> str:
    """Return the repr of a value for a message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def repr_with_type(value: object) -> str:
    """Return the repr of a value, cut to 60 characters, and its type: `3 (int)`."""
    return f"{short_repr(value)} ({'class' if isinstance(value, type) else type(value).__name__})"


@contextmanager
def errors_in(section: str) -> Iterator[None]:
    """Prefix the message of an InputError with a section of the settings."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{section}: {error}") from error


class RunStoppedError(RuntimeError):
    """A run that was saved and stopped because continuing it would be useless. Commands exit with code 1."""


class LeaveAtOnce(SystemExit):
    """Immediate exit after a second signal.

    It derives from SystemExit, and the code that catches errors of reward functions lets it pass.
    """


def without_secrets(text: str) -> str:
    """Return the text with the values of secret environment variables replaced by their names.

    For example, the value of `HF_TOKEN` becomes `<HF_TOKEN>`. Exceptions of libraries may quote a request
    with its token, and exceptions of reward functions are written to the logs of a run.
    """
    replaced: str = texts_without_secrets(text)
    return replaced


def texts_without_secrets(value: Any) -> Any:
    """Apply `without_secrets` to all strings in nested lists and mappings; keys and numbers are unchanged."""
    return _replaced(value, secrets) if (secrets := _secrets()) else value


def _secrets() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if len(value) >= MIN_SECRET and SECRET_NAME.search(name)
    }


def _replaced(value: Any, secrets: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for name, secret in secrets.items():
            value = value.replace(secret, f"<{name}>")
        return value
    if isinstance(value, Mapping):
        return {key: _replaced(each, secrets) for key, each in value.items()}
    return [_replaced(each, secrets) for each in value] if isinstance(value, list) else value
