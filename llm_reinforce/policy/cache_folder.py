"""Where fetched and converted models are kept."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """`LLM_REINFORCE_CACHE`, else `$XDG_CACHE_HOME/llm_reinforce`, else `~/.cache/llm_reinforce`."""
    if chosen := os.environ.get("LLM_REINFORCE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llm_reinforce"
