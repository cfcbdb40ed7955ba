"""Settings of the reward functions, and arguments of the built-in reward functions."""

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, JsonValue, ValidationError, ValidationInfo, field_validator

from llm_reinforce.config.section import Count, Positive, Section, conflict
from llm_reinforce.config.strict_yaml import complaints
from llm_reinforce.errors import nearest


class NoArguments(Section):
    """Settings class without keys, for built-in rewards that take no arguments."""


class AnswerFormatArguments(Section):
    """Arguments of `answer_format`."""

    pattern: str | None = None
    form: Literal["hashes", "boxed", "tag", "phrase"] | None = None

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{pattern!r} is not a valid regular expression: {error}") from error
        return pattern

    @field_validator("form")
    @classmethod
    def _check_form(cls, form: str | None, info: ValidationInfo) -> str | None:
        if form is not None and info.data.get("pattern") is not None:
            raise ValueError("form and pattern cannot both be set; remove one of them")
        return form


class ConcisenessArguments(Section):
    """Arguments of `conciseness`."""

    max_tokens: Count = 64


class ReadabilityArguments(Section):
    """Arguments of `readability`."""

    max_words: Count = 25


class IntermediateStepsArguments(Section):
    """Arguments of `intermediate_steps`."""

    right: float = 1.0
    wrong: float = -1.0
    max_steps: Count = 8


BUILT_IN_REWARD_ARGUMENTS: Mapping[str, type[Section]] = {
    "correct_answer": NoArguments,
    "answer_format": AnswerFormatArguments,
    "conciseness": ConcisenessArguments,
    "readability": ReadabilityArguments,
    "intermediate_steps": IntermediateStepsArguments,
}


class IsolationConfig(Section):
    """Worker processes that run a reward function, so that a crash of the function does not end the run.

    `isolation: {}` uses the default values.
    """

    num_workers: Count = Field(default=2, description="number of worker processes")
    time_limit: Positive = Field(
        default=10.0, description="time limit of each call of the function, in seconds"
    )
    memory_limit: Count | None = Field(
        default=4096, description="memory limit of each worker process, in MiB; null: no limit"
    )


class RewardConfig(Section):
    """A reward function. The reward of an episode is the weighted sum of the rewards from all functions."""

    function: str = Field(
        description="name of a built-in reward, package.module:function, or path/to/file.py:function"
    )
    weight: float = Field(default=1.0, description="weight of this function's reward in the sum")
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict, description="keyword arguments passed to the function"
    )
    conversational: bool | None = Field(
        default=None,
        description="pass chat messages instead of strings to a function with TRL's signature; null: true if "
        "the policy uses a chat template",
    )
    isolation: IsolationConfig | None = Field(
        default=None,
        description="run the function in worker processes; null: run it in the training process",
    )

    @field_validator("function")
    @classmethod
    def _check_function(cls, function: str) -> str:
        origin, colon, name = function.rpartition(":")
        # the colon of C:\rewards.py follows a drive letter
        if (colon and not (origin and name)) or "/" in name or "\\" in name or name.lower().endswith(".py"):
            raise ValueError("should have the form package.module:function or path/to/file.py:function")
        if not colon and function not in BUILT_IN_REWARD_ARGUMENTS:
            raise ValueError(
                f"no built-in reward {function!r}{nearest(function, BUILT_IN_REWARD_ARGUMENTS)} "
                f"(built-in rewards: {', '.join(BUILT_IN_REWARD_ARGUMENTS)}; for a function of your own, "
                "write path/to/file.py:function)"
            )
        return function

    @field_validator("conversational")
    @classmethod
    def _check_conversational(cls, conversational: bool | None, info: ValidationInfo) -> bool | None:
        if conversational is not None and info.data.get("function") in BUILT_IN_REWARD_ARGUMENTS:
            raise ValueError(
                "used only by functions with TRL's signature, not by built-in rewards; remove this setting"
            )
        return conversational

    @field_validator("arguments")
    @classmethod
    def _check_arguments(cls, arguments: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
        function: str = info.data.get("function", "")
        if function not in BUILT_IN_REWARD_ARGUMENTS:  # arguments are checked when the function is loaded
            return arguments
        taken = BUILT_IN_REWARD_ARGUMENTS[function]
        known = tuple(taken.model_fields)
        for name in arguments:
            if name not in known:
                listed = f"its arguments: {', '.join(known)}" if known else "this function takes no arguments"
                raise conflict((name,), f"not an argument of {function}{nearest(name, known)} ({listed})")
        try:
            taken.model_validate(arguments)
        except ValidationError as error:
            raise conflict(*complaints(error, taken)[0]) from error
        return arguments
