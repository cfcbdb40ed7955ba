"""The loss of a micro-batch, for the objective that the settings `reinforce` select."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from llm_reinforce.config import ClipConfig, ImportanceConfig, ReinforceConfig
from llm_reinforce.policy_gradient import (
    clipped_loss,
    clipped_weights,
    importance_weights,
    k3,
    limit_weights,
    log_ratios,
    reinforce_loss,
    weighted_advantages,
)


@dataclass(frozen=True, slots=True)
class RatioCounts:
    """Sums over importance weights or probability ratios, from which metrics are computed.

    Episodes whose advantages are all zero are not counted.

    Attributes:
        num: number of weights or ratios.
        total: sum of the weights.
        squares: sum of the squared weights.
        num_truncated: number of weights that were above the limit.
        num_infinite: number of infinite weights, which occur only if there is no limit.
        num_low: number of clipped ratios below the lower bound.
        num_high: number of clipped ratios above the upper bound.
    """

    num: int = 0
    total: float = 0.0
    squares: float = 0.0
    num_truncated: int = 0
    num_infinite: int = 0
    num_low: int = 0
    num_high: int = 0

    def __add__(self, other: "RatioCounts") -> "RatioCounts":
        return RatioCounts(
            self.num + other.num,
            self.total + other.total,
            self.squares + other.squares,
            self.num_truncated + other.num_truncated,
            self.num_infinite + other.num_infinite,
            self.num_low + other.num_low,
            self.num_high + other.num_high,
        )

    def metrics(self, settings: ReinforceConfig) -> dict[str, float]:
        """Return the metrics of the importance weights or ratios, by name; empty if none were counted."""
        if not self.num:
            return {}
        metrics = {}
        if settings.importance is not None or settings.clip is False:
            metrics["importance/mean"] = self.total / self.num
            if self.squares:
                # (Σ w)² / (n Σ w²)
                metrics["importance/effective_sample_size"] = self.total**2 / (self.num * self.squares)
        if settings.importance is not None:
            metrics["importance/frac_truncated"] = self.num_truncated / self.num
        if settings.clip:
            metrics["clip/frac_low"] = self.num_low / self.num
            metrics["clip/frac_high"] = self.num_high / self.num
        return metrics


NO_RATIOS = RatioCounts()


class Surrogate(NamedTuple):
    """A loss and the counts of its importance weights or ratios."""

    loss: Float[Tensor, ""]
    counts: RatioCounts


def surrogate_loss(
    settings: ReinforceConfig,
    log_probs: Float[Tensor, "episode token"],
    behavior_log_probs: Float[Tensor, "episode token"],
    advantages: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
    denominator: float,
) -> Surrogate:
    """Return the loss whose gradient is the negative policy gradient of the objective in the settings.

    Without `importance` and `clip`, the loss is `reinforce_loss`, and the behavior log-probabilities are not
    used. With `clip: false`, the loss is also `reinforce_loss`, but the probability ratios are counted.

    Args:
        settings: the `reinforce` section of the settings.
        log_probs: log π(a_t | s_t; θ). The gradient flows through them.
        behavior_log_probs: log-probabilities recorded when the actions were sampled.
        advantages: A_t; zero in padding and in unscored episodes.
        mask: True for the actions of scored episodes.
        denominator: the denominator of the update's loss.
    """
    counts = NO_RATIOS
    if settings.clip:
        logs = log_ratios(log_probs, behavior_log_probs, mask)
        return _clipped(settings.clip, log_probs, logs, advantages, mask, denominator)
    if settings.clip is False:
        ratios = log_ratios(log_probs, behavior_log_probs, mask).detach().exp()
        counts = _counts(ratios, ratios, _counted(advantages, mask))
    if settings.importance is not None:
        logs = log_ratios(log_probs, behavior_log_probs, mask)
        gae_lambda = settings.value.gae_lambda if settings.baseline == "value" else 1.0
        advantages, counts = _weighted(settings.importance, logs, advantages, mask, gae_lambda)
    return Surrogate(reinforce_loss(log_probs, advantages, mask, denominator), counts)


def _counted(
    advantages: Float[Tensor, "episode token"], mask: Bool[Tensor, "episode token"]
) -> Bool[Tensor, "episode token"]:
    """Return a mask that is True for all actions of scored episodes with at least one nonzero advantage."""
    return mask & advantages.ne(0).any(dim=1, keepdim=True)


def _counts(
    raw: Float[Tensor, "episode token"],
    weights: Float[Tensor, "episode token"],
    counted: Bool[Tensor, "episode token"],
) -> RatioCounts:
    """Compute the `RatioCounts` of importance weights or of probability ratios.

    Args:
        raw: the weights before `importance.limit` was applied. For ratios, `raw` equals `weights`.
        weights: the weights after the limit was applied, or the ratios.
        counted: True for the actions whose weights or ratios are counted; see `_counted`.
    """
    used = weights[counted].tolist()  # the squares of large weights overflow in float32
    return RatioCounts(
        len(used),
        math.fsum(used),
        math.fsum(weight * weight for weight in used),
        num_truncated=int((raw != weights)[counted].sum()),
        num_infinite=used.count(math.inf),
    )


def _weighted(
    settings: ImportanceConfig,
    logs: Float[Tensor, "episode token"],
    advantages: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
    gae_lambda: float,
) -> tuple[Float[Tensor, "episode token"], RatioCounts]:
    raw = importance_weights(settings.level, logs)
    weights = limit_weights(raw, settings.limit, settings.beyond_limit)
    counted = _counted(advantages, mask)
    if settings.level == "sequence":  # an episode has one weight, which is counted at its first action
        counted = counted & (mask.cumsum(dim=1) == 1)
    counts = _counts(raw, weights, counted)
    return weighted_advantages(settings.level, advantages, weights, gae_lambda), counts


def _clipped(
    settings: ClipConfig,
    log_probs: Float[Tensor, "episode token"],
    logs: Float[Tensor, "episode token"],
    advantages: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
    denominator: float,
) -> Surrogate:
    ratios = logs.detach().exp()
    is_low, is_high = ratios < 1.0 - settings.low, ratios > 1.0 + settings.high
    if settings.form == "ppo":  # in this form, clipping removes the gradient of these actions only
        is_low, is_high = is_low & (advantages < 0), is_high & (advantages > 0)
        loss = clipped_loss(logs, advantages, mask, denominator, settings.low, settings.high)
    else:
        weights = clipped_weights(logs, settings.low, settings.high)
        loss = reinforce_loss(log_probs, weights * advantages, mask, denominator)
    counted = _counted(advantages, mask)
    counts = RatioCounts(
        int(counted.sum()), num_low=int((is_low & counted).sum()), num_high=int((is_high & counted).sum())
    )
    return Surrogate(loss, counts)


def kl_loss(
    log_probs: Float[Tensor, "episode token"],
    reference_log_probs: Float[Tensor, "episode token"],
    behavior_log_probs: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
    denominator: float,
    factors: Float[Tensor, "episode 1"] | None = None,
) -> Float[Tensor, ""]:
    """Return the estimate of the KL divergence that is added to the loss.

        (1/D) Σ_b Σ_t ρ_t k3_t        ρ_t = π(a_t | s_t; θ) / μ(a_t | s_t), without gradient

    μ is the policy that sampled the actions. In the first update of a batch, all ratios ρ_t are 1.

    Args:
        log_probs: log π(a_t | s_t; θ). The gradient flows through them.
        reference_log_probs: log π_ref(a_t | s_t).
        behavior_log_probs: log μ(a_t | s_t).
        mask: True for the actions of scored episodes.
        denominator: the denominator D of the update's loss.
        factors: factor of each episode's loss. None: all factors are 1.
    """
    ratios = log_ratios(log_probs, behavior_log_probs, mask).detach().exp()
    weighted = ratios * k3(log_probs, reference_log_probs, mask)
    return (weighted if factors is None else factors * weighted).sum() / denominator
