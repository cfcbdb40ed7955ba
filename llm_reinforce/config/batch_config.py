"""Settings of the length penalty, the KL penalty, the entropy target and the curriculum."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from llm_reinforce.config.section import Count, Positive, Section, Text

OBJECTIVE_CHANGES = "this changes the objective, because it gives unequal weights to the problems"


class LengthPenaltyConfig(Section):
    """A penalty on long completions: the soft overlong punishment of DAPO.

    The penalty is subtracted from the reward. It grows linearly with the length of the completion: it is 0 at
    `from` tokens, and `penalty` at `sampling.max_new_tokens` tokens.
    """

    penalty: Positive = Field(
        default=1.0,
        description="largest penalty: the penalty on a completion of `sampling.max_new_tokens` tokens",
    )
    from_: Count = Field(
        alias="from",
        description="completions of at most this number of tokens have no penalty; must be below "
        "`sampling.max_new_tokens`",
    )


class KLConfig(Section):
    """The KL divergence between the policy and a reference policy, and a penalty on it."""

    coefficient: float = Field(
        ge=0, description="weight of the penalty; with 0, the divergence is only logged as `kl`"
    )
    reference: Text = Field(
        default="start",
        description="reference policy; start: the policy before the first policy-gradient update; any other "
        "text: directory or hub id of another model with the same vocabulary",
    )
    refresh_every: Count | None = Field(
        default=None,
        description="interval, in updates, at which the reference policy is replaced with the current "
        "policy; null: never",
    )
    estimator: Literal["k1", "k3"] = Field(
        default="k1",
        description="how the penalty is computed; k1: log π - log π_ref is subtracted from the reward of "
        "each action, and the penalty's gradient is that of KL(π‖π_ref); k3: π_ref/π - 1 - "
        "log(π_ref/π) of each action is added to the loss, and the penalty's gradient is that "
        "of KL(π_ref‖π) at the visited states",
    )

    @field_validator("refresh_every")
    @classmethod
    def _check_refresh(cls, every: int | None, info: ValidationInfo) -> int | None:
        if every is not None and info.data.get("reference", "start") != "start":
            raise ValueError(
                "would replace the reference policy by the current policy, but `reference` names another "
                f"model ({info.data['reference']}); remove `reference`, or remove this setting"
            )
        return every


class EntropyTargetConfig(Section):
    """A target for the entropy of the policy. The weight of the entropy bonus is adapted to reach the target.

    After each batch, `rate` x (`value` - entropy) is added to the weight. The weight stays between 0 and
    `max_coefficient`.
    """

    value: Positive = Field(description="target of the mean entropy per action, in nats")
    rate: Positive = Field(
        default=0.001,
        description="change of the weight of the entropy bonus after each batch, per nat of difference "
        "between the entropy and its target",
    )
    max_coefficient: Positive = Field(default=0.1, description="largest weight of the entropy bonus")


class PoolsConfig(Section):
    """Weights with which a curriculum draws hard, normal and easy problems."""

    hard_below: float = Field(
        default=0.25, ge=0, le=1, description="a problem with a pass rate below this value is hard"
    )
    easy_above: float = Field(
        default=0.75,
        ge=0,
        le=1,
        validate_default=True,
        description="a problem with a pass rate above this value is easy",
    )
    hard: float = Field(default=1.0, ge=0, description="weight of a hard problem")
    normal: Positive = Field(
        default=1.0, description="weight of a normal problem, or of a problem that has not been sampled yet"
    )
    easy: float = Field(default=0.2, ge=0, description="weight of an easy problem")

    @field_validator("easy_above")
    @classmethod
    def _check_order(cls, easy_above: float, info: ValidationInfo) -> float:
        hard_below = info.data.get("hard_below", 0.0)
        if easy_above < hard_below:
            raise ValueError(
                f"should be at least {hard_below:g} (the value of hard_below), not {easy_above:g}"
            )
        return easy_above


class CurriculumConfig(Section):
    """Choice of the training problems by their recent pass rates.

    The pass rate p of a problem is the smoothed share of its recent episodes that are correct. The problems
    of a batch are drawn without replacement, with probabilities proportional to their weights. A curriculum
    changes which problems the objective averages over.
    """

    decay: float = Field(
        default=0.8,
        ge=0,
        lt=1,
        description="factor by which the weight of a problem's earlier episodes is multiplied each time that "
        "the problem is sampled; 0: only the latest episodes count",
    )
    pools: PoolsConfig | None = Field(
        default=None,
        description="weights of hard, normal and easy problems; null: the weight of a problem with pass "
        "rate p is p(1-p)",
    )
