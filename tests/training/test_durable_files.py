"""Faults at every step of a save: older files are kept, and partly written files are removed."""

import errno
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Watcher, full, new_run, rows, same, timeless, trainer, weights

import llm_reinforce.durable_files as durable_module
import llm_reinforce.runs.checkpoint as checkpoint_module
import llm_reinforce.runs.run_directory as run_directory_module
from llm_reinforce.checkpoint_files import find_checkpoint
from llm_reinforce.durable_files import whole_directory, write_whole
from llm_reinforce.errors import InputError
from llm_reinforce.policy import load_policy
from llm_reinforce.runs import RunDirectory, TrainState
from llm_reinforce.runs.checkpoint import save_checkpoint
from llm_reinforce.training import TrainingLoop, run_checkpoints
from llm_reinforce.training.optimizer import learning_rate_schedule

NOBODY = 65534  # conventional id of the user without privileges


class Faults:
    """Raise OSError in call number `fails_at` of the functions that write, sync or rename."""

    def __init__(self, fails_at: int | None, number: int = errno.ENOSPC) -> None:
        self.fails_at, self.number, self.num_calls = fails_at, number, 0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any, **more: Any) -> Any:
            self.num_calls += 1
            if self.num_calls == self.fails_at:
                raise OSError(self.number, os.strerror(self.number))
            return call(*arguments, **more)

        return failing


