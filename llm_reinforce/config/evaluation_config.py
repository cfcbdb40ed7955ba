"""Settings of the evaluations during a run."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from llm_reinforce.config.section import Count, Section, Text

# maximum number of training problems that are evaluated if no problems are held out
NUM_TRAINING_PROBLEMS_EVALUATED = 1000

Decoding = Literal["greedy", "sampled"]


class EvaluationConfig(Section):
    """Schedule and settings of the evaluations that measure accuracy on the held-out problems."""

    every: Count = Field(
        default=25, description="interval between evaluations, in updates or sampled tokens (see `unit`)"
    )
    unit: Literal["updates", "tokens"] = Field(
        default="updates",
        description="unit of `every`; choose tokens to compare runs with different batch sizes",
    )
    decodings: tuple[Decoding, ...] = Field(
        default=("greedy",),
        strict=False,
        min_length=1,
        description="decoding modes; the accuracy is measured separately for each of them",
    )
    num_problems: Count | None = Field(
        default=None,
        description="number of problems evaluated; null: all held-out problems, or at most "
        f"{NUM_TRAINING_PROBLEMS_EVALUATED:,} training problems if no problems are held out",
    )
    batch_size: Count = Field(default=256, description="number of completions generated at the same time")
    samples_per_problem: Count = Field(
        default=1, description="number of completions per problem; used only with sampled decoding"
    )
    template: Text | None = Field(
        default=None,
        description="prompt template of held-out problems; {prompt} is replaced by the problem's text; "
        "null: same as `problems.template`",
    )
    few_shot: int = Field(
        default=0,
        ge=0,
        description="number of worked examples before each evaluated problem; the examples are training "
        "problems",
    )
    stop: tuple[Text, ...] = Field(
        default=(),
        strict=False,
        description="strings at which a completion is cut off before it is verified",
    )

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str | None) -> str | None:
        if template is not None and "{prompt}" not in template:
            raise ValueError("should contain {prompt}, which is replaced by the problem's text")
        return template

    @field_validator("decodings")
    @classmethod
    def _check_decodings(cls, decodings: tuple[Decoding, ...]) -> tuple[Decoding, ...]:
        if len(set(decodings)) < len(decodings):
            raise ValueError("should list each decoding mode only once")
        return decodings

    @field_validator("samples_per_problem")
    @classmethod
    def _check_samples_per_problem(cls, samples: int, info: ValidationInfo) -> int:
        if samples > 1 and "sampled" not in info.data.get("decodings", ("sampled",)):
            raise ValueError(
                "used only with sampled decoding; add `sampled` to `decodings`, or remove this setting"
            )
        return samples
