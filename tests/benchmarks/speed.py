"""Speed of an update, compared with TRL: `python tests/benchmarks/speed.py`.

An update samples 8 episodes of each problem, computes their rewards, and takes one gradient step. Each
contender runs in its own process, with the same weights and prompts, on-policy, in float32, at temperature 1,
without a reference model. The processes take turns update by update, so that changes of the machine's load
affect all contenders. Rewards are random numbers, so that no group has equal rewards and no episode can be
skipped. Only the contender `ours, verdicts` uses the verifier. TRL is included if it is installed. For our
contenders, OpenMP is configured as by the command `llm-reinforce`. `--busy N` also runs N other processes,
each of which keeps one thread busy. `ablation.py` measures the pieces of the fast path.

With `--scaling`, no contenders run. Instead, the script prints how the time of sampling and the time of the
gradient grow with the number of problems, the size of a group, the lengths and the size of the vocabulary.
"""

import argparse
import importlib.util
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from llm_reinforce import Problem, load_policy
from llm_reinforce.__main__ import WAITING
from llm_reinforce.config import (
    EvaluationConfig,
    RandomInitConfig,
    ReinforceConfig,
    SamplingConfig,
    TrainingConfig,
)
from llm_reinforce.console.run_display import Silent
from llm_reinforce.policy import LanguagePolicy, random_policy, sample_completions, token_log_probs
from llm_reinforce.policy.fast_path.products import product
from llm_reinforce.policy.fast_path.slot_batch import SlotBatch
from llm_reinforce.policy.fetched_models import fetched_directory
from llm_reinforce.rewards import WeightedReward, correct_answer
from llm_reinforce.training import TrainingLoop, batch_sampler

SIDES = ("ours", "ours, verdicts", "trl RLOO", "trl GRPO")
GROUP = 8
LEARNING_RATE = 1e-9  # keeps the policy nearly constant, so that all updates have the same cost


@dataclass(frozen=True)
class Workload:
    """Model and problems of an update."""

    title: str
    num_problems: int
    max_new_tokens: int
    problem: Callable[[random.Random], Problem]
    is_chat: bool


def chat_problem(dice: random.Random) -> Problem:
    """Return a one-digit sum as a question."""
    left, right = dice.randint(0, 9), dice.randint(0, 9)
    return Problem(prompt=f"What is {left} + {right}?", answer=str(left + right))


def character_problem(dice: random.Random) -> Problem:
    """Return a sum as a prompt of seven characters."""
    left, right = dice.randint(100, 999), dice.randint(10, 99)
    return Problem(prompt=f"{left}+{right}=", answer=str(left + right))


WORKLOADS = {
    "characters": Workload(
        "0.86M-parameter character-level Llama, 64 problems x 8 episodes, prompt 7, <= 4 new tokens",
        64,
        4,
        character_problem,
        False,
    ),
    "smollm2": Workload(
        "SmolLM2-135M-Instruct, 8 problems x 8 episodes, chat prompt of about 38, <= 24 new tokens",
        8,
        24,
        chat_problem,
        True,
    ),
}
SMALL = RandomInitConfig(
    alphabet="0123456789+=",
    num_layers=4,
    num_heads=4,
    hidden_size=128,
    intermediate_size=384,
    max_length=64,
)


# The contenders. Each contender makes one update per turn, without end, and reports the update.


class Turns:
    """Connection of a worker to its parent, which lets the worker make one update at a time."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # output of libraries goes to stderr

    def report(self, **what: object) -> None:
        """Report the last update to the parent, and return when it is this worker's turn again."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**what, "peak_mib": peak}), file=self.out, flush=True)
        if not sys.stdin.readline():
            os._exit(0)


