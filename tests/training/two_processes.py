"""Checks of training in two processes.

`test_data_parallel.py` makes one launch for all checks. Each process prints the name of a check that has
passed. In the end, the processes run the command `llm-reinforce train` and exit with it.
"""

import json
import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from fake_server import FakeServer, serving
from small_runs import COPY, Watcher, new_run, sevens, small_policy, timeless, trainer

from llm_reinforce import load_recipe
from llm_reinforce.__main__ import main
from llm_reinforce.checkpoint_files import all_checkpoints
from llm_reinforce.config import EvaluationConfig, ReinforceConfig, ServerConfig, WarmStartConfig
from llm_reinforce.episodes import EpisodeBatch, estimate_advantages
from llm_reinforce.errors import InputError, RunStoppedError
from llm_reinforce.evaluation import answer_problems, measure_accuracy
from llm_reinforce.policy.fast_path.packed_forward import packable_model
from llm_reinforce.policy_gradient import MovingAverage
from llm_reinforce.rewards import WeightedReward
from llm_reinforce.runs import RunDirectory
from llm_reinforce.server import HttpClient, SamplingServer, ServerError
from llm_reinforce.training import TrainingLoop, data_parallel, gradient_step, run_evaluations, warm_start

LOST_WITHIN = 20.0  # seconds within which a process ends after the other one


def weights_are_broadcast_and_gradients_are_summed(directory: Path, patch: pytest.MonkeyPatch) -> None:
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

    patch.setattr(data_parallel, "MAX_EXCHANGED", 1000)  # several messages
    patch.setattr(gradient_step, "sum_gradients", checking)
    patch.setattr(warm_start, "sum_gradients", checking)
    policy = small_policy(seed=int(os.environ["RANK"]))
    start = WarmStartConfig(num_updates=2, batch_size=4, num_warmup_updates=0)
    one = trainer(policy, num_updates=3, training={"warm_start": start, "micro_batch_tokens": 30})
    assert packable_model(one.gradient_step.model) is policy.model  # the fast path is used
    for run in (lambda: None, one.train):
        run()
        both = one.accelerator.gather(flat(policy.model.parameters())[None])
        assert both.shape[0] == 2
        assert torch.equal(both[0], both[1])
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
    assert odd.no_gradient.grad is None
    assert odd.gradient_in_first.grad.tolist() == [2.0, 2.0, 2.0]


def value_heads_are_equal(directory: Path, patch: pytest.MonkeyPatch) -> None:
    def picky(completion, problem):  # the two processes have different numbers of scored episodes
        return None if problem.id == "0" else sevens(completion, problem)

    reinforce = ReinforceConfig(problems_per_update=4, episodes_per_problem=3, baseline="value")
    one = trainer(num_updates=3, reinforce=reinforce, rewards=(WeightedReward("picky", picky),))
    one.train()
    head = torch.cat([value.flatten() for value in one.value_baseline.tensors().values()])
    both = one.accelerator.gather(head[None])
    assert both.shape[0] == 2
    assert torch.equal(both[0], both[1])
    assert bool(head.any())


def the_gradient_equals_that_of_one_process_with_all_episodes(
    directory: Path, patch: pytest.MonkeyPatch
) -> None:
    settings = ReinforceConfig(
        problems_per_update=4,
        episodes_per_problem=3,
        baseline="leave_one_out",
        standardize=True,
        denominator="tokens",
        entropy_coefficient=0.1,
    )
    one = trainer(
        num_updates=2, reinforce=settings, training={"max_grad_norm": None, "micro_batch_tokens": 30}
    )
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
        step.backward(everyone, estimate, range(len(everyone)), None)
        torch.testing.assert_close(of_both, gradient(), rtol=1e-4, atol=1e-6)
        compared.append((len(everyone), float(of_both.norm())))

    batches = []
    plain = gradient_step.GradientStep.__call__

    def watched(self, batch, *rest, **options):
        batches.append(batch)
        return plain(self, batch, *rest, **options)

    sum_gradients = gradient_step.sum_gradients
    patch.setattr(gradient_step, "sum_gradients", checking)
    patch.setattr(gradient_step.GradientStep, "__call__", watched)
    one.train()
    assert [number for number, _ in compared] == [12, 12], compared
    assert all(norm > 0.01 for _, norm in compared), compared


