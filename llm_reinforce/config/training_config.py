"""The optimizer, its schedule, and what a run saves."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from llm_reinforce.config.section import Count, Positive, Section

LEARNING_RATE = 1e-5
"""For all weights of a loaded model: it learns in the recipe smollm2_addition, with which it was measured."""
ADAPTER_LEARNING_RATE = 1e-4
"""For an adapter: ten times that of all weights, as usual (Schulman et al. 2025, "LoRA Without Regret")."""
RANDOM_INIT_LEARNING_RATE = 5e-4
"""For random weights: the recipes quickstart and price, of a million and 0.1 million, use 6e-4 and 3e-4."""

Beta = Annotated[float, Field(ge=0, lt=1)]


def _at_most_num_updates(num_warmup_updates: int, info: ValidationInfo) -> int:
    num_updates = info.data.get("num_updates")
    if num_updates is not None and num_warmup_updates > num_updates:
        raise ValueError(f"should be at most num_updates, which is {num_updates}, not {num_warmup_updates}")
    return num_warmup_updates


class WarmStartConfig(Section):
    """Supervised updates on the training problems' answers before the first policy-gradient update."""

    num_updates: Count = Field(description="supervised updates")
    batch_size: Count = Field(default=64, description="problems an update")
    learning_rate: Positive = Field(default=1e-3, description="highest learning rate")
    num_warmup_updates: int = Field(
        default=10, ge=0, validate_default=True, description="updates of a rising learning rate"
    )

    @field_validator("num_warmup_updates")
    @classmethod
    def _ends_within_the_run(cls, num_warmup_updates: int, info: ValidationInfo) -> int:
        return _at_most_num_updates(num_warmup_updates, info)


class TrainingConfig(Section):
    """The optimiser, its schedule, and what the run saves."""

    num_updates: Count = Field(default=100, description="policy-gradient updates: optimizer steps")
    num_tokens: Count | None = Field(
        default=None,
        description="the run ends after the update that reaches so many actions in all; null: it doesn't",
    )
    learning_rate: Positive | None = Field(
        default=None,
        description=f"highest learning rate; null is {LEARNING_RATE:g}, with `lora` "
        f"{ADAPTER_LEARNING_RATE:g}, "
        f"from random weights {RANDOM_INIT_LEARNING_RATE:g}",
    )
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = Field(
        default="constant_with_warmup", description="how the learning rate goes; linear and cosine fall to 0"
    )
    num_warmup_updates: int = Field(default=0, ge=0, description="updates of a rising learning rate")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), strict=False, description="AdamW's decays")
    max_grad_norm: Positive | None = Field(default=1.0, description="the gradient is clipped to it")
    micro_batch_tokens: Count = Field(
        default=4096, description="most tokens a backward pass, what repeats counted once: bounds memory"
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(default="no", description="forward pass's type")
    checkpoint_every: Count | None = Field(default=None, description="updates between checkpoints")
    num_checkpoints_kept: Count = Field(default=2, description="the newest stay, older ones go")
    max_unscored_share: float = Field(
        default=0.5, ge=0, le=1, description="more unscored episodes in an update stop the run, saved"
    )
    max_not_finite: Count = Field(
        default=10,
        description="so many updates in a row whose gradient isn't finite stop the run",
    )
    logged_episodes: int = Field(default=8, ge=0, description="episodes an update written to episodes.jsonl")
    warm_start: WarmStartConfig | None = Field(default=None, description="supervised updates at first")

    @field_validator("schedule")
    @classmethod
    def _falls_over_a_known_time(cls, schedule: str, info: ValidationInfo) -> str:
        if schedule in ("linear", "cosine") and info.data.get("num_tokens") is not None:
            raise ValueError(
                f"{schedule} falls to 0 over num_updates, and num_tokens ends the run before; "
                "with it choose constant_with_warmup or constant"
            )
        return schedule

    @field_validator("num_warmup_updates")
    @classmethod
    def _fits_the_schedule(cls, num_warmup_updates: int, info: ValidationInfo) -> int:
        if num_warmup_updates and info.data.get("schedule") == "constant":
            raise ValueError("not read with schedule: constant; choose constant_with_warmup, or leave it out")
        return _at_most_num_updates(num_warmup_updates, info)
