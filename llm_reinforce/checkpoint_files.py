"""File names of a checkpoint, and the manifest, whose digests reveal damaged checkpoints."""

import hashlib
import json
import re
from pathlib import Path

MANIFEST = "manifest.json"
NAME = re.compile(r"update-[0-9]{6,}")  # directory of a checkpoint
WEIGHTS = "policy.safetensors"
FILES = ("optimizer.safetensors", WEIGHTS, "state.json")  # required in every checkpoint


def write_manifest(directory: Path) -> None:
    """Write the manifest of a checkpoint, which contains the digests of the checkpoint's files."""
    digests = {file.name: _digest(file) for file in sorted(directory.iterdir())}
    (directory / MANIFEST).write_text(json.dumps(digests, indent=1), encoding="utf-8")


def find_checkpoint(root: Path) -> tuple[Path | None, list[str]]:
    """Find the newest intact checkpoint.

    Returns:
        the directory of the checkpoint (None if no checkpoint is intact), and a list of messages. Each
        message names a newer, damaged checkpoint and says what is wrong with it.
    """
    faults: list[str] = []
    for directory in reversed(all_checkpoints(root)):
        fault = find_fault(directory)
        if fault is None:
            return directory, faults
        faults.append(f"{directory.name}: {fault}")
    return None, faults


def all_checkpoints(root: Path) -> list[Path]:
    """Return the directories of all checkpoints, intact or damaged, sorted by number of updates."""
    return sorted(filter(lambda found: NAME.fullmatch(found.name), root.glob("update-*")), key=num_updates_of)


def num_updates_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("update-"))


def find_fault(directory: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if all of its files match the manifest."""
    try:
        digests = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        for name in sorted({*FILES, *digests.keys()}):
            if _digest(directory / name) != digests.get(name):
                return f"{name} does not match its digest in {MANIFEST}"
    except (OSError, ValueError, AttributeError) as error:
        return f"can't be read: {error}"
    return None


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
