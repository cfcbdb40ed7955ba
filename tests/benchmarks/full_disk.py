"""Run on a disk that fills up, make room, resume, and compare with an undisturbed run. Requires root.

    python tests/benchmarks/full_disk.py --every 8

A tiny run is started on tmpfs disks of increasing size, up to a disk that holds the whole run. The smaller
disks become full, each at a different write. The run then has to exit with code 1 and a one-line error
message, leave no partly written files, and have an intact last checkpoint. After the disk is enlarged, the
resumed run has to end with the same bits as an undisturbed run. In the last test, the disk does not become
full, but read-only.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from lives import SETTINGS, Life, make_traced, outcome, start

from llm_reinforce.checkpoint_files import find_checkpoint


def mount(*options: str) -> None:
    """Call mount(8). If mounting is not allowed, exit with code 77."""
    done = subprocess.run(["mount", *options], capture_output=True, text=True)
    if done.returncode != 0:
        print(f"not measured, mount is not allowed here: {done.stderr.strip()}")
        raise SystemExit(77)


def faults(run: Path, output: Path, code: int, expected: str) -> list[str]:
    """Return a description of each fault in the files, the exit code or the error message of a run.

    Args:
        run: directory of the run.
        output: file with the output of the run.
        code: exit code of the run.
        expected: text that the error message has to contain.
    """
    found = []
    text = output.read_text()
    if code != 1 or expected not in text or "Traceback" in text:
        found.append(f"exit {code}: {text[-300:]}")
    if partial := [str(path) for path in run.rglob("*.partial")]:
        found.append(f"partly written: {partial}")
    newest, damaged = find_checkpoint(run / "checkpoints")
    if damaged:
        found.append(f"damaged: {damaged}")
    num_updates = int(newest.name.removeprefix("update-")) if newest else -1
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    logged = [json.loads(line)["update"] for line in lines][: max(num_updates, 0)]
    if logged != list(range(1, num_updates + 1)):
        found.append("metrics of an update before the checkpoint are missing")
    return found


def main() -> None:
    """Fill the disk, check, make room, resume and compare. Exit with code 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=8, help="step from one disk size to the next, in KiB")
    parser.add_argument("--most", type=int, default=1024, help="largest disk size, in KiB")
    options = parser.parse_args()
    SETTINGS["training.num_updates"] = 5
    make_traced()
    num_full, num_good, num_whole = 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        output, disk = root / "output.txt", root / "disk"
        disk.mkdir()
        assert start(root / "undisturbed", output, SETTINGS, resume=False).wait() == 0, output.read_text()
        expected = outcome(root / "undisturbed")
        for size in [*range(options.every, options.most + 1, options.every), 0]:  # 0: disk becomes read-only
            mount("-t", "tmpfs", "-o", f"size={size or 4 * options.most}k", "none", str(disk))
            try:
                output.unlink()
                life = start(disk / "run", output, SETTINGS, resume=False)
                if size == 0:
                    _turn_read_only(life, disk)
                code = life.wait()
                if code == 0 and size > 0:
                    num_whole += 1
                    continue
                num_full += 1
                message = "No space left" if size else "Read-only file system"
                found = faults(disk / "run", output, code, message)
                mount("-o", f"remount,rw,size={4 * options.most}k", str(disk))
                is_begun = (disk / "run").exists() and any((disk / "run").iterdir())
                code = start(disk / "run", output, SETTINGS, resume=is_begun).wait()
                if code != 0 or outcome(disk / "run") != expected:
                    found.append(f"resumed: exit {code}: {output.read_text()[-300:]}")
                num_good += not found
                for each in found:
                    print(f"{size} KiB: {each}", flush=True)
            finally:
                subprocess.run(["umount", str(disk)], check=True)
    print(f"{num_good} of {num_full} runs lost nothing; 1 disk turned read-only, the others filled up")
    print(f"{num_whole} disks were large enough for the whole run")
    if num_good < num_full or num_full == 0:
        raise SystemExit(1)


def _turn_read_only(life: Life, disk: Path) -> None:
    """Make the disk read-only during the third save, as after a disk error.

    The remount is tried repeatedly, because it fails while a file is open for writing.
    """
    life.wait_for("saving", 3)
    for _ in range(200):
        if subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True).returncode == 0:
            return
    raise AssertionError("the disk could not be made read-only")


if __name__ == "__main__":
    main()
