"""Sampling, and the way from rewards to the loss."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from llm_reinforce.config.section import Count, Positive, Section

MAX_NEW_TOKENS = 256
"""Default budget of a completion: room for the worked solution of a word problem, as in gsm8k_smollm2."""


class SamplingConfig(Section):
    """How completions are sampled from the policy."""

    max_new_tokens: Count = Field(default=MAX_NEW_TOKENS, description="longest completion, in tokens")
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
    problems_per_update: Count = Field(default=16, description="problems drawn for an update")
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
