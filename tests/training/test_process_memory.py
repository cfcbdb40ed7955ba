"""What is freed stays with the process, if its C library can be told so; the collector looks at little."""

import gc
import os
import platform
import subprocess
import sys

import pytest

PROGRAM = "from llm_reinforce.training.process_memory import keep_freed_memory; print(keep_freed_memory())"


def told(**environment: str) -> str:
    """What a fresh process says: malloc's settings are a whole process's."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**inherited, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_glibc_takes_both_settings() -> None:
    assert told() == "True"


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_environment_says_holds(name: str) -> None:
    value = {"MALLOC_ARENA_MAX": "2", "GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}[name]
    assert told(**{name: value}) == "False"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:

    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed_memory()


@pytest.mark.parametrize("before", [(700, 10, 10), (50_000, 20, 100), (0, 10, 10)])
def test_the_collector_is_left_as_it_was(before: tuple[int, int, int]) -> None:
    from llm_reinforce.training.process_memory import NUM_NEW, what_is_there_stays

    usual = gc.get_threshold()
    gc.set_threshold(*before)
    try:
        with what_is_there_stays():
            assert gc.get_threshold() == (max(NUM_NEW, before[0]) if before[0] else 0, *before[1:])
            assert gc.get_freeze_count()
        assert gc.get_threshold() == before
        assert not gc.get_freeze_count()
    finally:
        gc.set_threshold(*usual)
