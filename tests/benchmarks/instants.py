"""Send signals to commands at times spread over their whole duration, and check exit codes and results.

    python tests/benchmarks/instants.py --signals 50

A tiny run is started as a new process, which imports all packages. (In contrast, kills.py forks a process
that has already imported them.) The process gets a signal and, in half of the cases, a second signal within
one second. The time from the start of Python to the end of an undisturbed process is divided into as many
equal intervals as there are commands. Each command gets its first signal at a random time in a different
interval. The process has to exit with 130 or 143, be ended by the signal, or exit with 0 if it had finished.
It must not print a traceback, and the resumed run has to end with the same bits as an undisturbed run.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lives import SETTINGS, outcome

from llm_reinforce.cli.interruption import ASKING

# The program writes a byte when Python has started, because during the start, Ctrl-C may end Python with exit
# code 1. No signal is sent before this byte.
PROGRAM = "import os, runpy; os.write({pipe}, b'!'); runpy.run_module('llm_reinforce', run_name='__main__')"


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit code, its stderr, and its duration in seconds."""

    code: int
    stderr: str
    seconds: float


def run(directory: Path, hits: list[tuple[float, int]]) -> Ended:
    """Train in the directory, and send signals.

    Args:
        directory: directory of the run, which is resumed if it exists.
        hits: for each signal, the seconds after the start, and the number of the signal.
    """
    reader, writer = os.pipe()
    options = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    resume = ["--resume"] if (directory / ".lock").exists() else []
    arguments = ["train", "quickstart", *options, "--set", f"output_dir={directory}", *resume]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(pipe=writer), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=(writer,),
        text=True,
    )
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    began = time.monotonic()
    for seconds, number in hits:
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        process.send_signal(number)
    _, stderr = process.communicate()
    return Ended(process.returncode, stderr, time.monotonic() - began)


def fault(ended: Ended, hits: list[tuple[float, int]]) -> str | None:
    """Return a description of what is wrong with the exit code or stderr; None if nothing is wrong."""
    allowed = {0} | {128 + number for _, number in hits} | {-number for _, number in hits}
    is_quiet = not any(word in ended.stderr for word in ("Traceback", "Exception ignored", "failed"))
    if ended.code in allowed and is_quiet:
        return None
    return f"exit {ended.code} after {hits}: {ended.stderr[-1500:]}"


def main() -> None:
    """Send signals, resume, compare and print the counts. Exit with code 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--signals", type=int, default=50, help="number of commands that get a signal")
    parser.add_argument("--updates", type=int, default=6, help="number of updates of each run")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    options = parser.parse_args()
    SETTINGS["training.num_updates"] = options.updates
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore SIGINT in background jobs
    rng, exits, num_good, num_runs, num_equal = random.Random(options.seed), Counter[int](), 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        undisturbed = run(root / "undisturbed", [])
        assert undisturbed.code == 0, undisturbed.stderr
        print(f"undisturbed: {undisturbed.seconds:.2f} s", flush=True)
        expected, directory = outcome(root / "undisturbed"), root / "run-0"
        instants = [(index + rng.random()) / options.signals for index in range(options.signals)]
        rng.shuffle(instants)
        for instant in instants:
            hits = [(instant * undisturbed.seconds, rng.choice(ASKING))]
            if rng.random() < 0.5:
                hits.append((hits[0][0] + rng.uniform(0, 1), rng.choice(ASKING)))
            ended = run(directory, hits)
            exits[ended.code] += 1
            found = fault(ended, hits)
            num_good += found is None
            if found:
                print(found, flush=True)
            if ended.code == 0:
                num_equal += outcome(directory) == expected
                num_runs += 1
                directory = root / f"run-{num_runs}"
        ended = run(directory, [])
        num_equal += ended.code == 0 and outcome(directory) == expected
        num_runs += 1
    print(f"{num_good} of {options.signals} exits were correct; exit codes: {json.dumps(exits)}")
    print(f"{num_equal} of {num_runs} runs ended with the same bits")
    if num_good < options.signals or num_equal < num_runs:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
