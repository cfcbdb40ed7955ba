"""Translate the arguments of `ReinforceTrainer` into settings and objects.

A name or path is written into a section of the settings, so the run equals a run of a recipe with this
section. An object (a model in memory, a list of problems, a function) is used directly. The command line can
also resume a run that was started with objects. For this purpose, a model and a list of problems are saved in
the run's directory, and the settings contain the paths of the saved files. For a function, the settings
contain the path of the file that defines the function.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from llm_reinforce.config import (
    ADAPTER_LEARNING_RATE,
    RANDOM_INIT_LEARNING_RATE,
    Config,
    DataConfig,
    GenerateConfig,
    PolicyConfig,
    ProblemsConfig,
    RandomInitConfig,
)
from llm_reinforce.errors import InputError, repr_with_type
from llm_reinforce.policy import LanguagePolicy, policy_from_model
from llm_reinforce.problems import GivenProblems, problems_from, reads_split
from llm_reinforce.rewards import WeightedReward
from llm_reinforce.rewards.from_python import rewards_from

POLICY_FOLDER, PROBLEMS_FOLDER = "initial_policy", "problems"  # folders in the run's directory
CHAT_KEYWORDS = ("use_chat_template", "system_prompt", "chat_template_kwargs", "chat_template_date")
MODEL_KEYWORDS = (*CHAT_KEYWORDS, "lora")  # policy settings allowed with a model object
COLUMN_KEYWORDS = ("prompt_column", "answer_column")  # apply to both `problems` and `held_out`
UNNAMED_RUN = "runs/unnamed"  # placeholder for the output_dir of a run that is not recorded

Section = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrainerArguments:
    """The arguments of a `ReinforceTrainer`, as settings and objects.

    Attributes:
        sections: settings that describe the policy, the problems, the rewards and `output_dir`, by top-level
            key.
        keywords: the remaining keyword arguments: single settings such as `num_updates`, or whole sections.
        policy: the policy object passed by the caller; None if `sections` names the policy.
        problems: the problem objects passed by the caller.
        rewards: one entry per reward. An entry is the function passed by the caller, or None if the function
            is loaded by its name in `sections`. Empty if no rewards were passed.
    """

    sections: Mapping[str, Any]
    keywords: Mapping[str, Any]
    policy: LanguagePolicy | None
    problems: GivenProblems
    rewards: tuple[WeightedReward | None, ...]


def read_arguments(
    policy: Any,
    problems: Any,
    rewards: Any,
    held_out: Any,
    output_dir: str | PathLike[str] | None,
    config: Config | None,
    keywords: Mapping[str, Any],
) -> TrainerArguments:
    """Separate the arguments of `ReinforceTrainer` into settings and objects, such as a model in memory.

    Raises:
        InputError: if an argument is missing, has an unsupported type, or conflicts with another argument.
    """
    if config is not None and not isinstance(config, Config):
        raise InputError(
            f"config: should be a Config, such as load_recipe(…).config, not {repr_with_type(config)}"
        )
    for name, value in (("policy", policy), ("problems", problems)):
        if value is None and config is None:
            raise InputError(f"{name}: missing; ReinforceTrainer needs a policy and problems, or a config")
    sections: Section = {}
    rest = dict(keywords)
    if output_dir is not None:
        sections["output_dir"] = str(output_dir)
    folder = Path(sections.get("output_dir") or (config.output_dir if config else UNNAMED_RUN)).expanduser()
    own_policy = None
    if policy is not None:
        seed = rest.get("seed", config.seed if config else 0)
        sections["policy"], own_policy = _read_policy(policy, config, rest, folder, seed)
        has_rate = config is not None and "learning_rate" in config.training.model_fields_set
        if not has_rate and (rate := _default_learning_rate(own_policy)):
            sections["training"] = {"learning_rate": rate}
    own_problems = GivenProblems()
    if problems is not None:
        columns = {name: rest.pop(name) for name in COLUMN_KEYWORDS if name in rest}
        sections["problems"], own_problems = _read_problems(problems, held_out, columns, config, folder)
    elif held_out is not None:
        raise InputError("held_out: used only together with problems; pass problems as well")
    own_rewards: tuple[WeightedReward | None, ...] = ()
    if rewards is not None:
        found = rewards_from(rewards)
        sections["rewards"] = [keys for keys, _ in found]
        own_rewards = tuple(function for _, function in found)
    return TrainerArguments(sections, rest, own_policy, own_problems, own_rewards)


def _read_policy(
    policy: Any, config: Config | None, keywords: Section, folder: Path, seed: int
) -> tuple[Section, LanguagePolicy | None]:
    """Return the settings of the policy, and the policy object.

    The policy object is None if the policy is given by its name, path or settings. For a
    `(model, tokenizer)` pair, the policy object is built with the keywords that apply to the pair, and these
    keywords are removed from `keywords`.
    """
    base = config.policy.model_dump(mode="json", exclude_unset=True) if config else {}
    for origin in ("name_or_path", "random_init", "revision"):
        base.pop(origin, None)
    if isinstance(policy, str | PathLike):
        return {**base, "name_or_path": str(policy)}, None
    if isinstance(policy, PolicyConfig):
        return policy.model_dump(mode="json", exclude_unset=True), None
    if isinstance(policy, RandomInitConfig):
        return {**base, "random_init": policy.model_dump(mode="json", exclude_unset=True)}, None
    if isinstance(policy, LanguagePolicy):
        own, read = policy, {}
    elif isinstance(policy, tuple | list) and len(policy) == 2:
        read = {name: keywords.pop(name) for name in MODEL_KEYWORDS if name in keywords}
        own = policy_from_model(
            *policy, **{**{k: base[k] for k in MODEL_KEYWORDS if k in base}, **read}, seed=seed
        )
    else:
        raise InputError(
            f"policy: {repr_with_type(policy)} is not a policy; give a name, a path, a hub id, "
            "(model, tokenizer), or the result of load_policy"
        )
    for name in PolicyConfig.model_fields:
        if name in keywords:
            raise InputError(
                f"{name}: not used for a policy that is already loaded; remove this argument, or give the "
                "policy by its name or path"
            )
    section = {
        "name_or_path": str(folder / POLICY_FOLDER),
        "dtype": str(next(own.model.parameters()).dtype).removeprefix("torch."),
        "use_chat_template": own.uses_chat_template,
    }
    if getattr(own.model, "is_loaded_in_4bit", False):
        section["load_in_4bit"] = True
    if own.system_prompt is not None:
        section["system_prompt"] = own.system_prompt
    if own.chat_template_kwargs:
        section["chat_template_kwargs"] = dict(own.chat_template_kwargs)
    # the chat template's date is left out, because a resumed run uses the recorded date
    return section, own


def _default_learning_rate(policy: LanguagePolicy | None) -> float | None:
    """Return the default learning rate for a policy object with an adapter or with random weights.

    The result is None if the general default applies, or if there is no policy object.
    """
    if policy is None:
        return None
    if hasattr(policy.model, "peft_config"):
        return ADAPTER_LEARNING_RATE
    # transformers records the source of a loaded model in name_or_path, which is empty for random weights
    return None if getattr(policy.model, "name_or_path", "") else RANDOM_INIT_LEARNING_RATE


def _read_problems(
    problems: Any, held_out: Any, columns: Section, config: Config | None, folder: Path
) -> tuple[Section, GivenProblems]:
    """Return the settings of the problems, and the problems that the caller passed as Python objects."""
    base = config.problems.model_dump(mode="json", exclude_unset=True) if config else {}
    section: Section = {key: base[key] for key in ("template", "num_held_out") if key in base}
    train = held = None
    if columns and isinstance(problems, ProblemsConfig | GenerateConfig | DataConfig):
        raise InputError(
            f"{next(iter(columns))}: not used with a {type(problems).__name__}; remove this argument, or set "
            "the column in a DataConfig"
        )
    if isinstance(problems, ProblemsConfig | GenerateConfig):
        if held_out is not None:
            raise InputError(
                "held_out: not used with generated problems or a ProblemsConfig, which define their own "
                "held-out problems; remove this argument"
            )
        keys = problems.model_dump(mode="json", exclude_unset=True)
        return (
            keys if isinstance(problems, ProblemsConfig) else {**section, "generate": keys}
        ), GivenProblems()
    if isinstance(problems, str | PathLike):
        section["train"] = {"data": str(problems), **columns}
    elif isinstance(problems, DataConfig):
        section["train"] = problems.model_dump(mode="json", exclude_unset=True)
    else:
        train = problems_from(problems, name="problems", needs_answers=False, **columns)
        section["train"] = {"data": str(folder / PROBLEMS_FOLDER / "train.jsonl")}
        if train[0].algebra:
            section["train"]["algebra"] = True
    if held_out is None:
        return section, GivenProblems(train)
    if isinstance(held_out, str | PathLike):
        section["held_out"] = {"data": str(held_out), **columns}
        if reads_split(str(held_out)):
            section["held_out"]["split"] = "test"
    elif isinstance(held_out, DataConfig):
        section["held_out"] = held_out.model_dump(mode="json", exclude_unset=True)
    else:
        held = problems_from(held_out, name="held_out", **columns)
        section["held_out"] = {"data": str(folder / PROBLEMS_FOLDER / "held_out.jsonl")}
        if held[0].algebra:
            section["held_out"]["algebra"] = True
        section["num_held_out"] = len(held)
    return section, GivenProblems(train, held)
