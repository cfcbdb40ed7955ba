"""Run functions in forked processes, and check if processes that were started by tests are still running."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path


def is_running(pid: int) -> bool:
    """Return True if the process exists and is not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_gone(pid: int, within: float) -> bool:
    """Wait until the process has ended; return False if it is running after `within` seconds."""
    until = time.monotonic() + within
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_running(pid)


@cache
def prepare_forks() -> None:
    """Save a model, for which transformers compiles a thousand patterns once per process.

    Otherwise, each fork that saves a model would compile them. No gradient is computed here, because forks
    inherit the threads that torch has prepared for gradients, and some forks add a device.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=2, hidden_size=2, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1
    )
    with tempfile.TemporaryDirectory() as directory:
        LlamaForCausalLM(shape).save_pretrained(directory)


def run_forked(
    call: Callable[[], object], timeout: float, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a function in a fork of this process, and return its exit code and output.

    A fork needs no imports, which would take most of the time of a new process.

    Args:
        call: function to run. It may change modules and may call `sys.exit`.
        timeout: seconds after which the process and its child processes are killed.
        environment: environment variables of the process, in addition to those of this process.
    """

    def run() -> None:
        os.setpgid(0, 0)
        for number, file in ((1, output), (2, errors)):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore SIGINT in background jobs
        call()

    prepare_forks()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            os.killpg(process.ident, signal.SIGKILL)
            process.join()
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    assert process.exitcode is not None
    return subprocess.CompletedProcess([], process.exitcode, *texts)
