"""The sections of a recipe: every key with its meaning, unit and default, and what it can't stand beside.

A field's validator sees the fields written above it, so a field that depends on another stands below it.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llm_reinforce.config.strict_yaml import KeyPath

DEFAULT_SPLIT = "train"
FILE_SUFFIXES = (".json", ".jsonl")  # data of such a name is a file, and no data set of the hub
MAX_SEED = 10**18  # what a seed is below; torch takes 64 bits
NUM_TRAINING_PROBLEMS_EVALUATED = 1000  # training problems that an evaluation asks where nothing is held out

Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
NumDigits = Annotated[int, Field(ge=1, le=12)]
Operand = Annotated[int, Field(ge=0, lt=10**12)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Operation = Literal["addition", "subtraction", "multiplication", "division", "chain"]
Decoding = Literal["greedy", "sampled"]


def conflict(path: KeyPath, message: str) -> PydanticCustomError:
    """An error at a key inside the field that is being validated."""
    return PydanticCustomError("conflict", "{message}", {"path": path, "message": message})


class Section(BaseModel):
    """What all sections share: no conversions, no unknown keys, no changes after birth."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class RandomInitConfig(Section):
    """A policy with random weights and one token a character: the article's STEP 0. All of it is trained."""

    alphabet: str = Field(default="0123456789+-*/=", description="its characters, each once")
    num_layers: Count = Field(default=4, description="transformer layers")
    num_heads: Count = Field(default=4, description="attention heads a layer; they share hidden_size")
    hidden_size: Count = Field(default=128, validate_default=True, description="width of the hidden states")
    intermediate_size: Count = Field(default=512, description="width of the feed-forward layers")
    max_length: Count = Field(default=64, description="longest prompt and completion together, in tokens")

    @field_validator("alphabet")
    @classmethod
    def _has_each_character_once(cls, alphabet: str) -> str:
        repeated = sorted({character for character in alphabet if alphabet.count(character) > 1})
        if repeated:
            raise ValueError(f"should hold each character once; repeated: {' '.join(map(repr, repeated))}")
        if len(alphabet) < 2:
            raise ValueError("should hold at least two characters")
        return alphabet

    @field_validator("hidden_size")
    @classmethod
    def _is_divided_by_the_heads(cls, hidden_size: int, info: ValidationInfo) -> int:
        num_heads = info.data.get("num_heads")
        if num_heads and hidden_size % (2 * num_heads):  # rotary positions turn pairs of numbers in a head
            raise ValueError(
                f"should be a multiple of 2 x num_heads, which is {2 * num_heads}; {hidden_size} isn't"
            )
        return hidden_size


class AdapterConfig(Section):
    """Low-rank adapters: the policy's own weights stay as they are."""

    rank: Count = Field(default=16, description="rank of the adapters")
    alpha: Positive = Field(default=32.0, description="the adapters are multiplied by alpha / rank")
    target_modules: Text | Annotated[tuple[Text, ...], Field(strict=False, min_length=1)] = Field(
        default="all-linear", description="modules with adapters: a list of names, a pattern, or all-linear"
    )