@contextmanager
def faults(fails_at: int | None, number: int = errno.ENOSPC) -> Iterator[Faults]:
    found = Faults(fails_at, number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", found.around(os.fsync))
        patch.setattr(Path, "write_text", found.around(Path.write_text))
        patch.setattr(Path, "rename", found.around(Path.rename))
        patch.setattr(Path, "replace", found.around(Path.replace))
        patch.setattr(checkpoint_module, "save_file", found.around(checkpoint_module.save_file))
        yield found


def save(root: Path, num_updates: int) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule = learning_rate_schedule("constant", optimizer, 0, 9)
    save_checkpoint(root, TrainState(num_updates), model, optimizer, schedule, keep=1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
def test_a_fault_at_any_step_of_a_save_keeps_the_older_checkpoint(tmp_path: Path, number: int) -> None:
    with faults(None) as counted:
        save(tmp_path / "counted", 1)
    # four files written and synced, their directory synced, the rename, its parent directory synced
    assert counted.num_calls == 11
    for fails_at in range(1, counted.num_calls + 1):
        root = tmp_path / str(fails_at)
        save(root, 1)
        with faults(fails_at, number), pytest.raises(OSError, match=os.strerror(number)):
            save(root, 2)
        newest, damaged = find_checkpoint(root)
        assert damaged == []
        assert newest is not None
        # the last step syncs the parent directory, after the rename
        is_renamed = fails_at == counted.num_calls
        assert newest.name == ("update-000002" if is_renamed else "update-000001")
        assert not list(root.glob("*.partial"))
        save(root, 2)
        newest, _ = find_checkpoint(root)
        assert newest is not None
        assert newest.name == "update-000002"


def test_the_manifest_is_written_last_and_everything_is_synced_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []

    def recorded(what: str, call: Callable[..., Any], which: int) -> Callable[..., Any]:
        def around(*arguments: Any, **more: Any) -> Any:
            done.append((what, Path(arguments[which]).name))
            return call(*arguments, **more)

        return around

    monkeypatch.setattr(durable_module, "sync", recorded("sync", durable_module.sync, 0))
    monkeypatch.setattr(checkpoint_module, "save_file", recorded("write", checkpoint_module.save_file, 1))
    monkeypatch.setattr(Path, "write_text", recorded("write", Path.write_text, 0))
    monkeypatch.setattr(Path, "rename", recorded("rename", Path.rename, 1))
    monkeypatch.setattr(shutil, "rmtree", recorded("remove", shutil.rmtree, 0))
    save(tmp_path / "checkpoints", 1)
    done.clear()
    save(tmp_path / "checkpoints", 2)
    files = ["optimizer.safetensors", "policy.safetensors", "state.json"]
    steps = [step for step in done if step[0] != "remove"]
    assert sorted(name for what, name in steps[:3] if what == "write") == files
    assert steps[3] == ("write", "manifest.json")
    synced = [name for what, name in steps[4:9] if what == "sync"]
    assert synced == ["manifest.json", *files, "update-000002.partial"]
    assert steps[9:] == [("rename", "update-000002"), ("sync", "checkpoints")]
    assert done[-1] == ("remove", "update-000001")


def test_logs_are_synced_before_a_checkpoint_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []

    def sync(path: Path) -> None:
        done.append((path.name, len(path.read_text().splitlines())))

    def save(*arguments: Any, **more: Any) -> Path:
        done.append(("checkpoint", arguments[1].num_updates))
        return save_checkpoint(*arguments, **more)

    monkeypatch.setattr(run_directory_module, "sync", sync)
    monkeypatch.setattr(run_checkpoints, "save_checkpoint", save)
    settings = {"checkpoint_every": 1, "logged_episodes": 1}
    trainer(num_updates=2, training=settings, run_directory=new_run(tmp_path / "run")).train()
    at_the_end = done[done.index(("checkpoint", 1)) + 1 :]
    # of four problems, at updates 0 and 2
    assert at_the_end == [
        ("metrics.jsonl", 2),
        ("episodes.jsonl", 2),
        ("evaluations.jsonl", 2),
        ("answers.jsonl", 8),
        ("checkpoint", 2),
    ]


@pytest.mark.parametrize(
    "name", ["optimizer.safetensors", "policy.safetensors", "state.json", "manifest.json"]
)
def test_an_old_checkpoint_is_kept_until_the_new_one_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A bit on the disk differs from the one that was written."""
    rename = Path.rename

    def rotten(self: Path, target: Path) -> Path:
        content = bytearray((self / name).read_bytes())
        content[len(content) // 2] ^= 1
        (self / name).write_bytes(content)
        return rename(self, target)

    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rotten)
        with pytest.raises(OSError, match="update-000002 was written, but it can't be read back"):
            save(tmp_path, 2)
    newest, damaged = find_checkpoint(tmp_path)
    assert newest == tmp_path / "update-000001"
    assert [fault.split(":")[0] for fault in damaged] == ["update-000002"]
    save(tmp_path, 2)
    assert find_checkpoint(tmp_path) == (tmp_path / "update-000002", [])


def test_a_run_can_be_resumed_after_a_fault_at_any_write(tmp_path: Path) -> None:
    def one(directory: RunDirectory) -> TrainingLoop:
        return full(directory, Watcher(), num_updates=2, checkpoint_every=1)

    straight = one(whole := new_run(tmp_path / "whole"))
    straight.train()
    # a checkpoint makes 11 of these calls, so steps of 17 reach a different one in each checkpoint
    for fails_at in itertools.count(1, 17):
        run = new_run(tmp_path / str(fails_at))
        with faults(fails_at) as found:
            try:
                one(run).train()
            except OSError as error:
                assert error.errno == errno.ENOSPC
        if found.num_calls < fails_at:  # the run ended before the fault
            break
        assert not list(run.path.rglob("*.partial"))
        resumed = one(run)
        assert resumed.train(resume=True) == straight.state
        assert same(weights(resumed.policy), weights(straight.policy))
        for name in ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl", "answers.jsonl"):
            assert timeless(rows(run, name)) == timeless(rows(whole, name)), name
        assert same(weights(load_policy(run.path)), weights(straight.policy))
    assert fails_at > 40


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    with faults(None) as counted:
        write_whole(tmp_path / "counted", "new")
    for fails_at in range(1, counted.num_calls):
        file = tmp_path / f"{fails_at}"
        write_whole(file, "old")
        with faults(fails_at), pytest.raises(OSError, match="No space left"):
            write_whole(file, "new")
        assert file.read_text() == "old"
    assert not list(tmp_path.glob("*.partial"))


def test_a_directory_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "made"

    def interrupted() -> None:
        with whole_directory(target) as partial:
            (partial / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with whole_directory(target) as partial:
        (partial / "file").write_text("whole")
        assert not target.exists()
    assert (target / "file").read_text() == "whole"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts a small disk or remounts it: `disk("size=64k")`, `disk("remount,ro")`."""
    place = tmp_path / "disk"
    place.mkdir()
    is_mounted = False

    def mount(options: str) -> Path:
        nonlocal is_mounted
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True)
        if done.returncode != 0:
            pytest.skip("mount is not allowed here")
        is_mounted = True
        return place

    yield mount
    if is_mounted:
        subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(shutil.which("mount") is None or not hasattr(os, "geteuid"), reason="no mount")
def test_a_run_can_be_resumed_after_the_disk_was_full(disk: Callable[[str], Path], tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts")

    def one(path: Path) -> TrainingLoop:
        return trainer(num_updates=3, training={"checkpoint_every": 1}, run_directory=RunDirectory(path))

    straight = one(new_run(tmp_path / "straight").path)
    straight.train()
    sizes = (60, 140, 220)
    num_full = 0
    for number, size in enumerate(sizes):
        root = disk(f"size={size}k" if number == 0 else f"remount,size={size}k")
        run = new_run(root / f"{size}")
        try:
            one(run.path).train()
        except OSError as error:
            assert error.errno == errno.ENOSPC
            num_full += 1
        assert not list(run.path.rglob("*.partial"))
        assert find_checkpoint(run.checkpoints)[1] == []
        disk("remount,size=4m")
        resumed = one(run.path)
        resumed.train(resume=True)
        assert same(weights(resumed.policy), weights(straight.policy))
        assert timeless(rows(run)) == timeless(rows(RunDirectory(tmp_path / "straight")))
        shutil.rmtree(run.path)
    assert num_full > 0


@pytest.fixture
def nobody() -> Iterator[Path]:
    """Return a directory of an ordinary user, and run the test as this user: root may write anywhere."""
    place = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.chown(place, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, 0)
        yield place
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
        shutil.rmtree(place)


@pytest.mark.skipif(not hasattr(os, "setresuid"), reason="no users")
@pytest.mark.parametrize("lost", [".", "checkpoints", "metrics.jsonl"])
def test_a_run_can_be_resumed_after_a_lost_permission(nobody: Path, lost: str) -> None:
    class Losing(Watcher):
        def update(self, num_updates: int, *arguments: Any) -> None:
            if num_updates == 2:
                (run.path / lost).chmod(0o500)

    def one(directory: RunDirectory | None, watcher: Watcher) -> TrainingLoop:
        settings = {"checkpoint_every": 1, "num_checkpoints_kept": 1}
        return trainer(num_updates=3, training=settings, run_directory=directory, display=watcher)

    straight = one(None, Watcher())
    straight.train()
    run = new_run(nobody / "run")
    with pytest.raises(PermissionError):
        one(run, Losing()).train()
    if lost == ".":
        with pytest.raises(InputError, match="can't be written to"):
            run.check(resume=True, overwrite=False)
    (run.path / lost).chmod(0o700)
    run.check(resume=True, overwrite=False)
    # without permission for ".", existing entries can be written to, but `policy` cannot be created
    newest = "update-000003" if lost == "." else "update-000001"
    assert [path.name for path in run.checkpoints.iterdir()] == [newest]
    assert not list(run.path.rglob("*.partial"))
    resumed = one(run, Watcher())
    resumed.train(resume=True)
    assert same(weights(resumed.policy), weights(straight.policy))
    assert [row["update"] for row in rows(run)] == [1, 2, 3]
