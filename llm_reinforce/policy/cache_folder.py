"""The directory in which fetched and converted models are stored."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """Return the directory in which fetched and converted models are stored.

    If the environment variable `LLM_REINFORCE_CACHE` is set, its value is the directory. Otherwise, the
    directory is `$XDG_CACHE_HOME/llm_reinforce` if `XDG_CACHE_HOME` is set, and `~/.cache/llm_reinforce` if
    neither variable is set.
    """
    if chosen := os.environ.get("LLM_REINFORCE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llm_reinforce"
