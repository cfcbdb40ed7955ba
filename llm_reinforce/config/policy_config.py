"""Settings of the policy: the language model that is trained, and its prompt format."""

import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from llm_reinforce.config.section import Count, Positive, Section, Text


class RandomInitConfig(Section):
    """A policy that starts from random weights and has one token per character. All weights are trained.

    This is STEP 0 of the article "The Beauty of Reinforcement Learning (1)", which initializes the parameters
    at random.
    """

    alphabet: str = Field(
        default="0123456789+-*/=", description="characters of the vocabulary, without repetition"
    )
    num_layers: Count = Field(default=4, description="number of transformer layers")
    num_heads: Count = Field(default=4, description="number of attention heads per layer")
    hidden_size: Count = Field(
        default=128,
        validate_default=True,
        description="width of the hidden states; must be a multiple of 2 x `num_heads`",
    )
    intermediate_size: Count = Field(default=512, description="width of the feed-forward layers")
    max_length: Count = Field(
        default=512, description="maximum length of a prompt together with its completion, in tokens"
    )

    @field_validator("alphabet")
    @classmethod
    def _check_alphabet(cls, alphabet: str) -> str:
        repeated = sorted({character for character in alphabet if alphabet.count(character) > 1})
        if repeated:
            raise ValueError(
                "should list each character once, but these characters are repeated: "
                f"{' '.join(map(repr, repeated))}"
            )
        if len(alphabet) < 2:
            raise ValueError("should list at least two characters")
        return alphabet

    @field_validator("hidden_size")
    @classmethod
    def _check_hidden_size(cls, hidden_size: int, info: ValidationInfo) -> int:
        num_heads = info.data.get("num_heads")
        if num_heads and hidden_size % (
            2 * num_heads
        ):  # rotary embeddings need attention heads of even width
            raise ValueError(f"should be a multiple of {2 * num_heads} (2 x num_heads), not {hidden_size}")
        return hidden_size


class AdapterConfig(Section):
    """Low-rank adapters (LoRA), which are trained instead of the policy's original weights."""

    rank: Count = Field(default=16, description="rank of the adapters")
    alpha: Positive = Field(
        default=32.0,
        description="scale of the adapters: the output of an adapter is multiplied by alpha / rank",
    )
    target_modules: Text | Annotated[tuple[Text, ...], Field(strict=False, min_length=1)] = Field(
        default="all-linear",
        description="modules that get an adapter: a list of names, a regular expression, or all-linear "
        "for all linear layers",
    )


class PolicyConfig(Section):
    """The language model to train."""

    name_or_path: Text | None = Field(
        default=None,
        description="hub id, directory, .gguf file, or name of a model that `llm-reinforce fetch` downloads",
    )
    random_init: RandomInitConfig | None = Field(
        default=None, description="create a model with random weights instead of loading a pretrained model"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="data type of the weights"
    )
    load_in_4bit: bool = Field(
        default=False,
        description="quantize the linear layers to 4 bits (NF4); only adapters can then be trained; needs "
        "the extra `quantization`",
    )
    lora: AdapterConfig | None = Field(
        default=None, description="train low-rank adapters only; null: train all weights"
    )
    use_chat_template: bool = Field(
        default=True, description="format prompts with the model's chat template, if it has one"
    )
    system_prompt: str | None = Field(
        default=None, description="system message of the prompts; null: the default of the chat template"
    )
    chat_template_kwargs: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="further arguments of the chat template, such as `{enable_thinking: false}`",
    )
    chat_template_date: Text | None = Field(
        default=None,
        description="date that the chat template prints as the current date, such as 2026-11-29; null: the "
        "date on which the run is first started",
    )
    revision: Text | None = Field(default=None, description="branch, tag or commit of the model on the hub")
    trust_remote_code: bool = Field(
        default=False, description="allow Python code from the model's repository to run"
    )

    @field_validator("random_init")
    @classmethod
    def _check_single_source(
        cls, random_init: RandomInitConfig | None, info: ValidationInfo
    ) -> RandomInitConfig | None:
        if random_init is not None and info.data.get("name_or_path") is not None:
            raise ValueError("random_init and name_or_path cannot both be set; remove one of them")
        return random_init

    @field_validator("chat_template_date", mode="before")
    @classmethod
    def _check_date(cls, date: object) -> object:
        if isinstance(date, datetime.date):
            return date.isoformat()
        try:
            return datetime.date.fromisoformat(date).isoformat() if isinstance(date, str) else date
        except ValueError:
            raise ValueError(f"should be a date such as 2026-11-29, not {date!r}") from None

    @field_validator(
        "load_in_4bit",
        "lora",
        "system_prompt",
        "chat_template_kwargs",
        "chat_template_date",
        "revision",
        "trust_remote_code",
    )
    @classmethod
    def _check_not_random_init(cls, value: object, info: ValidationInfo) -> object:
        if value and info.data.get("random_init") is not None:
            raise ValueError("not used with random_init; remove this setting")
        return value

    @field_validator("system_prompt", "chat_template_kwargs", "chat_template_date")
    @classmethod
    def _check_chat_template_is_used(cls, value: object, info: ValidationInfo) -> object:
        if value not in (None, {}) and info.data.get("use_chat_template") is False:
            raise ValueError(
                "not used without a chat template; set use_chat_template: true, or remove this setting"
            )
        return value

    @model_validator(mode="after")
    def _check_source_given(self) -> Self:
        if self.name_or_path is None and self.random_init is None:
            raise ValueError("needs name_or_path or random_init (`random_init: {}` uses all defaults)")
        return self