def ours(workload: Workload, directory: str, report: Callable[..., None], *, has_verdicts: bool) -> None:
    """Make updates with TrainingLoop, and call `report` with the times of each update."""
    dice = random.Random(0)
    policy = load_policy(directory)
    spent = {"prefill": 0.0, "sampling": 0.0, "cpu": 0.0}

    class Reporting(Silent):
        def update(self, num_updates: int, num_total: int, metrics: Any, episodes: Any) -> None:
            prefill, sampling = spent["prefill"], spent["sampling"]
            spent.update(prefill=0.0, sampling=0.0)
            now = time.process_time()
            report(
                seconds=metrics["step_time"],
                cpu_seconds=now - spent["cpu"],
                tokens=sum(len(episode.completion.token_ids) for episode in episodes),
                prompt=len(episodes[0].prompt_ids),
                prefill=prefill,
                decode=sampling - prefill,
                rewards=metrics["step_time/collect"] - sampling,
                update=metrics["step_time/update"],
                operations=operations(policy, episodes),
            )
            spent["cpu"] = time.process_time()

    def reward(completion: str, problem: Problem) -> float:
        return dice.random()

    problems = [workload.problem(dice) for _ in range(100 * workload.num_problems)]
    if not has_verdicts:  # problems without an answer are not verified
        problems = [replace(problem, answer=None) for problem in problems]
    timed(batch_sampler, "sample_completions", spent, "sampling")
    timed(SlotBatch, "fill", spent, "prefill")
    TrainingLoop(
        policy,
        problems,
        TrainingConfig(num_updates=10**6, learning_rate=LEARNING_RATE),
        rewards=[WeightedReward("reward", correct_answer() if has_verdicts else reward)],
        reinforce=ReinforceConfig(
            problems_per_update=workload.num_problems,
            episodes_per_problem=GROUP,
            baseline="leave_one_out",
            standardize=True,
        ),
        sampling=SamplingConfig(max_new_tokens=workload.max_new_tokens),
        evaluation=EvaluationConfig(every=10**6, num_problems=1, decodings=["greedy"]),
        display=Reporting(),
    ).train()


def timed(owner: Any, name: str, spent: dict[str, float], phase: str) -> None:
    """Replace a function by one that adds its duration to `spent[phase]`."""
    plain = getattr(owner, name)

    def measured(*arguments: Any, **keywords: Any) -> Any:
        started = time.perf_counter()
        result = plain(*arguments, **keywords)
        spent[phase] += time.perf_counter() - started
        return result

    setattr(owner, name, measured)


def operations(policy: LanguagePolicy, episodes: Any) -> float:
    """Return the minimum number of floating-point operations of an update.

    Only products with weights are counted. Per weight and token, sampling needs 2 operations (the forward
    pass), and the gradient needs 4 operations. The prompt of a group counts once, and the output head counts
    for actions only.
    """
    head = policy.model.lm_head.weight.numel()  # type: ignore[union-attr]
    body = sum(p.numel() for p in policy.model.parameters()) - head
    if policy.model.config.tie_word_embeddings is False:  # type: ignore[union-attr]
        body -= head
    actions = sum(len(episode.completion.token_ids) for episode in episodes)
    prompts = sum(len(prompt) for prompt in {episode.prompt_ids for episode in episodes})
    return 6.0 * (body * (prompts + actions) + head * actions)


