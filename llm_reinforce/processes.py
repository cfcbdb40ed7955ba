"""Number and index of the processes that train together, read from the environment variables of a launcher.

The launchers `torchrun`, `accelerate launch --multi_gpu` and MPI start several processes, and set these
variables in each of them.
"""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from llm_reinforce.errors import InputError, RunStoppedError

# the variables that accelerate reads: those of torchrun, and those of three implementations of MPI
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL_SIZES = (
    "LOCAL_WORLD_SIZE",
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
)
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
NUM_LAUNCHERS = ("GROUP_WORLD_SIZE",)  # number of launchers that started the processes; set by torchrun
# variables in which `srun` sets the number of tasks, and the number of machines on which the tasks run
NUM_TASKS, NUM_NODES = ("SLURM_STEP_NUM_TASKS",), ("SLURM_STEP_NUM_NODES",)
PORT = 29500  # port through which the launchers of several machines connect, the default of torchrun
# words in the error messages of the communication libraries
LOST = re.compile(r"gloo|nccl|connection (was )?(reset|closed|refused)|broken pipe", re.IGNORECASE)
LATE = re.compile(r"timed? ?out|timeout", re.IGNORECASE)

# environment variables that `accelerate launch` sets for options that are not supported
OTHER_SHARDING = {
    "ACCELERATE_USE_DEEPSPEED": "use_deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": "use_megatron_lm",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "use_parallelism_config",
}
UNSUPPORTED = {
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params",
    "FSDP_ACTIVATION_CHECKPOINTING": "fsdp_activation_checkpointing",
}
# variables that `--use_fsdp --fsdp_version 2` sets
FSDP_VARIABLES = ("ACCELERATE_USE_FSDP=true", "FSDP_VERSION=2")


@dataclass(frozen=True, slots=True)
class Sharding:
    """Settings with which FSDP2 divides the weights of the policy among the processes.

    Attributes:
        layer_classes: names of the classes of layers. The weights of one layer are gathered at a time. Empty:
            the classes that transformers does not split across devices (`_no_split_modules`).
        reshard_after_forward: True to free the gathered weights of a layer after its forward pass.
    """

    layer_classes: tuple[str, ...]
    reshard_after_forward: bool


def num_processes() -> int:
    """Return the number of processes that the launcher has started; 1 without a launcher."""
    return max(1, _number(SIZES, 1))


def num_local_processes() -> int:
    """Return the number of processes that the launcher has started on this machine; 1 without a launcher."""
    return max(1, _number(LOCAL_SIZES, 1))


def num_machines() -> int:
    """Return the number of machines on which the launcher has started processes; 1 without a launcher."""
    local = num_local_processes() if any(os.environ.get(name) for name in LOCAL_SIZES) else num_processes()
    return -(-num_processes() // local)


def process_index() -> int:
    """Return the index of this process among the processes of its launcher; 0 without a launcher."""
    return max(0, _number(RANKS, 0))


def is_main_process() -> bool:
    """Return True if this is the first or only process. Only this process writes files and prints."""
    return process_index() == 0


def sharding() -> Sharding | None:
    """Return the settings of `accelerate launch --use_fsdp --fsdp_version 2`; None without `--use_fsdp`.

    Raises:
        InputError: if an option of `accelerate launch` is not supported.
    """
    rejected = [setting for name, setting in OTHER_SHARDING.items() if _is_true(name)]
    is_fsdp = _is_true("ACCELERATE_USE_FSDP")
    if is_fsdp and os.environ.get("FSDP_VERSION", "1") != "2":
        raise InputError(
            "accelerate was launched with version 1 of FSDP, but only version 2 is supported; add "
            "--fsdp_version 2, or set fsdp_version: 2 in the configuration file of accelerate"
        )
    if is_fsdp:
        rejected += [setting for name, setting in UNSUPPORTED.items() if _is_true(name)]
        policy = os.environ.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
        if policy.upper() != "TRANSFORMER_BASED_WRAP":
            rejected.append(f"fsdp_auto_wrap_policy {policy}")
        if os.environ.get("FSDP_IGNORED_MODULES"):
            rejected.append("fsdp_ignored_modules")
    if rejected:
        raise InputError(
            f"accelerate was launched with {' and '.join(rejected)}, which is not supported; remove this "
            "option from the command and from the configuration file of accelerate. To divide the weights "
            "among the processes, use --use_fsdp --fsdp_version 2"
        )
    if not is_fsdp:
        return None
    classes = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",")
    return Sharding(
        tuple(name.strip() for name in classes if name.strip()),
        reshard_after_forward=_is_true("FSDP_RESHARD_AFTER_FORWARD", default="true"),
    )


