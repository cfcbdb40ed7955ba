"""Runs in several processes: one process is killed or hangs, or the launchers stop the run."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import two_processes
from processes import run_forked
from small_runs import rows

from llm_reinforce.__main__ import main
from llm_reinforce.checkpoint_files import find_checkpoint, num_updates_of
from llm_reinforce.runs import RunDirectory


def command(run: Path, **training: object) -> list[str]:
    """Return the arguments of a tiny run of many updates."""
    settings = two_processes.recipe_settings(run, "leave_one_out") | {"training.num_updates": 100_000}
    settings |= {f"training.{name}": value for name, value in training.items()}
    return ["train", "quickstart", *(f"--set={key}={value}" for key, value in settings.items())]


def wait_for_updates(run: Path, num_updates: int, is_running: Callable[[], bool], within: float) -> None:
    until = time.monotonic() + within
    while not (run / "metrics.jsonl").exists() or len(rows(RunDirectory(run))) < num_updates:
        assert is_running(), "the run has ended"
        assert time.monotonic() < until, "the run is too slow"
        time.sleep(0.02)


def resume(run: Path, num_more: int) -> None:
    """Resume a run in one process, and check that it continues from the latest logged update."""
    metrics = rows(RunDirectory(run))
    checkpoint, faults = find_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert not faults
    assert num_updates_of(checkpoint) == len(metrics)

    def resumed() -> None:
        sys.argv = ["llm-reinforce", *command(run, num_updates=len(metrics) + num_more), "--resume"]
        main()

    done = run_forked(resumed, timeout=60, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    again = rows(RunDirectory(run))
    assert again[: len(metrics)] == metrics
    assert [row["update"] for row in again] == [*range(1, len(metrics) + num_more + 1)]


# --------------------------------------------------------------------------------------- lost processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "number", "timeout", "message"),
    [
        (1, signal.SIGKILL, 60, "the connection to another process is lost, because"),
        (0, signal.SIGKILL, 60, "the connection to another process is lost, because"),
        (1, signal.SIGSTOP, 1, "another process has not answered within training.process_timeout, because"),
    ],
)
def test_run_that_loses_a_process_is_saved_and_ends(
    lost: int, number: signal.Signals, timeout: float, message: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def train(directory: Path) -> None:
        sys.argv = ["llm-reinforce", *command(run, process_timeout=timeout, schedule="constant")]
        main()

    def lose_one() -> None:
        both = two_processes.start_two(train, tmp_path)
        remaining, pid = both[1 - lost], both[lost].pid
        assert pid is not None
        try:
            wait_for_updates(run, 3, remaining.is_alive, within=60)
            os.kill(pid, number)
            remaining.join(20)
            sys.exit(remaining.exitcode)
        finally:
            for each in both:
                each.kill()

    done = run_forked(lose_one, timeout=100, OMP_NUM_THREADS="1")
    assert done.returncode == 1, done.stderr
    assert f"process {1 - lost}: {message}" in done.stderr
    num_updates = len(rows(RunDirectory(run)))
    assert f"The state after update {num_updates} is saved in a checkpoint" in done.stderr
    assert "continue with: torchrun --nproc_per_node 2 -m llm_reinforce train quickstart" in done.stderr
    assert "Traceback" not in done.stderr
    if number == signal.SIGKILL:
        resume(run, num_more=2)


# -------------------------------------------------------------------------------- launchers on two nodes


@contextlib.contextmanager
def two_nodes(arguments: list[str], port: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Start a launcher for each of two nodes, both of them on this machine: torchrun and accelerate."""
    torchrun = ["torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--node_rank=0"]
    accelerate = ["accelerate.commands.launch", "--multi_gpu", "--num_machines=2", "--num_processes=2"]
    meeting = ("--master_addr=127.0.0.1", f"--master_port={port}")
    same = ("--machine_rank=1", "--main_process_ip=127.0.0.1", f"--main_process_port={port}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launchers = [
        subprocess.Popen(
            [sys.executable, "-m", *launcher, "-m", "llm_reinforce", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for launcher in ([*torchrun, *meeting], [*accelerate, *same])
    ]
    try:
        yield launchers
    finally:
        for launcher in launchers:
            launcher.terminate()
            launcher.wait(60)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the processes of a launcher")
def test_run_on_two_nodes_is_saved_once_when_all_processes_are_terminated(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with two_nodes(command(run, schedule="constant"), port) as launchers:
        wait_for_updates(run, 2, lambda: all(each.poll() is None for each in launchers), within=120)
        trained = [child for launcher in launchers for child in children(launcher.pid)]
        for pid in (*trained, *(launcher.pid for launcher in launchers)):
            os.kill(pid, signal.SIGTERM)
        outputs = [launcher.communicate(timeout=60)[0] for launcher in launchers]
    assert all(launcher.returncode for launcher in launchers)
    num_updates = len(rows(RunDirectory(run)))
    assert "2 processes with 1 thread each" in outputs[0]
    assert outputs[0].count(f"stopped after update {num_updates}; a checkpoint is saved") == 1
    assert "continue on each of the 2 machines with: torchrun --nproc_per_node 1 --nnodes 2" in outputs[0]
    assert "checkpoint" not in outputs[1]
    assert json.loads((run / "environment.json").read_text())["num_processes"] == 2
    assert [each.name for each in (run / "checkpoints").iterdir()] == [
        "update-000000",  # after the warm start
        f"update-{num_updates:06d}",
    ]
    resume(run, num_more=1)
