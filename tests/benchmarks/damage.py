"""Damage each file of the newest checkpoint in many ways, resume, and compare with an undisturbed run.

    python tests/benchmarks/damage.py

A tiny run is killed when it has two checkpoints. Each file of the newer checkpoint is then damaged in 70
ways: it is truncated to 20 sizes, and a single bit is flipped in 50 places. After each damage, the resumed
run has to report and skip the damaged checkpoint, continue from the older checkpoint, and end with the same
bits as an undisturbed run.
"""

import argparse
import random
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path

from lives import SETTINGS, make_traced, outcome, start

from llm_reinforce.checkpoint_files import FILES, MANIFEST, find_checkpoint

# the run is killed during its fifth save, which is the save after update 4, because the first save precedes
# the first update
NUM_UPDATES, KILLED_IN = 5, 5


def damages(file: Path, num_sizes: int, num_flips: int, rng: random.Random) -> dict[str, bytes]:
    """Return damaged versions of a file's content, each by a description of the damage."""
    whole = file.read_bytes()
    sizes = [0, *sorted(rng.sample(range(1, len(whole) - 1), num_sizes - 2)), len(whole) - 1]
    damaged = {f"cut to {size} bytes": whole[:size] for size in sizes}
    for bit in sorted(rng.sample(range(8 * len(whole)), num_flips)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged[f"bit {bit} flipped"] = bytes(flipped)
    return damaged


def main() -> None:
    """Damage, resume, compare and print the counts. Exit with code 1 if any resumed run differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, default=20, help="number of truncations of each file")
    parser.add_argument("--flips", type=int, default=50, help="number of bit flips of each file")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    options = parser.parse_args()
    SETTINGS["training.num_updates"] = NUM_UPDATES
    make_traced()
    rng, found, num_equal = random.Random(options.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        output = root / "output.txt"
        assert start(root / "undisturbed", output, SETTINGS, resume=False).wait() == 0, output.read_text()
        expected = outcome(root / "undisturbed")
        stopped = start(root / "stopped", output, SETTINGS, resume=False)
        stopped.wait_for("saving", KILLED_IN)
        stopped.kill(signal.SIGKILL)
        stopped.wait()
        newest, _ = find_checkpoint(root / "stopped" / "checkpoints")
        assert newest is not None
        for name in (*FILES, MANIFEST):
            for what, content in damages(newest / name, options.sizes, options.flips, rng).items():
                copy = root / "copy"
                shutil.copytree(root / "stopped", copy)
                (copy / "checkpoints" / newest.name / name).write_bytes(content)
                output.unlink()
                code = start(copy, output, SETTINGS, resume=True).wait()
                is_reported = f"skipped checkpoint {newest.name}" in output.read_text()
                is_equal = code == 0 and outcome(copy) == expected
                found[name] += is_reported
                num_equal += is_reported and is_equal
                if not (is_reported and is_equal):
                    print(f"{name} {what}: exit {code}: {output.read_text()[-500:]}")
                shutil.rmtree(copy)
            print(f"{name}: {found[name]} of {options.sizes + options.flips} damages detected", flush=True)
    num = (options.sizes + options.flips) * (len(FILES) + 1)
    print(f"{num_equal} of {num} runs resumed from the older checkpoint and ended with the same bits")
    if num_equal < num:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
