"""HTTP requests with a bounded number of attempts and a bounded duration."""

import json
import os
import time
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection, IncompleteRead
from typing import Any
from urllib.parse import urlsplit

from llm_reinforce.config.server_config import API_KEY
from llm_reinforce.console.text import visible
from llm_reinforce.errors import RunStoppedError

WAITS = (0.5, 1.0, 2.0)  # seconds before the second, third and fourth attempt
CONNECT_TIMEOUT = 30.0  # maximum duration of an attempt to connect, in seconds
MAX_SHOWN = 300  # maximum number of characters of the server's answer that an error message quotes
CHUNK = 1 << 16  # number of bytes that are read at once
HOW_TO_START = "start the server with `llm-reinforce serve`, then resume the run"
HOW_TO_RESTART = "read the log of the server, restart the server, then resume the run"
REJECTION = ("the server rejected the request", HOW_TO_RESTART)
REDIRECTION = (
    "the server redirected the request",
    "set sampling.server.url to the address to which the server redirects, then resume the run",
)
REJECTIONS = {
    401: ("the server rejected the key", f"set {API_KEY} to the key of the server, then resume the run"),
    403: ("the server denied access", f"check the server's rules and {API_KEY}, then resume the run"),
    404: ("the server does not have this route or model", HOW_TO_START),
}


class ServerError(RunStoppedError):
    """Raised when a sampling server does not answer, or gives an answer that cannot be used."""

    def __init__(self, message: str) -> None:
        super().__init__(message, can_resume=True)


class NoAnswerError(ServerError):
    """Raised when a server does not answer. To save time, callers should not try another request."""


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

        The request is repeated if there is no connection, if the connection is lost, or if the server reports
        an internal error. After `timeout` seconds without an answer, the request is not repeated.

        Args:
            method: GET or POST.
            route: path on the server, which begins with a slash.
            body: value that is sent as JSON. None: the request has no body.

        Raises:
            NoAnswerError: if an attempt gets no answer within `timeout` seconds, or if the last attempt gets
                no connection or loses the connection.
            ServerError: if the last attempt ends with an internal error of the server, if the server rejects
                or redirects the request or does not know the route, or if the key cannot be sent.
        """
        where = f"{self.url}: {method} {route}"
        headers = _headers()
        for wait in (*WAITS, None):
            try:
                status, text = self._attempt(method, route, body, headers)
            except TimeoutError as error:  # no further attempt, because a server that hangs rarely recovers
                raise NoAnswerError(
                    f"{where}: the server did not answer within {self.timeout:g} seconds; restart the "
                    "server, or increase sampling.server.timeout, then resume the run"
                ) from error
            except (OSError, HTTPException) as error:
                reason, remedy = f"no connection: {error or type(error).__name__}", HOW_TO_START
                kind: type[ServerError] = NoAnswerError
            else:
                kind = ServerError
                if status < 300:
                    return text
                reason = f"status {status}, {visible(text, MAX_SHOWN) or 'without a message'}"
                remedy = HOW_TO_RESTART
                if status < 500:
                    what, remedy = REJECTIONS.get(status, REDIRECTION if status < 400 else REJECTION)
                    raise ServerError(f"{where}: {what} ({reason}); {remedy}")
            if wait is not None:
                time.sleep(wait)
        raise kind(f"{where}: {len(WAITS) + 1} attempts failed ({reason}); {remedy}")

    def _attempt(self, method: str, route: str, body: object, headers: dict[str, str]) -> tuple[int, str]:
        """Send a request once, and return the status and the text of the server's answer.

        Raises:
            TimeoutError: if the answer is not complete `timeout` seconds after the start of the attempt.
            OSError: if no connection can be made, or if the connection is lost.
        """
        deadline = time.monotonic() + self.timeout
        parts = urlsplit(self.url)
        assert parts.hostname is not None  # checked by ServerConfig
        is_secure = parts.scheme == "https"
        kind = HTTPSConnection if is_secure else HTTPConnection
        # if no port is given, http.client would read the end of an IPv6 address as the port
        port = parts.port or (443 if is_secure else 80)
        content = None if body is None else json.dumps(body).encode()
        with closing(kind(parts.hostname, port, timeout=min(self.timeout, CONNECT_TIMEOUT))) as connection:
            try:
                connection.connect()
            except TimeoutError as error:
                raise ConnectionError(
                    f"{parts.hostname} does not accept connections at port {port}"
                ) from error
            socket = connection.sock  # the connection may set `sock` to None after the header of the answer

            def wait_until_deadline() -> None:
                """Limit the next read or write to the time that is left."""
                if (left := deadline - time.monotonic()) <= 0:
                    raise TimeoutError
                socket.settimeout(left)

            wait_until_deadline()
            connection.request(method, parts.path + route, content, headers)
            wait_until_deadline()
            response = connection.getresponse()
            chunks = []
            while not response.isclosed():
                wait_until_deadline()
                if not (chunk := response.read1(CHUNK)):
                    break
                chunks.append(chunk)
            if response.length:  # number of bytes that have not arrived
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


def _headers() -> dict[str, str]:
    """Return the headers of a request, with the key of the server if the environment has one.

    Raises:
        ServerError: if the key has characters that a header cannot contain.
    """
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(API_KEY, "").strip():
        if not (key.isascii() and key.isprintable()):  # the message does not show the key
            raise ServerError(
                f"{API_KEY}: the key in this environment variable has characters that an HTTP header cannot "
                "contain; correct the key, then resume the run"
            )
        headers["Authorization"] = f"Bearer {key}"
    return headers
