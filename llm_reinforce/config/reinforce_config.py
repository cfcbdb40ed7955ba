"""Settings of sampling and of the policy-gradient loss."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, ValidationInfo, field_validator, model_validator

from llm_reinforce.config.batch_config import (
    OBJECTIVE_CHANGES,
    CurriculumConfig,
    EntropyTargetConfig,
    KLConfig,
    LengthPenaltyConfig,
)
from llm_reinforce.config.section import Count, Positive, Section, conflict
from llm_reinforce.config.server_config import TEMPERATURES, ServerConfig
from llm_reinforce.config.strict_yaml import shown_value
from llm_reinforce.config.variants import VARIANTS, Variant

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
    cuda_graphs: bool = Field(
        default=False,
        description="replay the forward passes that sample the episodes as CUDA graphs; needs a GPU, and a "
        "model that the toolkit's fast path supports, such as Llama or Qwen3",
    )
    server: ServerConfig | None = Field(
        default=None,
        description="vLLM server that samples the episodes of the updates; null: the processes of the run "
        "sample the episodes themselves",
    )

    @field_validator("server")
    @classmethod
    def _check_cuda_graphs(cls, server: ServerConfig | None, info: ValidationInfo) -> ServerConfig | None:
        if server is not None and info.data.get("cuda_graphs"):
            raise ValueError("cannot be used with sampling.cuda_graphs; remove one of the two settings")
        return server

    @field_validator("server")
    @classmethod
    def _check_temperature(cls, server: ServerConfig | None, info: ValidationInfo) -> ServerConfig | None:
        lowest, highest = TEMPERATURES
        temperature = info.data.get("temperature", 1.0)
        if server is not None and not lowest <= temperature <= highest:
            raise ValueError(
                f"the server samples at temperatures from {lowest:g} to {highest:g}, not at {temperature:g}; "
                "change sampling.temperature, or remove this setting"
            )
        return server


class ValueConfig(Section):
    """Settings of the learned baseline V(s_t), a small network on top of the policy's last hidden states."""

    gae_lambda: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="λ of generalized advantage estimation; with 1, the gradient is unbiased; smaller "
        "values reduce the variance of the gradient but introduce bias",
    )
    hidden_size: Count = Field(default=128, description="width of the value network's hidden layer")
    learning_rate: Positive = Field(
        default=1e-3, description="learning rate of the value network's AdamW optimizer"
    )
    num_steps: Count = Field(
        default=8,
        description="number of optimizer steps of the value network per update; these steps come after the "
        "values have been used as the baseline of the update",
    )


class ImportanceConfig(Section):
    """Importance weights, which correct for differences between the sampling policy and the trained policy.

    The ratio of an action is its probability under the policy that is trained, divided by the probability
    with which the action was sampled.
    """

    level: Literal["sequence", "per_decision", "token"] = Field(
        description="probability ratios that are multiplied to get an importance weight; sequence: the "
        "ratios of all actions of the episode (unbiased); per_decision: for each reward, the "
        "ratios of the actions up to the rewarded action (unbiased); token: only the ratio of "
        "the action itself (biased)"
    )
    limit: Annotated[float, Field(ge=1)] | None = Field(
        default=2.0,
        description="largest importance weight; a limit reduces the variance but introduces bias; null: "
        "no limit",
    )
    beyond_limit: Literal["truncate", "mask"] = Field(
        default="truncate",
        description="treatment of a weight above the limit; truncate: the weight is replaced by the limit; "
        "mask: the weight is replaced by 0",
    )

    @field_validator("beyond_limit")
    @classmethod
    def _check_limit(cls, beyond_limit: str, info: ValidationInfo) -> str:
        if beyond_limit != "truncate" and "limit" in info.data and info.data["limit"] is None:
            raise ValueError("has no effect with limit: null; set a limit, or remove this setting")
        return beyond_limit


class ClipConfig(Section):
    """Bounds of an action's ratio: its current probability, divided by its probability when sampled."""

    form: Literal["ppo", "cispo"] = Field(
        default="ppo",
        description="effect of the bounds; ppo: an action has no gradient if its ratio has moved beyond a "
        "bound in the direction of its advantage; cispo: the gradient of an action is "
        "multiplied by its clipped ratio",
    )
    low: float = Field(default=0.2, ge=0, le=1, description="the lower bound of the ratio is 1 - low")
    high: Positive = Field(default=0.2, description="the upper bound of the ratio is 1 + high")


READ_WITH_BASELINE: Mapping[str, str] = {"moving_average_decay": "moving_average", "value": "value"}
"""Keys of the section `reinforce` that only one baseline uses, mapped to the name of that baseline."""