def trl(workload: Workload, directory: str, turns: Turns, *, method: str) -> None:
    """Make updates with the GRPOTrainer or RLOOTrainer of TRL."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    dice = random.Random(0)
    problems = [workload.problem(dice) for _ in range(100 * workload.num_problems)]
    prompts: list[Any] = [problem.prompt for problem in problems]
    if workload.is_chat:
        prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    spent: dict[str, Any] = {"tokens": 0, "started": 0.0}

    def reward(completions: Any, completion_ids: Any, **rest: Any) -> list[float]:
        spent["tokens"] = sum(len(one) for one in completion_ids)
        return [dice.random() for _ in completions]

    class Reporting(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *arguments: Any, **keywords: Any) -> None:
            spent["started"] = time.perf_counter()

        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            turns.report(seconds=time.perf_counter() - spent["started"], tokens=spent["tokens"])

    settings = getattr(trl, f"{method}Config")(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=workload.num_problems * GROUP,
        num_generations=GROUP,
        max_completion_length=workload.max_new_tokens,
        learning_rate=LEARNING_RATE,
        beta=0.0,
        temperature=1.0,
        max_steps=10**6,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    getattr(trl, f"{method}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32),
        processing_class=tokenizer,
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        callbacks=[Reporting()],
    ).train()


def work(side: str, workload: Workload, directory: str) -> None:
    """Run one of the contenders in this process."""
    turns = Turns()
    if side.startswith("trl"):
        trl(workload, directory, turns, method=side.split()[1])
    else:
        ours(workload, directory, turns.report, has_verdicts="verdicts" in side)


# The parent process, which starts the contenders, gives them turns, and prints the table.


@contextmanager
def contender(side: str, name: str, directory: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """Start a contender, and yield a function that lets it make an update; see `worker`."""
    arguments = [__file__, "--worker", side, "--workloads", name, "--directory", directory]
    with worker(arguments, {} if side.startswith("trl") else WAITING) as turn:
        yield turn


@contextmanager
def worker(arguments: list[str], environment: Mapping[str, str]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Start a Python process, and yield a function that makes one update in it and returns its report.

    The first update is a warm-up, which is made before the function is yielded.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        requests, reports = process.stdin, process.stdout

        def read_report() -> dict[str, Any]:
            line = reports.readline()
            if not line:
                errors.seek(0)
                raise SystemExit(f"{arguments} ended unexpectedly:\n{errors.read()[-2000:]}")
            result: dict[str, Any] = json.loads(line)
            return result

        def turn() -> dict[str, Any]:
            requests.write("go\n")
            requests.flush()
            return read_report()

        try:
            read_report()
            yield turn
        finally:
            process.kill()
            process.wait()


@contextmanager
def busy(num_processes: int) -> Iterator[None]:
    """Keep the machine busy within the context. Each process multiplies matrices on one thread."""
    program = "import torch; torch.set_num_threads(1); a = torch.randn(256, 256)\nwhile True: a @ a"
    with ExitStack() as stack:
        for _ in range(num_processes):
            process = subprocess.Popen([sys.executable, "-c", program])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


@contextmanager
def weights_of(name: str) -> Iterator[str]:
    """Yield a directory with the policy of a workload."""
    with tempfile.TemporaryDirectory() as directory:
        if WORKLOADS[name].is_chat:
            yield str(fetched_directory("smollm2-135m"))
        else:
            random_policy(SMALL, seed=0).save(directory)
            yield directory


def median_seconds(run: Callable[[], object], repeats: int = 7) -> float:
    """Return the median duration of `repeats` calls, after one call that does not count."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def peak_rates() -> tuple[float, float]:
    """Return the GFLOP/s of a large float32 matrix product, computed by torch and by `product`."""
    left, right = torch.randn(2, 2048, 2048)
    cost = 2 * 2048**3 / 1e9
    return (
        cost / median_seconds(lambda: left @ right.t()),
        cost / median_seconds(lambda: product(left, right)),
    )


def compare(name: str, sides: list[str], rounds: int, num_busy: int) -> list[dict[str, Any]]:
    """Let the contenders take turns beside busy processes, print a table, and return its rows."""
    workload = WORKLOADS[name]
    print(f"\n{workload.title}", flush=True)
    torch_rate, our_rate = peak_rates()
    print(f"a 2048 x 2048 product: torch {torch_rate:.0f}, ours {our_rate:.0f} GFLOP/s")
    with weights_of(name) as directory, busy(num_busy):
        reports: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        factors: dict[str, float] = {}
        for pair in pairs(sides):
            with ExitStack() as stack:
                turns = {side: stack.enter_context(contender(side, name, directory)) for side in pair}
                for _ in range(rounds):
                    for side, turn in turns.items():
                        reports[side].append(turn())
            own, others = (reports[side][-rounds:] for side in (pair[0], pair[-1]))
            factors[pair[-1]] = statistics.median(
                other["seconds"] / one["seconds"] for one, other in zip(own, others, strict=True)
            )
    rows = [summary(workload, side, reports[side], max(torch_rate, our_rate)) for side in sides]
    print("contender        seconds (least-most)   episodes/s  tokens/s  peak MiB  of peak   phases")
    for row in rows:
        print(
            f"{row['side']:15}  {row['seconds']:7.3f} ({row['least']:.3f}-{row['most']:.3f})"
            f"{row['episodes/s']:13.1f}{row['tokens/s']:10.0f}{row['peak_mib']:10.0f}  {row['phases']}"
        )
    of_trl = [factor for side, factor in factors.items() if side.startswith("trl")]
    if of_trl:
        beside = f" beside {num_busy} busy processes" if num_busy else ""
        factor = f"{min(of_trl):.1f} times as fast as the faster trainer of TRL"
        print(f"turn by turn, ours is {factor}{beside} (median)")
    return rows


def pairs(sides: list[str]) -> list[list[str]]:
    """Return pairs of the first contender with each other contender.

    Only two contenders run at the same time, because more might need too much memory.
    """
    return [[sides[0], other] for other in sides[1:]] or [sides]


