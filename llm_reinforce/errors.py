"""The exceptions that have a name: the user's to mend, a run that must not go on, and a leave at once.

And what no message, log or traceback may hold: the secrets of the environment.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
MIN_SECRET = 8  # characters: a shorter value would be found in plain text by chance


class InputError(ValueError):
    """Something that the user gave can't be used: a file, a column, a recipe's key.

    The message is shown as it stands, without a traceback, and the command exits 2; so it names the
    file, the key or the value, and the way out.
    """


@contextmanager
def errors_in(section: str) -> Iterator[None]:
    """Prefix the message of an InputError with the section of the settings that it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{section}: {error}") from error


class RunStoppedError(RuntimeError):
    """The run ends here, saved, because to go on would be of no use; the command exits 1."""


class LeaveAtOnce(SystemExit):
    """A second signal has come: whatever runs ends here, a reward function's guard included."""


def without_secrets(text: str) -> str:
    """The text with the values of `HF_TOKEN`, `WANDB_API_KEY` and their like replaced by `<HF_TOKEN>`.

    A library's exception may quote a request with its token, and a reward function's end in a run's logs.
    """
    replaced: str = texts_without_secrets(text)
    return replaced


def texts_without_secrets(value: Any) -> Any:
    """The same of all texts in nested lists and mappings; keys and numbers stay what they are."""
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
