"""Training in several processes, as started by `accelerate launch`."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import two_processes
from accelerate.utils import DistributedType
from processes import run_forked
from small_runs import Watcher, timeless

from llm_reinforce import ReinforceTrainer, load_recipe
from llm_reinforce.errors import InputError
from llm_reinforce.training import data_parallel
from llm_reinforce.training.data_parallel import OTHER_SHARDING, new_accelerator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checked")


@pytest.fixture(scope="module")
def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    """Return the result of all checks of `two_processes.py`, in two processes of one thread each."""
    return run_forked(
        lambda: two_processes.launch(two_processes.check_all, folder), timeout=150, OMP_NUM_THREADS="1"
    )


@pytest.mark.slow
def test_two_processes_of_the_command_train_to_the_end(
    checked: subprocess.CompletedProcess[str], folder: Path
) -> None:
    assert checked.returncode == 0, checked.stderr[-2000:]
    for baseline in ("value", "greedy"):  # from Python and by the command
        two_processes.check_files(folder / baseline)
    assert "2 processes with 1 thread each" in checked.stdout
    documented = (Path(__file__).parents[2] / "docs" / "getting-started.md").read_text(encoding="utf-8")
    assert "torchrun --nproc_per_node 2 -m llm_reinforce train quickstart" in documented


def test_run_resumed_with_another_number_of_processes(tmp_path: Path) -> None:
    settings = two_processes.recipe_settings(tmp_path / "run", "leave_one_out")
    options = [f"{key}={value}" for key, value in settings.items()]
    load_recipe("quickstart", options).train()
    file = tmp_path / "run" / "environment.json"
    environment = json.loads(file.read_text())
    assert (environment["num_processes"], environment["num_threads"]) == (1, 1)
    assert environment["thread_settings"]["OMP_NUM_THREADS"] == "1"
    for recorded, is_reported in ((2, True), (1, False)):
        file.write_text(json.dumps({**environment, "num_processes": recorded}))
        watcher = Watcher()
        more = f"training.num_updates={4 if is_reported else 5}"
        ReinforceTrainer(config=load_recipe("quickstart", [*options, more]).config, progress=watcher).train(
            resume=True
        )
        said = [line for line in watcher.said if "process" in line and "resumed" in line]
        assert bool(said) == is_reported
        assert all("was last trained in 2 processes and is resumed in 1" in line for line in said)


@pytest.mark.slow
def test_several_updates_per_batch_do_not_depend_on_the_number_of_processes(
    checked: subprocess.CompletedProcess[str], folder: Path
) -> None:
    one = two_processes.halves_of_batches()
    one.train()
    alone = torch.cat([parameter.detach().flatten() for parameter in one.policy.model.parameters()])
    torch.testing.assert_close(torch.load(folder / "weights-0.pt"), alone, rtol=1e-4, atol=1e-4)
    rows = timeless(one.display.metrics)
    for row, of_both in zip(rows, json.loads((folder / "metrics.json").read_text()), strict=True):
        assert row == pytest.approx(of_both, rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("check", [check.__name__ for check in two_processes.CHECKS])
def test_two_processes(checked: subprocess.CompletedProcess[str], check: str) -> None:
    """The checks run in this order until one fails; its traceback is in the output."""
    assert checked.stdout.count(f"passed: {check}\n") == 2, checked.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["value", "greedy"])
def test_two_processes_log_the_same_run_as_one(
    checked: subprocess.CompletedProcess[str], folder: Path, tmp_path: Path, baseline: str
) -> None:
    settings = two_processes.recipe_settings(tmp_path, baseline)
    load_recipe("quickstart", [f"{key}={value}" for key, value in settings.items()]).train()
    for name in ("metrics.jsonl", "episodes.jsonl", "evaluations.jsonl"):
        of_one, of_two = timeless(lines(tmp_path / name)), timeless(lines(folder / baseline / name))
        assert len(of_one) == len(of_two) > 0
        for one, two in zip(of_one, of_two, strict=True):
            assert one.keys() == two.keys()
            for key, value in one.items():
                assert two[key] == approximately(value), (name, key)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def approximately(value: Any) -> Any:
    numeric = value if isinstance(value, list) else [value]
    if all(isinstance(each, float) for each in numeric):
        return pytest.approx(value, rel=1e-3, abs=1e-5)
    return value


def test_more_processes_than_devices_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node1"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"2 processes .* has 1 GPU; .*`ACCELERATE_USE_CPU=true torchrun"):
        new_accelerator("no")


def test_processes_that_would_train_alone_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device for which accelerate has no communication."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "node1")
    with pytest.raises(InputError, match=r"has started 2 processes, but accelerate uses 1 .*=true torchrun"):
        new_accelerator("no")


@pytest.mark.parametrize("kind", OTHER_SHARDING)
def test_other_sharding_is_rejected(kind: DistributedType, monkeypatch: pytest.MonkeyPatch) -> None:
    def launched(mixed_precision: str) -> Any:
        return SimpleNamespace(distributed_type=kind)

    monkeypatch.setattr(data_parallel, "Accelerator", launched)
    with pytest.raises(InputError, match=f"accelerate was launched with {kind.value}"):
        new_accelerator("no")
