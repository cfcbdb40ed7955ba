"""Accuracy on published word problems: `python tests/benchmarks/word_problems.py PART`.

Start the script in the directory that contains the folder written by `recipes/word_problems.py`. The parts
are:

- `base` measures the policy before training. It compares prompt templates on dev.jsonl, which contains no
  test problems, with two limits of the number of new tokens: 256 and the limit of the recipe. It also
  compares prompts with 4 and with 8 worked examples. It then measures the greedy and the sampled accuracy on
  test problems with the most accurate template, and the greedy accuracy with worked examples.
- `train` trains with each method and seed. `--help` explains the methods. The methods of TRL need the extra
  `trl`, and the results of `base`.
- `gains` measures the accuracy of all complete runs of `train` on dev.jsonl and on the test problems, and
  compares it with the accuracy before training and between methods. It needs the results of `base`.
- `shaping` and `format` compare rewards on dev.jsonl, at an equal budget of sampled tokens, and record the
  symptoms that the doctor finds. `shaping` also measures `refill` and the curriculum. It continues from the
  warm start of `few solutions` with seed 0, with which few answers are correct. `format` starts from the
  untrained policy.

`word_problems_plot.py` prints and draws the results. All files are written to `--output`. Complete runs are
not repeated, even if the options have changed; delete the directory of a run to repeat it. To use one core
for each seed, start `train` several times with different `--seeds`. For a quick trial of `train`, give
`--supervised-updates 2 --set training.num_updates=2 --set training.warm_start.num_updates=2 --set
evaluation.every=2` and an `--output` of its own, and for one of `gains` also `--problems 4`.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import compress
from pathlib import Path
from typing import Any, Literal

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
from llm_reinforce.evaluation import KINDS, kind_of_failure
from llm_reinforce.evaluation.intervals import difference_interval, share_interval
from llm_reinforce.policy.fetched_models import fetched_directory
from llm_reinforce.policy.stopped_run import load_weights

RECIPE, DATA = "smollm2_word_problems", Path("word_problems")
LENGTH = load_recipe(RECIPE).config.sampling.max_new_tokens
PLAIN, QUESTION = "{prompt}", "Question: {prompt}\nAnswer:"
WITH_HASHES = "{prompt}\nWrite the calculation, then the answer after ####."
TEMPLATES = (
    PLAIN,
    "{prompt}\nAnswer with the number only.",
    QUESTION,
    WITH_HASHES,
    "{prompt}\nAnswer in one short sentence.",
)
NUM_EXAMPLES = (4, 8)  # numbers of worked examples in a prompt before training
PROMPTING = ("template", "max_new_tokens", "few_shot", "examples", "stop")  # settings of `evaluate`
BASE_LENGTH = 256  # maximum number of new tokens before training, when the policy explains at length
TESTS = ("svamp_test", "multiarith_test")
EVALUATED = ("dev", *TESTS)  # problems on which all trained policies are evaluated
NUM_SAMPLED = 50  # number of problems with eight sampled completions
NUM_GSM8K = 200  # number of problems of GSM8K, on which no method is evaluated
NUM_FEW = 64  # number of worked solutions in `few solutions`
SIMILAR = 0.9  # minimum Jaccard similarity of the words of two similar problems


@dataclass(frozen=True, slots=True)
class Method:
    """A way to train.

    Attributes:
        text: what the method does, for `--help`.
        trainer: how the policy is updated, after the warm start if there is one.
        solutions: worked solutions of the warm start, or of supervised training; None if there are none.
        part_of: method whose runs contain the runs of this method, as their warm start; empty if the method
            has its own runs.
    """

    text: str
    trainer: Literal["policy gradient", "supervised", "trl"] = "policy gradient"
    solutions: Literal["all", "few"] | None = "all"
    part_of: str = ""


METHODS = {
    "recipe": Method("the recipe"),
    "warm start": Method(
        "the warm start of the recipe's run, without its policy-gradient updates", part_of="recipe"
    ),
    "few solutions": Method(
        "the recipe with only 64 worked solutions, a shorter warm start, and more updates", solutions="few"
    ),
    "few solutions, warm start": Method(
        "the warm start of `few solutions`, without its policy-gradient updates", part_of="few solutions"
    ),
    "few solutions, supervised": Method(
        "supervised updates on the 64 worked solutions of `few solutions`, for at least as long as its run",
        "supervised",
        "few",
    ),
    "no warm start": Method(
        "the recipe without its warm start, with the most accurate template", solutions=None
    ),
    "supervised": Method("supervised updates, for about as long as the recipe's run", "supervised"),
    "trl": Method(
        "the GRPO trainer of TRL, for as long as the recipe's run, with the most accurate template",
        "trl",
        solutions=None,
    ),
    "warm start, trl": Method(
        "the GRPO trainer of TRL after the recipe's warm start, in place of its updates", "trl"
    ),
}
PAIRS = (  # methods that are compared with each other
    ("warm start", "recipe"),
    ("few solutions, warm start", "few solutions"),
    ("few solutions, supervised", "few solutions"),
    ("warm start", "warm start, trl"),
    ("warm start, trl", "recipe"),
    ("supervised", "recipe"),
    ("trl", "recipe"),
)
# one policy-gradient update with a learning rate that leaves all weights unchanged
NO_UPDATE = ("training.num_updates=1", "training.learning_rate=1e-30", "reinforce.problems_per_update=2")
REWARDS = "rewards=[{function: correct_answer}, {function: %s}]"
SHAPING = {  # changes of the recipe: additional rewards, and other choices of the training problems
    "correct answer": [],
    "correct steps": [REWARDS % "intermediate_steps, weight: 0.2"],
    "correct steps, weight 1": [REWARDS % "intermediate_steps, weight: 1, arguments: {wrong: 0}"],
    "concise": [REWARDS % "conciseness, weight: 0.5, arguments: {max_tokens: 48}"],
    "refill": ["reinforce.refill=1"],
    "curriculum": ["reinforce.curriculum={}"],
}
FORMAT = {"correct answer": [], "format": [REWARDS % "answer_format, weight: 0.2"]}
LOGGED = (  # metrics of each update that are kept
    "update",
    "reward",
    "reward_std",
    "accuracy",
    "frac_reward_zero_std",
    "entropy",
    "completions/mean_length",
    "num_tokens",
    "step_time",
)


def base(options: argparse.Namespace) -> None:
    """Measure the policy before training."""
    rows = [
        base_row("dev", settings, measured(options, name, options.policy, "dev", **settings))
        for name, settings in compared_prompts().items()
    ]
    settings = most_accurate(rows, BASE_LENGTH)
    with_examples = most_accurate(rows, LENGTH, with_examples=True)
    for data in (*TESTS, "gsm8k_test"):
        num = options.problems or (NUM_GSM8K if data == "gsm8k_test" else None)
        found = measured(options, "base-greedy", options.policy, data, **settings, num_problems=num)
        rows.append(base_row(data, {"decoding": "greedy", **settings}, found))
        sampled = {**settings, "decoding": "sampled", "samples_per_problem": 8}
        num = options.problems or NUM_SAMPLED
        found = measured(options, "base-sampled", options.policy, data, **sampled, num_problems=num)
        rows.append(base_row(data, sampled, found))
        if data in TESTS:
            found = measured(options, "base-examples", options.policy, data, **with_examples)
            rows.append(base_row(data, {"decoding": "greedy", **with_examples}, found))
    write_json(options.output / "base.json", rows)


def compared_prompts() -> dict[str, dict[str, Any]]:
    """Return the settings of the compared prompts, by the names of their evaluations."""
    templates = {
        f"template-{number}-{length}": {"template": template, "max_new_tokens": length}
        for length in (BASE_LENGTH, LENGTH)
        for number, template in enumerate(TEMPLATES, 1)
    }
    examples = {"examples": str(DATA / "train.jsonl"), "stop": ["Question:"]}
    return templates | {
        f"examples-{number}": {
            "template": QUESTION,
            "max_new_tokens": LENGTH,
            "few_shot": number,
            **examples,
        }
        for number in NUM_EXAMPLES
    }


def base_row(data: str, settings: dict[str, Any], found: Evaluation) -> dict[str, Any]:
    """Return an evaluation as a row of base.json, with the number of wrong answers of each kind."""
    wrong = [answer for answers in found.answers for answer in answers if not answer.correct]
    kinds = Counter(map(kind_of_failure, wrong))
    return {"data": data, **settings, **found.summary(), "failures": {kind: kinds[kind] for kind in KINDS}}


def base_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of base.json."""
    rows: list[dict[str, Any]] = json.loads((options.output / "base.json").read_text())
    return rows


