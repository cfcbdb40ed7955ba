"""The equations of policy gradient as pure functions of tensors. This package depends only on torch."""

from llm_reinforce.policy_gradient.baselines import (
    BASELINES,
    CONSTANT_BASELINES,
    UNBIASED,
    MovingAverage,
    WeightedReturns,
    advantages,
    baseline_values,
    standardize,
    weighted_returns,
)
from llm_reinforce.policy_gradient.importance import (
    importance_weights,
    limit_weights,
    log_ratios,
    weighted_advantages,
)
from llm_reinforce.policy_gradient.kl import k3, kl_rewards
from llm_reinforce.policy_gradient.losses import (
    clipped_loss,
    clipped_weights,
    entropy,
    entropy_bonus,
    reinforce_loss,
)
from llm_reinforce.policy_gradient.returns import action_mask, episode_returns, place_rewards, reward_to_go
from llm_reinforce.policy_gradient.reward_shaping import group_standardized, length_penalties
from llm_reinforce.policy_gradient.value_advantages import generalized_advantages

__all__ = [
    "BASELINES",
    "CONSTANT_BASELINES",
    "UNBIASED",
    "MovingAverage",
    "WeightedReturns",
    "action_mask",
    "advantages",
    "baseline_values",
    "clipped_loss",
    "clipped_weights",
    "entropy",
    "entropy_bonus",
    "episode_returns",
    "generalized_advantages",
    "group_standardized",
    "importance_weights",
    "k3",
    "kl_rewards",
    "length_penalties",
    "limit_weights",
    "log_ratios",
    "place_rewards",
    "reinforce_loss",
    "reward_to_go",
    "standardize",
    "weighted_advantages",
    "weighted_returns",
]
