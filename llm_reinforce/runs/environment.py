"""Content of `environment.json`: how a run was started, its machine, and the versions of its packages."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

# environment variables that set the number of threads, and how long waiting threads spin before they sleep
THREAD_SETTINGS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "KMP_BLOCKTIME",
    "OMP_PROC_BIND",
    "OMP_DYNAMIC",
)
PACKAGES = ("llm-reinforce", "torch", "transformers", "datasets", "accelerate", "peft", "numpy")
DECIDES_BITS = (
    "device",
    "python",
    "platform",
    "machine",
    "cpu",
    "num_processes",
    "num_threads",
    "thread_settings",
    "versions",
    "git",
    "data",
    "rewards",
)
"""Entries that have to be equal for bit-identical results, apart from the settings in `recipe.yaml`."""
# source code of reward functions, whose digest is compared instead, and paths, because files may be moved
NOT_COMPARED = ("source", "file")

Entries = dict[str, Any]


def environment(seed: int, device: str, num_processes: int = 1) -> Entries:
    """Return a description of this process: its machine, versions and threads, and how it was started.

    Args:
        seed: seed of the run.
        device: device of the run.
        num_processes: number of processes that train together.
    """
    import torch  # not at the top of the file, so that runs can be listed without importing torch

    return {
        "seed": seed,
        "device": device,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.node(),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "num_processes": num_processes,
        "num_threads": torch.get_num_threads(),
        "thread_settings": {name: os.environ[name] for name in THREAD_SETTINGS if name in os.environ},
        "versions": {package: installed_version(package) for package in PACKAGES},
        "git": _git_state(Path(__file__).resolve().parents[2]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.orig_argv),
        "working_directory": str(Path.cwd()),
    }


def cpu_model() -> str:
    """Return the name of the processor, such as "AMD EPYC 7763 64-Core Processor"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Entries:
    """Return the entries of `now` that differ from `before`. A removed entry has the value None.

    Nested mappings are compared entry by entry.
    """
    changed: Entries = {}
    for name in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if nested := changes(old, new):
                changed[name] = nested
        elif old != new:
            changed[name] = new
    return changed


def changed_by(before: Mapping[str, Any], differing: Mapping[str, Any]) -> Entries:
    """Apply differences that were returned by `changes`, and return the new environment."""
    result = {name: value for name, value in before.items() if name not in differing}
    for name, new in differing.items():
        old = before.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            result[name] = changed_by(old, new)
        elif new is not None:
            result[name] = new
    return result


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences that may change the results of a resumed run.

    An example of a difference is "versions.torch (now 2.8.0, previously 2.7.1)". Entries that are missing in
    `before` are ignored, because earlier versions of the toolkit did not record them.

    Args:
        before: environment of the run's latest process.
        now: environment of this process.
    """
    names = [name for name in DECIDES_BITS if name in before]
    return _different({name: before[name] for name in names}, {name: now.get(name) for name in names})


def _different(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    lines: list[str] = []
    for name, new in changes(before, now).items():
        old, key = before.get(name), f"{path}{name}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += _different(old, now[name], f"{key}.")
        elif name == "sha256":
            lines.append(f"{path.removesuffix('.')} (its contents have changed)")
        elif name not in NOT_COMPARED:
            lines.append(f"{key} (now {_shown(new)}, previously {_shown(old)})")
    return lines


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def path_entries(paths: Sequence[str]) -> Entries:
    """Return a dict from each given path that exists to its absolute path."""
    found = {path: Path(path).expanduser() for path in paths}
    return {given: str(path.absolute()) for given, path in found.items() if path.exists()}


@cache
def installed_version(package: str) -> str:
    """Return the installed version of a package, or "unknown"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _git_state(root: Path) -> Entries | None:
    """Return the commit of the toolkit's git checkout, and whether tracked files differ from the commit.

    The result is None if the toolkit is installed as a package, or if git fails.
    """
    if not (root / ".git").exists():
        return None
    try:
        revision = _git(root, "rev-parse", "HEAD")
        status = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"revision": revision, "is_changed": bool(status)}


def _git(root: Path, *arguments: str) -> str:
    # without the option, `git status` may take the lock of the index, which disturbs other git commands
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, check=True, timeout=20)
    return done.stdout.decode("utf-8", errors="replace").strip()
