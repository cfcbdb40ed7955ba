"""The directory in which fetched and converted models are stored."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """Return the directory in which fetched and converted models are stored.

    The directory is the value of the environment variable `LLM_REINFORCE_CACHE` if it is set. Otherwise it is
    `$XDG_CACHE_HOME/llm_reinforce` if this variable is set, and `~/.cache/llm_reinforce` if it is not.
    """
    if chosen := os.environ.get("LLM_REINFORCE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llm_reinforce"
