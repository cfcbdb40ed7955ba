"""The processes that train together, as their launcher describes them in environment variables.

`torchrun`, `accelerate launch --multi_gpu` and MPI start several processes. Each process reads its index and
the number of processes from environment variables.
"""

import os
import shlex
import sys
from collections.abc import Sequence

from llm_reinforce.errors import InputError

# the variables that accelerate reads: those of torchrun, and those of three implementations of MPI
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL_SIZES = (
    "LOCAL_WORLD_SIZE",
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
)
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def num_processes() -> int:
    """Return the number of processes that the launcher has started; 1 without a launcher."""
    return max(1, _number(SIZES, 1))


def num_local_processes() -> int:
    """Return the number of processes that the launcher has started on this machine; 1 without a launcher."""
    return max(1, _number(LOCAL_SIZES, 1))


def process_index() -> int:
    """Return the index of this process among the processes of its launcher; 0 without a launcher."""
    return max(0, _number(RANKS, 0))


def is_main_process() -> bool:
    """Return True if this is the first or only process. Only this process writes files and prints."""
    return process_index() == 0


def check_launch() -> None:
    """Check that the launcher has started the requested number of processes.

    Raises:
        InputError: if `accelerate launch` should have started several processes but has started only one, or
            if there are several processes and the environment variables do not contain the index of this
            process.
    """
    if num_processes() > 1:
        if all(name not in os.environ for name in RANKS):
            name = next(name for name in SIZES if name in os.environ)
            raise InputError(
                f"{name} is {os.environ[name]}, but RANK is not set, so this process has no launcher; "
                f"unset {name} to train in one process, or start {os.environ[name]} processes with "
                f"`{working_command(num_processes())}`"
            )
        return
    # `accelerate launch` sets all three variables if several processes are requested without MPI
    told = ("ACCELERATE_USE_CPU", "MASTER_ADDR", "MASTER_PORT")
    if all(name in os.environ for name in told) and not any(name in os.environ for name in (*SIZES, *RANKS)):
        raise InputError(
            "accelerate launch was told to use several processes (--num_processes), but it has started only "
            f"one, because it does not start several processes on a CPU; start them with "
            f"`{working_command(2)}`, where 2 is the number of processes, or start one process without "
            "--num_processes"
        )


def working_command(num_processes: int, *, on_cpu: bool = False) -> str:
    """Return the command that starts this program in several processes.

    Args:
        num_processes: number of processes.
        on_cpu: train on the CPU even if there is a GPU.
    """
    prefix = "ACCELERATE_USE_CPU=true " if on_cpu else ""
    return f"{prefix}torchrun --nproc_per_node {num_processes} {shlex.join(_own_arguments())}"


def _own_arguments() -> Sequence[str]:
    """Return the arguments of this Python process, without options of the interpreter."""
    arguments = sys.orig_argv[1:]
    while arguments and arguments[0].startswith("-") and arguments[0] != "-m":
        arguments = arguments[1:]
    return arguments


def _number(names: Sequence[str], default: int) -> int:
    """Return the value of the first variable that is a number, as accelerate does, otherwise the default."""
    for name in names:
        if os.environ.get(name, "").strip().isdecimal():
            return int(os.environ[name])
    return default