class PolicyConfig(Section):
    """The language model to be trained."""

    name_or_path: Text | None = Field(
        default=None, description="hub id, directory, .gguf file, or a model of `llm-reinforce fetch`"
    )
    random_init: RandomInitConfig | None = Field(default=None, description="start from random weights instead")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="the weights' type"
    )
    lora: AdapterConfig | None = Field(default=None, description="train adapters only; null trains all weights")
    use_chat_template: bool = Field(default=True, description="ask in the chat format, where there is one")
    system_prompt: str | None = Field(default=None, description="system message; null is the template's own")
    revision: Text | None = Field(default=None, description="branch, tag or commit on the hub")
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the model")

    @field_validator("random_init")
    @classmethod
    def _is_the_only_origin(cls, random_init: RandomInitConfig | None, info: ValidationInfo) -> RandomInitConfig | None:
        if random_init is not None and info.data.get("name_or_path") is not None:
            raise ValueError("name_or_path is given too; keep one and drop the other")
        return random_init

    @field_validator("lora", "system_prompt", "revision", "trust_remote_code")
    @classmethod
    def _has_a_model_to_act_on(cls, value: object, info: ValidationInfo) -> object:
        if value and info.data.get("random_init") is not None:
            raise ValueError("not read with random_init; leave it out")
        return value

    @field_validator("system_prompt")
    @classmethod
    def _has_a_template(cls, system_prompt: str | None, info: ValidationInfo) -> str | None:
        if system_prompt is not None and info.data.get("use_chat_template") is False:
            raise ValueError("not read without a chat template; set use_chat_template: true or leave it out")
        return system_prompt

    @model_validator(mode="after")
    def _has_an_origin(self) -> Self:
        if self.name_or_path is None and self.random_init is None:
            raise ValueError("needs name_or_path, or random_init ({} takes all its defaults)")
        return self


class GenerateConfig(Section):
    """Arithmetic problems, generated from the seed."""

    operations: tuple[Operation, ...] = Field(
        default=("addition",), strict=False, min_length=1, description="the kinds of problem, mixed evenly"
    )
    digits: tuple[NumDigits, ...] = Field(
        default=(2,), strict=False, min_length=1, description="digits an operand, mixed evenly"
    )
    operands: tuple[Operand, Operand] | None = Field(
        default=None, strict=False, description="instead of digits: the smallest and the largest operand"
    )
    held_out_operands: tuple[Operand, Operand] | None = Field(
        default=None,
        strict=False,
        description="the smallest and the largest of held-out problems; null: as operands",
    )
    num_operands: int = Field(
        default=2,
        ge=2,
        le=8,
        validate_default=True,
        description="operands of an addition, a multiplication or a chain; the others have two",
    )
    form: str = Field(
        default="{expression}=", description="how it is written: {expression} is 12+34, {spaced} is 12 + 34"
    )
    num_train: Count | None = Field(
        default=None,
        description="training problems; null is all that aren't held out, or 100,000 if too many to list",
    )

    @field_validator("operations", "digits")
    @classmethod
    def _has_no_repeats(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) < len(values):
            raise ValueError("should name each one once")
        return values

    @field_validator("operands")
    @classmethod
    def _rise(cls, values: tuple[int, int] | None) -> tuple[int, int] | None:
        if values is not None and values[0] > values[1]:
            raise ValueError(f"should be the smallest, then the largest, not {values[0]}, {values[1]}")
        return values

    @field_validator("held_out_operands")
    @classmethod
    def _lies_within(cls, values: tuple[int, int] | None, info: ValidationInfo) -> tuple[int, int] | None:
        within: tuple[int, int] | None = info.data.get("operands")
        if values is None:
            return values
        if within is None:
            raise ValueError("read only with operands, within which they lie")
        if not within[0] <= values[0] <= values[1] <= within[1]:
            raise ValueError(f"should lie within operands, {within[0]} to {within[1]}, and rise")
        return values

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        # the default stands in every recipe that a run writes down
        if self.operands is not None and self.digits != type(self).model_fields["digits"].default:
            raise ValueError("digits and operands are both given; keep one and drop the other")
        return self

    @field_validator("num_operands")
    @classmethod
    def _suits_the_operations(cls, num_operands: int, info: ValidationInfo) -> int:
        operations = info.data.get("operations", ("addition",))
        if "chain" in operations and num_operands < 3:
            raise ValueError(f"should be at least 3 for a chain, which mixes + and -, not {num_operands}")
        if num_operands > 2 and set(operations) <= {"subtraction", "division"}:
            raise ValueError(f"not read for {' and '.join(operations)} alone: they have two; leave it out")
        return num_operands

    @field_validator("form")
    @classmethod
    def _shows_the_expression(cls, form: str) -> str:
        if "{expression}" not in form and "{spaced}" not in form:
            raise ValueError("should contain {expression} or {spaced}")
        return form


