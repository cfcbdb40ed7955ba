"""The processes that train together, as their launcher describes them in environment variables.

`torchrun`, `accelerate launch --multi_gpu` and MPI start several processes. Each process reads its index and
the number of processes from environment variables.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

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

# settings of `accelerate launch` that are not supported, and the variables by which they are passed on
OTHER_SHARDING = {
    "ACCELERATE_USE_DEEPSPEED": "use_deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": "use_megatron_lm",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "use_parallelism_config",
}
UNSUPPORTED = {
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params",
    "FSDP_ACTIVATION_CHECKPOINTING": "fsdp_activation_checkpointing",
}
FSDP_VARIABLES = ("ACCELERATE_USE_FSDP=true", "FSDP_VERSION=2")  # what `--use_fsdp --fsdp_version 2` sets


@dataclass(frozen=True, slots=True)
class Sharding:
    """How FSDP2 divides the weights of the policy among the processes.

    Attributes:
        layer_classes: names of the classes whose modules are gathered one at a time. Empty: the classes that
            transformers does not split.
        reshard_after_forward: remove the gathered weights of a layer after its forward pass.
    """

    layer_classes: tuple[str, ...]
    reshard_after_forward: bool


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


def sharding() -> Sharding | None:
    """Return the settings of `accelerate launch --use_fsdp --fsdp_version 2`; None without `--use_fsdp`.

    Raises:
        InputError: if the launch has a setting that is not supported.
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
            "setting from the command and from the configuration file of accelerate. To divide the weights "
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
    """Check that the launcher has started the requested number of processes with supported settings.

    Raises:
        InputError: if `accelerate launch` should have started several processes but has started only one, if
            there are several processes and the environment variables do not contain the index of this
            process, or under the conditions listed for `sharding`.
    """
    sharding()
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


def launcher(num_processes: int) -> list[str]:
    """Return the words of a command that starts several processes, divided as in this launch."""
    variables = FSDP_VARIABLES if _is_true("ACCELERATE_USE_FSDP") else ()
    return [*variables, "torchrun", "--nproc_per_node", str(num_processes)]


def working_command(num_processes: int, *, on_cpu: bool = False) -> str:
    """Return the command that starts this program in several processes.

    Args:
        num_processes: number of processes.
        on_cpu: train on the CPU even if there is a GPU.
    """
    prefix = ["ACCELERATE_USE_CPU=true"] if on_cpu else []
    return shlex.join([*prefix, *launcher(num_processes), *_own_arguments()])


def _own_arguments() -> Sequence[str]:
    """Return the arguments of this Python process, without options of the interpreter."""
    arguments = sys.orig_argv[1:]
    while arguments and arguments[0].startswith("-") and arguments[0] != "-m":
        arguments = arguments[1:]
    return arguments


def _is_true(name: str, default: str = "") -> bool:
    """Return True if a variable is set to a word that accelerate reads as true."""
    return os.environ.get(name, default).strip().lower() in ("1", "true", "t", "yes", "y", "on")


def _number(names: Sequence[str], default: int) -> int:
    """Return the value of the first variable that is a number, as accelerate does, otherwise the default."""
    for name in names:
        if os.environ.get(name, "").strip().isdecimal():
            return int(os.environ[name])
    return default
