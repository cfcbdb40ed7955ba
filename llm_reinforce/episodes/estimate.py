"""From the episodes of an update to what each of their actions is worth."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_reinforce.config import ReinforceConfig
from llm_reinforce.episodes.episode import EpisodeBatch
from llm_reinforce.policy_gradient import (
    MovingAverage,
    WeightedReturns,
    action_mask,
    advantages,
    baseline_values,
    episode_returns,
    generalized_advantages,
    place_rewards,
    reward_to_go,
    standardize,
    weighted_returns,
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What each action is worth to the update.

    Attributes:
        returns: g_t of every action of this process's episodes.
        baselines: b of each of them; with `value` that of the first action, V(s_0).
        advantages: A_t; zero in padding and where unscored.
        mask: True for the actions of scored episodes.
        denominator: what the update's summed loss is divided by, over all processes.
        mean_return: of the scored episodes of all processes; None if there are none.
    """

    returns: Float[Tensor, "episode token"]
    baselines: Float[Tensor, " episode"]
    advantages: Float[Tensor, "episode token"]
    mask: Bool[Tensor, "episode token"]
    denominator: float
    mean_return: float | None


def estimate_advantages(
    batch: EpisodeBatch,
    settings: ReinforceConfig,
    moving_average: MovingAverage,
    gather: Callable[[Tensor], Tensor] = lambda values: values,
    process_index: int = 0,
    *,
    values: Float[Tensor, "episode token"] | None = None,
) -> Estimate:
    """Rewards → returns → baselines → advantages.

    Baselines, standardisation and denominator are those of the whole update, whichever process sampled
    what.

    Args:
        batch: this process's episodes; every process has equally many.
        gather: an episode's numbers from all processes, in the order of the processes.
        values: V(s_t) of each action, for `baseline: value`; not learned from these episodes.

    Raises:
        ValueError: the baseline needs what isn't there: values, greedy completions, or recorded norms.
    """
    lengths, scored = batch.lengths, batch.scored
    rewards = _rewards(batch)
    # g_t = r_{t+1} + γ g_{t+1}
    returns = reward_to_go(rewards, settings.discount)
    mask = action_mask(lengths, returns.shape[1]) & scored[:, None]

    everyone = (episode_returns(returns), batch.groups, scored, lengths)
    g0, groups, all_scored, all_lengths = (gather(numbers) for numbers in everyone)
    own = slice(process_index * len(batch), (process_index + 1) * len(batch))
    if settings.baseline == "value":
        if values is None:
            raise ValueError("baseline 'value' needs values")
        b = gather(episode_returns(values.masked_fill(~mask, 0.0)))  # V(s_0)
        # A_t = γ^t Σ_l (γλ)^l δ_{t+l}, with λ = 1 γ^t (g_t - V(s_t))
        weights = generalized_advantages(rewards, values, mask, settings.discount, settings.value.gae_lambda)
    else:
        needed = _what_it_needs(settings, batch, returns, mask, gather)
        b = baseline_values(settings.baseline, g0, groups, all_scored, moving_average, **needed)
        # A_t = γ^t (g_t - b)
        weights = advantages(returns, b[own], mask, settings.discount)
    if settings.standardize:
        weights = standardize(weights, g0, b, all_scored)

    mean_return = float(g0[all_scored].mean()) if all_scored.any() else None
    denominator = _denominator(settings, all_lengths[all_scored])
    return Estimate(returns, b[own], weights, mask, denominator, mean_return)


def _what_it_needs(
    settings: ReinforceConfig,
    batch: EpisodeBatch,
    returns: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
    gather: Callable[[Tensor], Tensor],
) -> dict[str, Any]:
    """What the baseline takes beside every episode's return, of all processes."""
    match settings.baseline:
        case "optimal":
            of_own = weighted_returns(returns, batch.squared_logit_gradient_norms(), mask, settings.discount)
            return {"weighted": WeightedReturns(*map(gather, of_own))}
        case "greedy":
            return {"greedy_returns": gather(_greedy_returns(batch, settings.discount))}
    return {}


def _rewards(batch: EpisodeBatch) -> Float[Tensor, "episode token"]:
    """r_{t+1} of every action."""
    lengths = batch.lengths
    return place_rewards(batch.terminal_rewards, lengths, int(lengths.max()), batch.step_rewards)


def _greedy_returns(batch: EpisodeBatch, discount: float) -> Float[Tensor, " episode"]:
    """For each episode g_0 of its problem's greedy completion; NaN where that was not scored.

    Raises:
        ValueError: a group has none.
    """
    greedy = EpisodeBatch.of(batch.greedy)
    returns = episode_returns(reward_to_go(_rewards(greedy), discount)) if len(greedy) else torch.zeros(0)
    of_group = dict(
        zip(greedy.groups.tolist(), returns.masked_fill(~greedy.scored, torch.nan).tolist(), strict=True)
    )
    groups = batch.groups.tolist()
    if missing := set(groups) - of_group.keys():
        raise ValueError(f"baseline 'greedy' needs a greedy completion of groups {sorted(missing)}")
    return torch.tensor([of_group[group] for group in groups])


def _denominator(settings: ReinforceConfig, scored_lengths: Int[Tensor, " episode"]) -> float:
    """The scored episodes, their actions, or the constant that was chosen."""
    match settings.denominator:
        case "episodes":
            return float(len(scored_lengths))
        case "tokens":
            return float(scored_lengths.sum())
        case constant:
            return constant
