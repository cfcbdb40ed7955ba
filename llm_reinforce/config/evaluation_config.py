"""How accuracy is measured during a run."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from llm_reinforce.config.section import Count, Section, Text

NUM_TRAINING_PROBLEMS_EVALUATED = 1000  # training problems that an evaluation asks where nothing is held out

Decoding = Literal["greedy", "sampled"]


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