class DataConfig(Section):
    """Problems from a file or from a data set of the hub."""

    data: Text = Field(
        description="path of a file, a data set's name (gsm8k, …), NAME=PATH, or owner/name on the hub"
    )
    config: Text | None = Field(default=None, description="the data set's configuration; null is its default")
    split: Text = Field(default=DEFAULT_SPLIT, description="the data set's split")
    prompt_column: Text | None = Field(default=None, description="the prompts' column; null finds it")
    answer_column: Text | None = Field(default=None, description="the answers' column; null finds it")
    algebra: bool = Field(
        default=False, description="answers may be LaTeX or algebra, judged by math-verify (an extra)"
    )

    @field_validator("config", "split")
    @classmethod
    def _has_a_data_set_to_act_on(cls, value: str | None, info: ValidationInfo) -> str | None:
        data = info.data.get("data", "")
        is_file = "=" in data or PurePath(data).suffix.lower() in FILE_SUFFIXES
        if is_file and value != (DEFAULT_SPLIT if info.field_name == "split" else None):
            raise ValueError("not read for a file; leave it out")
        return value


class ProblemsConfig(Section):
    """What is asked in training, and what is held out of it to measure accuracy."""

    generate: GenerateConfig | None = Field(default=None, description="generate arithmetic problems")
    train: DataConfig | None = Field(default=None, description="read the training problems")
    held_out: DataConfig | None = Field(
        default=None, description="read held-out ones; null draws them off train"
    )
    template: str = Field(default="{prompt}", description="how a problem is asked; {prompt} is the problem")
    num_held_out: int = Field(
        default=200,
        ge=0,
        description="held-out problems, at most; 0: accuracy is measured on the training problems",
    )

    @field_validator("train")
    @classmethod
    def _is_the_only_source(cls, train: DataConfig | None, info: ValidationInfo) -> DataConfig | None:
        if train is not None and info.data.get("generate") is not None:
            raise ValueError("generate is given too; keep one and drop the other")
        return train

    @field_validator("held_out")
    @classmethod
    def _stands_beside_train(cls, held_out: DataConfig | None, info: ValidationInfo) -> DataConfig | None:
        if held_out is not None and info.data.get("generate") is not None:
            raise ValueError("read only with train; generate holds out num_held_out problems of its own")
        return held_out

    @field_validator("template")
    @classmethod
    def _shows_the_prompt(cls, template: str) -> str:
        if "{prompt}" not in template:
            raise ValueError("should contain {prompt}")
        return template

    @field_validator("num_held_out")
    @classmethod
    def _asks_what_is_held_out(cls, num_held_out: int, info: ValidationInfo) -> int:
        if num_held_out == 0 and info.data.get("held_out") is not None:
            raise ValueError("is 0, so that held_out would be read for nothing; drop one of the two")
        return num_held_out

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if self.generate is None and self.train is None:
            raise ValueError("needs generate ({} takes all its defaults), or train")
        return self


class SamplingConfig(Section):
    """How completions are sampled from the policy."""

    max_new_tokens: Count = Field(default=32, description="longest completion, in tokens")
    temperature: Positive = Field(default=1.0, description="divides the logits, in sampling and scoring")
    batch_size: Count | None = Field(default=None, description="sequences sampled at once; null is all")


class ValueConfig(Section):
    """The learned baseline b(s_t) = V(s_t): a small network that reads the policy's last hidden states."""

    gae_lambda: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="trades bias for variance; 1 is unbiased, below it V stands in for later rewards",
    )
    hidden_size: Count = Field(default=128, description="width of its hidden layer")
    learning_rate: Positive = Field(default=1e-3, description="of its own AdamW")
    num_steps: Count = Field(
        default=8, description="steps on an update's episodes, after they are judged by it"
    )