def most_accurate(
    rows: Sequence[dict[str, Any]], length: int, *, with_examples: bool = False
) -> dict[str, Any]:
    """Return the settings with the highest accuracy on dev.jsonl at a maximum length.

    Args:
        rows: rows of base.json.
        length: maximum number of new tokens.
        with_examples: if True, only prompts with worked examples are compared; if False, only prompts
            without them.
    """
    on_dev = [row for row in rows if row["data"] == "dev" and row["max_new_tokens"] == length]
    compared = [row for row in on_dev if ("few_shot" in row) == with_examples]
    best = max(compared, key=lambda row: float(row["accuracy"]))
    return {name: best[name] for name in PROMPTING if name in best}


def measured(options: argparse.Namespace, name: str, policy: str, data: str, **settings: Any) -> Evaluation:
    """Return the evaluation of a policy. It is recorded, so that a later call does not repeat it."""
    return evaluate(
        policy,
        options.gsm8k if data == "gsm8k_test" else str(DATA / f"{data}.jsonl"),
        output_dir=options.output / "evaluations" / name / data,
        batch_size=64,
        **{"num_problems": options.problems, **settings},
    )


def train_all(options: argparse.Namespace) -> None:
    """Train with the methods and seeds."""
    for seed in options.seeds:
        for method in options.methods:
            train(options, method, seed)


