"""Accuracy on published word problems: `python tests/benchmarks/word_problems.py PART`.

Start the script in the directory that contains the folder written by `recipes/word_problems.py`. The parts
are:

- `base` measures the policy before training. It compares prompt templates on dev.jsonl, which contains no
  test problems. With the best template, it then measures the greedy and the sampled accuracy on the test
  problems.
- `settings` and `shaping` compare settings and rewards of the recipe on dev.jsonl, at an equal budget of
  sampled tokens, and print the findings of `llm-reinforce doctor`.
- `gains` trains with each method and seed, and compares the accuracy on the test problems with the accuracy
  before training. The methods are the recipe, the recipe without its warm start, and supervised training on
  all worked solutions. With `--trl PYTHON`, the GRPO trainer of TRL also trains, for as long as the recipe's
  run with the same seed took.
- `plot` draws the results of `gains` again.

All files are written to `--output`, and complete runs are not repeated. A quick trial of `gains` is
`--problems 4 --set training.num_updates=2 --set training.warm_start.num_updates=2 --set evaluation.every=2`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llm_reinforce import Evaluation, compare_evaluations, diagnose, evaluate, load_recipe
from llm_reinforce.durable_files import write_whole

RECIPE, DATA = "smollm2_word_problems", Path("word_problems")
SHORT = "{prompt}\nAnswer with the number only."  # for policies without a warm start
TEMPLATES = (
    "{prompt}",
    SHORT,
    "Question: {prompt}\nAnswer:",
    "{prompt}\nWrite the calculation, then the answer after ####.",
)
TESTS = ("svamp_test", "multiarith_test")
REWARDS = "'rewards=[{function: correct_answer}, {function: %s}]'"
SHAPING = {  # rewards that are added to the reward for a right answer
    "right answer": "",
    "format": REWARDS % "answer_format, weight: 0.2",
    "concise": REWARDS % "conciseness, weight: 0.5, arguments: {max_tokens: 48}",
    "right steps": REWARDS % "intermediate_steps, weight: 0.2, arguments: {wrong: 0}",
    "heavy steps": REWARDS % "intermediate_steps, weight: 1, arguments: {wrong: 0}",
}
SETTINGS = {  # changes of the recipe's settings
    "recipe": "",
    "warm start of 10": "training.warm_start.num_updates=10",
    "warm start of 160": "training.warm_start.num_updates=160",
    "learning rate 5e-6": "training.learning_rate=5e-6",
    "learning rate 3e-5": "training.learning_rate=3e-5",
    "adapter": "policy.lora={} training.learning_rate=1e-4 training.warm_start.learning_rate=5e-4",
    "16 problems": "reinforce.problems_per_update=16",
    "refill": "reinforce.refill=1",
    "curriculum": "reinforce.curriculum={}",
}
# one policy-gradient update with a learning rate that leaves all weights unchanged
NO_UPDATE = ("training.num_updates=1", "training.learning_rate=1e-30", "reinforce.problems_per_update=2")


def methods(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the settings of each method, as changes of the recipe."""
    short = [f"problems.template={json.dumps(SHORT)}", "training.warm_start=null"]
    no_start = [each for each in options.set if "warm_start" not in each]
    supervised = {
        f"supervised {num}": [
            *NO_UPDATE,
            "training.warm_start.num_updates=null",
            f"training.warm_start.epochs={num}",
        ]
        for num in options.epochs
    }
    return {"recipe": options.set, "no warm start": [*short, *no_start], **supervised}


def train(settings: list[str], directory: Path) -> float:
    """Run the recipe with changed settings, unless the run is complete, and return its time in seconds."""
    record = directory / "seconds.json"
    if not record.exists():
        started = time.perf_counter()
        command = [sys.executable, "-m", "llm_reinforce", "train", RECIPE, "--overwrite"]
        subprocess.run([*command, *changes([*settings, f"output_dir={directory}"])], check=True)
        write_json(record, time.perf_counter() - started)
    return float(json.loads(record.read_text()))


def changes(settings: list[str]) -> list[str]:
    """Return options of the command line that change settings."""
    return [word for each in settings for word in ("--set", each)]


