"""Compare llm_reinforce's strict and flexible verdicts on GSM8K with those of lm-evaluation-harness.

pytest does not collect this script. The script needs `pip install lm-eval==0.4.13`, a model, and the
published files of GSM8K:

    python tests/compare_with_lm_eval.py --policy smollm2-135m --data path/to/gsm8k_test.jsonl

llm_reinforce and the harness complete the same prompts with the same token budget and greedy decoding. The
prompts are those of the harness, formatted with the chat template, after `--few-shot` worked examples. There
are two comparisons:

- The completions of the harness are verified by llm_reinforce and by the harness. The verdicts must agree on
  every problem.
- The completions of llm_reinforce are compared with the completions of the harness. They can differ if two
  logits are equal up to rounding errors.

The exit code is 0 if all verdicts of the first comparison agree, and 1 otherwise.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_reinforce.evaluation import Evaluation, measure_accuracy
from llm_reinforce.evaluation.extraction import (
    FLEXIBLE_PATTERN,
    STRICT_PATTERN,
    exact_match,
    flexible_answer,
    strict_answer,
)
from llm_reinforce.policy import load_policy
from llm_reinforce.policy.model_files import resolve_location
from llm_reinforce.problems import examples_before, find_problems, in_template, usual_template

STOP = ("Question:", "</s>", "<|im_end|>")
READINGS = {"strict-match": strict_answer, "flexible-extract": flexible_answer}


def task(data: Path, max_new_tokens: int, before: str) -> dict[str, Any]:
    """Return the settings of the harness's task gsm8k (version 3) for a local file.

    Args:
        data: file with the problems.
        max_new_tokens: maximum number of tokens per completion.
        before: text of the worked examples, which is placed before each problem; may be empty.
    """
    return {
        "task": "gsm8k_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": f"{{% raw %}}{before}{{% endraw %}}Question: {{{{question}}}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "ignore_punctuation": False,
                "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
            }
        ],
        "generation_kwargs": {
            "until": list(STOP),
            "do_sample": False,
            "temperature": 0.0,
            "max_gen_toks": max_new_tokens,
        },
        "repeats": 1,
        "num_fewshot": 0,
        "filter_list": [
            {
                "name": "strict-match",
                "filter": [
                    {"function": "regex", "regex_pattern": STRICT_PATTERN},
                    {"function": "take_first"},
                ],
            },
            {
                "name": "flexible-extract",
                "filter": [
                    {"function": "regex", "group_select": -1, "regex_pattern": FLEXIBLE_PATTERN},
                    {"function": "take_first"},
                ],
            },
        ],
        "metadata": {"version": 3.0},
    }


def harness_samples(
    model: str, settings: Mapping[str, Any], limit: int, batch_size: int
) -> list[dict[str, Any]]:
    """Evaluate a model with the harness, and return its records, one for each problem and filter."""
    import yaml
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gsm8k_local.yaml"
        file.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
        results = simple_evaluate(
            model="hf",
            model_args={"pretrained": model, "dtype": "float32", "device": "cpu"},
            tasks=["gsm8k_local"],
            task_manager=TaskManager(include_path=folder),
            limit=limit,
            batch_size=batch_size,
            apply_chat_template=True,
            log_samples=True,
            bootstrap_iters=0,
        )
    samples: list[dict[str, Any]] = results["samples"]["gsm8k_local"]
    return samples


def disagreements(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each completion of the harness on which llm_reinforce and the harness disagree.

    They disagree if the extracted answers differ, or if the verdicts on these answers differ.
    """
    lines = []
    for sample in samples:
        text, target = sample["resps"][0][0], sample["target"]
        ours = READINGS[sample["filter"]](text)
        theirs = sample["filtered_resps"][0]
        verdicts = exact_match(ours, target), bool(sample["exact_match"])
        if ours != theirs or verdicts[0] != verdicts[1]:
            place = f"problem {sample['doc_id']}, {sample['filter']}"
            lines.append(
                f"{place}: llm_reinforce {ours!r} ({verdicts[0]}), harness {theirs!r} ({verdicts[1]})"
            )
    return lines


def print_side_by_side(evaluation: Evaluation, samples: Sequence[Mapping[str, Any]]) -> None:
    """Print how many completions and verdicts of llm_reinforce are equal to those of the harness."""
    by_filter = {
        name: sorted(
            (sample for sample in samples if sample["filter"] == name), key=lambda sample: sample["doc_id"]
        )
        for name in READINGS
    }
    texts = [sample["resps"][0][0] for sample in by_filter["strict-match"]]
    pairs = zip(texts, evaluation.answers, strict=True)
    same = sum(theirs.strip() == row[0].text.strip() for theirs, row in pairs)
    print(f"completions with equal text: {same} of {len(texts)}")
    for name, key in (("strict-match", "strict"), ("flexible-extract", "flexible")):
        theirs = [bool(sample["exact_match"]) for sample in by_filter[name]]
        ours = [bool(getattr(row[0], key)) for row in evaluation.answers]
        equal = sum(mine == its for mine, its in zip(ours, theirs, strict=True))
        print(
            f"{name}: correct in llm_reinforce {sum(ours)}, in the harness {sum(theirs)}; "
            f"equal verdicts on {equal} of {len(ours)} problems"
        )


def main() -> int:
    """Evaluate the policy with both tools, print the comparisons, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--policy", required=True)
    parser.add_argument("--data", required=True, type=Path, help="the published file test.jsonl of GSM8K")
    parser.add_argument("--num-problems", type=int, default=50)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--few-shot", type=int, default=0)
    parser.add_argument(
        "--examples", type=Path, help="the published file train.jsonl of GSM8K, needed for --few-shot"
    )
    options = parser.parse_args()

    problems = find_problems(f"gsm8k={options.data}")[: options.num_problems]
    template, before = usual_template("gsm8k"), ""
    if options.few_shot:
        pool = find_problems(f"gsm8k={options.examples}")
        before = examples_before(pool, problems, num_examples=options.few_shot, template=template)
    evaluation = measure_accuracy(
        load_policy(options.policy),
        in_template(problems, template, before),
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        stop=STOP,
        progress=lambda done: print(f"{done} of {len(problems)} problems evaluated", file=sys.stderr),
    )
    with tempfile.TemporaryDirectory() as folder:
        some = Path(folder) / "test.jsonl"
        lines = options.data.read_text(encoding="utf-8").split("\n")[: options.num_problems]
        some.write_text("\n".join(lines) + "\n", encoding="utf-8")
        settings = task(some, options.max_new_tokens, before)
        model = resolve_location(options.policy)
        samples = harness_samples(model, settings, options.num_problems, options.batch_size)
    differing = disagreements(samples)
    print(f"verdicts on the completions of the harness: {len(differing)} of {len(samples)} disagree")
    print("\n".join(differing))
    print_side_by_side(evaluation, samples)
    shown = {name: measure.value for name, measure in evaluation.measures.items()}
    print(json.dumps({"ours": shown}))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
