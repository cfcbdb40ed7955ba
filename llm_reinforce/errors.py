"""Exceptions of the toolkit, and functions that format messages and remove secrets from them."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
MIN_SECRET = 8  # characters; shorter values could occur in ordinary text by chance


class InputError(ValueError):
    """An error in the user's input, such as a missing file or an unknown key of a recipe.

    Commands print the message without a traceback and exit with code 2. The message therefore names the file,
    the key or the value that is invalid, and says how to fix it.
    """


def short_repr(value: object) -> str:
    """Return the repr of a value for a message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def repr_with_type(value: object) -> str:
    """Return the repr of a value, cut to 60 characters, followed by its type, for example `3 (int)`."""
    return f"{short_repr(value)} ({'class' if isinstance(value, type) else type(value).__name__})"


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` with the choice most similar to a word, or "" if no choice is similar."""
    near = closest(word, choices)
    return f"; did you mean '{near}'?" if near is not None else ""


def closest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice most similar to a word, or None if no choice is similar."""
    return next(iter(difflib.get_close_matches(word, list(choices), n=1)), None)


@contextmanager
def errors_in(section: str) -> Iterator[None]:
    """Prefix the message of an InputError raised in the `with` block with the name of a settings section."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{section}: {error}") from error


class RunStoppedError(RuntimeError):
    """Raised when a run stops early because it cannot make further useful updates.

    For example, a run is stopped if the gradients of many updates in a row were not finite. Commands exit
    with code 1.

    Attributes:
        can_resume: True if the run can be resumed after the cause is fixed, such as a failing reward function
            or a server that does not respond.
    """

    def __init__(self, message: str, *, can_resume: bool = False) -> None:
        super().__init__(message)
        self.can_resume = can_resume


class ProcessLostError(RunStoppedError):
    """Raised when a run in several processes stops because another process has ended or does not answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, can_resume=True)


class LeaveAtOnce(SystemExit):
    """Raised to exit immediately when the user sends a second signal, such as a second Ctrl-C.

    Code that catches the exceptions of reward functions, even SystemExit, does not catch this exception.
    """


def without_secrets(text: str) -> str:
    """Return the text with the values of secret environment variables replaced by their names.

    For example, the value of `HF_TOKEN` becomes `<HF_TOKEN>`. Messages and logs contain the text of
    exceptions raised by libraries and reward functions, and this text can include a request with its token.
    """
    replaced: str = texts_without_secrets(text)
    return replaced


def texts_without_secrets(value: Any) -> Any:
    """Apply `without_secrets` to all strings in nested lists and mappings.

    Keys of mappings, and values that are not strings, are unchanged.
    """
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
