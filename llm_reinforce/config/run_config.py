"""The class `Config`, which contains all settings of a run."""

from pydantic import Field, ValidationInfo, field_validator

from llm_reinforce.config.evaluation_config import EvaluationConfig
from llm_reinforce.config.policy_config import PolicyConfig
from llm_reinforce.config.problems_config import ProblemsConfig
from llm_reinforce.config.reinforce_config import ImportanceConfig, ReinforceConfig, SamplingConfig
from llm_reinforce.config.reward_config import RewardConfig
from llm_reinforce.config.section import MAX_SEED, Section, conflict
from llm_reinforce.config.training_config import (
    ADAPTER_LEARNING_RATE,
    LEARNING_RATE,
    RANDOM_INIT_LEARNING_RATE,
    TrainingConfig,
)
from llm_reinforce.config.variants import VARIANTS
from llm_reinforce.data_sets import MAX_HELD_OUT


class Config(Section):
    """All settings of a run, in sections such as `policy`, `problems` and `training`."""

    seed: int = Field(default=0, ge=0, lt=MAX_SEED, description="seed of all random generators of the run")
    output_dir: str = Field(
        default="runs/recipe",
        min_length=1,
        description="directory of the run; in a recipe file, the default is runs/<name of the file "
        "without suffix>",
    )
    policy: PolicyConfig = Field(description="language model to train")
    problems: ProblemsConfig = Field(description="training problems and held-out problems")
    rewards: tuple[RewardConfig, ...] = Field(
        default=(RewardConfig(function="correct_answer"),),
        strict=False,
        min_length=1,
        description="reward functions, whose weighted sum is the reward",
    )
    sampling: SamplingConfig = Field(
        default=SamplingConfig(), validate_default=True, description="sampling of completions"
    )
    reinforce: ReinforceConfig = Field(
        default=ReinforceConfig(),
        validate_default=True,
        description="batch of episodes, baseline and policy-gradient loss",
    )
    training: TrainingConfig = Field(
        default=TrainingConfig(),
        validate_default=True,
        description="optimizer, learning-rate schedule, checkpoints and logs",
    )
    evaluation: EvaluationConfig = Field(
        default=EvaluationConfig(), description="evaluations of accuracy during the run"
    )

    @field_validator("problems")
    @classmethod
    def _check_alphabet(cls, problems: ProblemsConfig, info: ValidationInfo) -> ProblemsConfig:
        policy: PolicyConfig | None = info.data.get("policy")
        if policy and policy.random_init and problems.generate:
            fixed = problems.generate.form.replace("{expression}", "").replace("{spaced}", " ")
            fixed += problems.template.replace("{prompt}", "") + "0123456789"
            unknown = sorted(set(fixed) - set(policy.random_init.alphabet))
            if unknown:
                characters = " ".join(map(repr, unknown))
                raise conflict(
                    ("generate",),
                    f"the problems contain characters that policy.random_init.alphabet lacks: {characters}; "
                    "add these characters to the alphabet",
                )
        return problems

    @field_validator("rewards")
    @classmethod
    def _check_no_repeats(cls, rewards: tuple[RewardConfig, ...]) -> tuple[RewardConfig, ...]:
        for index, reward in enumerate(rewards):
            for earlier in rewards[:index]:
                if (earlier.function, earlier.arguments) == (reward.function, reward.arguments):
                    raise conflict(
                        (index, "function"),
                        f"{reward.function} is listed twice with the same arguments; remove one of the "
                        "two entries",
                    )
        return rewards

    @field_validator("sampling")
    @classmethod
    def _check_max_new_tokens(cls, sampling: SamplingConfig, info: ValidationInfo) -> SamplingConfig:
        policy: PolicyConfig | None = info.data.get("policy")
        if policy and policy.random_init and sampling.max_new_tokens >= policy.random_init.max_length:
            raise conflict(
                ("max_new_tokens",),
                f"{sampling.max_new_tokens} tokens leave no room for a prompt, because "
                f"policy.random_init.max_length is {policy.random_init.max_length}; increase max_length, or "
                "reduce max_new_tokens",
            )
        return sampling

    @field_validator("reinforce")
    @classmethod
    def _check_length_penalty(cls, reinforce: ReinforceConfig, info: ValidationInfo) -> ReinforceConfig:
        sampling: SamplingConfig | None = info.data.get("sampling")
        penalty = reinforce.truncated
        if sampling and not isinstance(penalty, str) and penalty.from_ >= sampling.max_new_tokens:
            raise conflict(
                ("truncated", "from"),
                f"should be below {sampling.max_new_tokens} (the value of sampling.max_new_tokens), not "
                f"{penalty.from_}",
            )
        return reinforce

    @field_validator("reinforce")
    @classmethod
    def _check_clip(cls, reinforce: ReinforceConfig, info: ValidationInfo) -> ReinforceConfig:
        sampling: SamplingConfig | None = info.data.get("sampling")
        is_on_policy = reinforce.updates_per_batch == 1 and sampling and sampling.server is None
        if is_on_policy and reinforce.clip is not None:
            raise conflict(
                ("clip",),
                "has no effect with updates_per_batch: 1, because the ratios are 1 in the first update of a "
                "batch; increase updates_per_batch, or remove this setting",
            )
        return reinforce

    @field_validator("reinforce")
    @classmethod
    def _set_importance(cls, reinforce: ReinforceConfig, info: ValidationInfo) -> ReinforceConfig:
        """Set importance weights if a server samples the episodes, unless `importance` or `clip` is set."""
        sampling: SamplingConfig | None = info.data.get("sampling")
        if sampling is None or sampling.server is None:
            return reinforce
        if reinforce.baseline == "optimal":
            raise conflict(
                ("baseline",),
                "`optimal` needs the gradient of log π with respect to the logits, which a server does not "
                "return; choose another baseline",
            )
        if reinforce.clip is False:
            raise conflict(
                ("clip",),
                "with `clip: false`, nothing corrects for the difference between the server's and the "
                "policy's probabilities; remove `clip`",
            )
        is_of_variant = "clip" in VARIANTS.get(reinforce.variant or "", {})
        has_clip = reinforce.clip is not None and (is_of_variant or "clip" in reinforce.model_fields_set)
        if reinforce.importance is not None or has_clip:
            return reinforce
        weights = ImportanceConfig(level="per_decision")
        resolved = reinforce.model_copy(update={"importance": weights, "clip": None})
        # both keys count as not set, so that they get other defaults if the server is removed later
        resolved.model_fields_set.difference_update({"importance", "clip"})
        return resolved

    @field_validator("training")
    @classmethod
    def _check_fp16(cls, training: TrainingConfig, info: ValidationInfo) -> TrainingConfig:
        policy: PolicyConfig | None = info.data.get("policy")
        if policy and training.mixed_precision == "fp16" and policy.dtype != "float32" and not policy.lora:
            raise conflict(
                ("mixed_precision",),
                f"fp16 needs weights in float32, but policy.dtype is {policy.dtype}; set policy.dtype to "
                "float32",
            )
        return training

    @field_validator("training")
    @classmethod
    def _check_held_out(cls, training: TrainingConfig, info: ValidationInfo) -> TrainingConfig:
        problems: ProblemsConfig | None = info.data.get("problems")
        for name in ("keep_best", "stop_at"):
            if problems and problems.num_held_out == 0 and getattr(training, name):
                raise conflict(
                    (name,),
                    "needs held-out problems, but problems.num_held_out is 0; increase this number, or "
                    f"remove training.{name}",
                )
        return training

    @field_validator("training")
    @classmethod
    def _set_default_learning_rate(cls, training: TrainingConfig, info: ValidationInfo) -> TrainingConfig:
        policy: PolicyConfig | None = info.data.get("policy")
        if training.learning_rate is not None or policy is None:
            return training
        rate = ADAPTER_LEARNING_RATE if policy.lora else LEARNING_RATE
        rate = RANDOM_INIT_LEARNING_RATE if policy.random_init else rate
        resolved = training.model_copy(update={"learning_rate": rate})
        # the key counts as not set, so a change of the policy also changes the default learning rate
        resolved.model_fields_set.discard("learning_rate")
        return resolved

    @field_validator("evaluation")
    @classmethod
    def _check_evaluation(cls, evaluation: EvaluationConfig, info: ValidationInfo) -> EvaluationConfig:
        problems: ProblemsConfig | None = info.data.get("problems")
        num_held_out = (
            MAX_HELD_OUT if problems is None or problems.num_held_out is None else problems.num_held_out
        )
        if problems and 0 < num_held_out < (evaluation.num_problems or 0):
            raise conflict(
                ("num_problems",), f"should be at most {num_held_out} (the value of problems.num_held_out)"
            )
        for name in ("template", "few_shot"):
            if problems and problems.num_held_out == 0 and getattr(evaluation, name):
                raise conflict(
                    (name,),
                    "used only for held-out problems, but problems.num_held_out is 0; remove this setting",
                )
        return evaluation