def halves_of_batches() -> TrainingLoop:
    """Return a loop whose results do not depend on the number of processes.

    It has two updates per batch, refills, a curriculum, a reference policy and a target of the entropy.
    """
    settings = ReinforceConfig(
        problems_per_update=4,
        episodes_per_problem=3,
        standardize="group",
        denominator="episode_lengths",
        entropy_coefficient=0.1,
        updates_per_batch=2,
        importance={"level": "per_decision"},
        entropy_target={"value": 1.0, "rate": 0.01, "max_coefficient": 0.2},
        kl={"coefficient": 0.1, "estimator": "k3", "refresh_every": 2},
        truncated={"penalty": 0.5, "from": 2},
        refill=2,
        curriculum={},
    )
    return trainer(num_updates=4, reinforce=settings, display=Watcher())


def several_updates_per_batch(directory: Path, patch: pytest.MonkeyPatch) -> None:
    one = halves_of_batches()
    one.train()
    flat = torch.cat([parameter.detach().flatten() for parameter in one.policy.model.parameters()])
    both = one.accelerator.gather(flat[None])
    assert torch.equal(both[0], both[1])
    torch.save(flat, directory / f"weights-{os.environ['RANK']}.pt")
    quarters = ReinforceConfig(problems_per_update=4, updates_per_batch=4)
    with pytest.raises(InputError, match=r"\(4\) must be .* times reinforce.updates_per_batch, which is 8;"):
        trainer(reinforce=quarters)
    if one.accelerator.is_main_process:
        rows = timeless(one.display.metrics)
        (directory / "metrics.json").write_text(json.dumps(rows))


def failures_of_any_process_are_reported(directory: Path, patch: pytest.MonkeyPatch) -> None:
    def fails_in_process_1(completion, problem):
        if os.environ["RANK"] == "1" and one.state.num_updates >= 1:
            raise RuntimeError("no connection")
        return sevens(completion, problem)

    watcher = Watcher()
    rewards = (WeightedReward("judge", fails_in_process_1),)
    reinforce = ReinforceConfig(problems_per_update=4, episodes_per_problem=3)
    one = trainer(num_updates=3, reinforce=reinforce, rewards=rewards, display=watcher)
    updates = [*one.updates()]
    rows = [update.metrics for update in updates]
    assert [sorted(update.evaluations) for update in updates] == [[], [], ["greedy"]]
    assert one.state.best_evaluation["greedy"].update == 0  # in both processes
    assert [row["num_unscored"] for row in rows] == [0, 6, 6]
    assert [row.get("rewards/judge/num_failed") for row in rows] == [None, 6, 6]
    (said,) = [line for line in watcher.said if "could not be scored" in line]
    assert "left out of the update: process 1: judge: RuntimeError: no connection" in said
    assert any("in fails_in_process_1" in line for line in watcher.said)

    one = trainer(num_updates=3, reinforce=reinforce, rewards=rewards, training={"max_unscored_share": 0.4})
    with pytest.raises(RunStoppedError, match=r"50% of the episodes of update 2 .*process 1: judge"):
        one.train()


def trial_failures_of_any_process_are_reported(directory: Path, patch: pytest.MonkeyPatch) -> None:
    def fails_in_process_1(completion, problem):
        if os.environ["RANK"] == "1":
            raise RuntimeError("no connection")
        return 0.0

    one = trainer(num_updates=1, rewards=(WeightedReward("judge", fails_in_process_1),))
    with pytest.raises(InputError, match=r"all 4 trial episodes of process 1; .*no connection"):
        one.train()


def metrics_logged_by_rewards_are_averaged(directory: Path, patch: pytest.MonkeyPatch) -> None:
    def logs(prompts, completions, log_metric, log_extra):
        log_metric("rank", float(os.environ["RANK"]))
        log_extra("rank", [os.environ["RANK"]] * len(completions))
        return [0.0] * len(completions)

    one = trainer(num_updates=1, rewards=(WeightedReward("logs", logs),))
    (update,) = one.updates()
    assert update.metrics["rank"] == 0.5
    ranks = [episode.extras["rank"] for episode in update.episodes]
    assert ranks == sorted(ranks)
    assert set(ranks) == {"0", "1"}


