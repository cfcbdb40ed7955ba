"""The policy: which language model is trained, and how a prompt is put to it."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from llm_reinforce.config.section import Count, Positive, Section, Text


class RandomInitConfig(Section):
    """A policy with random weights and one token a character: the article's STEP 0. All of it is trained."""

    alphabet: str = Field(default="0123456789+-*/=", description="its characters, each once")
    num_layers: Count = Field(default=4, description="transformer layers")
    num_heads: Count = Field(default=4, description="attention heads a layer; they share hidden_size")
    hidden_size: Count = Field(default=128, validate_default=True, description="width of the hidden states")
    intermediate_size: Count = Field(default=512, description="width of the feed-forward layers")
    max_length: Count = Field(default=512, description="longest prompt and completion together, in tokens")

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
    random_init: RandomInitConfig | None = Field(
        default=None, description="start from random weights instead"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="the weights' type"
    )
    lora: AdapterConfig | None = Field(
        default=None, description="train adapters only; null trains all weights"
    )
    use_chat_template: bool = Field(default=True, description="ask in the chat format, where there is one")
    system_prompt: str | None = Field(default=None, description="system message; null is the template's own")
    revision: Text | None = Field(default=None, description="branch, tag or commit on the hub")
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the model")

    @field_validator("random_init")
    @classmethod
    def _is_the_only_origin(
        cls, random_init: RandomInitConfig | None, info: ValidationInfo
    ) -> RandomInitConfig | None:
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
