"""Entry point of the commands `llm-reinforce` and `python -m llm_reinforce`.

`torchrun -m` and `accelerate launch -m` require that the package can be run with `python -m`.
"""

import os
import signal
from contextlib import suppress

# An OpenMP thread that waits for other threads spins for a while, which keeps its core busy, and then sleeps.
# If the machine has fewer free cores than threads, the spinning slows down the other threads. By default, a
# thread spins for 300,000 iterations in libgomp (used by torch on Linux), and for 200 ms in the OpenMP of
# LLVM and Intel (used on macOS and Windows).
WAITING = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}


def limit_spinning() -> None:
    """Shorten the time for which waiting OpenMP threads spin, unless the user has configured this time.

    The time is set by environment variables. OpenMP reads them only once, so this function must be called
    before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in WAITING.items():
            os.environ.setdefault(name, value)


def main() -> None:
    """Run the command line interface, and raise SystemExit with the exit code."""
    limit_spinning()
    with suppress(ValueError):  # only the main thread can set signal handlers
        # Ctrl-C during the imports below should not print a traceback. It ends the process at once, because
        # there is nothing to clean up yet.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    from llm_reinforce import cli

    cli.main()


if __name__ == "__main__":
    main()
