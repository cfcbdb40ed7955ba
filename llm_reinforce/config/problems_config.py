"""The problems: generated or read, and what is held out of them."""

from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from llm_reinforce.config.section import Count, Section, Text

DEFAULT_SPLIT = "train"
MAX_HELD_OUT = 200  # problems held out if the settings don't give a number
FILE_SUFFIXES = (".json", ".jsonl")  # data of such a name is a file, and no data set of the hub

NumDigits = Annotated[int, Field(ge=1, le=12)]
Operand = Annotated[int, Field(ge=0, lt=10**12)]
Operation = Literal["addition", "subtraction", "multiplication", "division", "chain"]


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
    num_held_out: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="held-out problems, at most; null is 200, or a fifth of train if that is fewer; 0: "
        "accuracy is measured on the training problems",
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
    def _asks_what_is_held_out(cls, num_held_out: int | None, info: ValidationInfo) -> int | None:
        if num_held_out == 0 and info.data.get("held_out") is not None:
            raise ValueError("is 0, so that held_out would be read for nothing; drop one of the two")
        return num_held_out

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if self.generate is None and self.train is None:
            raise ValueError("needs generate ({} takes all its defaults), or train")
        return self
