"""Runs in two processes among which FSDP2 divides the weights; `test_sharded_training.py` launches them."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from small_runs import COPY, Watcher, adapted_policy, sevens, small_policy, timeless, trainer
from transformers import GPT2Config, GPT2LMHeadModel

from llm_reinforce.checkpoint_files import find_checkpoint
from llm_reinforce.config import ReinforceConfig, WarmStartConfig
from llm_reinforce.errors import ProcessLostError, RunStoppedError
from llm_reinforce.policy import LanguagePolicy, local_tensor, policy_from_model, sharded_model
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import WeightedReward
from llm_reinforce.runs import RunDirectory
from llm_reinforce.training import TrainingLoop, warm_start
from llm_reinforce.training.data_parallel import describe_processes
from llm_reinforce.training.memory import predict_memory

NUM_UPDATES = 3
VARIABLES = {  # of `accelerate launch --use_fsdp --fsdp_version 2`
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


def first_problems_alone(completion: str, problem: Problem) -> float:
    """Return a reward that leaves the second process without advantages."""
    return sevens(completion, problem) if problem.id in ("0", "1") else 1.0


def llama(directory: Path) -> TrainingLoop:
    """Return a run whose processes have different numbers of micro-batches, and a warm start of one problem.

    Each of its micro-batches is computed in several passes, as for a model that cannot be padded.
    """
    reinforce = ReinforceConfig(
        problems_per_update=4,
        episodes_per_problem=4,
        baseline="leave_one_out",
        updates_per_batch=2,
        importance={"level": "per_decision"},
    )
    start = WarmStartConfig(num_updates=2, batch_size=1, num_warmup_updates=0)
    return trainer(
        num_updates=2,
        reinforce=reinforce,
        rewards=(WeightedReward("first", first_problems_alone),),
        training={"learning_rate": 1e-3, "micro_batch_tokens": 20, "warm_start": start},
        display=Watcher(),
    )


def adapter(directory: Path, run_directory: RunDirectory | None = None, **training: Any) -> TrainingLoop:
    """Return a run of an adapter with everything that has state, and with clipped gradients."""
    reinforce = ReinforceConfig(
        problems_per_update=4,
        episodes_per_problem=3,
        baseline="value",
        entropy_coefficient=0.1,
        kl={"coefficient": 0.1, "estimator": "k3", "refresh_every": 2},
    )
    settings = {"learning_rate": 1e-3, "max_grad_norm": 0.1, "checkpoint_every": 1, **training}
    return trainer(
        adapted_policy(directory / "base"),
        num_updates=NUM_UPDATES,
        reinforce=reinforce,
        training=settings,
        run_directory=run_directory,
        display=Watcher(),
        held_out=COPY[:2],
    )


def gpt2(directory: Path) -> TrainingLoop:
    """Return a run of a model with tied embeddings and no fast path, and with another reference model."""
    tokenizer = small_policy().tokenizer
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=16,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    reinforce = ReinforceConfig(
        problems_per_update=4,
        episodes_per_problem=3,
        kl={"coefficient": 0.1, "reference": str(directory / "base")},
        refill=1,
        curriculum={},
    )
    return trainer(
        policy_from_model(model, tokenizer),
        num_updates=2,
        reinforce=reinforce,
        training={"learning_rate": 1e-3, "micro_batch_tokens": 30, "gradient_checkpointing": True},
        display=Watcher(),
    )


def half(directory: Path) -> TrainingLoop:
    """Return a run of one update with weights in half precision."""
    policy = small_policy()
    policy.model.to(torch.bfloat16)
    return trainer(policy, num_updates=1, training={"learning_rate": 1e-3}, display=Watcher())


RUNS: dict[str, Callable[[Path], TrainingLoop]] = {
    "llama": llama,
    "adapter": adapter,
    "gpt2": gpt2,
    "half": half,
}


def flat_weights(policy: LanguagePolicy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])


def result(one: TrainingLoop) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Train, and return the weights and the metrics."""
    one.train()
    return flat_weights(one.policy), timeless(one.display.metrics)  # type: ignore[attr-defined]