class ReinforceConfig(Section):
    """Settings of the policy-gradient loss, and of the batch of episodes from which the loss is computed.

    A batch contains `problems_per_update` x `episodes_per_problem` episodes. With the default
    `updates_per_batch: 1`, each update has a batch of its own.
    """

    variant: Variant | None = Field(
        default=None,
        description="name of a published objective, which determines `baseline`, `standardize`, "
        "`denominator` and `clip`; null: each of these keys has its own default",
    )
    baseline: Literal[
        "none", "batch_mean", "moving_average", "group_mean", "leave_one_out", "optimal", "greedy", "value"
    ] = Field(default="leave_one_out", description="baseline b(s) that is subtracted from the returns")
    moving_average_decay: float = Field(
        default=0.95,
        ge=0,
        lt=1,
        description="weight of the old value when the moving average of the returns is updated; used only "
        "with baseline: moving_average",
    )
    value: ValueConfig = Field(
        default=ValueConfig(),
        description="settings of the learned baseline; used only with baseline: value",
    )
    standardize: bool | Literal["batch", "group"] = Field(
        default=False,
        description="divide the advantages by the standard deviation of the returns around their "
        "baselines; batch or true: the standard deviation over the whole batch; group: the standard "
        "deviation over the episodes of the problem; false: do not divide",
    )
    discount: float = Field(default=1.0, gt=0, le=1, description="discount factor γ per action")
    denominator: Literal["episodes", "tokens", "episode_lengths"] | Positive = Field(
        default="episodes",
        description="divisor of the summed loss; episodes: the number of episodes in the update; tokens: "
        "the number of tokens in the update; a number: this constant; episode_lengths: the "
        "loss of each episode is divided by the number of its tokens, and the sum by the "
        "number of episodes",
    )
    entropy_coefficient: float = Field(default=0.0, ge=0, description="weight of the entropy bonus")
    entropy_target: EntropyTargetConfig | None = Field(
        default=None,
        description="adapt the weight of the entropy bonus, starting from `entropy_coefficient`, so that the "
        "entropy approaches a target; null: the weight is constant",
    )
    kl: KLConfig | None = Field(
        default=None,
        description="settings of the KL divergence from a reference policy, and of a penalty on it; null: no "
        "reference policy",
    )
    truncated: Literal["count", "mask"] | LengthPenaltyConfig = Field(
        default="count",
        description="treatment of episodes cut off at `sampling.max_new_tokens`; count: truncated episodes "
        "count like other episodes; mask: truncated episodes are left out of the baseline and the loss; a "
        "section: long completions are penalized",
    )
    problems_per_update: Count = Field(
        default=16,
        description="number of problems per update, or per batch if `updates_per_batch` is above 1",
    )
    episodes_per_problem: Count = Field(
        default=8, description="number of episodes sampled for each problem (the size of a group)"
    )
    standardize_rewards: bool = Field(
        default=False,
        description="replace each reward by its difference from the group's mean, divided by the group's "
        "standard deviation, before the rewards are weighted and summed (GDPO)",
    )
    refill: int = Field(
        default=0,
        ge=0,
        description="maximum number of rounds per batch in which problems whose episodes are all correct or "
        f"all wrong are replaced by other problems; {OBJECTIVE_CHANGES}",
    )
    curriculum: CurriculumConfig | None = Field(
        default=None,
        description=f"draw problems by their recent pass rates; {OBJECTIVE_CHANGES}; null: draw all "
        "problems equally often",
    )
    updates_per_batch: Count = Field(
        default=1,
        description="number of updates (optimizer steps) per batch; each update uses an equal part of the "
        "batch's problems; after the first update, the policy differs from the policy that sampled the "
        "episodes",
    )
    importance: ImportanceConfig | None = Field(
        default=None,
        description="importance weights of the sampled actions; null: no weights or, if `sampling.server` is "
        "set and `clip` is not, `level: per_decision`",
    )
    clip: ClipConfig | Literal[False] | None = Field(
        default=None,
        description="clip the probability ratios of the sampled actions; null: clip to the default bounds if "
        "`updates_per_batch` is above 1 and neither `importance` nor `sampling.server` is set; false: never "
        "use the ratios, so that all updates of a batch except the first are biased",
    )

    @property
    def problems_of_update(self) -> int:
        """Number of problems of an update: an equal part of the problems of a batch."""
        return self.problems_per_update // self.updates_per_batch

    @property
    def length_penalty(self) -> LengthPenaltyConfig | None:
        """Penalty on long completions; None: there is no penalty."""
        return None if isinstance(self.truncated, str) else self.truncated

    def in_whole_batches(self, num_updates: int) -> int:
        """Return `num_updates` rounded up to a multiple of `updates_per_batch`."""
        return -(-num_updates // self.updates_per_batch) * self.updates_per_batch

    @model_validator(mode="wrap")
    @classmethod
    def _set_derived_defaults(
        cls, data: Any, handler: ModelWrapValidatorHandler["ReinforceConfig"]
    ) -> "ReinforceConfig":
        """Set the keys that `variant` determines, and the default of `clip` for several updates per batch."""
        if not isinstance(data, Mapping):
            return handler(data)
        variant = VARIANTS.get(str(data.get("variant")), {})
        filled = {**{key: value for key, value in variant.items() if key != "clip"}, **data}
        clip, num_updates = data.get("clip"), data.get("updates_per_batch", 1)
        is_off_policy = isinstance(num_updates, int) and num_updates > 1
        has_default = is_off_policy and ("clip" in variant or data.get("importance") is None)
        if isinstance(clip, ClipConfig):
            clip = clip.model_dump(exclude_unset=True)
        if isinstance(clip, Mapping) or (clip is None and has_default):
            filled["clip"] = {**variant.get("clip", {}), **(clip or {})}
        validated = handler(filled)
        # keys that were filled in count as not set, so that another variant can replace them
        validated.model_fields_set.intersection_update(data)
        return validated

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

    @field_validator("baseline", "standardize", "denominator")
    @classmethod
    def _check_variant(cls, setting: object, info: ValidationInfo) -> object:
        variant, key = info.data.get("variant"), str(info.field_name)
        setting = "batch" if setting is True else setting
        if variant and setting != (needed := VARIANTS[variant][key]):
            raise ValueError(
                f"the variant {variant} sets {key} to {shown_value(needed)}, not {shown_value(setting)}; "
                "remove this setting or the variant"
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
        if info.data.get("standardize") == "group" and episodes < 2:
            raise ValueError("should be at least 2 for standardize: group")
        compared = "baseline: batch_mean" if baseline == "batch_mean" else "standardize: true"
        needed = baseline == "batch_mean" or info.data.get("standardize")
        if needed and info.data.get("problems_per_update", 2) * episodes < 2:
            raise ValueError(f"should be at least 2 for {compared}, unless problems_per_update is at least 2")
        return episodes

    @field_validator("entropy_target")
    @classmethod
    def _check_entropy_target(
        cls, target: EntropyTargetConfig | None, info: ValidationInfo
    ) -> EntropyTargetConfig | None:
        start = info.data.get("entropy_coefficient", 0.0)
        if target is not None and start > target.max_coefficient:
            raise conflict(
                ("max_coefficient",),
                f"should be at least {start:g} (the value of entropy_coefficient, which is the initial "
                "weight)",
            )
        return target

    @field_validator("standardize_rewards", "refill")
    @classmethod
    def _check_compares_episodes(cls, setting: int, info: ValidationInfo) -> int:
        if setting and info.data.get("episodes_per_problem", 2) < 2:
            raise ValueError(
                f"{info.field_name} compares episodes of one problem; set episodes_per_problem to at least 2"
            )
        if setting and info.field_name == "standardize_rewards" and info.data.get("baseline") == "greedy":
            raise ValueError(
                "standardize_rewards can't be used with baseline: greedy, because the rewards of greedy "
                "completions are not standardized; choose another baseline, or remove standardize_rewards"
            )
        return setting

    @field_validator("updates_per_batch")
    @classmethod
    def _check_parts(cls, num_updates: int, info: ValidationInfo) -> int:
        num_problems = info.data.get("problems_per_update", num_updates)
        if num_problems % num_updates:
            raise ValueError(
                f"problems_per_update ({num_problems}) must be a multiple of updates_per_batch "
                f"({num_updates}), because each update uses an equal part of the batch; change one of these "
                "settings"
            )
        return num_updates

    @field_validator("clip")
    @classmethod
    def _check_clip(
        cls, clip: ClipConfig | Literal[False] | None, info: ValidationInfo
    ) -> ClipConfig | Literal[False] | None:
        if clip is None:
            return None
        variant = info.data.get("variant")
        of_variant = VARIANTS.get(variant, {}).get("clip") if variant else None
        if clip is False and of_variant:
            raise ValueError(f"the variant {variant} clips the ratios; remove this setting or the variant")
        if clip is False and info.data.get("importance"):
            raise ValueError("has no effect if `importance` is set; remove this setting")
        if clip is False:
            return False
        if info.data.get("importance"):
            by = f"`variant: {variant}`" if of_variant else "`clip`"
            other = "the variant" if of_variant else "`clip`"
            raise ValueError(
                f"{by} and `importance` would both correct for the difference between the current policy and "
                f"the policy that sampled the episodes; remove `importance` or {other}"
            )
        if of_variant and clip.form != of_variant["form"]:
            raise conflict(
                ("form",),
                f"the variant {variant} sets form to {of_variant['form']}, not {clip.form}; remove this "
                "setting or the variant",
            )
        return clip