READ_WITH_BASELINE: Mapping[str, str] = {"moving_average_decay": "moving_average", "value": "value"}
"""Keys of `reinforce` that a single baseline reads, and which."""


class ReinforceConfig(Section):
    """From rewards to the loss. An update's batch is problems_per_update x episodes_per_problem episodes."""

    baseline: Literal[
        "none", "batch_mean", "moving_average", "group_mean", "leave_one_out", "optimal", "greedy", "value"
    ] = Field(default="leave_one_out", description="what is subtracted from the returns")
    moving_average_decay: float = Field(
        default=0.95,
        ge=0,
        lt=1,
        description="share of the old average kept an update; only with moving_average",
    )
    value: ValueConfig = Field(
        default=ValueConfig(), description="the learned baseline; only with baseline: value"
    )
    standardize: bool = Field(default=False, description="divide advantages by their deviation")
    discount: float = Field(default=1.0, gt=0, le=1, description="weight of a reward one action later")
    denominator: Literal["episodes", "tokens"] | Positive = Field(
        default="episodes",
        description="what the summed loss is divided by: a count over the update, or a constant",
    )
    entropy_coefficient: float = Field(default=0.0, ge=0, description="weight of the entropy bonus")
    problems_per_update: Count = Field(default=64, description="problems drawn for an update")
    episodes_per_problem: Count = Field(default=8, description="episodes of each problem: a group")

    @field_validator(*READ_WITH_BASELINE)
    @classmethod
    def _has_its_baseline(cls, setting: object, info: ValidationInfo) -> object:
        needed = READ_WITH_BASELINE[info.field_name or ""]
        baseline = info.data.get("baseline", needed)
        if baseline != needed:
            raise ValueError(f"read only with baseline: {needed}, and the baseline is {baseline}")
        return setting

    @field_validator("episodes_per_problem")
    @classmethod
    def _is_enough_to_compare(cls, episodes: int, info: ValidationInfo) -> int:
        baseline = info.data.get("baseline")
        if baseline in ("leave_one_out", "group_mean", "optimal") and episodes < 2:
            raise ValueError(f"should be at least 2 for baseline: {baseline}")
        compared = "baseline: batch_mean" if baseline == "batch_mean" else "standardize: true"
        needed = baseline == "batch_mean" or info.data.get("standardize")
        if needed and info.data.get("problems_per_update", 2) * episodes < 2:
            raise ValueError(f"should be at least 2, or problems_per_update should, for {compared}")
        return episodes


def _at_most_num_updates(num_warmup_updates: int, info: ValidationInfo) -> int:
    num_updates = info.data.get("num_updates")
    if num_updates is not None and num_warmup_updates > num_updates:
        raise ValueError(f"should be at most num_updates, which is {num_updates}, not {num_warmup_updates}")
    return num_warmup_updates


class WarmStartConfig(Section):
    """Supervised updates on the training problems' answers before the first policy-gradient update."""

    num_updates: Count = Field(description="supervised updates")
    batch_size: Count = Field(default=64, description="problems an update")
    learning_rate: Positive = Field(default=1e-3, description="highest learning rate")
    num_warmup_updates: int = Field(
        default=10, ge=0, validate_default=True, description="updates of a rising learning rate"
    )

    @field_validator("num_warmup_updates")
    @classmethod
    def _ends_within_the_run(cls, num_warmup_updates: int, info: ValidationInfo) -> int:
        return _at_most_num_updates(num_warmup_updates, info)


