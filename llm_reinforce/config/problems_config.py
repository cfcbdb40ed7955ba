"""Settings of the problems: their source, their prompt template, and the number of held-out problems."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from llm_reinforce.config.section import Count, Section, Text
from llm_reinforce.data_sets import DEFAULT_SPLIT, has_file_suffix, without_compression

NumDigits = Annotated[int, Field(ge=1, le=12)]
Operand = Annotated[int, Field(ge=0, lt=10**12)]
Operation = Literal["addition", "subtraction", "multiplication", "division", "chain"]


class GenerateConfig(Section):
    """Arithmetic problems that are generated with the seed of the run."""

    operations: tuple[Operation, ...] = Field(
        default=("addition",),
        strict=False,
        min_length=1,
        description="arithmetic operations, each used for an equal share of the problems; a chain is an "
        "expression that contains both + and -",
    )
    digits: tuple[NumDigits, ...] = Field(
        default=(2,),
        strict=False,
        min_length=1,
        description="numbers of digits of the operands, each used for an equal share of the problems",
    )
    operands: tuple[Operand, Operand] | None = Field(
        default=None,
        strict=False,
        description="smallest and largest operand, set instead of `digits`; null: `digits` is used",
    )
    held_out_operands: tuple[Operand, Operand] | None = Field(
        default=None,
        strict=False,
        description="smallest and largest operand of held-out problems; null: same as `operands`",
    )
    num_operands: int = Field(
        default=2,
        ge=2,
        le=8,
        validate_default=True,
        description="number of operands in an addition, a multiplication or a chain; "
        "subtractions and divisions always have two operands",
    )
    form: str = Field(
        default="{expression}=",
        description="text of a problem; {expression} is replaced by an arithmetic expression such as 12+34, "
        "and {spaced} by this expression with spaces, such as 12 + 34",
    )
    num_train: Count | None = Field(
        default=None,
        description="number of training problems; null: all problems that are not held out, or 100,000 if "
        "it would take too long to list all possible problems",
    )

    @field_validator("operations", "digits")
    @classmethod
    def _check_no_repeats(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) < len(values):
            raise ValueError("should list each value once")
        return values

    @field_validator("operands")
    @classmethod
    def _check_operands(cls, values: tuple[int, int] | None) -> tuple[int, int] | None:
        if values is not None and values[0] > values[1]:
            raise ValueError(
                f"should be the smallest operand, then the largest operand, not {values[0]}, {values[1]}"
            )
        return values

    @field_validator("held_out_operands")
    @classmethod
    def _check_held_out_operands(
        cls, values: tuple[int, int] | None, info: ValidationInfo
    ) -> tuple[int, int] | None:
        within: tuple[int, int] | None = info.data.get("operands")
        if values is None:
            return values
        if within is None:
            raise ValueError("used only with operands; set operands, or remove this setting")
        if not within[0] <= values[0] <= values[1] <= within[1]:
            raise ValueError(
                f"should be a range within that of `operands` ({within[0]} to {within[1]}), with the smaller "
                f"number first, not {values[0]}, {values[1]}"
            )
        return values

    @model_validator(mode="after")
    def _check_digits_or_operands(self) -> Self:
        # a recipe written by a run contains all defaults, so `digits` may have its default beside `operands`
        if self.operands is not None and self.digits != type(self).model_fields["digits"].default:
            raise ValueError("digits and operands are both given; remove one of the two")
        return self

    @field_validator("num_operands")
    @classmethod
    def _check_num_operands(cls, num_operands: int, info: ValidationInfo) -> int:
        operations = info.data.get("operations", ("addition",))
        if "chain" in operations and num_operands < 3:
            raise ValueError(
                f"should be at least 3 for a chain, which contains both + and -, not {num_operands}"
            )
        if num_operands > 2 and set(operations) <= {"subtraction", "division"}:
            raise ValueError(
                f"not used for {' and '.join(operations)}, which always have 2 operands; remove this setting"
            )
        return num_operands

    @field_validator("form")
    @classmethod
    def _check_form(cls, form: str) -> str:
        if "{expression}" not in form and "{spaced}" not in form:
            raise ValueError(
                "should contain {expression} or {spaced}, which are replaced by the arithmetic expression"
            )
        return form


class DataConfig(Section):
    """Problems that are read from a file, a folder or a data set on the hub."""

    data: Text = Field(
        description="path of a file or folder, name of a data set (such as gsm8k), NAME=PATH for a local "
        "copy of a named data set, or owner/name of a data set on the hub"
    )
    config: Text | None = Field(
        default=None, description="configuration of the data set; null: its default configuration"
    )
    split: Text = Field(default=DEFAULT_SPLIT, description="split of the data set")
    prompt_column: Text | None = Field(
        default=None,
        description="name of the column with the prompts, for example `question` or `extra_info.question`; "
        "the prompts are text or chat messages; null: the first of these columns that exists: prompt, "
        "question, problem, messages, conversations",
    )
    answer_column: Text | None = Field(
        default=None,
        description="name of the column with the answers, for example `ground_truth` or "
        "`reward_model.ground_truth`; null: the first of these columns that exists: answer, ground_truth, "
        "final_answer, reward_model.ground_truth, solution",
    )
    algebra: bool = Field(
        default=False,
        description="compare LaTeX and algebraic answers with math-verify (an optional dependency)",
    )

    @field_validator("config", "split")
    @classmethod
    def _check_not_a_file(cls, value: str | None, info: ValidationInfo) -> str | None:
        data = info.data.get("data", "")
        # a JSON file may be an object with one list per split
        is_file = has_file_suffix(data) and not without_compression(data).lower().endswith(".json")
        if is_file and value != (DEFAULT_SPLIT if info.field_name == "split" else None):
            raise ValueError("not used for a file; remove this setting")
        return value


class ProblemsConfig(Section):
    """Training problems, and held-out problems on which accuracy is measured."""

    generate: GenerateConfig | None = Field(
        default=None,
        description="settings of generated arithmetic problems; null: problems are read from `train`",
    )
    train: DataConfig | None = Field(
        default=None, description="data set of the training problems; null: problems are generated"
    )
    held_out: DataConfig | None = Field(
        default=None,
        description="data set of the held-out problems; null: a random part of the problems is held out",
    )
    template: str = Field(
        default="{prompt}", description="prompt template; {prompt} is replaced by the problem's text"
    )
    num_held_out: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="number of held-out problems, or their maximum number if `held_out` is set; null: 200, "
        "or a fifth of the problems if that is fewer; 0: accuracy is measured on training problems",
    )

    @field_validator("train")
    @classmethod
    def _check_single_source(cls, train: DataConfig | None, info: ValidationInfo) -> DataConfig | None:
        if train is not None and info.data.get("generate") is not None:
            raise ValueError("`train` and `generate` cannot both be set; remove one of them")
        return train

    @field_validator("held_out")
    @classmethod
    def _check_held_out(cls, held_out: DataConfig | None, info: ValidationInfo) -> DataConfig | None:
        if held_out is not None and info.data.get("generate") is not None:
            raise ValueError("used only with `train`; with `generate`, set `num_held_out` instead")
        return held_out

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str) -> str:
        if "{prompt}" not in template:
            raise ValueError("should contain {prompt}, which is replaced by the problem's text")
        return template

    @field_validator("num_held_out")
    @classmethod
    def _check_num_held_out(cls, num_held_out: int | None, info: ValidationInfo) -> int | None:
        if num_held_out == 0 and info.data.get("held_out") is not None:
            raise ValueError("held_out is not used if num_held_out is 0; remove one of the two settings")
        return num_held_out

    @model_validator(mode="after")
    def _check_source_given(self) -> Self:
        if self.generate is None and self.train is None:
            raise ValueError("needs `generate` (`generate: {}` uses all defaults) or `train`")
        return self
