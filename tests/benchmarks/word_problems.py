"""Accuracy on published word problems: `python tests/benchmarks/word_problems.py PART`.

Start the script in the directory that contains the folder written by `recipes/word_problems.py`. The parts
are:

- `base` measures the policy before training. It compares prompt templates on dev.jsonl, which contains no
  test problems. With the best template, it then measures the greedy and the sampled accuracy on the test
  problems.
- `gains` trains with each method and seed, and compares the accuracy on the test problems with the accuracy
  before training. The methods are the recipe, its warm start alone, the recipe without its warm start,
  supervised training on the worked solutions, and a run that is like the recipe, but knows only 64 worked
  solutions and the answers of all other problems. With `--trl PYTHON`, the GRPO trainer of TRL also trains,
  for as long as the recipe's run with the same seed took. `gains` needs the results of `base`.
- `settings` and `shaping` continue from the warm start of the recipe's first seed. They compare settings or
  rewards on dev.jsonl, at an equal budget of sampled tokens, and print the findings of the doctor.

`word_problems_plot.py` prints and draws the results of `base` and `gains`. All files are written to
`--output`, and complete runs are not repeated. To use one core for each seed, start `gains` several times
with different `--seeds` and then once with all seeds. A quick trial of `gains` is
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

from safetensors.torch import load_file

from llm_reinforce import (
    Evaluation,
    compare,
    compare_evaluations,
    diagnose,
    evaluate,
    load_policy,
    load_recipe,
)
from llm_reinforce.durable_files import write_whole

RECIPE, DATA = "smollm2_word_problems", Path("word_problems")
SHORT = "{prompt}\nAnswer with the number only."  # for policies without a warm start
TEMPLATES = (
    "{prompt}",
    SHORT,
    "Question: {prompt}\nAnswer:",
    "{prompt}\nWrite the calculation, then the answer after ####.",
    "{prompt}\nAnswer in one short sentence.",
)
BASE_TOKENS = 256  # maximum number of new tokens before training, when the policy explains at length
TESTS = ("svamp_test", "multiarith_test")
REWARDS = "rewards=[{function: correct_answer}, {function: %s}]"
SHAPING = {  # rewards that are added to the reward for a right answer
    "right answer": [],
    "format": [REWARDS % "answer_format, weight: 0.2"],
    "concise": [REWARDS % "conciseness, weight: 0.5, arguments: {max_tokens: 48}"],
    "right steps": [REWARDS % "intermediate_steps, weight: 1, arguments: {wrong: 0}"],
}
SETTINGS = {  # changes of the recipe's settings
    "recipe": [],
    "learning rate 3e-6": ["training.learning_rate=3e-6"],
    "learning rate 3e-5": ["training.learning_rate=3e-5"],
    "16 problems": ["reinforce.problems_per_update=16"],
    "refill": ["reinforce.refill=1"],
    "curriculum": ["reinforce.curriculum={}"],
}
# one policy-gradient update with a learning rate that leaves all weights unchanged
NO_UPDATE = ("training.num_updates=1", "training.learning_rate=1e-30", "reinforce.problems_per_update=2")
STARTS = {"warm start": "recipe", "few solutions, warm start": "few solutions"}  # parts of these runs
METHODS = ("recipe", "few solutions", *STARTS, "no warm start", "supervised", "trl")
NUM_FEW = 64  # number of worked solutions in `few solutions`
LOGGED = ("update", "reward", "accuracy", "entropy", "completions/mean_length", "num_tokens", "step_time")


def settings_of(method: str, options: argparse.Namespace) -> list[str]:
    """Return the settings of a method, as changes of the recipe."""
    if method == "no warm start":
        no_start = [each for each in options.set if "warm_start" not in each]
        return [f"problems.template={json.dumps(SHORT)}", "training.warm_start=null", *no_start]
    if method == "supervised":
        return [*NO_UPDATE, f"training.warm_start.num_updates={options.supervised_updates}"]
    few = []
    if method == "few solutions":
        lines = (DATA / "demonstrations.jsonl").read_text().splitlines(keepends=True)
        chosen = options.output / "few.jsonl"
        write_whole(chosen, "".join(lines[:: len(lines) // NUM_FEW][:NUM_FEW]))
        few = [f"training.warm_start.data={chosen}", "training.warm_start.num_updates=20"]
        few += ["training.num_updates=200", "evaluation.every=100"]
    return ["training.num_checkpoints_kept=9", *few, *options.set]  # the first checkpoint is the warm start


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
            seed=options.seeds[0],
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
        **{"num_problems": options.problems, **settings},
    )


def base(options: argparse.Namespace) -> None:
    """Measure the policy before training."""
    rows: list[dict[str, Any]] = []
    for number, template in enumerate(TEMPLATES, 1):
        settings = {"template": template, "max_new_tokens": BASE_TOKENS}
        found = measured(options, f"template-{number}", options.policy, "dev", **settings)
        rows.append({"data": "dev", **settings, **found.summary()})
    best = max(rows, key=lambda row: float(row["accuracy"]))
    settings = {"template": best["template"], "max_new_tokens": BASE_TOKENS}
    for data in TESTS:
        found = measured(options, "base-greedy", options.policy, data, **settings)
        rows.append({"data": data, "decoding": "greedy", **settings, **found.summary()})
        sampled = {**settings, "decoding": "sampled", "samples_per_problem": 8}
        found = measured(
            options, "base-sampled", options.policy, data, num_problems=options.problems or 50, **sampled
        )
        rows.append({"data": data, **sampled, **found.summary()})
    write_json(options.output / "base.json", rows)
    print("\n".join(map(json.dumps, rows)))


def gains(options: argparse.Namespace) -> None:
    """Train with the methods, and compare the trained policies with the policy before training."""
    best = next(row for row in json.loads((options.output / "base.json").read_text()) if row["data"] != "dev")
    prompting = {key: best[key] for key in ("template", "max_new_tokens")}
    before = {data: measured(options, "base-greedy", options.policy, data, **prompting) for data in TESTS}
    short = {"template": SHORT, "max_new_tokens": load_recipe(RECIPE).config.sampling.max_new_tokens}
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for method in options.methods:
            if method == "trl" and not options.trl:
                continue
            place = options.output / method / f"seed-{seed}"
            seconds = trained(options, method, seed, place)
            for data in TESTS:
                settings = short if method == "trl" else {}  # other policies get the prompts of their runs
                if method in STARTS:
                    settings = {"max_new_tokens": short["max_new_tokens"], "template": "{prompt}"}
                after = measured(options, f"{method}-{seed}", str(place / "policy"), data, **settings)
                change = compare_evaluations(before[data], after)["accuracy"].summary()
                shown = {key: change[key] for key in ("before", "after", "difference", "interval", "parts")}
                rows.append({"method": method, "seed": seed, "data": data, "seconds": seconds})
                rows[-1] |= {"accuracy": after.summary(), "change": shown}
                print(json.dumps(rows[-1]))
            write_json(options.output / "gains.json", rows)
    write_json(options.output / "curves.json", curves(options))


def trained(options: argparse.Namespace, method: str, seed: int, place: Path) -> float | None:
    """Train a policy with a method, and return the seconds; None for the warm start of another run."""
    recipe = options.output / "recipe" / f"seed-{seed}"
    if method == "trl":
        return train_with_trl(options, seed, json.loads((recipe / "seconds.json").read_text()), place)
    if method in STARTS:
        save_warm_start(options, method, seed)
        return None
    own = [f"seed={seed}", f"policy.name_or_path={options.policy}", *settings_of(method, options)]
    return train(own, place)


def save_warm_start(options: argparse.Namespace, method: str, seed: int) -> Path:
    """Save the policy that a run had after its warm start, and return the model's directory."""
    place: Path = options.output / method / f"seed-{seed}" / "policy"
    if not place.exists():
        policy = load_policy(options.policy)
        checkpoints = options.output / STARTS[method] / f"seed-{seed}" / "checkpoints"
        tensors = load_file(checkpoints / "update-000000" / "policy.safetensors")
        policy.model.load_state_dict(tensors, strict=False)  # an output layer may share the embeddings
        policy.save(place)
    return place


