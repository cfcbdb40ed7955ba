"""Check quickly whether the Hugging Face hub is reachable.

Without this check, the hub's client library would retry for a minute or more if there is no network.
"""

from functools import cache

PATIENCE = 5.0  # seconds to wait for a response


@cache
def hub_answers() -> bool:
    """Return True if the Hugging Face hub responds. In offline mode, return False without a request.

    The result is cached. If the hub is not reachable, files in the local cache can still be loaded.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # the exception types depend on the HTTP library of huggingface_hub
        return False
    return True
