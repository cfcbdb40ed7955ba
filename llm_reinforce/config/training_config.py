"""Settings of the optimizer, of the learning-rate schedule, and of checkpoints and logs."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from llm_reinforce.config.section import Count, Positive, Section, Text

LEARNING_RATE = 1e-5
"""Default learning rate if all weights of a pretrained model are trained.

The value was chosen by measurements with the recipe smollm2_addition.
"""
ADAPTER_LEARNING_RATE = 1e-4
"""Default learning rate if adapters are trained: ten times `LEARNING_RATE`.

Source: Schulman et al. 2025, "LoRA Without Regret".
"""
RANDOM_INIT_LEARNING_RATE = 5e-4
"""Default learning rate if the policy has random initial weights.

The recipes quickstart and price use similar learning rates, 6e-4 and 3e-4.
"""

Beta = Annotated[float, Field(ge=0, lt=1)]
TrackerName = Literal[
    "tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab"
]


def _at_most_num_updates(num_warmup_updates: int, info: ValidationInfo) -> int:
    num_updates = info.data.get("num_updates")
    if num_updates is not None and num_warmup_updates > num_updates:
        raise ValueError(
            f"should be at most {num_updates} (the value of num_updates), not {num_warmup_updates}"
        )
    return num_warmup_updates


def _default_num_warmup_updates(earlier: dict[str, Any]) -> int:
    return min(10, earlier.get("num_updates") or 10)


class WarmStartConfig(Section):
    """Supervised updates before the first policy-gradient update.

    The policy is trained on the completions in `data`. Without `data`, it is trained on the worked solutions
    of the training problems, or on the answer if a problem has no worked solution.
    """

    data: Text | None = Field(
        default=None,
        description="file or folder with the columns `prompt` and `completion`, or with the column "
        "`messages`; null: train on the training problems",
    )
    epochs: Count | None = Field(
        default=None,
        description="number of passes over the examples, which come from `data` or from the training "
        "problems; null: the warm start has `num_updates` updates, whose examples are drawn with replacement",
    )
    num_updates: Count | None = Field(
        default=None,
        validate_default=True,
        description="number of supervised updates; null: the number follows from `epochs`",
    )
    batch_size: Count = Field(default=64, description="number of examples per supervised update")
    learning_rate: Positive = Field(default=1e-3, description="peak learning rate of the supervised updates")
    num_warmup_updates: int = Field(
        default_factory=_default_num_warmup_updates,
        ge=0,
        description="number of updates over which the learning rate rises to its peak; if `num_updates` is "
        "below 10, the default is `num_updates`",
    )

    @field_validator("num_updates")
    @classmethod
    def _check_length(cls, num_updates: int | None, info: ValidationInfo) -> int | None:
        epochs = info.data.get("epochs")
        if "epochs" in info.data and num_updates is None and epochs is None:
            raise ValueError("num_updates and epochs are both missing; set one of them")
        if num_updates is not None and epochs is not None:
            raise ValueError("num_updates and epochs cannot both be set; remove one of them")
        return num_updates

    @property
    def summary(self) -> str:
        """The warm start in a few words, such as "128 supervised updates with 16 examples each"."""
        if self.num_updates is None:
            return f"supervised updates with {self.batch_size} examples each, epochs: {self.epochs}"
        updates = "update" if self.num_updates == 1 else "updates"
        return f"{self.num_updates:,} supervised {updates} with {self.batch_size} examples each"

    def length(self, num_examples: int) -> int:
        """Return the number of supervised updates, given the number of examples in the data."""
        return self.num_updates or -(-num_examples * (self.epochs or 1) // self.batch_size)

    @field_validator("num_warmup_updates")
    @classmethod
    def _check_num_warmup_updates(cls, num_warmup_updates: int, info: ValidationInfo) -> int:
        return _at_most_num_updates(num_warmup_updates, info)


class TrainingConfig(Section):
    """Settings of the optimizer, of the learning-rate schedule, and of checkpoints and logs."""

    num_updates: Count = Field(default=100, description="number of policy-gradient updates (optimizer steps)")
    num_tokens: Count | None = Field(
        default=None,
        description="token budget: the run stops after the update in which the number of sampled tokens "
        "reaches this value; null: no budget",
    )
    learning_rate: Positive | None = Field(
        default=None,
        description=f"peak learning rate; null: {LEARNING_RATE:g}, or {ADAPTER_LEARNING_RATE:g} with lora, "
        f"or {RANDOM_INIT_LEARNING_RATE:g} for random weights",
    )
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = Field(
        default="constant_with_warmup",
        description="learning-rate schedule; linear and cosine decay to 0 over `num_updates` updates",
    )
    num_warmup_updates: int = Field(
        default=0,
        ge=0,
        description="number of updates over which the learning rate rises to its peak",
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw",
        description="adamw: AdamW of PyTorch; adamw_8bit: AdamW with 8-bit moment estimates (needs the extra "
        "`quantization`)",
    )
    master_weights: bool = Field(
        default=True,
        description="if the trained weights are in half precision, also keep them in float32, so that small "
        "steps are not lost by rounding; no effect on weights in float32",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay of AdamW")
    betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.999), strict=False, description="decay rates of AdamW's moment estimates"
    )
    max_grad_norm: Positive | None = Field(
        default=1.0,
        description="maximum norm of the gradient; a larger gradient is clipped to this norm; null: no "
        "clipping",
    )
    micro_batch_tokens: Count = Field(
        default=4096,
        description="maximum number of tokens per backward pass, which limits memory use; a prefix shared by "
        "several completions is counted once",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="keep only the inputs of each layer for the backward pass and recompute the other "
        "activations, which saves memory and takes more time",
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        default="no", description="data type of the forward pass; `no`: the data type of the weights"
    )
    checkpoint_every: Count | None = Field(
        default=None,
        description="number of updates between checkpoints; null: a checkpoint is saved only after the warm "
        "start, and when the run ends or is stopped",
    )
    num_checkpoints_kept: Count = Field(
        default=2, description="number of checkpoints to keep; older checkpoints are deleted"
    )
    keep_best: bool = Field(
        default=False,
        description="also keep the checkpoint with the highest held-out accuracy, in the first decoding mode "
        "of `evaluation.decodings`",
    )
    stop_at: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="target of the held-out accuracy in the first decoding mode; the run stops when the "
        "lower limit of the accuracy's 95% interval reaches this target in an evaluation; null: no target",
    )
    max_unscored_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="maximum share of unscored episodes (episodes without a reward) among the episodes "
        "sampled for an update; if the share is larger, the run is saved and stopped",
    )
    max_not_finite: Count = Field(
        default=10,
        description="maximum number of consecutive updates whose gradient is not finite; when this "
        "number is reached, the run is saved and stopped",
    )
    process_timeout: Positive = Field(
        default=1800.0,
        description="time, in seconds, for which a process waits for another process of the run; after this "
        "time, the run ends with an error",
    )
    logged_episodes: int = Field(
        default=8, ge=0, description="number of episodes of each update that are written to episodes.jsonl"
    )
    trackers: tuple[TrackerName, ...] = Field(
        default=(),
        strict=False,
        description="experiment trackers that also log the run; see Trackers on the page about the run "
        "directory",
    )
    tracker_project: Text = Field(
        default="llm_reinforce",
        description="name of the project (in some trackers, the experiment) to which the run is added",
    )
    tracker_run_name: Text | None = Field(
        default=None, description="name of the run in the trackers; null: the name of `output_dir`"
    )
    warm_start: WarmStartConfig | None = Field(
        default=None, description="supervised updates before the first policy-gradient update"
    )

    def expected_updates(self, num_updates: int, num_tokens: int) -> int:
        """Return the expected number of updates of the whole run.

        With a token budget, the number is estimated from the mean number of tokens per update so far. After
        the last update of the run, the number is exact.

        Args:
            num_updates: number of updates so far.
            num_tokens: number of sampled tokens so far.
        """
        if self.num_tokens is None or num_tokens == 0:
            return self.num_updates
        affordable = math.ceil(num_updates * self.num_tokens / num_tokens)
        return max(num_updates, min(self.num_updates, affordable))

    @field_validator("schedule")
    @classmethod
    def _check_schedule(cls, schedule: str, info: ValidationInfo) -> str:
        if schedule in ("linear", "cosine") and info.data.get("num_tokens") is not None:
            raise ValueError(
                f"{schedule} decays to 0 over num_updates, but num_tokens may stop the run earlier; "
                "choose constant_with_warmup or constant, or remove num_tokens"
            )
        return schedule

    @field_validator("num_warmup_updates")
    @classmethod
    def _check_num_warmup_updates(cls, num_warmup_updates: int, info: ValidationInfo) -> int:
        if num_warmup_updates and info.data.get("schedule") == "constant":
            raise ValueError(
                "not used with schedule: constant; choose constant_with_warmup, or remove this setting"
            )
        return _at_most_num_updates(num_warmup_updates, info)
