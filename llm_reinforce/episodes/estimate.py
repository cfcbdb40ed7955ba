"""Estimate the advantages of the actions of an update."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_reinforce.config import ReinforceConfig
from llm_reinforce.episodes.episode import EpisodeBatch
from llm_reinforce.policy_gradient import (
    MovingAverage,
    action_mask,
    advantages,
    baseline_values,
    episode_returns,
    generalized_advantages,
    kl_rewards,
    place_rewards,
    reward_to_go,
    standardize,
    weighted_returns,
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Returns, baselines and advantages of the episodes of an update.

    Attributes:
        returns: return g_t of each action.
        baselines: baseline b of each episode. With `baseline: value`, this is V(s_0).
        advantages: advantage A_t of each action; zero in padding and in unscored episodes.
        mask: True for the actions of scored episodes.
        denominator: number by which the summed loss of an update is divided.
        mean_return: mean return of the scored episodes; None if no episode is scored.
        loss_weights: factor of each episode's loss. With `denominator: episode_lengths`, the factor of an
            episode with T actions is 1/T. None: all factors are 1.

    With `truncated: mask`, truncated episodes are treated like unscored episodes.
    """

    returns: Float[Tensor, "episode token"]
    baselines: Float[Tensor, " episode"]
    advantages: Float[Tensor, "episode token"]
    mask: Bool[Tensor, "episode token"]
    denominator: float
    mean_return: float | None
    loss_weights: Float[Tensor, " episode"] | None = None

    def part(self, rows: slice | Int[Tensor, " row"], num_tokens: int) -> "Estimate":
        """Return the part of the estimate that belongs to the given rows (episodes).

        The token dimension is cut to `num_tokens`, the number of actions of the longest of these episodes.
        The denominator and the mean return remain those of the whole update.
        """
        return replace(
            self,
            returns=self.returns[rows, :num_tokens],
            baselines=self.baselines[rows],
            advantages=self.advantages[rows, :num_tokens],
            mask=self.mask[rows, :num_tokens],
            loss_weights=None if self.loss_weights is None else self.loss_weights[rows],
        )

    def of_update(self, rows: Int[Tensor, " row"], settings: ReinforceConfig) -> "Estimate":
        """Return the part of this estimate that belongs to one of the updates that share a batch.

        The denominator of the loss and the mean return are computed from the episodes of this update.

        Args:
            rows: indices of the update's episodes among the episodes of all processes.
            settings: the `reinforce` section of the settings.
        """
        part = self.part(rows, self.mask.shape[1])
        scored = part.mask.any(dim=1)
        mean_return = float(episode_returns(part.returns)[scored].mean()) if scored.any() else None
        denominator = _denominator(settings, part.mask.sum(dim=1)[scored])
        return replace(part, denominator=denominator, mean_return=mean_return)


def estimate_advantages(
    batch: EpisodeBatch,
    settings: ReinforceConfig,
    moving_average: MovingAverage,
    *,
    values: Float[Tensor, "episode token"] | None = None,
) -> Estimate:
    """Compute returns, baselines and advantages from the rewards of episodes.

    Args:
        batch: the episodes of an update from all processes.
        settings: the `reinforce` section of the settings.
        moving_average: moving average of returns, for `baseline: moving_average`.
        values: predicted value V(s_t) for each action. Required with `baseline: value`, and ignored with
            other baselines. V must not have been fitted to these episodes.

    Raises:
        ValueError: if values, greedy completions or squared gradient norms that the baseline needs are
            missing.
    """
    lengths, scored = batch.lengths, batch.scored
    if settings.truncated == "mask":
        scored = scored & batch.terminated
    rewards = _rewards(batch, settings, scored)
    # g_t = r_{t+1} + γ g_{t+1}
    returns = reward_to_go(rewards, settings.discount)
    mask = action_mask(lengths, returns.shape[1]) & scored[:, None]

    g0 = episode_returns(returns)
    if settings.baseline == "value":
        if values is None:
            raise ValueError("baseline 'value' needs the argument `values`")
        b = episode_returns(values.masked_fill(~mask, 0.0))  # V(s_0)
        # A_t = γ^t Σ_l (γλ)^l δ_{t+l}; for λ = 1 this is γ^t (g_t - V(s_t))
        weights = generalized_advantages(rewards, values, mask, settings.discount, settings.value.gae_lambda)
    else:
        extra = _baseline_arguments(settings, batch, returns, mask)
        b = baseline_values(settings.baseline, g0, batch.groups, scored, moving_average, **extra)
        # A_t = γ^t (g_t - b)
        weights = advantages(returns, b, mask, settings.discount)
    if settings.standardize:
        groups = batch.groups if settings.standardize == "group" else None
        weights = standardize(weights, g0, b, scored, groups=groups)

    mean_return = float(g0[scored].mean()) if scored.any() else None
    loss_weights = 1.0 / lengths.clamp(min=1) if settings.denominator == "episode_lengths" else None
    denominator = _denominator(settings, lengths[scored])
    return Estimate(returns, b, weights, mask, denominator, mean_return, loss_weights)


