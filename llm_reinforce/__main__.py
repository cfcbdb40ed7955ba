"""Entry point of `llm-reinforce` and of `python -m llm_reinforce`, which `accelerate launch -m` needs."""

import signal
from contextlib import suppress


def main() -> None:
    """Run the command line and exit by SystemExit."""
    with suppress(ValueError):  # raised outside the main thread, which alone may set signal handlers
        # there is nothing to clean up while modules are imported: Ctrl-C ends the process, no traceback
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    from llm_reinforce import cli

    cli.main()


if __name__ == "__main__":
    main()
