"""Quick check whether the Hugging Face hub is reachable; its own client would retry for a minute or more."""

from functools import cache

PATIENCE = 5.0  # seconds


@cache
def hub_answers() -> bool:
    """Return True if the hub is reachable, False if not or in offline mode. The result is cached.

    If the hub is not reachable, files in the local cache can still be loaded.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # the exception types depend on the HTTP library of the installed release
        return False
    return True