def gains(options: argparse.Namespace) -> None:
    """Evaluate all complete runs in the output directory, and compare them."""
    found = dict(evaluations(options))
    similar = {data: is_similar(data)[: options.problems] for data in EVALUATED}
    settings = most_accurate(base_rows(options), BASE_LENGTH)
    before = {data: measured(options, "base-greedy", options.policy, data, **settings) for data in EVALUATED}
    rows = []
    for (method, seed, data), after in found.items():
        seconds = options.output / method / f"seed-{seed}" / "seconds.json"
        row = {"method": method, "seed": seed, "data": data, "accuracy": after.summary()}
        row["seconds"] = json.loads(seconds.read_text()) if seconds.exists() else None
        row["by_similarity"] = {
            part: accuracy(after, kept) for part, kept in by_similarity(similar[data]).items()
        }
        rows.append({**row, "change": change(before[data], after)})
    write_json(options.output / "gains.json", rows)
    write_json(options.output / "pairs.json", list(pairs(found, similar)))
    write_json(options.output / "curves.json", list(curves(options)))


def settings_of(options: argparse.Namespace, method: str) -> list[str]:
    """Return the settings of a method, as changes of the recipe."""
    trainer, solutions = METHODS[method].trainer, METHODS[method].solutions
    if solutions is None:
        no_start = [each for each in options.set if "warm_start" not in each]
        template = prompting(options, method)["template"]
        return [f"problems.template={json.dumps(template)}", "training.warm_start=null", *no_start]
    few = [f"training.warm_start.data={few_solutions(options)}"] if solutions == "few" else []
    if trainer == "supervised":
        length = f"training.warm_start.num_updates={options.supervised_updates}"
        return [*options.set, *NO_UPDATE, length, *few]
    if few:
        few += ["training.warm_start.num_updates=20", "training.num_updates=200", "evaluation.every=100"]
    # the only checkpoints are the one after the warm start, which is needed later, and the last one
    return ["training.checkpoint_every=null", *few, *options.set]


