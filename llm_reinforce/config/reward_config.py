"""The rewards of a recipe, and what the built-in ones take."""

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, JsonValue, ValidationError, ValidationInfo, field_validator

from llm_reinforce.config.section import Count, Positive, Section, conflict
from llm_reinforce.config.strict_yaml import complaints, nearest


class NoArguments(Section):
    """Of a function that takes none."""


class AnswerFormatArguments(Section):
    """Of `answer_format`."""

    pattern: str | None = None
    form: Literal["hashes", "boxed", "tag", "phrase"] | None = None

    @field_validator("pattern")
    @classmethod
    def _is_a_regular_expression(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return pattern

    @field_validator("form")
    @classmethod
    def _stands_without_a_pattern(cls, form: str | None, info: ValidationInfo) -> str | None:
        if form is not None and info.data.get("pattern") is not None:
            raise ValueError("pattern is given too; keep one and drop the other")
        return form


class ConcisenessArguments(Section):
    """Of `conciseness`."""

    max_tokens: Count = 64


class ReadabilityArguments(Section):
    """Of `readability`."""

    max_words: Count = 25


class IntermediateStepsArguments(Section):
    """Of `intermediate_steps`."""

    right: float = 1.0
    wrong: float = -1.0
    max_steps: Count = 8


BUILT_IN_REWARD_ARGUMENTS: Mapping[str, type[Section]] = {  # and what they take
    "correct_answer": NoArguments,
    "answer_format": AnswerFormatArguments,
    "conciseness": ConcisenessArguments,
    "readability": ReadabilityArguments,
    "intermediate_steps": IntermediateStepsArguments,
}


class IsolationConfig(Section):
    """Worker processes for a reward function, so that it can't harm the run: `isolation: {}` is enough."""

    num_workers: Count = Field(default=2, description="processes that answer side by side")
    time_limit: Positive = Field(default=10.0, description="seconds for one call")
    memory_limit: Count | None = Field(default=4096, description="MiB a process; null is no limit")


class RewardConfig(Section):
    """One reward function; an episode's reward is the weighted sum of them all."""

    function: str = Field(description="built-in name, package.module:function, or path/to/file.py:function")
    weight: float = Field(default=1.0, description="what its values are multiplied by")
    arguments: dict[str, JsonValue] = Field(default_factory=dict, description="its keyword arguments")
    conversational: bool | None = Field(
        default=None,
        description="give a function with TRL's signature messages, not texts; null: if the policy chats",
    )
    isolation: IsolationConfig | None = Field(
        default=None, description="run it in worker processes; null: in the training process"
    )

    @field_validator("function")
    @classmethod
    def _can_be_found(cls, function: str) -> str:
        origin, colon, name = function.rpartition(":")
        if colon and not (origin and name):
            raise ValueError("should read package.module:function or path/to/file.py:function")
        if not colon and function not in BUILT_IN_REWARD_ARGUMENTS:
            raise ValueError(
                f"no built-in reward is called {function!r}{nearest(function, BUILT_IN_REWARD_ARGUMENTS)} "
                f"(there are {', '.join(BUILT_IN_REWARD_ARGUMENTS)}; your own reads path/to/file.py:function)"
            )
        return function

    @field_validator("conversational")
    @classmethod
    def _is_for_trl_s_signature(cls, conversational: bool | None, info: ValidationInfo) -> bool | None:
        if conversational is not None and info.data.get("function") in BUILT_IN_REWARD_ARGUMENTS:
            raise ValueError("read only by a function with TRL's signature, which no built-in one has")
        return conversational

    @field_validator("arguments")
    @classmethod
    def _fit_the_built_in(cls, arguments: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
        function: str = info.data.get("function", "")
        if function not in BUILT_IN_REWARD_ARGUMENTS:  # a user's own: its signature is looked at as it loads
            return arguments
        taken = BUILT_IN_REWARD_ARGUMENTS[function]
        known = tuple(taken.model_fields)
        for name in arguments:
            if name not in known:
                there_are = f"there are {', '.join(known)}" if known else "it takes none"
                raise conflict((name,), f"no argument of {function}{nearest(name, known)} ({there_are})")
        try:
            taken.model_validate(arguments)
        except ValidationError as error:
            raise conflict(*complaints(error, taken)[0]) from error
        return arguments