def train_with_trl(options: argparse.Namespace, seed: int, seconds: float, directory: Path) -> float:
    """Run TRL's trainer in another interpreter, unless the run is complete, and return its duration."""
    record = directory / "seconds.json"
    if not record.exists():
        here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        arguments = ["trl", f"--output={directory}", f"--policy={options.policy}"]
        arguments += [f"--seeds={seed}", f"--seconds={seconds}"]
        subprocess.run([options.trl, __file__, *arguments], check=True, env=here)
    return float(json.loads(record.read_text()))


def trl(options: argparse.Namespace) -> None:
    """Train with GRPOTrainer until the time is over, and save the policy.

    The settings are TRL's defaults, with three exceptions: the maximum length of completions is that of the
    recipe, the learning rate is constant, because the number of updates is not known, and a CPU computes in
    float32.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found,unused-ignore]

    from llm_reinforce import verify
    from llm_reinforce.policy.fetched_models import fetched_directory
    from llm_reinforce.problems import read_problems

    started = time.perf_counter()

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, arguments: Any, state: Any, control: Any, **keywords: Any) -> None:
            control.should_training_stop = time.perf_counter() - started > options.seconds

    def reward(completions: Any, answer: list[str], **columns: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return [float(verify(text, right).correct) for text, right in zip(texts, answer, strict=True)]

    is_path = Path(options.policy).exists()
    directory = options.policy if is_path else str(fetched_directory(options.policy))
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(directory),
        reward_funcs=reward,
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": each.in_template(SHORT).prompt}],
                    "answer": each.answer,
                }
                for each in read_problems(DATA / "train.jsonl")
            ]
        ),
        callbacks=[Clock()],
        args=GRPOConfig(
            output_dir=str(options.output),
            seed=options.seeds,
            max_completion_length=load_recipe(RECIPE).config.sampling.max_new_tokens,
            max_steps=10**6,
            lr_scheduler_type="constant",
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
        ),
    )
    trainer.train()
    trainer.save_model(str(options.output / "policy"))
    write_json(options.output / "log.json", trainer.state.log_history)
    write_json(options.output / "seconds.json", time.perf_counter() - started)


def measured(options: argparse.Namespace, name: str, policy: str, data: str, **settings: Any) -> Evaluation:
    """Return the evaluation of a policy. It is recorded, so that a later call does not repeat it."""
    return evaluate(
        policy,
        str(DATA / f"{data}.jsonl"),
        output_dir=options.output / "evaluations" / name / data,
        batch_size=64,
        num_problems=options.problems,
        **settings,
    )


def base(options: argparse.Namespace) -> None:
    """Measure the policy before training."""
    rows = []
    for num_tokens in (48, 256):
        for number, template in enumerate(TEMPLATES, 1):
            settings: dict[str, Any] = {"template": template, "max_new_tokens": num_tokens}
            found = measured(options, f"template-{number}-{num_tokens}", options.policy, "dev", **settings)
            rows.append({"data": "dev", **settings, **found.summary()})
    best = max(rows, key=lambda row: float(row["accuracy"]))
    for data in TESTS:
        for decoding, num in (("greedy", 1), ("sampled", 8)):
            settings = {key: best[key] for key in ("template", "max_new_tokens")} | {"decoding": decoding}
            found = measured(
                options, f"base-{decoding}", options.policy, data, samples_per_problem=num, **settings
            )
            rows.append({"data": data, **settings, **found.summary()})
    write_json(options.output / "base.json", rows)
    print("\n".join(map(json.dumps, rows)))


def gains(options: argparse.Namespace) -> None:
    """Train with all methods, and compare the trained policies with the policy before training."""
    short = {"template": SHORT, "max_new_tokens": load_recipe(RECIPE).config.sampling.max_new_tokens}
    before = {data: measured(options, "start", options.policy, data, **short) for data in TESTS}
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        seconds: dict[str, float] = {}
        for method, settings in methods(options).items():
            own = [f"seed={seed}", f"policy.name_or_path={options.policy}", *settings]
            seconds[method] = train(own, options.output / method / f"seed-{seed}")
        if options.trl:
            directory = options.output / "trl" / f"seed-{seed}"
            seconds["trl"] = train_with_trl(options, seed, seconds["recipe"], directory)
        for method in seconds:
            place = options.output / method / f"seed-{seed}"
            prompting = short if method == "trl" else {}  # other policies get the prompts of their runs
            for data in TESTS:
                after = measured(options, f"{method}-{seed}", str(place / "policy"), data, **prompting)
                change = compare_evaluations(before[data], after)["accuracy"].summary()
                short_change = {
                    key: change[key] for key in ("before", "after", "difference", "interval", "parts")
                }
                rows.append({"method": method, "seed": seed, "data": data, "seconds": seconds[method]})
                rows[-1] |= {"accuracy": after.summary(), "change": short_change}
                print(json.dumps(rows[-1]))
        write_json(options.output / "gains.json", rows)
    plot(options)


def compare_variants(options: argparse.Namespace, part: str, variants: dict[str, str]) -> None:
    """Train variants of the recipe at an equal budget of sampled tokens, and print results and findings."""
    folder = options.output / part
    command = [sys.executable, "-m", "llm_reinforce", "compare", RECIPE, f"--tokens={options.tokens}"]
    command += [f"--seeds={options.seeds}", f"--output={folder}", "--evaluations=4"]
    for name, overrides in variants.items():
        command += ["--variant", f"{name}: {overrides}"]
    shared = [each for each in options.set if not each.startswith("training.num_updates")]
    shared += [f"policy.name_or_path={options.policy}", "training.schedule=constant"]
    subprocess.run([*command, *changes(shared)], check=True)
    rows = []
    for name in variants:
        for directory in sorted((folder / name).glob("seed-*")):
            lines = (directory / "metrics.jsonl").read_text().splitlines()
            ends = [json.loads(lines[at]) for at in (0, -1)]
            row: dict[str, Any] = {"variant": name, "run": directory.name}
            for key in ("reward", "accuracy", "completions/mean_length"):
                row[key] = [end[key] for end in ends]
            evaluated = (directory / "evaluations.jsonl").read_text().splitlines()
            row["held_out"] = [json.loads(line)["accuracy"] for line in evaluated]
            row["findings"] = [finding.kind for finding in diagnose(directory)]
            rows.append(row)
            print(json.dumps(row))
    write_json(options.output / f"{part}.json", rows)


def plot(options: argparse.Namespace) -> None:
    """Draw the accuracy of each method and seed on the test problems, from `gains.json`."""
    import matplotlib.pyplot as plt

    rows = json.loads((options.output / "gains.json").read_text())
    names = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = plt.subplots(1, len(TESTS), figsize=(9, 3.5), sharey=True)
    for axis, data in zip(axes, TESTS, strict=True):
        for row in (row for row in rows if row["data"] == data):
            value, (low, high) = row["accuracy"]["accuracy"], row["accuracy"]["interval"]
            place = names.index(row["method"]) + 0.15 * row["seed"]
            axis.errorbar(place, value, [[value - low], [high - value]], fmt="o", color="C0", capsize=2)
            axis.axhline(row["change"]["before"], color="gray", linestyle=":")
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.set_title(data)
    axes[0].set_ylabel("greedy accuracy")
    figure.tight_layout()
    figure.savefig(options.output / "gains.svg")


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value, indent=1) + "\n")


def main() -> None:
    """Read the arguments of the command line, and run a part."""
    parts: dict[str, Callable[[argparse.Namespace], None]] = {
        **{each.__name__: each for each in (base, gains, plot, trl)},
        "settings": partial(compare_variants, part="settings", variants=SETTINGS),
        "shaping": partial(compare_variants, part="shaping", variants=SHAPING),
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=parts)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/word_problems"), help="directory of the results"
    )
    parser.add_argument("--policy", default="smollm2-135m", help="policy before training")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--epochs", type=int, nargs="*", default=[1, 4], help="passes of supervised training")
    parser.add_argument("--trl", metavar="PYTHON", help="interpreter of an environment with trl")
    parser.add_argument(
        "--tokens", type=int, default=200_000, help="sampled tokens of each run of `settings` or `shaping`"
    )
    parser.add_argument("--problems", type=int, help="evaluate the first problems only")
    parser.add_argument("--set", action="append", default=[], help="change a setting of the recipe")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts[options.part](options)


if __name__ == "__main__":
    main()
