"""The number of processes that a launcher has started, and launches that are refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llm_reinforce import evaluate, processes
from llm_reinforce.cli import app
from llm_reinforce.cli.common import reported_failures, start_in_one_process
from llm_reinforce.cli.train import resume_command
from llm_reinforce.errors import InputError, ProcessLostError
from llm_reinforce.processes import (
    check_launch,
    is_main_process,
    num_processes,
    process_index,
    working_command,
)

LAUNCHER = (
    *("ACCELERATE_USE_CPU", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"),
    *(*processes.LOCAL_SIZES, *processes.NUM_LAUNCHERS, *processes.NUM_TASKS, *processes.NUM_NODES),
)
HOST = {"MASTER_ADDR": "node1"}
OF_ACCELERATE = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def set_variables(values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*processes.SIZES, *processes.RANKS, *LAUNCHER):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("values", "index", "number"),
    [
        ({}, 0, 1),
        ({"RANK": "0", "WORLD_SIZE": "2", **HOST}, 0, 2),
        ({"RANK": "4", "LOCAL_RANK": "0", "WORLD_SIZE": "8", **HOST}, 4, 8),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, 1, 2),
        ({"WORLD_SIZE": "", "RANK": ""}, 0, 1),
    ],
)
def test_index_and_number(
    values: dict[str, str], index: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(values, monkeypatch)
    assert (process_index(), num_processes(), is_main_process()) == (index, number, index == 0)
    check_launch()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (OF_ACCELERATE, "accelerate launch was called with several processes"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set"),
        (
            {"WORLD_SIZE": "2", "RANK": "1"},
            "but MASTER_ADDR is not set, so the processes cannot find each other",
        ),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "srun has started 2 tasks, but each of them would train alone"),
    ],
)
def test_launches_that_train_in_too_few_processes_are_refused(
    values: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(values, monkeypatch)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "-m", "llm_reinforce", "train", "my recipe.yaml"])
    command = "torchrun --nproc_per_node 2 -m llm_reinforce train 'my recipe.yaml'"
    assert working_command(2) == command
    with pytest.raises(InputError, match=message) as caught:
        check_launch()
    assert f"`{command}`" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"RANK": "1"}, "RANK is 1, but WORLD_SIZE is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
        ({"PMI_RANK": "1"}, "PMI_RANK is 1, but WORLD_SIZE is not set"),
    ],
)
def test_contradicting_variables_are_refused(
    values: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(values, monkeypatch)
    with pytest.raises(InputError, match=message):
        check_launch()


def test_launcher_on_each_machine_that_does_not_know_the_others_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torchrun = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1", **HOST}
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
    set_variables({**torchrun, **slurm}, monkeypatch)
    with pytest.raises(InputError, match=r"torchrun --nproc_per_node 4 --nnodes 2 .* HOST:29500") as caught:
        check_launch()
    assert "unset SLURM_STEP_NUM_TASKS" in str(caught.value)
    set_variables({**torchrun, **slurm, "GROUP_WORLD_SIZE": "2", "WORLD_SIZE": "8"}, monkeypatch)
    check_launch()


def test_command_that_resumes_a_run_starts_as_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", **HOST}
    set_variables(values, monkeypatch)
    arguments = "-m llm_reinforce train 'my recipe.yaml' --set seed=1 --resume"
    assert resume_command("my recipe.yaml", ["seed=1"]) == f"torchrun --nproc_per_node 8 {arguments}"
    set_variables({**values, "LOCAL_WORLD_SIZE": "4"}, monkeypatch)
    nodes = "--nnodes 2 --rdzv_backend c10d --rdzv_endpoint node1:29500"
    assert resume_command("my recipe.yaml", ["seed=1"]) == f"torchrun --nproc_per_node 4 {nodes} {arguments}"


def test_launch_of_accelerate_with_one_process_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables({"ACCELERATE_USE_CPU": "True"}, monkeypatch)
    check_launch()


def test_refused_launch_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llm_reinforce", "train", "quickstart"]
    done = subprocess.run(
        [*command, "--set", f"output_dir={tmp_path / 'run'}"],
        env={**os.environ, **OF_ACCELERATE},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "torchrun --nproc_per_node 2 -m llm_reinforce train quickstart" in done.stderr
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------- threads that wait

SHOWN = """\
import json, os, sys
from llm_reinforce.__main__ import WAITING, main
sys.argv = ["llm-reinforce", "--version"]
try:
    main()
except SystemExit:
    pass
names = ("OMP_WAIT_POLICY", *WAITING)
print(json.dumps([{name: os.environ.get(name) for name in names}, "torch" in sys.modules]))
"""


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "1"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_waiting_threads_sleep_soon_unless_the_user_has_chosen(
    own: dict[str, str], expected: dict[str, str]
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    shown = subprocess.run(
        [sys.executable, "-c", SHOWN], env={**inherited, **own}, capture_output=True, text=True, check=True
    )
    found, has_torch = json.loads(shown.stdout.splitlines()[-1])
    assert {name: value for name, value in found.items() if value} == expected
    assert not has_torch


@pytest.mark.parametrize("arguments", [["evaluate", "gsm8k"], ["sample", "1+1="]])
def test_commands_for_one_process_are_refused_in_several(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables({"WORLD_SIZE": "2", "RANK": "0"}, monkeypatch)
    result = CliRunner().invoke(app, [*arguments, "--policy", "nosuch"])
    assert result.exit_code == 2
    assert f"{arguments[0]} runs in one process only" in result.stderr


def test_processes_that_would_write_the_same_answers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables({"WORLD_SIZE": "2", "RANK": "1", **HOST}, monkeypatch)
    with pytest.raises(InputError, match=r"one of 2, and all of them would write .*; call .* without output"):
        evaluate("nosuch", [{"prompt": "1+1=", "answer": "2"}], output_dir=tmp_path)


def test_process_that_remains_says_how_to_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The main process, which usually says it, may be the one that was lost."""
    set_variables({"WORLD_SIZE": "2", "RANK": "1", **HOST}, monkeypatch)
    with pytest.raises(typer.Exit), reported_failures(advice=lambda: "continue with: torchrun …"):
        raise ProcessLostError("the connection is lost")
    assert capsys.readouterr().err == "process 1: the connection is lost\ncontinue with: torchrun …\n"


def test_slow_commands_print_a_first_line_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_variables({}, monkeypatch)
    start_in_one_process("evaluate")
    assert capsys.readouterr().err == ""  # stderr is a file
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    start_in_one_process("evaluate")
    assert "evaluate: loading libraries" in capsys.readouterr().err
