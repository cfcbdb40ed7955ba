"""All settings of a run: one section each for the policy, the problems, the rewards and so on."""

from pydantic import Field, ValidationInfo, field_validator

from llm_reinforce.config.evaluation_config import EvaluationConfig
from llm_reinforce.config.policy_config import PolicyConfig
from llm_reinforce.config.problems_config import MAX_HELD_OUT, ProblemsConfig
from llm_reinforce.config.reinforce_config import ReinforceConfig, SamplingConfig
from llm_reinforce.config.reward_config import RewardConfig
from llm_reinforce.config.section import MAX_SEED, Section, conflict
from llm_reinforce.config.training_config import (
    ADAPTER_LEARNING_RATE,
    LEARNING_RATE,
    RANDOM_INIT_LEARNING_RATE,
    TrainingConfig,
)


class Config(Section):
    """What a run trains, on which problems, by which rewards, and how."""

    seed: int = Field(default=0, ge=0, lt=MAX_SEED, description="seed of all the run's random generators")
    output_dir: str = Field(
        default="runs/recipe",
        min_length=1,
        description="the run's directory; load_config's default is runs/<file's stem>",
    )
    policy: PolicyConfig = Field(description="the language model that is trained")
    problems: ProblemsConfig = Field(description="what is asked")
    rewards: tuple[RewardConfig, ...] = Field(
        default=(RewardConfig(function="correct_answer"),),
        strict=False,
        min_length=1,
        description="what is rewarded",
    )
    sampling: SamplingConfig = Field(
        default=SamplingConfig(), validate_default=True, description="how completions are sampled"
    )
    reinforce: ReinforceConfig = Field(default=ReinforceConfig(), description="from rewards to the loss")
    training: TrainingConfig = Field(
        default=TrainingConfig(),
        validate_default=True,
        description="the optimizer, its schedule, and what is saved",
    )
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="how accuracy is measured")

    @field_validator("problems")
    @classmethod
    def _fit_the_alphabet(cls, problems: ProblemsConfig, info: ValidationInfo) -> ProblemsConfig:
        policy: PolicyConfig | None = info.data.get("policy")
        if policy and policy.random_init and problems.generate:
            fixed = problems.generate.form.replace("{expression}", "").replace("{spaced}", " ")
            fixed += problems.template.replace("{prompt}", "") + "0123456789"
            unknown = sorted(set(fixed) - set(policy.random_init.alphabet))
            if unknown:
                characters = " ".join(map(repr, unknown))
                raise conflict(
                    ("generate",),
                    f"problems hold characters that policy.random_init.alphabet lacks: {characters}",
                )
        return problems

    @field_validator("rewards")
    @classmethod
    def _differ(cls, rewards: tuple[RewardConfig, ...]) -> tuple[RewardConfig, ...]:
        for index, reward in enumerate(rewards):
            for earlier in rewards[:index]:
                if (earlier.function, earlier.arguments) == (reward.function, reward.arguments):
                    raise conflict(
                        (index, "function"), f"{reward.function} is listed twice with the same arguments"
                    )
        return rewards

    @field_validator("sampling")
    @classmethod
    def _fits_the_policy(cls, sampling: SamplingConfig, info: ValidationInfo) -> SamplingConfig:
        policy: PolicyConfig | None = info.data.get("policy")
        if policy and policy.random_init and sampling.max_new_tokens >= policy.random_init.max_length:
            raise conflict(
                ("max_new_tokens",),
                f"{sampling.max_new_tokens} tokens leave no room for a prompt: policy.random_init.max_length "
                f"is {policy.random_init.max_length}",
            )
        return sampling

    @field_validator("training")
    @classmethod
    def _can_scale_gradients(cls, training: TrainingConfig, info: ValidationInfo) -> TrainingConfig:
        policy: PolicyConfig | None = info.data.get("policy")
        if policy and training.mixed_precision == "fp16" and policy.dtype == "float16" and not policy.lora:
            raise conflict(
                ("mixed_precision",),
                "fp16 keeps its weights in float32, and policy.dtype is float16; set that to float32",
            )
        return training

    @field_validator("training")
    @classmethod
    def _has_a_learning_rate(cls, training: TrainingConfig, info: ValidationInfo) -> TrainingConfig:
        policy: PolicyConfig | None = info.data.get("policy")
        if training.learning_rate is not None or policy is None:
            return training
        rate = ADAPTER_LEARNING_RATE if policy.lora else LEARNING_RATE
        rate = RANDOM_INIT_LEARNING_RATE if policy.random_init else rate
        return training.model_copy(update={"learning_rate": rate})

    @field_validator("evaluation")
    @classmethod
    def _asks_what_there_is(cls, evaluation: EvaluationConfig, info: ValidationInfo) -> EvaluationConfig:
        problems: ProblemsConfig | None = info.data.get("problems")
        num_held_out = (
            MAX_HELD_OUT if problems is None or problems.num_held_out is None else problems.num_held_out
        )
        if problems and 0 < num_held_out < (evaluation.num_problems or 0):
            raise conflict(
                ("num_problems",), f"should be at most problems.num_held_out, which is {num_held_out}"
            )
        for name in ("template", "few_shot"):
            if problems and problems.num_held_out == 0 and getattr(evaluation, name):
                raise conflict((name,), "read for held-out problems only, and problems.num_held_out is 0")
        return evaluation
