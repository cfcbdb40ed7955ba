"""A fault at every step of a save: what was there stays, what was half written goes."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import new_run, rows, same, timeless, trainer, weights

import llm_reinforce.training.checkpoint as checkpoint_module
from llm_reinforce.training import ReinforceTrainer, RunDirectory
from llm_reinforce.training.checkpoint import TrainState, find_checkpoint, save_checkpoint
from llm_reinforce.training.durable import whole_directory, write_whole
from llm_reinforce.training.schedule import learning_rate_schedule


class Faults:
    """Raises in the n-th call of anything that writes, syncs or renames."""

    def __init__(self, fails_at: int | None) -> None:
        self.fails_at, self.num_calls = fails_at, 0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any, **more: Any) -> Any:
            self.num_calls += 1
            if self.num_calls == self.fails_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*arguments, **more)

        return failing


@contextmanager
def faults(fails_at: int | None) -> Iterator[Faults]:
    found = Faults(fails_at)
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


def test_a_fault_at_any_step_of_a_save_loses_nothing(tmp_path: Path) -> None:
    with faults(None) as counted:
        save(tmp_path / "counted", 1)
    assert counted.num_calls == 11  # four files written and synced, their folder, the rename, its folder
    for fails_at in range(1, counted.num_calls + 1):
        root = tmp_path / str(fails_at)
        save(root, 1)
        with faults(fails_at), pytest.raises(OSError, match="No space left"):
            save(root, 2)
        newest, passed_over = find_checkpoint(root)
        assert passed_over == []
        assert newest is not None
        # the last step is to make the new name last: it stands by then
        is_renamed = fails_at == counted.num_calls
        assert newest.name == ("update-000002" if is_renamed else "update-000001")
        assert not list(root.glob("*.partial"))
        save(root, 2)
        newest, _ = find_checkpoint(root)
        assert newest is not None
        assert newest.name == "update-000002"


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    with faults(None) as counted:
        write_whole(tmp_path / "counted", "new")
    for fails_at in range(1, counted.num_calls):
        file = tmp_path / f"{fails_at}"
        write_whole(file, "old")
        with faults(fails_at), pytest.raises(OSError, match="No space left"):
            write_whole(file, "new")
        assert file.read_text() == "old"
    assert not list(tmp_path.glob("*.partial"))


def test_a_directory_is_there_when_it_is_whole(tmp_path: Path) -> None:
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
    """Mounts a small disk, or changes it: `disk("size=64k")`, `disk("remount,ro")`."""
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
def test_a_disk_that_fills_up_at_any_write_loses_nothing(disk: Callable[[str], Path], tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts")

    def one(path: Path) -> ReinforceTrainer:
        return trainer(num_updates=3, training={"checkpoint_every": 1}, run_directory=RunDirectory(path))

    straight = one(new_run(tmp_path / "straight").path)
    straight.train()
    sizes = range(60, 240, 20)
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
