"""Predicted and measured peak memory of a run: `python tests/benchmarks/memory.py`.

The model has the shape of SmolLM2-135M and random weights, so that nearly all completions have the maximum
length. Every episode has a different reward, so that all episodes have a gradient. For each setting, one
process predicts the peaks as `train --dry-run` does, and another process makes two updates and measures the
peaks of its resident memory. With FSDP2, two processes train together, and the peaks are those of the first
process. Between sampling and the update, memory that malloc keeps is returned to the system, and the peak is
reset. The prediction is printed before the measurement starts.

`--only NAME` runs one setting. `--layers N` changes the number of layers.
"""

import argparse
import multiprocessing
import os
import random
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm_reinforce import Problem, load_policy
from llm_reinforce.config import (
    AdapterConfig,
    RandomInitConfig,
    ReinforceConfig,
    SamplingConfig,
    TrainingConfig,
)
from llm_reinforce.policy import ShardedModel, random_policy
from llm_reinforce.rewards import WeightedReward
from llm_reinforce.training import TrainingLoop
from llm_reinforce.training.batch_sampler import BatchSampler
from llm_reinforce.training.gradient_step import GradientStep
from llm_reinforce.training.memory import memory_in_use, predict_memory, release_freed_memory

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
PROMPT = 40  # number of tokens of a prompt
MIB = 2**20

Result = TypeVar("Result")

# name: (settings of the policy, settings of the training)
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all weights, kept activations": ({}, {}),
    "all weights, micro-batches": ({}, {"micro_batch_tokens": 512}),
    "all weights, gradient checkpointing": ({}, {"gradient_checkpointing": True}),
    "adapter": ({"lora": AdapterConfig()}, {}),
    "adapter on 4 bits, gradient checkpointing": (
        {"lora": AdapterConfig(), "load_in_4bit": True},
        {"gradient_checkpointing": True},
    ),
    "8-bit AdamW, micro-batches": ({}, {"micro_batch_tokens": 512, "optimizer": "adamw_8bit"}),
    "bfloat16, micro-batches": ({"dtype": "bfloat16"}, {"micro_batch_tokens": 512}),
    "FSDP2 in two processes, micro-batches": ({}, {"micro_batch_tokens": 512}),
}
NUM_PROBLEMS, NUM_EPISODES, NUM_NEW = 4, 8, 32


def save_model(directory: str, num_layers: int) -> None:
    """Save a model with random weights and a character tokenizer."""
    policy = random_policy(RandomInitConfig())
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, num_hidden_layers=num_layers, eos_token_id=policy.end_token_ids[0])
    LlamaForCausalLM(config).save_pretrained(directory)
    policy.tokenizer.save_pretrained(directory)


def loop_of(name: str, directory: str) -> TrainingLoop:
    """Return the training loop of a setting."""
    of_policy, of_training = SETTINGS[name]
    dice = random.Random(0)
    problems = [
        Problem("".join(dice.choices("0123456789", k=PROMPT - 1)) + "=", id=str(number))
        for number in range(16)
    ]
    return TrainingLoop(
        load_policy(directory, **of_policy),
        problems,
        TrainingConfig(num_updates=2, learning_rate=1e-9, **of_training),
        rewards=(WeightedReward("random", lambda completion, problem: dice.random()),),
        reinforce=ReinforceConfig(problems_per_update=NUM_PROBLEMS, episodes_per_problem=NUM_EPISODES),
        sampling=SamplingConfig(max_new_tokens=NUM_NEW),
    )


def predicted(name: str, directory: str) -> dict[str, float]:
    """Return the predicted peaks, in MiB."""
    loop = loop_of(name, directory)
    found = predict_memory(loop, memory_in_use(loop.policy.device))
    parts = {part: size / MIB for part, size in found.parts.items()}
    return {"sampling": found.sampling / MIB, "update": found.update / MIB, **parts}


def measured(name: str, directory: str) -> dict[str, float]:
    """Return the measured peaks in MiB, each the larger peak of two updates."""
    peaks = {"sampling": 0.0, "update": 0.0}

    def watched(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            release_freed_memory()  # memory that the previous phase has freed
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            result = function(*arguments, **keywords)
            status = Path("/proc/self/status").read_text()
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            peaks[phase] = max(peaks[phase], int(peak.split()[1]) / 1024)
            return result

        return call

    BatchSampler.sample = watched("sampling", BatchSampler.sample)  # type: ignore[method-assign]
    GradientStep.__call__ = watched("update", GradientStep.__call__)  # type: ignore[method-assign]
    ShardedModel.refresh = watched("update", ShardedModel.refresh)  # type: ignore[method-assign]
    loop_of(name, directory).train()
    return peaks


def in_own_process(function: Callable[..., Result], *arguments: Any, num_processes: int = 1) -> Result:
    """Call the function in forked processes, which do not have to import the libraries again.

    Several processes train together with FSDP2. The result is that of the first process.
    """
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def call(rank: int) -> None:
        if num_processes > 1:
            of_torchrun = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            sizes = {"WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
            variables = {**of_torchrun, **sizes, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": 2}
            os.environ.update({name: str(value) for name, value in variables.items()})
            torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
        result = function(*arguments)
        if rank == 0:
            results.put(result)

    processes = [context.Process(target=call, args=(rank,)) for rank in range(num_processes)]
    for process in processes:
        process.start()
    found: Result = results.get()
    for process in processes:
        process.join()
    return found


def main() -> None:
    """Print a table of predicted and measured peaks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=SETTINGS)
    parser.add_argument("--layers", type=int, default=30, help="number of layers of the model")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {options.layers} layers; peaks in MiB", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        in_own_process(save_model, directory, options.layers)
        for name in [options.only] if options.only else SETTINGS:
            num_processes = 2 if "FSDP2" in name else 1
            own = in_own_process(predicted, name, directory, num_processes=num_processes)
            parts = ", ".join(f"{part} {size:.0f}" for part, size in list(own.items())[2:])
            print(f"{name}: predicted sampling {own['sampling']:.0f}, update {own['update']:.0f} ({parts})")
            sys.stdout.flush()
            found = in_own_process(measured, name, directory, num_processes=num_processes)
            compared = ", ".join(
                f"{phase} {found[phase]:.0f} ({own[phase] / found[phase] - 1:+.0%})" for phase in found
            )
            print(f"{name}: measured {compared}", flush=True)


if __name__ == "__main__":
    main()
