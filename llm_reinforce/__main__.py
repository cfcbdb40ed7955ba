"""Entry point of the commands `llm-reinforce` and `python -m llm_reinforce`.

`accelerate launch -m` requires that the package can be run with `python -m`.
"""

import signal
from contextlib import suppress


def main() -> None:
    """Run the command line interface. It ends by raising SystemExit with the exit code."""
    with suppress(ValueError):  # raised if this is not the main thread: only it can set signal handlers
        # while modules are imported, there is nothing to clean up; Ctrl-C ends the process, no traceback
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    from llm_reinforce import cli

    cli.main()


if __name__ == "__main__":
    main()
