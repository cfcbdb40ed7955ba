"""How fast an update is, beside TRL: `python tests/benchmarks/speed.py`.

One update is: sample 8 episodes of each problem, reward them, take one gradient step. Each contender runs in
a process of its own, on the same weights and prompts, on-policy, float32, temperature 1, no reference model;
the processes take turns update by update, so that all of them meet the same machine. Rewards are random
numbers: then no group is of one reward, and nothing may be left out (the side `ours, verdicts` has the
verifier's).
TRL takes part where it is installed. `--scaling` prints instead how the cost grows.
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

import llm_reinforce.episodes.collect as collect
from llm_reinforce import Problem, load_policy
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
from llm_reinforce.training import TrainingLoop

SIDES = ("ours", "ours, verdicts", "trl RLOO", "trl GRPO")
GROUP = 8
LEARNING_RATE = 1e-9  # the policy stays what it is, and every update the same work


@dataclass(frozen=True)
class Workload:
    """What is asked in an update."""

    title: str
    num_problems: int
    max_new_tokens: int
    problem: Callable[[random.Random], Problem]
    is_chat: bool


def chat_problem(dice: random.Random) -> Problem:
    """A one-digit sum."""
    left, right = dice.randint(0, 9), dice.randint(0, 9)
    return Problem(prompt=f"What is {left} + {right}?", answer=str(left + right))


def character_problem(dice: random.Random) -> Problem:
    """Seven characters."""
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


# The contenders: each runs updates for ever, and reports one whenever it is told to go.


class Turns:
    """A worker's side of the conversation: waits for its turn and reports, on the real stdout."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is not for the parent

    def report(self, **what: object) -> None:
        """Tell the parent of the last update; return when it is this worker's turn again."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**what, "peak_mib": peak}), file=self.out, flush=True)
        if not sys.stdin.readline():
            os._exit(0)


def ours(workload: Workload, directory: str, turns: Turns, *, has_verdicts: bool) -> None:
    """Updates of TrainingLoop."""
    dice = random.Random(0)
    policy = load_policy(directory)
    spent = {"prefill": 0.0, "sampling": 0.0}

    class Reporting(Silent):
        def update(self, num_updates: int, num_total: int, metrics: Any, episodes: Any) -> None:
            prefill, sampling = spent["prefill"], spent["sampling"]
            spent.update(prefill=0.0, sampling=0.0)
            turns.report(
                seconds=metrics["step_time"],
                tokens=sum(len(episode.completion.token_ids) for episode in episodes),
                prompt=len(episodes[0].prompt_ids),
                prefill=prefill,
                decode=sampling - prefill,
                rewards=metrics["step_time/collect"] - sampling,
                update=metrics["step_time/update"],
                operations=operations(policy, episodes),
            )

    def reward(completion: str, problem: Problem) -> float:
        return dice.random()

    timed(collect, "sample_completions", spent, "sampling")
    timed(SlotBatch, "fill", spent, "prefill")
    TrainingLoop(
        policy,
        [workload.problem(dice) for _ in range(100 * workload.num_problems)],
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
    """Let the function add its seconds to the phase."""
    plain = getattr(owner, name)

    def measured(*arguments: Any, **keywords: Any) -> Any:
        started = time.perf_counter()
        result = plain(*arguments, **keywords)
        spent[phase] += time.perf_counter() - started
        return result

    setattr(owner, name, measured)


def operations(policy: LanguagePolicy, episodes: Any) -> float:
    """Floating-point operations that an update needs at least: products with the weights alone.

    Two for each weight and token forward, which sampling does, four backward; a group's prompt once, the head
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
    """Updates of TRL's GRPOTrainer or RLOOTrainer."""
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
    """Be one of the contenders."""
    turns = Turns()
    if side.startswith("trl"):
        trl(workload, directory, turns, method=side.split()[1])
    else:
        ours(workload, directory, turns, has_verdicts="verdicts" in side)


# The parent: starts the contenders, lets them take turns, prints the table.


