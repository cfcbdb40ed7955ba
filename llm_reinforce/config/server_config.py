"""Settings of a server that samples the completions of a run."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from llm_reinforce.config.section import Count, Positive, Section, Text

DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY = "VLLM_API_KEY"
"""Environment variable that contains the API key of the server."""
TEMPERATURES = (0.01, 2.0)
"""Smallest and largest temperature at which vLLM samples. vLLM raises lower temperatures to the smallest."""


class ServerConfig(Section):
    """A vLLM server that samples the completions of a run, while the trainer computes the updates."""

    url: Text = Field(default=DEFAULT_URL, description="address of the server")
    sync: Literal["auto", "disk", "adapter"] = Field(
        default="auto",
        description="how the server gets the new weights after an update; disk: from files with all weights; "
        "adapter: from files with the LoRA adapter; auto: `adapter` if `policy.lora` is set, and `disk` "
        "otherwise or if the transfer of the adapter fails",
    )
    sync_every: Count = Field(
        default=1,
        description="number of batches between two transfers of the weights; above 1, some batches are "
        "sampled from older weights, and the importance weights correct for the difference",
    )
    directory: Text | None = Field(
        default=None,
        description="directory to which the run writes the weights for the server; the server must be able "
        "to read it under the same path; each run uses a subdirectory of its own; null: output_dir followed "
        "by .server, or a temporary directory if the run has no output_dir",
    )
    timeout: Positive = Field(
        default=600.0, description="time, in seconds, that the trainer waits for the answer to a request"
    )
    tolerance: Positive | None = Field(
        default=None,
        description="largest mean difference, in nats, between the server's and the trainer's "
        "log-probabilities after a transfer of the weights; null: 0.001, or 0.05 in half precision",
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if "@" in url:  # the message does not show the address, which may contain a password
            raise ValueError(
                "should not contain a user name or a password, because the address is saved and logged; "
                f"remove them, and set the environment variable {API_KEY} if the server needs a key"
            )
        try:
            parts = urlsplit(url)
            is_complete = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # the port is not a number, or a bracket of an IPv6 address is missing
            is_complete = False
        # urlsplit ignores tabs and line breaks
        is_plain = all("!" <= character <= "~" for character in url)
        if not (is_complete and is_plain) or "?" in url or "#" in url:
            raise ValueError(f"should be an address such as {DEFAULT_URL}, not {url!r}")
        return url.rstrip("/")
