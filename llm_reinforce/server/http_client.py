"""HTTP requests with a bounded number of attempts and a bounded duration."""

import json
import os
import time
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection, IncompleteRead
from typing import Any
from urllib.parse import urlsplit

from llm_reinforce.console.text import visible
from llm_reinforce.errors import RunStoppedError

WAITS = (0.5, 1.0, 2.0)  # seconds before the second, third and fourth attempt
KEY = "VLLM_API_KEY"  # environment variable that contains the API key of the server
MAX_SHOWN = 300  # maximum number of characters of the server's answer that an error message quotes
CHUNK = 1 << 16  # number of bytes that are read at once
HOW_TO_START = "start the server with `llm-reinforce serve`, then resume the run"


class ServerError(RunStoppedError):
    """Raised when a sampling server does not answer, or gives an answer that cannot be used."""

    def __init__(self, message: str) -> None:
        super().__init__(message, can_resume=True)


@dataclass(frozen=True, slots=True)
class HttpClient:
    """Client that sends HTTP requests to a server. Proxy settings are ignored.

    Attributes:
        url: address of the server, without a final slash.
        timeout: maximum duration of each attempt, in seconds.
    """

    url: str
    timeout: float

    def get_json(self, route: str) -> Any:
        """Send a GET request, and return the answer, parsed from JSON.

        Raises:
            ServerError: if `request` raises it, or if the answer is not JSON.
        """
        return self._read_json(route, self.request("GET", route))

    def post_json(self, route: str, body: object) -> Any:
        """Send a POST request, and return the answer, parsed from JSON.

        Raises:
            ServerError: if `request` raises it, or if the answer is not JSON.
        """
        return self._read_json(route, self.request("POST", route, body))

    def request(self, method: str, route: str, body: object = None) -> str:
        """Send a request and return the text of the answer.

        The request is repeated if the connection fails or the server reports an internal error.

        Args:
            method: GET or POST.
            route: path on the server, which begins with a slash.
            body: value that is sent as JSON. None: the request has no body.

        Raises:
            ServerError: if all attempts fail, if the server does not know the route or rejects the request,
                or if there is no answer within `timeout` seconds.
        """
        where = f"{self.url}: {method} {route}"
        for wait in (*WAITS, None):
            try:
                status, text = self._attempt(method, route, body)
            except TimeoutError as error:  # no further attempt, because a server that hangs rarely recovers
                raise ServerError(
                    f"{where}: the server did not answer within {self.timeout:g} seconds; restart the "
                    "server, or increase sampling.server.timeout, then resume the run"
                ) from error
            except (OSError, HTTPException) as error:
                reason, remedy = f"no connection: {error or type(error).__name__}", HOW_TO_START
            else:
                if status < 300:
                    return text
                reason = f"status {status}, {visible(text, MAX_SHOWN) or 'without a message'}"
                remedy = "read the log of the server, restart it, then resume the run"
                if status == 404:
                    raise ServerError(
                        f"{where}: the server does not have this route or model ({reason}); {HOW_TO_START}"
                    )
                if status < 500:
                    raise ServerError(f"{where}: the server rejected the request ({reason}); {remedy}")
            if wait is not None:
                time.sleep(wait)
        raise ServerError(f"{where}: {len(WAITS) + 1} attempts failed ({reason}); {remedy}")

    def _attempt(self, method: str, route: str, body: object) -> tuple[int, str]:
        """Send the request once, and return the status and the text of the answer."""
        deadline = time.monotonic() + self.timeout
        parts = urlsplit(self.url)
        assert parts.hostname is not None  # checked by ServerConfig
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        content = None if body is None else json.dumps(body).encode()
        with closing(kind(parts.hostname, parts.port, timeout=self.timeout)) as connection:
            connection.request(method, parts.path + route, content, headers)
            response = connection.getresponse()
            chunks = []
            while chunk := response.read1(CHUNK):
                chunks.append(chunk)
                if time.monotonic() > deadline:
                    raise TimeoutError
            if response.length:  # number of missing bytes
                raise IncompleteRead(b"".join(chunks), response.length)
            return response.status, b"".join(chunks).decode("utf-8", errors="replace")

    def _read_json(self, route: str, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise ServerError(
                f"{self.url}: the answer to {route} is not JSON ('{visible(text, MAX_SHOWN)}'); check that "
                "sampling.server.url is the address of a vLLM server, then resume the run"
            ) from error
