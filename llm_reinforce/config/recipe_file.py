"""A recipe: all that a run is, read from YAML and frozen.

It is wholly right or refused: unknown keys, wrong types and settings that can't work together are told all at
once, each with its file, line and the nearest known key. Nothing here loads a model or touches a device.

    recipe = load_config("quickstart", ["training.num_updates=10"])
    recipe.training.num_updates
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from llm_reinforce.errors import InputError
from llm_reinforce.config.reward_config import BUILT_IN_REWARD_ARGUMENTS, RewardConfig
from llm_reinforce.config.sections import (
    DEFAULT_SPLIT,
    FILE_SUFFIXES,
    MAX_SEED,
    NUM_TRAINING_PROBLEMS_EVALUATED,
    READ_WITH_BASELINE,
    DataConfig,
    EvaluationConfig,
    GenerateConfig,
    AdapterConfig,
    PolicyConfig,
    ProblemsConfig,
    RandomInitConfig,
    ReinforceConfig,
    SamplingConfig,
    Section,
    TrainingConfig,
    ValueConfig,
    WarmStartConfig,
    conflict,
)
from llm_reinforce.config.strict_yaml import (
    apply_override,
    dump_yaml,
    nearest,
    parse_document,
    validate,
)

__all__ = [
    "BUILT_IN_REWARD_ARGUMENTS",
    "DEFAULT_SPLIT",
    "FILE_SUFFIXES",
    "MAX_SEED",
    "NUM_TRAINING_PROBLEMS_EVALUATED",
    "DataConfig",
    "EvaluationConfig",
    "GenerateConfig",
    "AdapterConfig",
    "PolicyConfig",
    "ProblemsConfig",
    "RandomInitConfig",
    "Config",
    "ReinforceConfig",
    "RewardConfig",
    "SamplingConfig",
    "TrainingConfig",
    "ValueConfig",
    "WarmStartConfig",
    "builtin_recipes",
    "dump_config",
    "load_config",
]


class Config(Section):
    """What a run trains, on which problems, by which rewards, and how."""

    seed: int = Field(default=0, ge=0, lt=MAX_SEED, description="seed of all the run's random generators")
    output_dir: str = Field(
        default="runs/recipe",
        min_length=1,
        description="the run's directory; load_config's default is runs/<file's stem>",
    )
    policy: PolicyConfig = Field(description="the language model that is trained")
    problems: ProblemsConfig = Field(description="what is asked")
    rewards: tuple[RewardConfig, ...] = Field(
        default=(RewardConfig(function="correct_answer"),),
        strict=False,
        min_length=1,
        description="what is rewarded",
    )
    sampling: SamplingConfig = Field(
        default=SamplingConfig(), validate_default=True, description="how completions are sampled"
    )
    reinforce: ReinforceConfig = Field(default=ReinforceConfig(), description="from rewards to the loss")
    training: TrainingConfig = Field(description="the optimiser, its schedule, and what is saved")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="how accuracy is measured")

    @field_validator("problems")
    @classmethod
    def _fit_the_alphabet(cls, problems: ProblemsConfig, info: ValidationInfo) -> ProblemsConfig:
        policy: PolicyConfig | None = info.data.get("policy")
        if policy and policy.random_init and problems.generate:
            fixed = problems.generate.form.replace("{expression}", "").replace("{spaced}", " ")
            fixed += problems.template.replace("{prompt}", "") + "0123456789"
            unknown = sorted(set(fixed) - set(policy.random_init.alphabet))
            if unknown:
                characters = " ".join(map(repr, unknown))
                raise conflict(
                    ("generate",),
                    f"problems hold characters that policy.random_init.alphabet lacks: {characters}",
                )
        return problems

    @field_validator("rewards")
    @classmethod
    def _differ(cls, rewards: tuple[RewardConfig, ...]) -> tuple[RewardConfig, ...]:
        for index, reward in enumerate(rewards):
            for earlier in rewards[:index]:
                if (earlier.function, earlier.arguments) == (reward.function, reward.arguments):
                    raise conflict(
                        (index, "function"), f"{reward.function} is listed twice with the same arguments"
                    )
        return rewards

    @field_validator("sampling")
    @classmethod
    def _fits_the_policy(cls, sampling: SamplingConfig, info: ValidationInfo) -> SamplingConfig:
        policy: PolicyConfig | None = info.data.get("policy")
        if policy and policy.random_init and sampling.max_new_tokens >= policy.random_init.max_length:
            raise conflict(
                ("max_new_tokens",),
                f"{sampling.max_new_tokens} tokens leave no room for a prompt: policy.random_init.max_length "
                f"is {policy.random_init.max_length}",
            )
        return sampling

    @field_validator("training")
    @classmethod
    def _can_scale_gradients(cls, training: TrainingConfig, info: ValidationInfo) -> TrainingConfig:
        policy: PolicyConfig | None = info.data.get("policy")
        if policy and training.mixed_precision == "fp16" and policy.dtype == "float16" and not policy.lora:
            raise conflict(
                ("mixed_precision",),
                "fp16 keeps its weights in float32, and policy.dtype is float16; set that to float32",
            )
        return training

    @field_validator("evaluation")
    @classmethod
    def _asks_what_there_is(cls, evaluation: EvaluationConfig, info: ValidationInfo) -> EvaluationConfig:
        problems: ProblemsConfig | None = info.data.get("problems")
        if problems and 0 < problems.num_held_out < (evaluation.num_problems or 0):
            raise conflict(
                ("num_problems",),
                f"should be at most problems.num_held_out, which is {problems.num_held_out}",
            )
        for name in ("template", "few_shot"):
            if problems and problems.num_held_out == 0 and getattr(evaluation, name):
                raise conflict((name,), "read for held-out problems only, and problems.num_held_out is 0")
        return evaluation


def builtin_recipes() -> dict[str, Path]:
    """The recipes that come along, by name: from the installed package, or else from the checkout."""
    here = Path(__file__).resolve()
    for folder in (here.parent / "recipes", here.parents[1] / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe's file, or a built-in recipe by its name; `section.key=value` overrides come on top.

    A reward's or a data file is sought from the current directory first, then beside the recipe.

    Raises one InputError with a line for each thing that is wrong.
    """
    file = _find_recipe(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: can't be read as a text file: {error}") from None
    document = parse_document(text, name=str(file))
    document.data.setdefault("output_dir", f"runs/{file.stem}")
    for override in overrides:
        apply_override(document, override)
    _find_files_beside(document.data, file.parent)
    return validate(Config, document)


def dump_config(recipe: Config) -> str:
    """The recipe as YAML, defaults written out; it loads back as an equal recipe."""
    data = recipe.model_dump(mode="json")
    for key, baseline in READ_WITH_BASELINE.items():
        if recipe.reinforce.baseline != baseline:
            del data["reinforce"][key]  # no other baseline reads it, so a file can't give it
    return dump_yaml(data)


def _find_files_beside(data: Mapping[str, Any], folder: Path) -> None:
    """Name the files that aren't found from here, but beside the recipe, by where they are."""

    def beside(name: object, suffixes: tuple[str, ...]) -> Path | None:
        there = folder.resolve() / name if isinstance(name, str) and name.endswith(suffixes) else None
        return there if there and there.is_file() and not Path(str(name)).expanduser().is_file() else None

    problems, rewards = data.get("problems"), data.get("rewards")
    for key in ("train", "held_out"):
        source = problems.get(key) if isinstance(problems, dict) else None
        if isinstance(source, dict) and (file := beside(source.get("data"), FILE_SUFFIXES)):
            source["data"] = str(file)
    for reward in rewards if isinstance(rewards, list) else ():
        if isinstance(reward, dict):
            origin, _, name = str(reward.get("function")).rpartition(":")
            if file := beside(origin, (".py",)):
                reward["function"] = f"{file}:{name}"


def _find_recipe(path: str | Path) -> Path:
    file, built_in = Path(path), builtin_recipes()
    if file.is_file():
        return file
    if str(path) in built_in:
        return built_in[str(path)]
    hint = nearest(file.stem, built_in) or f"; the built-in recipes are {', '.join(built_in) or 'none'}"
    raise InputError(f"{path}: there is no such file or built-in recipe{hint}")
