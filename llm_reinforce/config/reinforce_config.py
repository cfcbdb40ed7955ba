"""Settings of sampling and of the policy-gradient loss."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from llm_reinforce.config.section import Count, Positive, Section

MAX_NEW_TOKENS = 256
"""Default maximum length of a completion, in tokens: enough for the worked solution of a GSM8K problem."""


class SamplingConfig(Section):
    """Settings for sampling completions from the policy."""

    max_new_tokens: Count = Field(
        default=MAX_NEW_TOKENS, description="maximum length of a completion, in tokens"
    )
    temperature: Positive = Field(
        default=1.0,
        description="divisor of the logits, used when sampling and when computing log-probabilities",
    )
    batch_size: Count | None = Field(
        default=None,
        description="number of completions sampled at the same time; null: all completions of an update",
    )


class ValueConfig(Section):
    """Settings of the learned baseline V(s_t), a small network on top of the policy's last hidden states."""

    gae_lambda: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="λ of generalized advantage estimation; with 1, the gradient is unbiased; smaller values "
        "reduce its variance but introduce bias",
    )
    hidden_size: Count = Field(default=128, description="width of the value network's hidden layer")
    learning_rate: Positive = Field(
        default=1e-3, description="learning rate of the value network's AdamW optimizer"
    )
    num_steps: Count = Field(
        default=8,
        description="number of optimizer steps of the value network per update; they are made after the "
        "network's values have been used as the baseline",
    )


READ_WITH_BASELINE: Mapping[str, str] = {"moving_average_decay": "moving_average", "value": "value"}
"""Keys of the section `reinforce` that only one baseline uses, mapped to the name of that baseline."""


class ReinforceConfig(Section):
    """Settings of the policy-gradient loss, and of the batch of episodes from which it is computed.

    The batch of an update contains problems_per_update x episodes_per_problem episodes.
    """

    baseline: Literal[
        "none", "batch_mean", "moving_average", "group_mean", "leave_one_out", "optimal", "greedy", "value"
    ] = Field(default="leave_one_out", description="baseline b(s) that is subtracted from the returns")
    moving_average_decay: float = Field(
        default=0.95,
        ge=0,
        lt=1,
        description="weight of the old value when an update changes the moving average of the returns; used "
        "only with baseline: moving_average",
    )
    value: ValueConfig = Field(
        default=ValueConfig(),
        description="settings of the learned baseline; used only with baseline: value",
    )
    standardize: bool = Field(
        default=False,
        description="divide the advantages by the standard deviation of the returns around their baselines",
    )
    discount: float = Field(default=1.0, gt=0, le=1, description="discount factor γ per action")
    denominator: Literal["episodes", "tokens"] | Positive = Field(
        default="episodes",
        description="divisor of the summed loss: the number of episodes in the update, the number of tokens "
        "in the update, or a constant",
    )
    entropy_coefficient: float = Field(default=0.0, ge=0, description="weight of the entropy bonus")
    problems_per_update: Count = Field(default=16, description="number of problems per update")
    episodes_per_problem: Count = Field(
        default=8, description="number of episodes sampled for each problem (the size of a group)"
    )

    @field_validator(*READ_WITH_BASELINE)
    @classmethod
    def _check_baseline(cls, setting: object, info: ValidationInfo) -> object:
        needed = READ_WITH_BASELINE[info.field_name or ""]
        baseline = info.data.get("baseline", needed)
        if baseline != needed:
            raise ValueError(
                f"used only with baseline: {needed}, but the baseline is {baseline}; remove this setting"
            )
        return setting

    @field_validator("episodes_per_problem")
    @classmethod
    def _check_group_size(cls, episodes: int, info: ValidationInfo) -> int:
        baseline = info.data.get("baseline")
        if baseline in ("leave_one_out", "group_mean", "optimal") and episodes < 2:
            raise ValueError(
                f"should be at least 2 for baseline: {baseline}; increase it, or choose another baseline "
                "with reinforce.baseline"
            )
        compared = "baseline: batch_mean" if baseline == "batch_mean" else "standardize: true"
        needed = baseline == "batch_mean" or info.data.get("standardize")
        if needed and info.data.get("problems_per_update", 2) * episodes < 2:
            raise ValueError(f"should be at least 2 for {compared}, unless problems_per_update is at least 2")
        return episodes