@contextmanager
def contender(side: str, name: str, directory: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """A process that runs one update whenever it is called; the first, a warm-up, is over."""
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(
            [sys.executable, __file__, "--worker", side, "--workloads", name, "--directory", directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        told, heard = process.stdin, process.stdout

        def hear() -> dict[str, Any]:
            line = heard.readline()
            if not line:
                complaints.seek(0)
                raise SystemExit(f"{side} ended:\n{complaints.read()[-2000:]}")
            result: dict[str, Any] = json.loads(line)
            return result

        def turn() -> dict[str, Any]:
            told.write("go\n")
            told.flush()
            return hear()

        try:
            hear()
            yield turn
        finally:
            process.kill()
            process.wait()


def median_seconds(run: Callable[[], object], repeats: int = 7) -> float:
    """Of some runs, after one that isn't counted."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def peak_rates() -> tuple[float, float]:
    """GFLOP/s of a large float32 product: torch's own, and ours."""
    left, right = torch.randn(2, 2048, 2048)
    cost = 2 * 2048**3 / 1e9
    return (
        cost / median_seconds(lambda: left @ right.t()),
        cost / median_seconds(lambda: product(left, right)),
    )


def compare(name: str, sides: list[str], rounds: int) -> list[dict[str, Any]]:
    """Let the contenders take turns, and print what came of it."""
    workload = WORKLOADS[name]
    print(f"\n{workload.title}", flush=True)
    torch_rate, our_rate = peak_rates()
    print(f"a 2048 x 2048 product: torch {torch_rate:.0f}, ours {our_rate:.0f} GFLOP/s")
    with tempfile.TemporaryDirectory() as temporary:
        directory = str(fetched_directory("smollm2-135m")) if workload.is_chat else temporary
        if not workload.is_chat:
            random_policy(SMALL, seed=0).save(directory)
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
            f"{row['episodes/s']:13.1f}{row['tokens/s']:10.0f}{row['peak_mib']:10.0f}  {row['told']}"
        )
    of_trl = [factor for side, factor in factors.items() if side.startswith("trl")]
    if of_trl:
        print(f"turn by turn ours is {min(of_trl):.1f} times as fast as the better of TRL's (median)")
    return rows


def pairs(sides: list[str]) -> list[list[str]]:
    """The first with each of the others: more than two at once may need more memory than there is."""
    return [[sides[0], other] for other in sides[1:]] or [sides]


def summary(workload: Workload, side: str, reports: list[dict[str, Any]], rate: float) -> dict[str, Any]:
    """Medians of a contender's updates."""
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
        "told": "",
    }
    if "operations" in reports[0]:
        phases = ("prefill", "decode", "rewards", "update")
        middles = {phase: statistics.median(report[phase] for report in reports) for phase in phases}
        achieved = statistics.median(report["operations"] for report in reports) / 1e9 / middle
        row["told"] = f"{achieved / rate:6.0%}   " + ", ".join(
            f"{phase} {took:.3f}" for phase, took in middles.items()
        )
        row.update(middles, achieved=achieved)
    return row


# How the cost grows.


def scaling() -> None:
    """Print seconds of sampling and of the gradient, one quantity doubled at a time."""
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
            told = "".join(f"{shape[key]:{width}}" for key, width in zip(base, (8, 7, 8, 8, 12), strict=True))
            print(f"{told}{sampling:11.3f}{gradient:10.3f}{peak:10.0f}", flush=True)


def costs(problems: int, group: int, prompt: int, length: int, vocabulary: int) -> tuple[float, float]:
    """Seconds to sample that many completions, all of full length, and for the gradient of their log π."""
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

    # what is sampled lies outside the tokenizer's vocabulary, and its text is nobody's concern
    policy = replace(policy, tokenizer=Silence())
    sampling = median_seconds(
        lambda: sample_completions(policy, prompts, num_completions=group, max_new_tokens=length), 3
    )
    return sampling, median_seconds(gradient, 3)


class Silence:
    """A tokenizer that writes nothing."""

    def decode(self, *arguments: object, **keywords: object) -> str:
        """Nothing."""
        return ""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["ours", "trl RLOO", "trl GRPO"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the tables there, too")
    parser.add_argument("--scaling", action="store_true")
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
    tables = {name: compare(name, sides, options.rounds) for name in options.workloads}
    if options.json:
        options.json.write_text(json.dumps({"versions": versions, "tables": tables}, indent=2))
    return None


if __name__ == "__main__":
    main()
