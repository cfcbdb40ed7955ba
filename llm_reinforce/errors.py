"""The exceptions that have a name: the user's to mend, a run that must not go on, and a leave at once.

And what no message, log or traceback may hold: the secrets of the environment.
"""

import os
import re

SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
MIN_SECRET = 8  # characters: a shorter value would be found in plain text by chance


class InputError(ValueError):
    """Something that the user gave can't be used: a file, a column, a recipe's key.

    The message is shown as it stands, without a traceback, and the command exits 2; so it names the
    file, the key or the value, and the way out.
    """


class RunStoppedError(RuntimeError):
    """The run ends here, saved, because to go on would be of no use; the command exits 1."""


class LeaveAtOnce(SystemExit):
    """A second signal has come: whatever runs ends here, a reward function's guard included."""


def without_secrets(text: str) -> str:
    """The text with the values of `HF_TOKEN`, `WANDB_API_KEY` and their like replaced by `<HF_TOKEN>`.

    A library's exception may quote a request with its token, and a reward function's end in a run's logs.
    """
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET:
            text = text.replace(value, f"<{name}>")
    return text
