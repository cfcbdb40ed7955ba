"""Model card of a trained policy: the data, the settings and the results of its training."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_reinforce.config import Config, load_config
from llm_reinforce.config.strict_yaml import dump_yaml
from llm_reinforce.errors import without_secrets
from llm_reinforce.runs.environment import installed_version
from llm_reinforce.runs.run_directory import RunDirectory

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TITLE = "Model card of a policy trained with llm_reinforce"


def write_model_card(run: RunDirectory) -> None:
    """Write `policy/README.md` of a run, in place of the template that peft writes for an adapter."""
    run.write_text("policy/README.md", model_card(run))


def model_card(run: RunDirectory) -> str:
    """Return the text of `policy/README.md`: metadata for the hub, results, and how to use the policy.

    The card is made from the recipe and the evaluations of the run.

    Args:
        run: directory of the run, which contains `recipe.yaml`.
    """
    config = load_config(run.path)
    settings = _shareable(config)
    fence = _fence(settings, 3)
    base = config.policy.name_or_path
    is_on_hub = base is not None and HUB_ID.fullmatch(base) is not None and not Path(base).exists()
    head: dict[str, Any] = {"base_model": base} if is_on_hub else {}
    head["library_name"] = "peft" if config.policy.lora else "transformers"
    head["pipeline_tag"] = "text-generation"
    head["tags"] = ["llm-reinforce", "reinforcement-learning", *(["lora"] if config.policy.lora else [])]
    parts = [
        f"---\n{dump_yaml(head)}---\n",
        f"# {TITLE}\n",
        "\n".join(f"- **{name}:** {value}" for name, value in _facts(config).items()) + "\n",
        _results(run.rows("evaluations.jsonl")),
        _usage(config),
        f"## Settings\n\n{fence}yaml\n{settings}{fence}\n",
        "Trained with {}, {} and {}.\n".format(
            *(f"{name} {installed_version(name)}" for name in ("llm-reinforce", "torch", "transformers"))
        ),
    ]
    return without_secrets("\n".join(part for part in parts if part))


def _facts(config: Config) -> dict[str, str]:
    policy, problems, training = config.policy, config.problems, config.training
    weights = "a LoRA adapter" if policy.lora else "all weights"
    if problems.generate is not None:
        data = f"generated problems, {', '.join(problems.generate.operations)}"
    else:
        data = _code(_name(problems.train.data)) if problems.train else "problems given in Python"
    warm_start = {"Warm start": training.warm_start.summary} if training.warm_start else {}
    return {
        "Base model": _code(_name(policy.name_or_path)) if policy.name_or_path else "random weights",
        "Trained": f"{weights}, by REINFORCE with the baseline `{config.reinforce.baseline}`",
        "Problems": data,
        "Rewards": ", ".join(f"{_code(_name(each.function))} × {each.weight:g}" for each in config.rewards),
        **warm_start,
        "Updates": f"up to {config.reinforce.in_whole_batches(training.num_updates):,}, each with "
        f"{config.reinforce.problems_of_update:,} problems and {config.reinforce.episodes_per_problem:,} "
        "episodes per problem",
    }


def _results(rows: list[dict[str, Any]]) -> str:
    """Return a table of the first and the last accuracy of each decoding mode, or "" without evaluations."""
    if not rows:
        return ""
    last = {row["decoding"]: row for row in rows}
    first = {name: next(row for row in rows if row["decoding"] == name) for name in last}
    data = "held-out problems" if rows[-1]["data"] == "held_out" else "training problems"
    lines = [
        f"## Accuracy on {rows[-1]['total']:,} {data}\n",
        "| decoding | before the policy-gradient updates | after the policy-gradient updates |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {_accuracy(first[name])} | {_accuracy(last[name])} |" for name in last]
    lines += [
        "",
        "Accuracy is the share of answers that the verifier accepts. Brackets contain 95% intervals.\n",
    ]
    return "\n".join(lines)


def _accuracy(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['accuracy']:.1%} [{100 * low:.1f}, {100 * high:.1f}] at update {row['update']:,}"


def _usage(config: Config) -> str:
    lines = ["## Use", "", "```python", "from llm_reinforce import load_policy", ""]
    lines += ['policy = load_policy("path/to/this/directory")', "```", ""]
    loader = "peft.AutoPeftModelForCausalLM" if config.policy.lora else "transformers.AutoModelForCausalLM"
    lines.append(f"`{loader}.from_pretrained` also loads the policy.")
    if config.problems.template != "{prompt}":
        lines += ["", "The policy was trained with this template around each problem:", ""]
        lines += [f"    {line}" for line in config.problems.template.splitlines()]
    return "\n".join(lines) + "\n"


def _shareable(config: Config) -> str:
    """Return the settings that were set explicitly, as YAML, with file names in place of local paths."""
    data = config.model_dump(mode="json", exclude_unset=True)
    data.pop("output_dir", None)
    return dump_yaml(_without_folders(data))


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    return _name(value) if isinstance(value, str) and Path(value).is_absolute() else value


def _name(location: str) -> str:
    """Return only the file name of an absolute path. Return a hub id or another name unchanged."""
    return Path(location).name if Path(location.partition(":")[0]).is_absolute() else location


def _code(text: str) -> str:
    """Return the text as inline code, even if it contains backticks or line breaks."""
    fence, space = _fence(text, 1), " " if "`" in text else ""
    return f"{fence}{space}{' '.join(text.split())}{space}{fence}"


def _fence(text: str, least: int) -> str:
    """Return a row of at least `least` backticks that is longer than any row of backticks in the text."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))