def curves(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the learning curves of all runs of `gains`."""
    return [
        {"method": method, "seed": int(run.name.removeprefix("seed-")), **curve(run)}
        for method in options.methods
        for run in sorted((options.output / method).glob("seed-*"))
        if method not in STARTS  # their updates belong to the other run
    ]


def curve(run: Path) -> dict[str, Any]:
    """Return the chosen metrics of each update of a run, and its evaluations."""
    if (run / "log.json").exists():  # a run of TRL
        logged = [row for row in json.loads((run / "log.json").read_text()) if "reward" in row]
        named = [{**row, "update": row["step"], "accuracy": row["reward"]} for row in logged]
        return {"updates": [{key: row[key] for key in LOGGED} for row in named], "held_out": []}
    held_out = read_rows(run / "evaluations.jsonl")
    return {
        "updates": [{key: row[key] for key in LOGGED} for row in read_rows(run / "metrics.jsonl")],
        "held_out": [{key: row[key] for key in ("update", "accuracy", "interval")} for row in held_out],
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects in the lines of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def compare_variants(options: argparse.Namespace, part: str, variants: dict[str, list[str]]) -> None:
    """Train variants of the recipe at an equal budget of sampled tokens, and diagnose each run."""
    folder, start = options.output / part, save_warm_start(options, "warm start", options.seeds[0])
    shared = [each for each in options.set if not each.startswith("training.num_updates")]
    shared += [f"policy.name_or_path={start}", "training.warm_start=null", "training.schedule=constant"]
    compared = compare(
        RECIPE,
        seeds=len(options.seeds),
        tokens=options.tokens,
        variants=variants,
        overrides=shared,
        output_dir=folder,
        evaluations=4,
        show_progress=True,
    )
    runs = [
        {
            "variant": name,
            "seed": seed,
            **curve(folder / name / f"seed-{seed}"),
            "findings": [finding.kind for finding in diagnose(folder / name / f"seed-{seed}")],
        }
        for name in variants
        for seed in compared.summary["seeds"]
    ]
    write_json(options.output / f"{part}.json", {"comparison": compared.summary, "runs": runs})


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value, indent=1) + "\n")


def main() -> None:
    """Read the arguments of the command line, and run a part."""
    parts: dict[str, Callable[[argparse.Namespace], None]] = {
        **{each.__name__: each for each in (base, gains, trl)},
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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="methods of `gains`")
    parser.add_argument(
        "--supervised-updates", type=int, default=224, help="updates of supervised training with 16 solutions"
    )
    parser.add_argument("--trl", metavar="PYTHON", help="interpreter of an environment with trl")
    parser.add_argument(
        "--tokens", type=int, default=60_000, help="sampled tokens of each run of `settings` or `shaping`"
    )
    parser.add_argument("--problems", type=int, help="evaluate the first problems only")
    parser.add_argument("--set", action="append", default=[], help="change a setting of the recipe")
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts[options.part](options)


if __name__ == "__main__":
    main()
