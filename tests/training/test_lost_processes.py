"""Runs in several processes: one process is killed or hangs, or the launchers stop the run."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path

import accelerate.commands.launch
import pytest
import torch.distributed.run
import two_processes
from accelerate.state import AcceleratorState
from processes import run_forked
from small_runs import rows
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from llm_reinforce import ReinforceTrainer, load_recipe
from llm_reinforce.__main__ import main
from llm_reinforce.checkpoint_files import find_checkpoint, num_updates_of
from llm_reinforce.runs import RunDirectory


def settings_of(run: Path, **training: object) -> list[str]:
    """Return the settings of a tiny run of many updates."""
    settings = two_processes.recipe_settings(run, "leave_one_out")
    settings |= {"training.num_updates": 100_000, "training.schedule": "constant"}
    settings |= {f"training.{name}": value for name, value in training.items()}
    return [f"{key}={value}" for key, value in settings.items()]


def command(run: Path, **training: object) -> list[str]:
    return ["train", "quickstart", *(f"--set={setting}" for setting in settings_of(run, **training))]


def wait_for_updates(run: Path, num_updates: int, is_running: Callable[[], bool], within: float) -> None:
    until = time.monotonic() + within
    while not (run / "metrics.jsonl").exists() or len(rows(RunDirectory(run))) < num_updates:
        assert is_running(), "the run has ended"
        assert time.monotonic() < until, "the run is too slow"
        time.sleep(0.02)


def resume(run: Path) -> None:
    """Resume a run in one process, and check that it continues from the latest logged update."""
    metrics = rows(RunDirectory(run))
    checkpoint, faults = find_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    assert not faults
    assert num_updates_of(checkpoint) == len(metrics)

    trainer = ReinforceTrainer(config=load_recipe("quickstart", settings_of(run)).config)
    for update in trainer.updates(resume=True):
        if update.number == len(metrics) + 1:
            break
    again = rows(RunDirectory(run))
    assert again[:-1] == metrics
    assert [row["update"] for row in again] == [*range(1, len(metrics) + 2)]


# --------------------------------------------------------------------------------------- lost processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "number", "timeout", "message"),
    [
        (1, signal.SIGKILL, 60, "the connection to another process was lost, because"),
        (0, signal.SIGKILL, 60, "the connection to another process was lost, because"),
        (
            1,
            signal.SIGSTOP,
            1,
            "another process did not answer within the time limit training.process_timeout",
        ),
    ],
    ids=["killed", "main process killed", "hangs"],
)
def test_run_that_loses_a_process_is_saved_and_ends(
    lost: int, number: signal.Signals, timeout: float, message: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def train(directory: Path) -> None:
        sys.argv = ["llm-reinforce", *command(run, process_timeout=timeout)]
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
        resume(run)


# -------------------------------------------------------------------------------- launchers on two nodes


class ForkedProcess:
    """Stand-in for `Popen`, with which a launcher starts a process of a run in a fork.

    A fork needs no imports, which would take most of the time of the test.
    """

    def __init__(self, args: Sequence[str], env: Mapping[str, str], **options: object) -> None:
        assert args[1:4] == ("-u", "-m", "llm_reinforce")
        assert options == {"stdout": None, "stderr": None, "start_new_session": True}

        def run() -> None:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM):  # handlers of the launcher
                signal.signal(number, signal.SIG_DFL)
            AcceleratorState._reset_state(reset_partial_state=True)  # of an accelerator made before the fork
            os.environ.clear()
            os.environ.update(env)
            sys.argv = ["llm-reinforce", *args[4:]]
            main()

        self._process = multiprocessing.get_context("fork").Process(target=run)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired([], timeout or 0.0)
        return self._process.exitcode


def start_launcher(launch: Callable[[list[str]], None], arguments: list[str], output: Path) -> ForkProcess:
    """Start a launcher in a fork of this process."""

    def run() -> None:
        with output.open("w") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
        os.environ.update({"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})
        subprocess_handler.Popen = ForkedProcess
        launch(arguments)

    launcher = multiprocessing.get_context("fork").Process(target=run)
    launcher.start()
    return launcher


def launch_with_accelerate(arguments: list[str]) -> None:
    accelerate.commands.launch.launch_command(
        accelerate.commands.launch.launch_command_parser().parse_args(arguments)
    )


@contextlib.contextmanager
def two_nodes(arguments: list[str], outputs: tuple[Path, Path]) -> Iterator[list[ForkProcess]]:
    """Start a launcher for each of two nodes, both of them on this machine: torchrun and accelerate."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["-m", "llm_reinforce", *arguments]
    of_torchrun = ["--nnodes=2", "--nproc_per_node=1", "--node_rank=0"]
    of_torchrun += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    of_accelerate = ["--multi_gpu", "--num_machines=2", "--num_processes=2", "--machine_rank=1"]
    of_accelerate += ["--main_process_ip=127.0.0.1", f"--main_process_port={port}"]
    launchers = [
        start_launcher(torch.distributed.run.main, [*of_torchrun, *command], outputs[0]),
        start_launcher(launch_with_accelerate, [*of_accelerate, *command], outputs[1]),
    ]
    try:
        yield launchers
    finally:
        for launcher in launchers:
            launcher.terminate()
            launcher.join(60)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the processes of a launcher")
def test_run_on_two_nodes_is_saved_once_when_all_processes_are_terminated(tmp_path: Path) -> None:
    run, files = tmp_path / "run", (tmp_path / "0.txt", tmp_path / "1.txt")
    with two_nodes(command(run), files) as launchers:
        wait_for_updates(run, 2, lambda: all(each.is_alive() for each in launchers), within=240)
        pids = [each.pid or 0 for each in launchers]
        for pid in [child for launcher in pids for child in children(launcher)] + pids:
            os.kill(pid, signal.SIGTERM)
        for launcher in launchers:
            launcher.join(60)
    outputs = [file.read_text() for file in files]
    assert all(launcher.exitcode for launcher in launchers), outputs
    num_updates = len(rows(RunDirectory(run)))
    assert "2 processes with 1 thread each" in outputs[0]
    assert outputs[0].count(f"stopped after update {num_updates}; a checkpoint is saved") == 1
    assert "continue on each of the 2 machines with: torchrun --nproc_per_node 1 --nnodes 2" in outputs[0]
    assert "checkpoint" not in outputs[1]
    assert json.loads((run / "environment.json").read_text())["num_processes"] == 2
    assert sorted(each.name for each in (run / "checkpoints").iterdir()) == [
        "update-000000",  # after the warm start
        f"update-{num_updates:06d}",
    ]
    resume(run)