def check_launch() -> None:
    """Check that the launcher started as many processes as requested, and that they can find each other.

    Raises:
        InputError: if `accelerate launch` or `srun` was called with several processes, but this process would
            train alone; if environment variables of the launcher are missing or contradict each other; or if
            an option of the launcher is not supported.
    """
    sharding()
    if any(os.environ.get(name) for name in (*SIZES, *RANKS)):
        _check_variables()
    # `accelerate launch` sets these three variables if several processes are requested without MPI
    told = ("ACCELERATE_USE_CPU", "MASTER_ADDR", "MASTER_PORT")
    if all(name in os.environ for name in told) and not any(name in os.environ for name in (*SIZES, *RANKS)):
        raise InputError(
            "accelerate launch was called with several processes (--num_processes), but accelerate has "
            "started only one, because it does not start several processes on a CPU; start the processes "
            f"with `{working_command(2)}`, where 2 is the number of processes, or start one process without "
            "--num_processes"
        )
    num_tasks, num_launched = _number(NUM_TASKS, 1), _number(NUM_LAUNCHERS, num_processes())
    if num_tasks > num_launched:
        num_nodes = _number(NUM_NODES, 1)
        command = working_command(max(num_processes(), num_tasks // num_nodes), num_machines=num_nodes)
        where = ", where HOST is the host name of the first machine" if num_nodes > 1 else ""
        raise InputError(
            f"srun has started {num_tasks} tasks, but each of them would train alone; start one task per "
            f"machine (--ntasks-per-node=1) with the command `{command}`{where}. To start {num_tasks} "
            f"independent runs, unset {NUM_TASKS[0]} and give each run its own output_dir"
        )


def _check_variables() -> None:
    """Check the environment variables with which a launcher describes several processes.

    Raises:
        InputError: if variables are missing or contradict each other.
    """
    number, index = num_processes(), process_index()
    size = next((name for name in SIZES if os.environ.get(name)), SIZES[0])
    rank = next((name for name in RANKS if os.environ.get(name)), None)
    start = f"start {number} processes with `{working_command(number)}`"
    if rank is None and number > 1:
        raise InputError(
            f"{size} is {os.environ[size]}, but RANK is not set, so no launcher started this process; "
            f"unset {size} to train in one process, or {start}"
        )
    if index >= number:
        told = f"is {os.environ[size]}" if os.environ.get(size) else "is not set"
        raise InputError(
            f"{rank} is {index}, but {size} {told}, so this process would not train with the others; unset "
            f"{rank} to train in one process, or set {size} to the number of processes, as a launcher such "
            "as torchrun does"
        )
    if number > 1 and rank == "RANK" and not os.environ.get("MASTER_ADDR"):
        raise InputError(
            f"{size} is {number}, but MASTER_ADDR is not set, so the processes cannot find each other; set "
            f"MASTER_ADDR to the host name of the machine that runs process 0, or {start}"
        )


def working_command(
    num_processes: int,
    arguments: Sequence[str] | None = None,
    *,
    num_machines: int = 1,
    host: str = "HOST",
    on_cpu: bool = False,
) -> str:
    """Return the command that starts this program in several processes, quoted for a shell.

    If there are several machines, the command has to be executed on each machine.

    Args:
        num_processes: number of processes on each machine.
        arguments: a script, or `-m` and a module, followed by its arguments. None: those of this process.
        num_machines: number of machines.
        host: host name of the machine to which the launchers of all machines connect.
        on_cpu: train on the CPU even if there is a GPU.
    """
    launcher = ["torchrun", "--nproc_per_node", str(num_processes)]
    if num_machines > 1:
        launcher += ["--nnodes", str(num_machines), "--rdzv_backend", "c10d"]
        launcher += ["--rdzv_endpoint", f"{host}:{PORT}"]
    variables = ["ACCELERATE_USE_CPU=true"] if on_cpu else []
    if _is_true("ACCELERATE_USE_FSDP"):
        variables += FSDP_VARIABLES
    own = _own_arguments() if arguments is None else arguments
    return shlex.join([*variables, *launcher, *own])


def repeated_launch(arguments: Sequence[str] | None = None, *, on_cpu: bool = False) -> str:
    """Return the command that repeats this launch, with the same numbers of processes and machines.

    Args:
        arguments: a script, or `-m` and a module, followed by its arguments. None: those of this process.
        on_cpu: train on the CPU even if there is a GPU.
    """
    num = num_machines()
    host = os.environ.get("MASTER_ADDR", "HOST")
    return working_command(num_processes() // num, arguments, num_machines=num, host=host, on_cpu=on_cpu)


def why_lost(error: BaseException) -> str | None:
    """Return an explanation of an error that occurred because another process ended or did not answer.

    The result is None if the error has another cause.
    """
    if num_processes() == 1 or isinstance(error, RunStoppedError) or not isinstance(error, RuntimeError):
        return None
    is_of_torch = type(error).__name__.startswith("Dist")  # DistNetworkError and others
    if not is_of_torch and not LOST.search(str(error)):
        return None
    look = "look for the error message of that process, or for its exit code in the output of the launcher"
    if LATE.search(str(error)):
        return (
            "another process did not answer within the time limit training.process_timeout, because that "
            f"process has ended, hangs, or cannot be reached; {look}"
        )
    return (
        "the connection to another process was lost, because that process has ended or cannot be reached; "
        f"{look}"
    )


def _own_arguments() -> Sequence[str]:
    """Return the arguments of this Python process, without options of the interpreter."""
    arguments = sys.orig_argv[1:]
    while arguments and arguments[0].startswith("-") and arguments[0] != "-m":
        arguments = arguments[1:]
    return arguments


def _is_true(name: str, default: str = "") -> bool:
    """Return True if an environment variable is set to a word that accelerate reads as true."""
    return os.environ.get(name, default).strip().lower() in ("1", "true", "t", "yes", "y", "on")


def _number(names: Sequence[str], default: int) -> int:
    """Return the value of the first environment variable that contains a number, or the default.

    accelerate reads the same environment variables in the same way.
    """
    for name in names:
        if os.environ.get(name, "").strip().isdecimal():
            return int(os.environ[name])
    return default
