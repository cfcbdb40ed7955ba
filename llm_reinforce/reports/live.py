"""Serve the report of a run in progress to browsers on this machine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from os import PathLike
from pathlib import Path
from threading import Thread

from llm_reinforce.errors import InputError
from llm_reinforce.reports.page import render
from llm_reinforce.reports.recorded_run import find_runs
from llm_reinforce.runs.run_directory import LOGS

LOOPBACK = "127.0.0.1"
REFRESH_SECONDS = 5  # time between two requests of the page for new data


@contextmanager
def live_report(*runs: str | PathLike[str], port: int = 0) -> Iterator[str]:
    """Serve the report of runs within the context, and yield its address.

    The server accepts connections from this machine only. Every few seconds, the page asks the server whether
    the runs have new data. If so, the page is reloaded.

    Args:
        runs: directories of runs, or directories that contain runs.
        port: port of the server. 0: any free port.

    Raises:
        InputError: if a directory contains no run, or if the port is in use.
    """
    paths = [Path(run).expanduser() for run in runs]
    find_runs(paths)  # raises InputError before the server starts
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), _handler(paths))
    except OSError as error:
        raise InputError(
            f"port {port} can't be used ({error.strerror}); choose another port with --port"
        ) from error
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def _version(paths: Sequence[Path]) -> str:
    """Return a string that changes whenever a run appends a line to one of its logs."""
    files = [run.path / name for run in find_runs(list(paths)) for name in LOGS]
    return " ".join(str(file.stat().st_size) for file in files if file.is_file())


def _handler(paths: Sequence[Path]) -> type[BaseHTTPRequestHandler]:
    @lru_cache(maxsize=1)
    def page(version: str) -> bytes:
        return render(find_runs(list(paths)), refresh_seconds=REFRESH_SECONDS).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            # a web page of another host may send requests, if its host name resolves to this machine
            if host not in (LOOPBACK, "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path == "/version":
                self._send("text/plain", _version(paths).encode())
            elif self.path == "/":
                self._send("text/html", page(_version(paths)))
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _send(self, kind: str, body: bytes) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Do nothing. The base class would print a line for each request."""

    return Handler
