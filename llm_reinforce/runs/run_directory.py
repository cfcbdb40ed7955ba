"""The directory of a run: its files, its lock and its logs."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm_reinforce.durable_files import finite, sync, write_whole
from llm_reinforce.errors import InputError, texts_without_secrets
from llm_reinforce.evaluation import Evaluation, answer_row

OWN_NAMES = (
    "recipe.yaml",
    "environment.json",
    "metrics.jsonl",
    "episodes.jsonl",
    "evaluations.jsonl",
    "answers.jsonl",
    "comparison.json",
    "checkpoints",
    "policy",
    "report.html",
    "initial_policy",  # a policy and problems that were given as objects in Python
    "problems",
)
LOCK = ".lock"  # held by the process that writes the run, released when it ends, however it ends
BEGINNINGS = frozenset(
    {
        "environment.json",
        "environment.json.partial",
        "recipe.yaml.partial",
        "initial_policy",
        "initial_policy.partial",
        "problems",
    }
)
RESUME, OVERWRITE = "--resume, or resume=True", "--overwrite, or overwrite=True"
LOGS = ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl", "answers.jsonl")


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The directory of one run; its files are written by this class and `checkpoint.py`."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        return self.path / "policy"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Check that `prepare` will succeed, without touching anything, so that it can be called before a
        model loads.

        Raises:
            InputError: the directory is not empty and neither `resume` nor `overwrite` is set, or there is
                nothing to resume, or it can't be written to.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"output_dir {self.path}: this is a file; choose another output_dir")
        nearest = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            raise InputError(f"output_dir {self.path}: can't be written to; choose another output_dir")
        found = [entry.name for entry in self._entries()]
        if resume:
            if "recipe.yaml" not in found and not self.is_begun():
                raise InputError(f"nothing to resume in {self.path}; start the run without {RESUME}")
            return
        if found and not overwrite:
            raise InputError(
                f"output_dir {self.path} is not empty ({', '.join(found[:4])}): resume the run there "
                f"({RESUME}), replace it ({OVERWRITE}), or choose another output_dir"
            )
        foreign = [name for name in found if name.removesuffix(".partial") not in OWN_NAMES]
        if foreign:
            raise InputError(
                f"output_dir {self.path} has files that no run wrote ({', '.join(foreign[:4])}), so it is "
                "not overwritten; choose another output_dir"
            )

    def is_begun(self) -> bool:
        """Return True if a run was killed here before it had written its recipe; it has left its lock."""
        return (self.path / LOCK).exists() and {entry.name for entry in self._entries()} <= BEGINNINGS

    def _entries(self) -> list[Path]:
        """All entries except the lock."""
        entries = sorted(self.path.iterdir()) if self.path.is_dir() else []
        return [entry for entry in entries if entry.name != LOCK]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory's lock, so that no other run writes there.

        Raises:
            InputError: another run holds it, or the directory can't be created.
        """
        lock = FileLock(self.path / LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout as error:
            raise InputError(
                f"output_dir {self.path}: another run is writing there; wait for its end, stop it, or choose "
                "another output_dir"
            ) from error
        except OSError as error:
            raise InputError(f"output_dir {self.path}: can't be created: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Prepare the directory for a new run, or for one that is resumed.

        With `overwrite` the files of an earlier run are removed, and nothing else.

        Raises:
            InputError: as `check` does.
        """
        self.check(resume=resume, overwrite=overwrite)
        if resume:
            return
        for entry in self._entries():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"output_dir {self.path}: can't be created: {error.strerror}") from error

    def write_text(self, name: str, text: str) -> None:
        """Write a file at once, so that a reader sees the old one or the new one and never a part."""
        write_whole(self.path / name, text)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a line of JSON to a log and flush it; a number that is not finite is written as null."""
        # half a surrogate pair, as an exception's text may have it, stays the \udXXX that JSON knows
        with (self.path / name).open("a", encoding="utf-8", errors="backslashreplace") as file:
            line = json.dumps(texts_without_secrets(finite(row)), ensure_ascii=False, allow_nan=False)
            file.write(line + "\n")
            file.flush()

    def append_answers(self, where: Mapping[str, Any], evaluation: Evaluation) -> None:
        """Append a line to `answers.jsonl` for each problem, with all its answers."""
        pairs = zip(evaluation.problems, evaluation.answers, strict=True)
        rows = (
            {**where, "decoding": evaluation.decoding, **answer_row(index, problem, answers)}
            for index, (problem, answers) in enumerate(pairs)
        )
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with (self.path / "answers.jsonl").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the complete lines of a log; none if there is no such file."""
        file = self.path / name
        rows = []
        # an interruption may have cut it within a character
        text = file.read_text("utf-8", errors="replace") if file.is_file() else ""
        for line in text.split("\n"):
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue  # cut by an interruption
        return rows

    def sync_logs(self) -> None:
        """Wait until the logs are on the disk; a checkpoint that relies on them is written afterwards."""
        for name in LOGS:
            if (self.path / name).is_file():
                sync(self.path / name)

    def cut_logs(self, num_updates: int) -> None:
        """Remove the lines after this many updates, which a resumed run writes again."""
        for name in LOGS:
            file = self.path / name
            if file.is_file():
                text = file.read_text("utf-8", errors="replace")  # it may end within a character
                lines = text.split("\n")  # not splitlines: text may hold U+2028
                kept = [line for line in lines if _is_before(line, num_updates)]
                self.write_text(name, "".join(line + "\n" for line in kept))


def _is_before(line: str, num_updates: int) -> bool:
    try:
        return bool(json.loads(line)["update"] <= num_updates)
    except (ValueError, KeyError, TypeError):
        return False


def environment(seed: int, device: str) -> dict[str, Any]:
    """Return versions, seed, device and the code's git revision, for `environment.json`."""
    packages = ("llm-reinforce", "torch", "transformers", "datasets", "accelerate", "peft", "numpy")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return {
        "seed": seed,
        "device": device,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "versions": versions,
        "git_revision": _git_revision(),
    }


def _git_revision() -> str | None:
    """Return the commit of the toolkit's own checkout; None if it is installed as a package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
