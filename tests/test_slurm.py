"""The SLURM script `recipes/slurm/train.sbatch`, with stand-ins for srun, scontrol and curl."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import typer
from torch.distributed.run import get_args_parser

from llm_reinforce.cli import app

SCRIPT = Path(__file__).parents[1] / "recipes" / "slurm" / "train.sbatch"
STAND_INS = {
    "srun": """\
        case "$*" in
            *torchrun*) trap 'echo srun TERM >> calls; exit 143' TERM; [[ -e recipe.yaml ]] || exit 0;;
        esac
        for _ in {1..1000}; do sleep 0.02; done""",
    "scontrol": '[[ $1 != show ]] || printf "%s\\n" ${SLURM_JOB_NODELIST//,/ }',
    "curl": 'until grep -q "llm-reinforce serve" calls; do sleep 0.02; done',
}


@pytest.fixture
def job(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Return a directory with stand-ins, and the environment of a job. Commands are listed in `calls`."""
    for name, code in STAND_INS.items():
        file = tmp_path / name
        file.write_text(f'#!/bin/bash\necho {name} "$@" >> calls\n{code}\n')
        file.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    of_job = {"SLURM_JOB_ID": "70123", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_NODELIST": "n1,n2,n3"}
    return tmp_path, {**os.environ, **of_job, "PATH": path}


def start(job: tuple[Path, dict[str, str]], **environment: str) -> subprocess.Popen[str]:
    directory, variables = job
    return subprocess.Popen(
        ["bash", SCRIPT, "quickstart", str(directory), "training.num_updates=9"],
        cwd=directory,
        env={**variables, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def calls(job: tuple[Path, dict[str, str]], command: str) -> list[str]:
    return [line for line in (job[0] / "calls").read_text().splitlines() if command in line]


def test_job_starts_a_server_and_one_launcher_on_each_other_machine(
    job: tuple[Path, dict[str, str]],
) -> None:
    one = start(job)
    assert one.wait(20) == 0, one.stderr
    (served,), (trained,) = calls(job, "llm-reinforce serve"), calls(job, "torchrun")
    assert "--nodelist=n1 llm-reinforce serve quickstart" in served
    assert "--set sampling.server.url=http://n1:8000 --python " in served
    assert served.endswith("/vllm/bin/python --run")
    assert "--nodes=2 --ntasks=2 --nodelist=n2,n3 torchrun" in trained
    arguments = trained.partition("torchrun ")[2].split()
    options = get_args_parser().parse_args(arguments)
    assert (options.nnodes, options.nproc_per_node, options.rdzv_endpoint) == ("2", "4", "n2:20123")
    assert (options.module, options.training_script) == (True, "llm_reinforce")
    name, *rest = options.training_script_args
    context = typer.main.get_group(app).commands[name].make_context(name, rest)
    assert context.params["overrides"] == [
        f"output_dir={job[0]}",
        "training.num_updates=9",
        "sampling.server.url=http://n1:8000",
    ]
    assert not context.params["resume"]


def test_job_that_is_about_to_end_saves_the_run_and_is_requeued(job: tuple[Path, dict[str, str]]) -> None:
    (job[0] / "recipe.yaml").touch()
    (job[0] / "policy").mkdir()  # the run was complete before it was resumed to make more updates
    one = start(job, SERVER="no")
    until = time.monotonic() + 20
    while not ((job[0] / "calls").exists() and calls(job, "torchrun")) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.1)  # the stand-in sets its trap
    one.send_signal(signal.SIGTERM)
    assert one.wait(20) == 143, one.stderr
    assert not calls(job, "llm-reinforce serve")
    assert "--nodelist=n1,n2,n3" in calls(job, "torchrun")[0]
    assert calls(job, "torchrun")[0].endswith("--resume")
    assert calls(job, "srun TERM")
    assert calls(job, "scontrol requeue 70123")


def test_job_without_arguments_ends_with_a_message(job: tuple[Path, dict[str, str]]) -> None:
    done = subprocess.run(["bash", SCRIPT], env=job[1], capture_output=True, text=True)
    assert done.returncode == 1
    assert "the recipe is missing" in done.stderr