def summary(workload: Workload, side: str, reports: list[dict[str, Any]], rate: float) -> dict[str, Any]:
    """Return the medians of a contender's updates."""
    seconds = [report["seconds"] for report in reports]
    middle = statistics.median(seconds)
    row = {
        "side": side,
        "seconds": middle,
        "least": min(seconds),
        "most": max(seconds),
        "episodes/s": workload.num_problems * GROUP / middle,
        "tokens/s": statistics.median(report["tokens"] for report in reports) / middle,
        "peak_mib": reports[-1]["peak_mib"],
        "phases": "",
    }
    if "operations" in reports[0]:
        phases = ("prefill", "decode", "rewards", "update")
        middles = {phase: statistics.median(report[phase] for report in reports) for phase in phases}
        achieved = statistics.median(report["operations"] for report in reports) / 1e9 / middle
        row["phases"] = f"{achieved / rate:6.0%}   " + ", ".join(
            f"{phase} {took:.3f}" for phase, took in middles.items()
        )
        row.update(middles, achieved=achieved)
    return row


# Growth of the cost.


def scaling() -> None:
    """Print the seconds of sampling and of the gradient for growing sizes. One quantity grows at a time."""
    base = {"problems": 16, "group": 8, "prompt": 32, "length": 32, "vocabulary": 4096}
    print("problems  group  prompt  length  vocabulary   sampling  gradient  peak MiB so far")
    for quantity, values in {
        "problems": (4, 8, 16, 32),
        "group": (1, 2, 4, 8, 16, 32),
        "prompt": (32, 128, 512),
        "length": (8, 16, 32, 64, 128),
        "vocabulary": (512, 4096, 32768, 131072),
    }.items():
        for value in values:
            shape = {**base, quantity: value}
            sampling, gradient = costs(**shape)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            sizes = "".join(
                f"{shape[key]:{width}}" for key, width in zip(base, (8, 7, 8, 8, 12), strict=True)
            )
            print(f"{sizes}{sampling:11.3f}{gradient:10.3f}{peak:10.0f}", flush=True)


def costs(problems: int, group: int, prompt: int, length: int, vocabulary: int) -> tuple[float, float]:
    """Return the time to sample completions of full length, and to compute the gradient of their log π.

    Both times are in seconds.
    """
    policy = random_policy(SMALL, seed=0)
    config = copy(policy.model.config)
    config.vocab_size, config.max_position_embeddings = vocabulary, prompt + length
    model = LlamaForCausalLM(config).eval()
    policy = replace(policy, model=model, end_token_ids=(-1,))
    dice = random.Random(0)
    prompts = [tuple(dice.randrange(12) for _ in range(prompt)) for _ in range(problems)]
    repeated = [one for one in prompts for _ in range(group)]
    completions = [tuple(dice.randrange(12) for _ in range(length)) for _ in repeated]

    def gradient() -> None:
        model.zero_grad()
        token_log_probs(model, repeated, completions, pad_token_id=0).log_probs.sum().backward()

    # sampled tokens may lie outside the tokenizer's vocabulary, and their text is not needed
    policy = replace(policy, tokenizer=NoText())
    sampling = median_seconds(
        lambda: sample_completions(policy, prompts, num_completions=group, max_new_tokens=length), 3
    )
    return sampling, median_seconds(gradient, 3)


class NoText:
    """Tokenizer that decodes all tokens to an empty text."""

    def decode(self, *arguments: object, **keywords: object) -> str:
        """Return an empty text."""
        return ""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["ours", "trl RLOO", "trl GRPO"])
    parser.add_argument("--rounds", type=int, default=5, help="updates per contender")
    parser.add_argument("--busy", type=int, default=0, help="number of other processes that use the cores")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    parser.add_argument("--scaling", action="store_true", help="print how the times grow with the sizes")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker, WORKLOADS[options.workloads[0]], options.directory)
    packages = ["torch", "transformers", "trl"]
    versions = {name: version(name) for name in packages if importlib.util.find_spec(name)}
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()}, {versions}")
    if options.scaling:
        return scaling()
    sides = [side for side in options.sides if "trl" in versions or not side.startswith("trl")]
    tables = {name: compare(name, sides, options.rounds, options.busy) for name in options.workloads}
    if options.json:
        options.json.write_text(
            json.dumps({"versions": versions, "busy": options.busy, "tables": tables}, indent=2)
        )
    return None


if __name__ == "__main__":
    main()
