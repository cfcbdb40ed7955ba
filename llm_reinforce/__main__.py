"""Entry point of the commands `llm-reinforce` and `python -m llm_reinforce`.

`torchrun -m` and `accelerate launch -m` require that the package can be run with `python -m`.
"""

import os
import signal
from contextlib import suppress

# A thread of OpenMP that waits for others keeps its core busy for a while before it sleeps. If other programs
# need the cores, it takes the time of the threads that it waits for. The defaults are 300,000 iterations of
# libgomp (torch on Linux) and 200 ms of the OpenMP of LLVM and Intel (macOS and Windows).
WAITING = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}


def limit_spinning() -> None:
    """Shorten the time for which waiting threads keep a core busy, unless the user has configured this time.

    This must be called before torch is imported, because OpenMP reads these environment variables once.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in WAITING.items():
            os.environ.setdefault(name, value)


def main() -> None:
    """Run the command line interface. It ends by raising SystemExit with the exit code."""
    limit_spinning()
    with suppress(ValueError):  # raised if this is not the main thread: only it can set signal handlers
        # while modules are imported, there is nothing to clean up; Ctrl-C ends the process, no traceback
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    from llm_reinforce import cli

    cli.main()


if __name__ == "__main__":
    main()
