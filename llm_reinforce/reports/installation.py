"""Check of an installation, whose result can be included in a bug report."""

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from llm_reinforce.errors import texts_without_secrets
from llm_reinforce.runs.environment import THREAD_SETTINGS, cpu_model

REQUIRED = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "datasets",
    "peft",
    "safetensors",
    "numpy",
    "scipy",
    "pydantic",
)
# modules of the optional packages, and their purposes
OPTIONAL: Mapping[str, str] = {
    "math_verify": "algebraic answers (extra `algebra`)",
    "matplotlib": "plots (extra `plots`)",
    "reasoning_gym": "generated problems (extra `reasoning-gym`)",
}
LITTLE_SPACE = 2 * 2**30  # minimum free space in bytes; a run of a small policy needs less
SETTINGS = ("HF_HUB_OFFLINE", "HF_HOME", "LLM_REINFORCE_CACHE", "CUDA_VISIBLE_DEVICES", *THREAD_SETTINGS)


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check of an installation.

    Attributes:
        name: name of the package, device, directory or setting.
        value: version, description, path or size.
        state: "ok", "missing" if an optional part is not installed or not usable, or "failed".
        advice: what to do if the state is "failed".
    """

    name: str
    value: str
    state: Literal["ok", "missing", "failed"] = "ok"
    advice: str = ""


def check_installation() -> tuple[Check, ...]:
    """Check versions, devices, caches, permissions, disk space and optional packages.

    Nothing is downloaded. Permissions are tested by writing temporary files, which are then removed.
    """
    checks = [*_versions(), *_devices(), *_directories(), *_optional(), *_settings()]
    return tuple(
        Check(each.name, str(texts_without_secrets(each.value)), each.state, each.advice) for each in checks
    )


def _versions() -> Iterator[Check]:
    yield _package("llm-reinforce")
    is_old = sys.version_info < (3, 11)
    yield Check(
        "python",
        f"{platform.python_version()} ({sys.executable})",
        "failed" if is_old else "ok",
        "use Python 3.11 or newer" if is_old else "",
    )
    yield Check("platform", platform.platform())
    for name in REQUIRED:
        check = _package(name)
        yield check if check.state == "failed" else _imported(name, check.value)


def _package(name: str) -> Check:
    try:
        return Check(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        advice = "install llm-reinforce and the packages that it needs with `pip install -e .`"
        return Check(name, "not installed", "failed", advice)


def _imported(name: str, version: str, module: str | None = None) -> Check:
    """Check that an installed package can be imported. The import fails if a library is missing."""
    try:
        importlib.import_module(module or name)
    except Exception as error:  # packages with compiled code raise errors of many types
        problem = f"{version}, import failed: {type(error).__name__}: {str(error).strip()[:200]}"
        return Check(name, problem, "failed", f"reinstall {name} in the version that constraints.txt names")
    return Check(name, version)


def _devices() -> Iterator[Check]:
    yield Check("cpu", f"{cpu_model()}, {os.cpu_count()} cores")
    try:
        import torch
    except Exception:
        return
    yield Check("threads of torch", str(torch.get_num_threads()))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            yield Check(
                f"cuda:{index}", f"{device.name}, {_size(device.total_memory)}, CUDA {torch.version.cuda}"
            )
    elif torch.version.cuda is not None:
        yield Check("cuda", "torch was built for CUDA, but no device is usable", "missing")
    else:
        yield Check("cuda", "torch was built without CUDA", "missing")
    if torch.backends.mps.is_available():
        yield Check("mps", "available")


def _directories() -> Iterator[Check]:
    yield _directory("working directory", Path.cwd())
    yield _directory("temporary files", Path(tempfile.gettempdir()))
    try:
        from huggingface_hub import constants

        from llm_reinforce.policy.cache_folder import cache_directory
    except Exception:  # already reported by the checks of the versions
        return
    yield _directory("cache of fetched models", cache_directory())
    yield _directory("cache of the model hub", Path(constants.HF_HUB_CACHE))


def _directory(name: str, path: Path) -> Check:
    """Check that a directory or, if it does not exist, its nearest existing parent is writable."""
    existing = next((each for each in (path, *path.parents) if each.exists()), path)
    where = f"{path}" if existing == path else f"{path} (does not exist yet)"
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free
    except OSError as error:
        advice = "make the directory writable, or choose another directory"
        return Check(name, f"{where}, not writable: {error.strerror}", "failed", advice)
    value = f"{where}, {_size(free)} free"
    if free < LITTLE_SPACE:
        return Check(name, value, "failed", f"free at least {_size(LITTLE_SPACE)}")
    return Check(name, value)


def _optional() -> Iterator[Check]:
    for module, purpose in OPTIONAL.items():
        package = module.replace("_", "-")
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            yield Check(package, f"not installed; needed only for {purpose}", "missing")
            continue
        yield _imported(package, version, module)


def _settings() -> Iterator[Check]:
    for name in SETTINGS:
        if name in os.environ:
            yield Check(name, os.environ[name])


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
