"""Estimators of the policy gradient, which differ in the weight of each ∇log π(a_t|s_t)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from llm_reinforce.analysis.episode_gradients import NEGLIGIBLE, EpisodeGradients
from llm_reinforce.analysis.measured_episodes import MeasuredEpisodes
from llm_reinforce.config import ReinforceConfig, ValueConfig
from llm_reinforce.episodes import estimate_advantages
from llm_reinforce.policy_gradient import BASELINES, UNBIASED, advantages, episode_returns

EXACT = "optimal, exact"


@dataclass(frozen=True, slots=True)
class Estimator:
    """An estimator of the policy gradient from episodes.

    Attributes:
        name: name of the estimator.
        settings: settings from which advantages are computed, as in training.
        credit: weight of an action. `reward_to_go`: the return from the action on, minus the baseline of
            `settings`. `whole_return`: the return of the whole episode, minus the baseline of `settings`.
            `exact_norms`: the return from the action on, minus the optimal constant baseline, which is
            computed from the norms of the exact gradients.
    """

    name: str
    settings: ReinforceConfig
    credit: Literal["reward_to_go", "whole_return", "exact_norms"] = "reward_to_go"

    @property
    def is_unbiased(self) -> bool:
        """True if the expected gradient is exactly ∇J, the gradient of the expected return J."""
        settings = self.settings
        return settings == _plain(settings) and (
            settings.baseline in UNBIASED
            and (settings.baseline != "value" or settings.value.gae_lambda == 1.0)
        )


def estimators_for(settings: ReinforceConfig) -> tuple[Estimator, ...]:
    """Return the estimators to measure for a recipe.

    All estimators except the recipe's own divide the summed gradients of the episodes by the number of
    episodes, and do not standardize. The estimators are:

    - an estimator for each possible value of the setting `reinforce.baseline`;
    - an estimator without a baseline that weights each action by the return of the whole episode;
    - an estimator with the baseline `value` and λ = 0.9;
    - an estimator with the optimal baseline computed from the norms of the exact gradients, which training
      does not compute;
    - the recipe's own estimator, if the recipe standardizes, masks truncated episodes or has another
      denominator.
    """
    plain = _plain(settings)
    estimators = [
        Estimator("whole return", _with(plain, "none"), credit="whole_return"),
        *(Estimator(name, _with(plain, name)) for name in BASELINES),
        Estimator("value, λ 0.9", _with(plain, "value", ValueConfig(gae_lambda=0.9))),
        Estimator(EXACT, _with(plain, "optimal"), credit="exact_norms"),
    ]
    if settings != plain:
        estimators.append(Estimator("this recipe", settings))
    return tuple(estimators)


def _plain(settings: ReinforceConfig) -> ReinforceConfig:
    """Return a copy of the settings without standardization, and without masking of truncated episodes.

    The denominator is set to the number of episodes. With these settings and an unbiased baseline, an
    estimator estimates ∇J, the gradient of the expected return.
    """
    plain: dict[str, object] = {
        "standardize": False,
        "standardize_rewards": False,
        "denominator": "episodes",
    }
    if settings.truncated == "mask":
        plain["truncated"] = "count"
    return settings.model_copy(update=plain)


def _with(settings: ReinforceConfig, baseline: str, value: ValueConfig | None = None) -> ReinforceConfig:
    return settings.model_copy(update={"baseline": baseline, "value": value or ValueConfig()})


def action_weights(estimator: Estimator, collected: MeasuredEpisodes) -> Float[Tensor, "episode token"]:
    """Return the estimator's weight of each ∇log π(a_t|s_t), for the actions of all episodes.

    The weights of each update are computed as in training, and multiplied by the number of groups (problems)
    of the update. With these weights, the mean of the gradients of all groups equals the mean of the
    gradients of all updates.

    The baseline b of the credit `exact_norms` can only be computed after the gradients. For this credit, the
    function returns the weights of the gradient s, which are those for returns of 0 and a baseline of -1.
    `with_exact_norms` later replaces the gradient s with v - b s.
    """
    parts = []
    for number, update in enumerate(collected.updates):
        values = collected.values[number] if collected.values else None
        estimate = estimate_advantages(update, estimator.settings, collected.moving_average, values=values)
        weights = estimate.advantages
        if estimator.credit == "whole_return":
            whole = episode_returns(estimate.returns) - estimate.baselines
            weights = whole[:, None].expand_as(weights).masked_fill(~estimate.mask, 0.0)
        if estimator.credit == "exact_norms":
            minus_one, zeros = -torch.ones_like(estimate.baselines), torch.zeros_like(weights)
            weights = advantages(zeros, minus_one, estimate.mask, estimator.settings.discount)
        if estimate.loss_weights is not None:
            weights = weights * estimate.loss_weights[:, None]
        num_groups = len(set(update.groups.tolist()))
        parts.append(weights * (num_groups / (estimate.denominator or 1.0)))
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])


def with_exact_norms(
    gradients: EpisodeGradients, estimators: Sequence[Estimator], groups: Sequence[int]
) -> EpisodeGradients:
    """Subtract the optimal baseline from the gradients of the estimator with credit `exact_norms`.

    For this estimator, the gradient of episode i becomes v_i - b_i s_i, with the sums

        v_i = Σ_t γ^t g_t ∇log π(a_t | s_t),   s_i = Σ_t γ^t ∇log π(a_t | s_t)

    over the actions a_t of the episode, where g_t is the return from action t on. The baseline b_i is
    computed from the other episodes j of the group:

        b_i = Σ_{j≠i} ⟨v_j, s_j⟩ / Σ_{j≠i} ‖s_j‖²

    If an episode is the only episode of its group, its gradient becomes 0. The gradients of all other
    estimators are returned unchanged.

    Source: Greensmith, Bartlett & Baxter 2004.
    """
    credits, names = [each.credit for each in estimators], [each.name for each in estimators]
    if "exact_norms" not in credits:
        return gradients
    of_ones, plain = credits.index("exact_norms"), names.index("none")  # s and v
    group_of = torch.tensor(groups)
    products, squares = (gradients.of_episodes(index, of_ones, len(groups)) for index in (plain, of_ones))
    of_groups = [
        torch.zeros(max(groups) + 1).double().index_add_(0, group_of, each) for each in (products, squares)
    ]
    numerators, denominators = of_groups[0][group_of] - products, of_groups[1][group_of] - squares
    is_alone = denominators <= NEGLIGIBLE * squares
    baselines = torch.where(is_alone, 0.0, numerators / torch.where(is_alone, 1.0, denominators))
    coefficients = gradients.coefficients.clone()
    combined = coefficients[plain] - baselines[gradients.episode_of] * coefficients[of_ones]
    coefficients[of_ones] = combined.masked_fill(is_alone[gradients.episode_of], 0.0)
    return EpisodeGradients(gradients.rows, coefficients, gradients.episode_of)