def _baseline_arguments(
    settings: ReinforceConfig,
    batch: EpisodeBatch,
    returns: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
) -> dict[str, Any]:
    """Return the arguments of `baseline_values` that only some baselines need."""
    match settings.baseline:
        case "optimal":
            norms = batch.squared_logit_gradient_norms()
            return {"weighted": weighted_returns(returns, norms, mask, settings.discount)}
        case "greedy":
            return {"greedy_returns": _greedy_returns(batch, settings.discount)}
    return {}


def _rewards(
    batch: EpisodeBatch, settings: ReinforceConfig, scored: Bool[Tensor, " episode"]
) -> Float[Tensor, "episode token"]:
    """Return the reward r_{t+1} of every action, minus the KL penalty if the settings use estimator k1.

    Raises:
        ValueError: if the penalty needs log-probabilities of a reference policy, and the batch has none.
    """
    lengths, kl = batch.lengths, settings.kl
    terminal = batch.terminal_rewards
    if settings.standardize_rewards:
        terminal = batch.standardized_rewards(scored)
    rewards = place_rewards(terminal, lengths, int(lengths.max()), batch.step_rewards)
    if kl is None or kl.estimator != "k1" or not kl.coefficient:
        return rewards
    if batch.reference_log_probs is None:
        raise ValueError(
            "reinforce.kl: the episodes have no log-probabilities of the reference policy, which this "
            "setting needs; record these log-probabilities, or remove this setting"
        )
    mask = action_mask(lengths, rewards.shape[1])
    # r_{t+1} - coefficient · (log π(a_t | s_t) - log π_ref(a_t | s_t))
    return rewards + kl_rewards(batch.behavior_log_probs, batch.reference_log_probs, mask, kl.coefficient)


def _greedy_returns(batch: EpisodeBatch, discount: float) -> Float[Tensor, " episode"]:
    """Return, for each episode, the return g_0 of the greedy completion of the episode's problem.

    The return is NaN if the greedy completion is unscored.

    Raises:
        ValueError: if a group has no greedy completion.
    """
    greedy = EpisodeBatch.of(batch.greedy)
    returns = torch.zeros(0)
    if len(greedy):
        lengths = greedy.lengths
        rewards = place_rewards(greedy.terminal_rewards, lengths, int(lengths.max()), greedy.step_rewards)
        returns = episode_returns(reward_to_go(rewards, discount))
    of_group = dict(
        zip(greedy.groups.tolist(), returns.masked_fill(~greedy.scored, torch.nan).tolist(), strict=True)
    )
    groups = batch.groups.tolist()
    if missing := set(groups) - of_group.keys():
        raise ValueError(
            f"baseline 'greedy': there is no greedy episode of the groups {sorted(missing)}; pass one "
            "greedy episode per group"
        )
    return torch.tensor([of_group[group] for group in groups])


def _denominator(settings: ReinforceConfig, scored_lengths: Int[Tensor, " episode"]) -> float:
    """Return the denominator of the loss.

    Depending on the settings, this is the number of scored episodes, the number of actions of scored
    episodes, or a constant.
    """
    match settings.denominator:
        case "episodes" | "episode_lengths":
            return float(len(scored_lengths))
        case "tokens":
            return float(scored_lengths.sum())
        case constant:
            return constant
