"""Runs killed and signaled at random moments; a short form of tests/benchmarks/kills.py."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from processes import run_forked

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def kills() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    sys.argv = ["kills.py", "--hits", "1", "--updates", "2", "--by", "kill", "signals"]
    runpy.run_path(str(BENCHMARKS / "kills.py"), run_name="__main__")


@pytest.mark.slow
def test_killed_and_signaled_runs_end_with_the_same_bits() -> None:
    done = run_forked(kills, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    for by in ("kill", "signals"):
        last = [line for line in done.stdout.splitlines() if line.startswith(f"{by}: ")][-1]
        equal, num_hits = re.search(r"(\d+) of (\d+) hits", last).groups()  # type: ignore[union-attr]
        assert int(equal) == int(num_hits) >= 1
