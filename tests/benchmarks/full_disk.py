"""Run on a disk that fills up, make room, resume, and compare with an undisturbed run. Needs to be root.

    python tests/benchmarks/full_disk.py --every 8

A tiny run is started on a tmpfs of each size, in steps of so many KiB, from one that holds nothing to one
that holds the whole run; so the disk is full at another write each time. The run has to end with exit 1 and
one line that says so, without half-written files, with its last good checkpoint; and resumed with more room,
with the same bits as a run that nobody disturbed. Once more with a disk that turns read-only.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from lives import SETTINGS, Life, make_traced, outcome, start

from llm_reinforce.runs.checkpoint import find_checkpoint


def mount(*options: str) -> None:
    """Call mount(8), or leave where that is not allowed."""
    done = subprocess.run(["mount", *options], capture_output=True, text=True)
    if done.returncode != 0:
        print(f"not measured, mount is not allowed here: {done.stderr.strip()}")
        raise SystemExit(77)


def faults(run: Path, told: Path, code: int, wanted: str) -> list[str]:
    """What is wrong with how the run ended."""
    found = []
    said = told.read_text()
    if code != 1 or wanted not in said or "Traceback" in said:
        found.append(f"exit {code}: {said[-300:]}")
    if leavings := [str(path) for path in run.rglob("*.partial")]:
        found.append(f"leavings: {leavings}")
    newest, passed_over = find_checkpoint(run / "checkpoints")
    if passed_over:
        found.append(f"broken: {passed_over}")
    counted = int(newest.name.removeprefix("update-")) if newest else -1
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    if [json.loads(line)["update"] for line in lines][: max(counted, 0)] != list(range(1, counted + 1)):
        found.append("a line is missing of what the checkpoint counts on")
    return found


def main() -> None:
    """Fill, look, make room, resume, compare; exit 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=8, help="KiB from one size to the next")
    parser.add_argument("--most", type=int, default=1024, help="KiB at which to end")
    options = parser.parse_args()
    SETTINGS["training.num_updates"] = 5
    make_traced()
    num_full, num_good, num_whole = 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        told, disk = root / "told.txt", root / "disk"
        disk.mkdir()
        assert start(root / "undisturbed", told, SETTINGS, resume=False).wait() == 0, told.read_text()
        expected = outcome(root / "undisturbed")
        for size in [*range(options.every, options.most + 1, options.every), 0]:  # 0: read-only instead
            mount("-t", "tmpfs", "-o", f"size={size or 4 * options.most}k", "none", str(disk))
            try:
                told.unlink()
                life = start(disk / "run", told, SETTINGS, resume=False)
                if size == 0:
                    _turn_read_only(life, disk)
                code = life.wait()
                if code == 0 and size > 0:
                    num_whole += 1
                    continue
                num_full += 1
                wrong = faults(disk / "run", told, code, "No space left" if size else "Read-only file system")
                mount("-o", f"remount,rw,size={4 * options.most}k", str(disk))
                is_begun = (disk / "run").exists() and any((disk / "run").iterdir())
                code = start(disk / "run", told, SETTINGS, resume=is_begun).wait()
                if code != 0 or outcome(disk / "run") != expected:
                    wrong.append(f"resumed: exit {code}: {told.read_text()[-300:]}")
                num_good += not wrong
                for each in wrong:
                    print(f"{size} KiB: {each}", flush=True)
            finally:
                subprocess.run(["umount", str(disk)], check=True)
    print(
        f"{num_good} of {num_full} disks lost nothing, of which 1 turned read-only and the others filled up"
    )
    print(f"{num_whole} held the whole run")
    if num_good < num_full or num_full == 0:
        raise SystemExit(1)


def _turn_read_only(life: Life, disk: Path) -> None:
    """As a disk with errors does; here between two writes, since a file being written forbids it."""
    life.wait_for("saving", 3)
    for _ in range(200):
        if subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True).returncode == 0:
            return
    raise AssertionError("it never turned read-only")


if __name__ == "__main__":
    main()
