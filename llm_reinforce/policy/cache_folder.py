"""The directory in which fetched and converted models are stored."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """Return the cache directory.

    It is the value of the environment variable `LLM_REINFORCE_CACHE` if set, otherwise
    `$XDG_CACHE_HOME/llm_reinforce`, and otherwise `~/.cache/llm_reinforce`.
    """
    if chosen := os.environ.get("LLM_REINFORCE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llm_reinforce"
