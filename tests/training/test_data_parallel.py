"""Training in several processes, as started by `accelerate launch`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType

from llm_reinforce.errors import InputError
from llm_reinforce.training import data_parallel
from llm_reinforce.training.data_parallel import SHARDING, new_accelerator


def launched(*program: str) -> subprocess.CompletedProcess[str]:
    """Run the program in two processes of one thread each, and return the result."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [sys.executable, *launch, *program],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["leave_one_out", "value", "greedy"])
def test_two_processes_train_to_the_end(tmp_path: Path, baseline: str) -> None:
    settings = {
        "output_dir": tmp_path / "run",
        "policy.random_init.num_layers": 1,
        "policy.random_init.num_heads": 2,
        "policy.random_init.hidden_size": 16,
        "policy.random_init.intermediate_size": 16,
        "problems.generate.digits": [1],  # few problems, so prompts repeat in one process but not the other
        "problems.num_held_out": 10,
        "reinforce.problems_per_update": 8,
        "reinforce.baseline": baseline,
        "training.num_updates": 6,
        "training.num_warmup_updates": 0,
        "training.warm_start.num_updates": 6,
        "training.warm_start.batch_size": 8,
        "training.warm_start.num_warmup_updates": 0,
    }
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    done = launched("-m", "llm_reinforce", "train", "quickstart", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [1, 2, 3, 4, 5, 6]  # written by one process only
    lengths = sum(row["completions/mean_length"] for row in rows) * 16
    assert rows[-1]["num_tokens"] > 1.5 * lengths  # includes the tokens of the other process
    assert (tmp_path / "run" / "policy" / "config.json").is_file()


def run_twice(directory: Path, program: str) -> None:
    """Run the program in two processes and check that both finish. The program defines the trainer `one`."""
    path = directory / "program.py"
    path.write_text(
        f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[2])]!r}
import torch
{program}
one.accelerator.wait_for_everyone()
print("finished", flush=True)
os._exit(0)  # a regular exit may be aborted by the threads of gloo
"""
    )
    done = launched(str(path))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("finished") == 2


@pytest.mark.slow
def test_two_processes_broadcast_weights_and_sum_gradients(tmp_path: Path) -> None:
    run_twice(
        tmp_path,
        """
from small_runs import small_policy, trainer
from llm_reinforce.policy.fast_path.packed_forward import packable_model
from llm_reinforce.config import WarmStartConfig
from llm_reinforce.training import data_parallel, gradient_step, warm_start

data_parallel.MAX_EXCHANGED = 1000  # several messages
checked = []

def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])

def checking(model, accelerator):
    own = flat([p.grad for p in model.parameters()])
    data_parallel.sum_gradients(model, accelerator)
    of_both = accelerator.gather(own[None])
    assert not torch.equal(of_both[0], of_both[1])
    torch.testing.assert_close(flat([p.grad for p in model.parameters()]), of_both.sum(0))
    checked.append(own)

gradient_step.sum_gradients = warm_start.sum_gradients = checking
policy = small_policy(seed=int(os.environ["RANK"]))
start = WarmStartConfig(num_updates=2, batch_size=4, num_warmup_updates=0)
one = trainer(policy, num_updates=3, training={"warm_start": start, "micro_batch_tokens": 30})
assert packable_model(one.gradient_step.model) is policy.model  # the fast path is used
for run in (lambda: None, one.train):
    run()
    both = one.accelerator.gather(flat(policy.model.parameters())[None])
    assert both.shape[0] == 2 and torch.equal(both[0], both[1])
assert len(checked) == 5

rank = one.accelerator.process_index
odd = torch.nn.Module()
odd.no_gradient, odd.gradient_in_first = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
odd.register_buffer("not_contiguous", torch.full((4, 6), float(rank))[:, ::2])
data_parallel.broadcast_weights(odd, one.accelerator)
assert not odd.not_contiguous.any()
if rank == 0:
    odd.gradient_in_first.grad = torch.full((3,), 2.0)
data_parallel.sum_gradients(odd, one.accelerator)
assert odd.no_gradient.grad is None and odd.gradient_in_first.grad.tolist() == [2.0, 2.0, 2.0]
""",
    )


@pytest.mark.parametrize("kind", SHARDING)
def test_sharding_is_rejected(kind: DistributedType, monkeypatch: pytest.MonkeyPatch) -> None:
    def launched(mixed_precision: str) -> Any:
        return SimpleNamespace(distributed_type=kind)

    monkeypatch.setattr(data_parallel, "Accelerator", launched)
    with pytest.raises(InputError, match=f"accelerate was launched with {kind.value}"):
        new_accelerator("no")


@pytest.mark.slow
def test_the_value_heads_of_two_processes_are_equal(tmp_path: Path) -> None:
    run_twice(
        tmp_path,
        """
from small_runs import Watcher, sevens, trainer
from llm_reinforce.config import ReinforceConfig
from llm_reinforce.rewards import WeightedReward

def picky(completion, problem):  # the two processes have different numbers of scored episodes
    return None if problem.id == "0" else sevens(completion, problem)

reinforce = ReinforceConfig(problems_per_update=4, episodes_per_problem=3, baseline="value")
one = trainer(num_updates=3, reinforce=reinforce, rewards=(WeightedReward("picky", picky),))
one.train()
head = torch.cat([value.flatten() for value in one.value_baseline.tensors().values()])
both = one.accelerator.gather(head[None])
assert both.shape[0] == 2 and torch.equal(both[0], both[1]) and bool(head.any())
""",
    )


@pytest.mark.slow
def test_the_gradient_of_two_processes_equals_that_of_one_with_all_episodes(tmp_path: Path) -> None:
    run_twice(
        tmp_path,
        """
from accelerate.utils import gather_object
from small_runs import COPY, trainer
from llm_reinforce.episodes import EpisodeBatch, estimate_advantages
from llm_reinforce.policy_gradient import MovingAverage
from llm_reinforce.config import ReinforceConfig
from llm_reinforce.training import gradient_step

settings = ReinforceConfig(
    problems_per_update=4, episodes_per_problem=3, baseline="leave_one_out", standardize=True,
    denominator="tokens", entropy_coefficient=0.1,
)
one = trainer(num_updates=2, reinforce=settings, training={"max_grad_norm": None, "micro_batch_tokens": 30})
step, parameters, compared = one.gradient_step, list(one.policy.model.parameters()), []

def gradient():
    return torch.cat([parameter.grad.flatten() for parameter in parameters])

def checking(model, accelerator):
    sum_gradients(model, accelerator)
    of_both = gradient()
    # with the same weights, compute the gradient of all episodes in this process alone
    everyone = EpisodeBatch.of(tuple(gather_object(list(batches[-1].episodes))))
    estimate = estimate_advantages(everyone, settings, MovingAverage())
    model.zero_grad()
    step._backward(everyone, estimate, range(len(everyone)), None)
    torch.testing.assert_close(of_both, gradient(), rtol=1e-4, atol=1e-6)
    compared.append((len(everyone), float(of_both.norm())))

batches = []
plain = gradient_step.GradientStep.__call__

def watched(self, batch, *rest):
    batches.append(batch)
    return plain(self, batch, *rest)

sum_gradients, gradient_step.sum_gradients = gradient_step.sum_gradients, checking
gradient_step.GradientStep.__call__ = watched
one.train()
assert [number for number, _ in compared] == [12, 12], compared
assert all(norm > 0.01 for _, norm in compared), compared
""",
    )