def record_sizes(one: TrainingLoop) -> dict[str, int]:
    """Return a dict to which the run adds the size of the whole policy in the two phases of an update."""
    sizes: dict[str, int] = {}

    def working(text: str) -> None:
        phase = "gradient" if "gradient" in text else "sampled"
        sizes[phase] = sum(weight.numel() for weight in one.policy.model.parameters())

    one.display.working = working  # type: ignore[method-assign]
    return sizes


def check_memory(one: TrainingLoop) -> None:
    """Check that the predicted memory contains only this process's part of the optimizer."""
    trained = [weight for weight in one.gradient_step.model.parameters() if weight.requires_grad]
    num_own = sum(local_tensor(weight).numel() for weight in trained)
    assert num_own < 0.7 * sum(weight.numel() for weight in trained)
    parts = predict_memory(one, 0.0).parts
    of_reference = sum(weight.nbytes for weight in one.policy.model.parameters() if weight.requires_grad)
    has_reference = one.reference is not None and one.reference.is_state_of_policy
    assert parts["optimizer"] == 8 * num_own + of_reference * has_reference


def stop_a_warm_start() -> None:
    """Check that both processes stop if the gradient of one is not finite, and that the policy remains."""
    start = WarmStartConfig(num_updates=1, batch_size=2, num_warmup_updates=0)
    one = trainer(training={"warm_start": start, "max_not_finite": 1})
    before = flat_weights(one.policy)
    with pytest.MonkeyPatch.context() as patch:
        if os.environ["RANK"] == "1":
            patch.setattr(warm_start, "nan_unless_finite", lambda loss: loss * float("nan"))
        with pytest.raises(RunStoppedError, match="of the warm start were not finite"):
            one.train()
    assert torch.equal(flat_weights(one.policy), before)


def leave_in_one_process(directory: Path) -> None:
    """Leave the loop over the updates in one process; the other one takes part in saving, and stops."""
    one = trainer(num_updates=3, run_directory=RunDirectory(directory / "left"))
    for _ in one.updates():
        if os.environ["RANK"] == "1":
            break
    if os.environ["RANK"] == "1":
        one.accelerator.wait_for_everyone()  # at the end of the loop of the other process
    assert one.state.num_updates == 1
    one.accelerator.wait_for_everyone()
    checkpoint, _ = find_checkpoint(directory / "left" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.name == "update-000001"


def kill_second_process(one: TrainingLoop) -> None:
    for update in one.updates():
        if update.number == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)


def train_all(directory: Path) -> None:
    """Make all runs in one of the two processes; then begin another run, which is killed."""
    for name, build in RUNS.items():
        with pytest.MonkeyPatch.context() as patch:
            if name == "llama":
                patch.setattr(sharded_model, "find_batching", lambda model: "equal lengths")
            if name == "gpt2":  # the state of accelerate on GPUs
                state = AcceleratorState._shared_state
                patch.setitem(state, "distributed_type", DistributedType.FSDP)
                patch.setitem(state, "fsdp_plugin", FullyShardedDataParallelPlugin())
            if name == "half":
                patch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
                patch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaMLP,LlamaAttention")
            one = build(directory)
            assert "divided among the processes by FSDP2" in describe_processes(one.accelerator)
            assert all(hasattr(weight, "full_tensor") for weight in one.gradient_step.model.parameters())
            check_memory(one)
            sizes = record_sizes(one)
            weights, metrics = result(one)
            assert sizes == {"sampled": len(weights), "gradient": 0}
        both = one.accelerator.gather(weights[None])
        assert torch.equal(both[0], both[1])
        if one.accelerator.is_main_process:
            torch.save(weights, directory / f"{name}.pt")
            (directory / f"{name}.json").write_text(json.dumps(metrics))
    stop_a_warm_start()
    leave_in_one_process(directory)
    one = adapter(directory, RunDirectory(directory / "run"))
    with pytest.raises(ProcessLostError) as caught:
        kill_second_process(one)
    (directory / "lost.txt").write_text(str(caught.value))


def resume_all(directory: Path) -> None:
    """Resume the killed run, and a run that was begun in one process."""
    for name in ("run", "begun by one"):
        one = adapter(directory, RunDirectory(directory / name))
        one.train(resume=True)
        if one.accelerator.is_main_process:
            torch.save(flat_weights(one.policy), directory / f"{name}.pt")