def a_server_samples_for_all_processes(directory: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("llm_reinforce.server.http_client.WAITS", (0.0,))
    with serving(FakeServer(small_policy())) as own:
        (url, *_) = gather_object([own.url])  # the server of the main process
        client = SamplingServer(ServerConfig(url=url), temperature=1.0, is_half=False, directory=None)
        weights = ReinforceConfig(
            problems_per_update=4, episodes_per_problem=3, importance={"level": "per_decision"}
        )
        one = trainer(num_updates=3, reinforce=weights, server=client)
        updates = one.updates()
        for _ in range(2):
            metrics = next(updates).metrics
            assert metrics["server/probe_difference"] < 1e-5
            assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
        torch.distributed.barrier()
        client.client = HttpClient("http://127.0.0.1:9" if os.environ["RANK"] == "1" else url, timeout=60.0)
        trial = trainer(num_updates=1, reinforce=weights, server=client)
        with pytest.raises(InputError, match=r"^sampling.server: .*127.0.0.1:9: .*no connection"):
            trial.train()
        torch.distributed.barrier()
        client.client = HttpClient(url, timeout=60.0)
        own.missing.add("/collective_rpc")  # only the main process calls it
        with pytest.raises(ServerError, match=r"collective_rpc: the server does not have this route"):
            next(updates)
        torch.distributed.barrier()


def evaluations_are_shared(directory: Path, patch: pytest.MonkeyPatch) -> None:
    def watched(*arguments, **options):
        shares.append(answer_problems(*arguments, **options))
        return shares[-1]

    shares: list[dict] = []
    patch.setattr(run_evaluations, "answer_problems", watched)
    settings = EvaluationConfig(every=1, decodings=("greedy", "sampled"), samples_per_problem=2)
    one = trainer(num_updates=1, held_out=COPY[:3], evaluation=settings)
    one.train()
    indices = [sorted(share) for share in gather_object([*shares])]
    assert indices == [[0, 2]] * 4 + [[1]] * 4  # two decodings, before and after the update
    for decoding, made in one.evaluations.after(1).items():
        num_samples = 2 if decoding == "sampled" else 1
        alone = measure_accuracy(
            one.policy, COPY[:3], decoding=decoding, samples_per_problem=num_samples, max_new_tokens=4
        )
        assert made.answers == alone.answers
        assert made.measures == alone.measures
    single = trainer(num_updates=1, held_out=COPY[:1], evaluation=settings)  # a share is empty
    single.train()
    assert single.evaluations.after(1)["sampled"].total == 2


class Stopper(Watcher):
    """Request a stop in process 1 when the sampling or an evaluation shows its progress."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.when = when

    def working(self, sentence: str) -> None:
        self.stop_if(self.when in sentence)

    def evaluating(self, num_problems: int, total: int) -> None:
        self.stop_if(self.when == f"{num_problems} of {total} evaluated")

    def stop_if(self, is_time: bool) -> None:
        assert self.trainer is not None
        if is_time and os.environ["RANK"] == "1":
            self.trainer.stop_requested = True


def a_stop_in_one_process_stops_all(directory: Path, patch: pytest.MonkeyPatch) -> None:
    settings = EvaluationConfig(every=2, decodings=("sampled", "greedy"), batch_size=1)
    stops = (("update 2: ", 1, ()), ("1 of 2 evaluated", 0, ("sampled", "greedy")))
    for when, num_updates, pending in stops:
        run = directory / f"stopped after {num_updates}"
        if os.environ["RANK"] == "0":
            new_run(run)
        torch.distributed.barrier()
        stopper = Stopper(when)
        shared = {"held_out": COPY, "evaluation": settings, "run_directory": RunDirectory(run)}
        arguments = {"num_updates": 2, **shared}
        stopper.trainer = trainer(display=stopper, **arguments)
        state = stopper.trainer.train()
        assert (state.num_updates, state.pending_evaluations) == (num_updates, pending)
        torch.distributed.barrier()
        assert [each.name for each in all_checkpoints(run / "checkpoints")] == [f"update-{num_updates:06d}"]
        resumed = trainer(**arguments).train(resume=True)
        assert (resumed.num_updates, resumed.pending_evaluations) == (2, ())


def processes_that_differ_are_refused(directory: Path, patch: pytest.MonkeyPatch) -> None:
    rank = int(os.environ["RANK"])
    with pytest.raises(InputError, match="process 1 differs from process 0; start all") as caught:
        trainer(seed=rank, reinforce=ReinforceConfig(problems_per_update=4 + 4 * rank))
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["reinforce.problems_per_update", "seed"]
    assert "4 in process 0, 8 in process 1" in lines[0]
    with pytest.raises(InputError, match=r"  held-out problems: .*num_problems.: 1,"):
        trainer(held_out=COPY[: 1 + rank])
    if rank == 1:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        patch.setenv("FSDP_VERSION", "2")
    with pytest.raises(InputError, match=r"  FSDP2: None in process 0, Sharding\(.* in process 1"):
        trainer()
    patch.delenv("ACCELERATE_USE_FSDP", raising=False)
    run = new_run(directory / f"machine {rank}")
    trainer(num_updates=1, run_directory=run).train()  # only process 0 has a checkpoint
    with pytest.raises(InputError, match="checkpoint in output_dir: 'update-000001' in process 0, None in"):
        trainer(num_updates=2, run_directory=run).train(resume=True)


def a_run_from_python_ends(directory: Path, patch: pytest.MonkeyPatch) -> None:
    settings = recipe_settings(directory / "value", "value")
    load_recipe("quickstart", [f"{key}={value}" for key, value in settings.items()]).train()


def recipe_settings(run: Path, baseline: str) -> dict[str, object]:
    """Return settings that make the quick start a run of three tiny updates."""
    return {
        "output_dir": run,
        "policy.random_init.num_layers": 1,
        "policy.random_init.num_heads": 2,
        "policy.random_init.hidden_size": 16,
        "policy.random_init.intermediate_size": 16,
        "problems.generate.digits": [1],  # few problems, so prompts repeat in one process but not the other
        "problems.num_held_out": 10,
        "reinforce.problems_per_update": 8,
        "reinforce.baseline": baseline,
        "training.num_updates": 3,
        "training.num_warmup_updates": 0,
        "training.warm_start.num_updates": 3,
        "training.warm_start.batch_size": 8,
        "training.warm_start.num_warmup_updates": 0,
    }


def check_files(run: Path) -> None:
    """Check that a run of two processes is complete and has been written by one of them."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [1, 2, 3]
    lengths = sum(row["completions/mean_length"] for row in rows) * 16
    assert rows[-1]["num_tokens"] > 1.5 * lengths  # includes the tokens of the other process
    assert (run / "policy" / "config.json").is_file()
    assert json.loads((run / "environment.json").read_text())["num_processes"] == 2


CHECKS = (
    failures_of_any_process_are_reported,
    trial_failures_of_any_process_are_reported,
    metrics_logged_by_rewards_are_averaged,
    evaluations_are_shared,
    a_stop_in_one_process_stops_all,
    processes_that_differ_are_refused,
    weights_are_broadcast_and_gradients_are_summed,
    value_heads_are_equal,
    the_gradient_equals_that_of_one_process_with_all_episodes,
    several_updates_per_batch,
    a_server_samples_for_all_processes,
    a_run_from_python_ends,
)


def check_all(directory: Path) -> None:
    """Make all checks in one of the two processes."""
    for check in CHECKS:
        with pytest.MonkeyPatch.context() as patch:
            check(directory, patch)
        torch.distributed.barrier()
        sys.stdout.write(f"passed: {check.__name__}\n")
        sys.stdout.flush()
    settings = recipe_settings(directory / "greedy", "greedy")
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    sys.argv = ["llm-reinforce", "train", "quickstart", *options]
    main()


def start_two(run: Callable[[Path], None], directory: Path) -> list[ForkProcess]:
    """Fork two processes with the environment variables of `torchrun`, and call `run` in both."""

    def run_in_fork() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # of an accelerator made before the fork
        run(directory)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes = []
    for rank in ("0", "1"):
        os.environ.update({**shared, "RANK": rank, "LOCAL_RANK": rank})
        processes.append(multiprocessing.get_context("fork").Process(target=run_in_fork))
        processes[-1].start()
    return processes


def launch(call: Callable[[Path], None], directory: Path, **environment: str) -> None:
    """Call a function in two processes with further environment variables; exit with 1 if one fails."""
    os.environ.update(environment)
    processes = start_two(call, directory)
    multiprocessing.connection.wait([each.sentinel for each in processes])
    for each in processes:
        # after the end of one process, the other one may notice only that
        each.join(LOST_WITHIN if any(other.exitcode for other in processes) else None)
        each.kill()
    sys.exit(any(each.exitcode for each in processes))