def few_solutions(options: argparse.Namespace) -> Path:
    """Write a file with `NUM_FEW` worked solutions from all data sets, and return its path."""
    lines = (DATA / "demonstrations.jsonl").read_text().splitlines(keepends=True)
    path: Path = options.output / "few.jsonl"
    write_whole(path, "".join(lines[:: len(lines) // NUM_FEW][:NUM_FEW]))
    return path


def prompting(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """Return the template and the maximum length with which a method is trained and evaluated."""
    if METHODS[method].solutions is None:
        length = BASE_LENGTH if METHODS[method].trainer == "trl" else LENGTH
        return most_accurate(base_rows(options), length)
    return {"template": PLAIN, "max_new_tokens": LENGTH}


def train(options: argparse.Namespace, method: str, seed: int) -> None:
    """Train with a method, unless the run is complete, and record the time in seconds."""
    place = options.output / method / f"seed-{seed}"
    if METHODS[method].part_of:
        save_warm_start(options, method, seed)
        return
    if (place / "seconds.json").exists():
        return
    if METHODS[method].trainer == "trl":
        command = trl_command(options, method, seed, place)
    else:
        command = [sys.executable, "-m", "llm_reinforce", "train", RECIPE, "--overwrite"]
        own = [f"seed={seed}", f"policy.name_or_path={options.policy}", *settings_of(options, method)]
        command += [word for each in (*own, f"output_dir={place}") for word in ("--set", each)]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    write_json(place / "seconds.json", time.perf_counter() - started)


def trl_command(options: argparse.Namespace, method: str, seed: int, place: Path) -> list[str]:
    """Return the command that trains with TRL for the time of the recipe's run, or of its updates."""
    if find_spec("trl") is None:
        sys.exit(f"{method}: trl is not installed; run `pip install -c constraints.txt -e '.[trl]'`")
    train(options, "recipe", seed)
    recipe = options.output / "recipe" / f"seed-{seed}"
    if METHODS[method].solutions is None:
        policy: str | Path = options.policy
        policy = policy if Path(policy).exists() else fetched_directory(options.policy)
        seconds = json.loads((recipe / "seconds.json").read_text())
    else:
        policy = save_warm_start(options, "warm start", seed)
        updates = json_lines(recipe / "metrics.jsonl")
        seconds = updates[-1]["wall_time"] - updates[0]["wall_time"] + updates[0]["step_time"]
    values = {
        **prompting(options, method),
        "policy": policy,
        "seed": seed,
        "seconds": seconds,
        "output": place,
    }
    script = Path(__file__).with_name("word_problems_trl.py")
    given = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    return [sys.executable, str(script), str(DATA / "train.jsonl"), *given]


def save_warm_start(options: argparse.Namespace, method: str, seed: int) -> Path:
    """Save the policy that a run had after its warm start, and return the model's directory."""
    place: Path = options.output / method / f"seed-{seed}" / "policy"
    if not place.exists():
        whole = METHODS[method].part_of
        train(options, whole, seed)
        policy = load_policy(options.policy)
        checkpoints = options.output / whole / f"seed-{seed}" / "checkpoints"
        load_weights(checkpoints / "update-000000", policy.model)
        policy.save(place)
    return place


def evaluations(options: argparse.Namespace) -> Iterator[tuple[tuple[str, int, str], Evaluation]]:
    """Yield the evaluation of each complete run on each data set, with (method, seed, data set)."""
    for method, seed, run in complete_runs(options):
        for data in EVALUATED:
            settings = prompting(options, method)
            name = f"{method}-{seed}"
            yield (method, seed, data), measured(options, name, str(run / "policy"), data, **settings)


def complete_runs(options: argparse.Namespace) -> Iterator[tuple[str, int, Path]]:
    """Yield the method, the seed and the directory of each complete run."""
    for method in METHODS:
        for run in sorted((options.output / method).glob("seed-*")):
            if (run / "seconds.json").exists() or METHODS[method].part_of:
                yield method, int(run.name.removeprefix("seed-")), run


def is_similar(data: str) -> list[bool]:
    """Return for each problem of a data set if at least one training problem is similar to it.

    Two problems are similar if the Jaccard similarity of their sets of words, without numbers, is at least
    `SIMILAR`. They are also similar if this is true of their stories, which are the problems without the last
    sentence: SVAMP asks several questions about the same story.
    """
    train, evaluated = (
        [row["prompt"] for row in json_lines(DATA / f"{name}.jsonl")] for name in ("train", data)
    )
    found = [False] * len(evaluated)
    for text_of in (str, story):
        known = [words(text_of(prompt)) for prompt in train]
        for row, one in enumerate(words(text_of(prompt)) for prompt in evaluated):
            found[row] |= any(len(one & other) >= SIMILAR * len(one | other) for other in known)
    return found


def story(prompt: str) -> str:
    """Return a problem without its last sentence, or the whole problem if it has one sentence."""
    sentences = re.split(r"(?<=[.?!])\s+", prompt.strip())
    return " ".join(sentences[:-1]) or prompt


def words(text: str) -> set[str]:
    """Return the different words of a text in lowercase, without numbers."""
    return set(re.findall("[a-z]+", text.lower()))


def by_similarity(similar: Sequence[bool]) -> dict[str, list[bool]]:
    """Return which problems are in each part: those that are similar to training problems, and the others."""
    found = {"similar": list(similar), "other": [not each for each in similar]}
    return {part: kept for part, kept in found.items() if any(kept)}


def accuracy(evaluation: Evaluation, kept: Sequence[bool]) -> dict[str, Any]:
    """Return the greedy accuracy on the kept problems, with its interval."""
    correct = [float(answer.correct) for (answer,) in compress(evaluation.answers, kept)]
    return {
        "total": len(correct),
        "accuracy": sum(correct) / len(correct),
        "interval": share_interval(correct),
    }


def change(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """Return the difference between two accuracies, and its parts."""
    found = compare_evaluations(before, after)["accuracy"].summary()
    return {key: found[key] for key in ("before", "after", "difference", "interval", "p_value", "parts")}


def pairs(
    found: dict[tuple[str, int, str], Evaluation], similar: dict[str, list[bool]]
) -> Iterator[dict[str, Any]]:
    """Yield the differences between two methods, for each seed and in the mean, also on parts of the data."""
    for first, second in PAIRS:
        for data in EVALUATED:
            both = {
                seed: (found[first, seed, data], after)
                for (method, seed, its_data), after in found.items()
                if (method, its_data) == (second, data) and (first, seed, data) in found
            }
            if both:
                changes = [{"seed": seed, **change(*each)} for seed, each in both.items()]
                kept = {"mean": [True] * len(similar[data]), **by_similarity(similar[data])}
                means = {name: mean_change(list(both.values()), each) for name, each in kept.items()}
                yield {"first": first, "second": second, "data": data, "changes": changes, **means}


def mean_change(both: Sequence[tuple[Evaluation, Evaluation]], kept: Sequence[bool]) -> dict[str, Any]:
    """Return the mean difference in accuracy over seeds, on the kept problems.

    Its interval covers the choice of the problems.
    """
    correct = [[[float(answer.correct) for (answer,) in each.answers] for each in pair] for pair in both]
    differences = [[new - old for old, new in zip(*pair, strict=True)] for pair in correct]
    means = [sum(each) / len(both) for each in compress(zip(*differences, strict=True), kept)]
    return {"difference": sum(means) / len(means), "interval": list(difference_interval(means))}


def curves(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the learning curve of each complete run that has its own updates."""
    for method, seed, run in complete_runs(options):
        if not METHODS[method].part_of:
            yield {"method": method, "seed": seed, **curve(run)}


def curve(run: Path) -> dict[str, Any]:
    """Return the chosen metrics of each update of a run, and its evaluations."""
    if (run / "log.json").exists():  # a run of TRL, whose num_tokens includes the tokens of the prompts
        logged = [row for row in json.loads((run / "log.json").read_text()) if "reward" in row]
        named = [{**row, "update": row["step"], "accuracy": row["reward"]} for row in logged]
        kept = [key for key in LOGGED if key != "num_tokens"]
        return {"updates": [{key: row[key] for key in kept} for row in named], "held_out": []}
    held_out = json_lines(run / "evaluations.jsonl")
    return {
        "updates": [{key: row[key] for key in LOGGED} for row in json_lines(run / "metrics.jsonl")],
        "held_out": [{key: row[key] for key in ("update", "accuracy", "interval")} for row in held_out],
    }


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects in the lines of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def compare_variants(options: argparse.Namespace, part: str, variants: dict[str, list[str]]) -> None:
    """Train variants of the recipe at an equal budget of sampled tokens, and diagnose each run."""
    if options.seeds != list(range(options.seeds[0], options.seeds[0] + len(options.seeds))):
        sys.exit(f"{part}: --seeds should be consecutive, such as 0 1 2")
    shared = [*options.set, "training.warm_start=null", "training.schedule=constant_with_warmup"]
    shared += ["training.checkpoint_every=null", f"seed={options.seeds[0]}"]
    if part == "format":
        shared += [f"policy.name_or_path={options.policy}", f"problems.template={json.dumps(WITH_HASHES)}"]
    else:
        start = save_warm_start(options, "few solutions, warm start", 0)
        shared.append(f"policy.name_or_path={start}")
    folder = options.output / part
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
            "findings": {each.kind: each.sentence for each in diagnose(folder / name / f"seed-{seed}")},
        }
        for name in variants
        for seed in compared.summary["seeds"]
    ]
    write_json(options.output / f"{part}.json", {"comparison": compared.summary, "runs": runs})


def write_json(path: Path, value: object) -> None:
    write_whole(path, json.dumps(value, indent=1) + "\n")


def main() -> None:
    """Read the arguments of the command line, and run a part."""
    measurements: dict[str, Callable[[argparse.Namespace], None]] = {
        "base": base,
        "train": train_all,
        "gains": gains,
        "shaping": partial(compare_variants, part="shaping", variants=SHAPING),
        "format": partial(compare_variants, part="format", variants=FORMAT),
    }
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="methods:\n" + "\n".join(f"  {name}: {method.text}" for name, method in METHODS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=measurements)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/word_problems"), help="directory of the results"
    )
    parser.add_argument("--policy", default="smollm2-135m", help="policy before training")
    parser.add_argument("--gsm8k", default="gsm8k", help="test problems of GSM8K, as a file or a data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the runs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="methods of `train`")
    parser.add_argument(
        "--supervised-updates", type=int, default=224, help="updates of supervised training with 16 solutions"
    )
    parser.add_argument(
        "--tokens", type=int, default=60_000, help="sampled tokens of each run of a comparison of variants"
    )
    parser.add_argument("--problems", type=int, help="evaluate the first problems only")
    parser.add_argument("--set", action="append", default=[], help="change a setting of the recipe")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    measurements[options.part](options)


if __name__ == "__main__":
    main()
