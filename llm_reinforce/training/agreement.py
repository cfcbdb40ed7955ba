"""Check that all processes of a run have the same settings, problems and checkpoint.

Otherwise, the processes would train different policies.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from accelerate import Accelerator
from pydantic import BaseModel
from torch import nn

from llm_reinforce.errors import InputError
from llm_reinforce.problems import Problem
from llm_reinforce.seeds import seed_of
from llm_reinforce.training.data_parallel import gather_object
from llm_reinforce.training.recording import flattened
from llm_reinforce.training.run_record import digest_of

MAX_NAMED = 8  # maximum number of differences in a message


def check_alike(
    accelerator: Accelerator,
    *,
    settings: Mapping[str, object],
    problems: Mapping[str, Sequence[Problem]],
    model: nn.Module,
) -> None:
    """Check that all processes have the same settings, problems, llm_reinforce version and model shapes.

    Args:
        accelerator: the accelerator of the run.
        settings: sections of settings and single settings, by name.
        problems: lists of problems, by the name that an error message shows.
        model: the model of the policy. Only the shapes and types of its weights are compared.

    Raises:
        InputError: if settings, problems, versions or shapes differ. All processes raise the same error.
    """
    if accelerator.num_processes == 1:
        return
    sections = {
        name: each.model_dump() if isinstance(each, BaseModel) else each for name, each in settings.items()
    }
    shapes = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in model.named_parameters()]
    own: dict[str, object] = {
        "version of llm_reinforce": version("llm-reinforce"),
        **flattened(sections),
        **{name: digest_of(each) for name, each in problems.items()},
        "policy": {"num_tensors": len(shapes), "digest_of_shapes": f"{seed_of(shapes):x}"},
    }
    _check_equal(own, accelerator, "start all processes with the same recipe, options, files and packages")


def check_same_checkpoint(checkpoint: str | None, accelerator: Accelerator) -> None:
    """Check that all processes resume the run from the same checkpoint.

    Args:
        checkpoint: name of the newest intact checkpoint that this process has found. None: no intact
            checkpoint was found.
        accelerator: the accelerator of the run.

    Raises:
        InputError: if the processes have found different checkpoints. All processes raise the same error.
    """
    found = {"newest checkpoint in output_dir": checkpoint}
    _check_equal(found, accelerator, "use an output_dir on a file system that all machines share")


def _check_equal(own: Mapping[str, object], accelerator: Accelerator, advice: str) -> None:
    values = {name: repr(value) for name, value in own.items()}
    first, *others = gather_object(values, accelerator)
    for number, other in enumerate(others, 1):
        names = [name for name in first | other if first.get(name) != other.get(name)]
        if names:
            lines = [f"  {name}: {_shown(first, name)} in process 0, {_shown(other, name)}" for name in names]
            raise InputError(
                "\n".join(
                    [
                        f"process {number} differs from process 0; {advice}. Differences:",
                        *(f"{line} in process {number}" for line in lines[:MAX_NAMED]),
                    ]
                )
            )


def _shown(values: Mapping[str, str], name: str) -> str:
    value = values.get(name, "absent")
    return value if len(value) <= 100 else value[:97] + "..."
