"""Baselines b(s_t), which are subtracted from returns, and the resulting advantages.

If the baseline of an action does not depend on this action or on later actions, the expected gradient does
not change, and the variance of the gradient can be much smaller (Williams 1992; Sutton & Barto 2018, section
13.4). Such baselines are listed in `UNBIASED`. Each baseline in this module has one value per episode. The
baseline `value`, which has one value per token, is in `value_advantages.py`.

| name | b for episode i | expected gradient |
|---|---|---|
| `none` | 0 | ∇J |
| `batch_mean` | mean return of all N scored episodes, including i | (1 - 1/N) ∇J |
| `moving_average` | exponentially weighted mean return of the previous updates | ∇J |
| `group_mean` | mean return of the n scored episodes of the same problem, including i | (1 - 1/n) ∇J |
| `leave_one_out` | mean return of the other n - 1 scored episodes of the same problem | ∇J |
| `optimal` | like `leave_one_out`, but weighted by the squared norm of each episode's ∇ log π | ∇J |
| `greedy` | return of the greedy completion of the same problem | ∇J |
| `value` | V(s_t) at each action, where V is learned from the previous updates | ∇J if λ = 1 |

Here ∇J is the exact policy gradient, γ is the discount, and λ is the parameter of generalized advantage
estimation. The factors (1 - 1/N) and (1 - 1/n) hold for γ = 1.

Several functions have these arguments:

- `returns`: the return g_0 of each episode.
- `groups`: for each episode, the number that identifies its group. A group consists of the episodes of one
  problem.
- `scored`: False for an episode whose reward function failed. Such an episode is excluded from all means.

The mean over no episodes is 0. If `leave_one_out`, `optimal` or `greedy` cannot be computed for an episode,
its baseline is not 0 but its own return. The docstring of `leave_one_out` explains why.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CONSTANT_BASELINES = (  # one number per episode
    "none",
    "batch_mean",
    "moving_average",
    "group_mean",
    "leave_one_out",
    "optimal",
    "greedy",
)
BASELINES = (*CONSTANT_BASELINES, "value")
UNBIASED = frozenset({"none", "moving_average", "leave_one_out", "optimal", "greedy", "value"})


@dataclass(frozen=True, slots=True)
class MovingAverage:
    """Exponential moving average of the mean returns of past updates.

    The average is corrected for its initial bias, in the same way as the moments of Adam (Kingma & Ba 2015).

    Attributes:
        total: average without the correction.
        weight: 1 - decay^(number of updates). The corrected average is `total / weight`.
    """

    total: float = 0.0
    weight: float = 0.0

    @property
    def value(self) -> float:
        """The bias-corrected average; 0 before the first update."""
        return self.total / self.weight if self.weight > 0 else 0.0

    def updated(self, mean_return: float, decay: float) -> "MovingAverage":
        """Return the moving average after one more update.

        Args:
            mean_return: mean return of the scored episodes of this update.
            decay: weight of the earlier average.
        """
        return MovingAverage(
            total=decay * self.total + (1 - decay) * mean_return,
            weight=decay * self.weight + (1 - decay),
        )


def batch_mean(
    returns: Float[Tensor, " episode"], scored: Bool[Tensor, " episode"]
) -> Float[Tensor, " episode"]:
    """Return, for each episode, the mean return of all scored episodes of the batch.

        b_i = (1/N) Σ_j g_j

    The sum includes episode i, so this baseline is biased; see the docstring of the module.
    """
    count = scored.sum().clamp(min=1)
    mean = returns.where(scored, torch.zeros_like(returns)).sum() / count
    return mean.expand_as(returns)


def _group_sums(
    returns: Float[Tensor, " episode"], groups: Int[Tensor, " episode"], scored: Bool[Tensor, " episode"]
) -> tuple[Float[Tensor, " episode"], Float[Tensor, " episode"]]:
    """For each episode, return the sum and the count of the returns of the scored episodes in its group."""
    _, group_index = torch.unique(groups, return_inverse=True)
    num_groups = int(group_index.max()) + 1 if len(groups) else 0
    valid = scored.to(returns.dtype)
    sums = returns.new_zeros(num_groups).index_add_(0, group_index, returns.where(scored, 0 * valid))
    counts = returns.new_zeros(num_groups).index_add_(0, group_index, valid)
    return sums[group_index], counts[group_index]


def group_mean(
    returns: Float[Tensor, " episode"], groups: Int[Tensor, " episode"], scored: Bool[Tensor, " episode"]
) -> Float[Tensor, " episode"]:
    """Return, for each episode, the mean return of the scored episodes of its group.

        b_i = (1/n) Σ_{j in group of i} g_j

    The sum includes episode i, so this baseline is biased; see the docstring of the module.

    Source: Shao et al. 2024 (GRPO).
    """
    sums, counts = _group_sums(returns, groups, scored)
    return sums / counts.clamp(min=1)


def leave_one_out(
    returns: Float[Tensor, " episode"], groups: Int[Tensor, " episode"], scored: Bool[Tensor, " episode"]
) -> Float[Tensor, " episode"]:
    """Return, for each episode, the mean return of the other scored episodes of its group.

        b_i = 1/(n-1) Σ_{j in group of i, j ≠ i} g_j

    This baseline is unbiased.

    Source: Kool et al. 2019; Ahmadian et al. 2024 (RLOO).

    An episode that is alone in its group cannot be compared with another episode, so it should not change
    the policy. Its baseline is therefore its own return g_0. With γ = 1, the expected contribution of such
    an episode to the gradient is then zero. If the only reward is the terminal reward, the contribution
    itself is zero. With γ < 1, the later actions of the episode have the advantage γ^t (g_t - g_0), which
    makes the gradient of the batch biased.
    """
    sums, counts = _group_sums(returns, groups, scored)
    others = (sums - returns) / (counts - 1).clamp(min=1)
    return torch.where(counts > 1, others, returns)


class WeightedReturns(NamedTuple):
    """Weight and weighted return of each episode, used to estimate the baseline `optimal`.

    Attributes:
        weights: w = Σ_t γ^{2t} ‖∇ log π(a_t | s_t)‖².
        returns: Σ_t γ^{2t} ‖∇ log π(a_t | s_t)‖² g_t / w, or 0 if w is 0. If γ = 1 and there are no step
            rewards, this is g_0.
    """

    weights: Float[Tensor, " episode"]
    returns: Float[Tensor, " episode"]


def weighted_returns(
    returns: Float[Tensor, "episode token"],
    squared_logit_gradient_norms: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
    discount: float = 1.0,
) -> WeightedReturns:
    """Return, for each episode, the weighted mean of its returns g_t, and the sum of the weights.

    The weights are the squared gradient norms, multiplied by γ^{2t}.

    Args:
        returns: g_t of each action.
        squared_logit_gradient_norms: ‖∇ log π(a_t | s_t)‖² of each action, where ∇ is with respect to the
            logits.
        mask: True for the actions of scored episodes.
        discount: γ.
    """
    times = torch.arange(returns.shape[1], device=returns.device, dtype=returns.dtype)
    action_weights = (discount ** (2 * times) * squared_logit_gradient_norms.to(returns.dtype)).masked_fill(
        ~mask, 0.0
    )
    weights = action_weights.sum(dim=1)
    totals = (action_weights * returns.masked_fill(~mask, 0.0)).sum(dim=1)
    return WeightedReturns(weights, torch.where(weights == 0, 0 * totals, totals / weights))


def optimal(
    returns: Float[Tensor, " episode"],
    weighted: WeightedReturns,
    groups: Int[Tensor, " episode"],
    scored: Bool[Tensor, " episode"],
) -> Float[Tensor, " episode"]:
    """Estimate, for each episode, the constant baseline that minimizes the variance of the gradient.

        b* = E[w g] / E[w]        b_i = Σ_{j ≠ i} w_j g_j / Σ_{j ≠ i} w_j

    Here w_j = Σ_t γ^{2t} ‖∇log π(a_t | s_t)‖² is the weight of episode j, and g_j is the mean of its returns
    g_t, weighted by the terms of w_j (see `WeightedReturns`). The sums are over the other scored episodes j
    of the group of episode i, so this baseline is unbiased.

    b* minimizes E‖Σ_t γ^t ∇log π(a_t | s_t) (g_t - b)‖² if the gradients ∇log π of different states are
    orthogonal. This is the case if the parameters of the policy are its logits. The expectation is then the
    mean of Σ_t γ^{2t} ‖∇log π(a_t | s_t)‖² (g_t - b)². For other policies, b* is an approximation, because
    the weights contain the norms of gradients with respect to the logits. If all other episodes of the group
    have weight 0, or if there are no other episodes, the result is the baseline `leave_one_out`.

    Source: Greensmith, Bartlett & Baxter 2004. They use the return of the episode instead of the return of
    each action.
    """
    other_weights = _sums_of_others(weighted.weights, groups, scored)
    # b_i = Σ_{j ≠ i} w_j g_j / Σ_{j ≠ i} w_j
    mean = _sums_of_others(weighted.weights * weighted.returns, groups, scored) / other_weights
    return torch.where(other_weights == 0, leave_one_out(returns, groups, scored), mean)


def _sums_of_others(
    values: Float[Tensor, " episode"], groups: Int[Tensor, " episode"], scored: Bool[Tensor, " episode"]
) -> Float[Tensor, " episode"]:
    """For each episode, return the sum of the values of the other scored episodes in its group.

    The values of the other episodes are added directly. If the value of the episode were subtracted from the
    sum of the group, rounding would make the result depend on this value.
    """
    is_other = (groups[:, None] == groups) & scored
    is_other.fill_diagonal_(False)
    return torch.where(is_other, values, torch.zeros_like(values)).sum(dim=1)


def greedy(
    returns: Float[Tensor, " episode"], greedy_returns: Float[Tensor, " episode"]
) -> Float[Tensor, " episode"]:
    """Return, for each episode, g_0 of the greedy completion of its problem.

    This baseline is unbiased.

    Source: Li et al. 2023 (ReMax).

    Args:
        returns: g_0 of each episode.
        greedy_returns: for each episode, g_0 of the greedy completion of its problem; NaN if the greedy
            completion is not scored. In this case, the baseline is the return of the episode itself, as in
            `leave_one_out`.
    """
    return torch.where(greedy_returns.isnan(), returns, greedy_returns)


def baseline_values(
    name: str,
    returns: Float[Tensor, " episode"],
    groups: Int[Tensor, " episode"],
    scored: Bool[Tensor, " episode"],
    moving_average: MovingAverage,
    *,
    weighted: WeightedReturns | None = None,
    greedy_returns: Float[Tensor, " episode"] | None = None,
) -> Float[Tensor, " episode"]:
    """Return the value of a baseline for each episode.

    Args:
        name: one of `CONSTANT_BASELINES`.
        returns: g_0 of each episode.
        groups: for each episode, the number that identifies its group. A group consists of the episodes of
            one problem.
        scored: False for episodes whose reward function failed.
        moving_average: average of past updates; used only by the baseline `moving_average`.
        weighted: result of `weighted_returns`; required by the baseline `optimal`.
        greedy_returns: for each episode, the return of the greedy completion of its problem; required by the
            baseline `greedy`.

    Raises:
        ValueError: if the name is unknown, or if a required argument is missing.
    """
    match name:
        case "none":
            return torch.zeros_like(returns)
        case "batch_mean":
            return batch_mean(returns, scored)
        case "moving_average":
            return torch.full_like(returns, moving_average.value)
        case "group_mean":
            return group_mean(returns, groups, scored)
        case "leave_one_out":
            return leave_one_out(returns, groups, scored)
        case "optimal" if weighted is not None:
            return optimal(returns, weighted, groups, scored)
        case "greedy" if greedy_returns is not None:
            return greedy(returns, greedy_returns)
        case "optimal" | "greedy":
            needed = "weighted" if name == "optimal" else "greedy_returns"
            raise ValueError(f"baseline {name!r} needs the argument {needed}")
    raise ValueError(f"unknown baseline {name!r}; known baselines: {', '.join(CONSTANT_BASELINES)}")


def advantages(
    returns: Float[Tensor, "episode token"],
    baseline: Float[Tensor, " episode"],
    mask: Bool[Tensor, "episode token"],
    discount: float = 1.0,
) -> Float[Tensor, "episode token"]:
    """Return the advantage of each action.

        A_t = γ^t (g_t - b(s_t))

    A_t is the weight of ∇ log π(a_t | s_t) in the gradient ∇J of J = E[Σ_t γ^t r_{t+1}]. The factor γ^t is
    part of the policy gradient (Sutton & Barto 2018, section 13.3). Many implementations omit this factor.
    Without the factor, the result is not the gradient of any objective unless γ = 1 (Nota & Thomas 2020).

    Args:
        returns: g_t of each action.
        baseline: b of each episode.
        mask: True for the actions of scored episodes. All other advantages are zero.
        discount: γ.
    """
    weights = discount ** torch.arange(returns.shape[1], device=returns.device, dtype=returns.dtype)
    return (weights * (returns - baseline[:, None])).masked_fill(~mask, 0.0)


def standardize(
    values: Float[Tensor, "episode token"],
    returns: Float[Tensor, " everyone"],
    baseline: Float[Tensor, " everyone"],
    scored: Bool[Tensor, " everyone"],
    epsilon: float = 1e-6,
    groups: Int[Tensor, " everyone"] | None = None,
) -> Float[Tensor, "episode token"]:
    """Divide advantages by the root mean square of the differences between returns and baselines.

        A_t / (sqrt(mean_i (g_0^i - b^i)²) + ε)

    The mean is over the scored episodes of the update. If `groups` is given, it is over the scored episodes
    of the same group. With one divisor for the whole update, standardization does not change the direction of
    the update's gradient, and makes the norm of the gradient independent of the scale of the rewards. The
    divisor depends on the actions. Therefore, the gradient is biased, even with an unbiased baseline.

    If every return g_0 equals its baseline up to rounding, the result is zero. Without this rule, advantages
    would be divided by ε. The advantages of later actions, which can be nonzero if γ < 1 or if there are step
    rewards, would then be huge.

    Args:
        values: advantages A_t of some or all episodes of the update.
        returns: g_0 of all episodes of the update.
        baseline: b of all episodes of the update; for the baseline `value`, b is V(s_0).
        scored: for each episode of the update, False if its reward function failed.
        epsilon: ε.
        groups: for each episode of the update, the number of its group. Each group then has its own divisor,
            and `values` must contain all episodes. None: one divisor for all groups.
    """
    if groups is not None:
        return _standardize_groups(values, returns, baseline, scored, groups, epsilon)
    scored_returns = returns.where(scored, torch.zeros_like(returns))
    squares = ((returns - baseline) ** 2).where(scored, torch.zeros_like(returns))
    spread = (squares.sum() / scored.sum().clamp(min=1)).sqrt()
    has_spread = spread > epsilon * scored_returns.abs().sum() / scored.sum().clamp(min=1)
    return torch.where(has_spread, values / (spread + epsilon), torch.zeros_like(values))


def _standardize_groups(
    values: Float[Tensor, "episode token"],
    returns: Float[Tensor, " episode"],
    baseline: Float[Tensor, " episode"],
    scored: Bool[Tensor, " episode"],
    groups: Int[Tensor, " episode"],
    epsilon: float,
) -> Float[Tensor, "episode token"]:
    """Divide the advantages of each group by the divisor of the group; see `standardize`."""
    spread = group_mean((returns - baseline) ** 2, groups, scored).sqrt()
    has_spread = (spread > epsilon * group_mean(returns.abs(), groups, scored))[:, None]
    return torch.where(has_spread, values / (spread + epsilon)[:, None], torch.zeros_like(values))