class TrainingConfig(Section):
    """The optimiser, its schedule, and what the run saves."""

    num_updates: Count = Field(description="policy-gradient updates: optimiser steps")
    num_tokens: Count | None = Field(
        default=None,
        description="the run ends after the update that reaches so many actions in all; null: it doesn't",
    )
    learning_rate: Positive = Field(description="highest learning rate")
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = Field(
        default="constant_with_warmup", description="how the learning rate goes; linear and cosine fall to 0"
    )
    num_warmup_updates: int = Field(default=0, ge=0, description="updates of a rising learning rate")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), strict=False, description="AdamW's decays")
    max_grad_norm: Positive | None = Field(default=1.0, description="the gradient is clipped to it")
    micro_batch_tokens: Count = Field(
        default=4096, description="most tokens a backward pass, what repeats counted once: bounds memory"
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(default="no", description="forward pass's type")
    checkpoint_every: Count | None = Field(default=None, description="updates between checkpoints")
    num_checkpoints_kept: Count = Field(default=2, description="the newest stay, older ones go")
    max_unscored_share: float = Field(
        default=0.5, ge=0, le=1, description="more unscored episodes in an update stop the run, saved"
    )
    max_not_finite: Count = Field(
        default=10,
        description="so many updates in a row whose gradient isn't finite stop the run",
    )
    logged_episodes: int = Field(default=8, ge=0, description="episodes an update written to episodes.jsonl")
    warm_start: WarmStartConfig | None = Field(default=None, description="supervised updates at first")

    @field_validator("schedule")
    @classmethod
    def _falls_over_a_known_time(cls, schedule: str, info: ValidationInfo) -> str:
        if schedule in ("linear", "cosine") and info.data.get("num_tokens") is not None:
            raise ValueError(
                f"{schedule} falls to 0 over num_updates, and num_tokens ends the run before; "
                "with it choose constant_with_warmup or constant"
            )
        return schedule

    @field_validator("num_warmup_updates")
    @classmethod
    def _fits_the_schedule(cls, num_warmup_updates: int, info: ValidationInfo) -> int:
        if num_warmup_updates and info.data.get("schedule") == "constant":
            raise ValueError("not read with schedule: constant; choose constant_with_warmup, or leave it out")
        return _at_most_num_updates(num_warmup_updates, info)


class EvaluationConfig(Section):
    """How often and how accuracy is measured on the held-out problems."""

    every: Count = Field(default=25, description="updates (or tokens) from one evaluation to the next")
    unit: Literal["updates", "tokens"] = Field(
        default="updates", description="what `every` counts; sampled tokens suit runs of different batches"
    )
    decodings: tuple[Decoding, ...] = Field(
        default=("greedy",),
        strict=False,
        min_length=1,
        description="how completions are chosen; each is measured",
    )
    num_problems: Count | None = Field(
        default=None,
        description="problems asked; null is all that are held out, or, where none are, at most "
        f"{NUM_TRAINING_PROBLEMS_EVALUATED:,} training problems",
    )
    batch_size: Count = Field(default=256, description="sequences sampled at once")
    samples_per_problem: Count = Field(default=1, description="completions a problem under sampled decoding")
    template: Text | None = Field(
        default=None, description="how a held-out problem is asked; null is as in training"
    )
    few_shot: int = Field(default=0, ge=0, description="worked training problems before each question")
    stop: tuple[Text, ...] = Field(
        default=(), strict=False, description="strings at which a completion is cut before it is judged"
    )

    @field_validator("template")
    @classmethod
    def _shows_the_prompt(cls, template: str | None) -> str | None:
        if template is not None and "{prompt}" not in template:
            raise ValueError("should contain {prompt}")
        return template

    @field_validator("decodings")
    @classmethod
    def _has_no_repeats(cls, decodings: tuple[Decoding, ...]) -> tuple[Decoding, ...]:
        if len(set(decodings)) < len(decodings):
            raise ValueError("should name each decoding once")
        return decodings

    @field_validator("samples_per_problem")
    @classmethod
    def _has_sampled_decoding(cls, samples: int, info: ValidationInfo) -> int:
        if samples > 1 and "sampled" not in info.data.get("decodings", ("sampled",)):
            raise ValueError("read only with sampled among evaluation.decodings")
        return samples
