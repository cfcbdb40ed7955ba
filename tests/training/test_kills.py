"""Runs killed and signaled at random moments; a short form of tests/benchmarks/kills.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_and_signaled_runs_end_with_the_same_bits() -> None:
    script = ROOT / "tests" / "benchmarks" / "kills.py"
    done = subprocess.run(
        [sys.executable, str(script), "--hits", "1", "--updates", "4", "--by", "kill", "signals"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for by in ("kill", "signals"):
        last = [line for line in done.stdout.splitlines() if line.startswith(f"{by}: ")][-1]
        equal, num_hits = re.search(r"(\d+) of (\d+) hits", last).groups()  # type: ignore[union-attr]
        assert int(equal) == int(num_hits) >= 1
