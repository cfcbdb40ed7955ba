"""Baselines: what an episode's return is compared with, b(s_t), one word each in a recipe.

A baseline that does not depend on the actions it judges leaves the expected gradient as it is and can
take away much of its variance (Williams 1992; Sutton & Barto 2018, section 13.4). Those here give one
number an episode, constant along it; `value`, which goes from token to token, is in
`value_advantages.py`. `UNBIASED` says which leave the expectation untouched:

| name | b for episode i | expected gradient |
|---|---|---|
| `none` | 0 | ∇J |
| `batch_mean` | mean return of all N scored episodes, its own included | ∇J pulled towards (1 - 1/N) ∇J |
| `moving_average` | discounted mean return of the updates before | ∇J |
| `group_mean` | mean return of the n scored episodes of its problem, its own included | (1 - 1/n) ∇J |
| `leave_one_out` | mean return of the other n - 1 scored episodes of its problem | ∇J |
| `optimal` | the same mean, each return weighted by the squared norm of its episode's score | ∇J |
| `greedy` | return of the greedy completion of its problem | ∇J |
| `value` | V(s_t), learned from the updates before; its own at each action | ∇J with λ = 1 |

The factors (1 - 1/N) and (1 - 1/n) are exact for γ = 1. All but `value` take `returns` (g_0 of each
episode), `groups` (equal numbers mark the episodes of one problem) and `scored` (False: the reward
failed; such an episode is in no mean) and give zero where there is nothing to compare with. The last
three of them give an episode that has nobody to be compared with its own return, see `leave_one_out`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CONSTANT_BASELINES = (  # one number an episode
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
    """The mean return of past updates, exponentially forgotten; `weight` is 1 - decay^updates.

    `total / weight` is the bias-corrected average, as Adam corrects its moments (Kingma & Ba 2015).
    """

    total: float = 0.0
    weight: float = 0.0

    @property
    def value(self) -> float:
        """The average; 0 before the first update, when there is no past."""
        return self.total / self.weight if self.weight > 0 else 0.0

    def updated(self, mean_return: float, decay: float) -> "MovingAverage":
        """The average after one more update, whose scored episodes had this mean return."""
        return MovingAverage(
            total=decay * self.total + (1 - decay) * mean_return,
            weight=decay * self.weight + (1 - decay),
        )


def batch_mean(
    returns: Float[Tensor, " episode"], scored: Bool[Tensor, " episode"]
) -> Float[Tensor, " episode"]:
    """b_i = (1/N) Σ_j g_j over all scored episodes j of the batch, i included: biased, see above."""
    count = scored.sum().clamp(min=1)
    mean = returns.where(scored, torch.zeros_like(returns)).sum() / count
    return mean.expand_as(returns)


def _group_sums(
    returns: Float[Tensor, " episode"], groups: Int[Tensor, " episode"], scored: Bool[Tensor, " episode"]
) -> tuple[Float[Tensor, " episode"], Float[Tensor, " episode"]]:
    """For each episode: the sum of the scored returns of its group, and their number."""
    _, group_index = torch.unique(groups, return_inverse=True)
    num_groups = int(group_index.max()) + 1 if len(groups) else 0
    valid = scored.to(returns.dtype)
    sums = returns.new_zeros(num_groups).index_add_(0, group_index, returns.where(scored, 0 * valid))
    counts = returns.new_zeros(num_groups).index_add_(0, group_index, valid)
    return sums[group_index], counts[group_index]


def group_mean(
    returns: Float[Tensor, " episode"], groups: Int[Tensor, " episode"], scored: Bool[Tensor, " episode"]
) -> Float[Tensor, " episode"]:
    """b_i = (1/n) Σ_{j in group of i} g_j, i included: biased, see above. Shao et al. 2024 (GRPO)."""
    sums, counts = _group_sums(returns, groups, scored)
    return sums / counts.clamp(min=1)


def leave_one_out(
    returns: Float[Tensor, " episode"], groups: Int[Tensor, " episode"], scored: Bool[Tensor, " episode"]
) -> Float[Tensor, " episode"]:
    """b_i = 1/(n-1) Σ_{j in group of i, j ≠ i} g_j: unbiased. Kool et al. 2019; Ahmadian et al. 2024 (RLOO).

    An episode that is alone in its group has nobody to be compared with. Its own return is given as its
    baseline, so that with γ = 1 it moves the policy nowhere in expectation (and not at all where the only
    reward is the terminal one): without that, its whole return would push. With γ < 1 its later actions
    keep γ^t (g_t - g_0), which is a bias.
    """
    sums, counts = _group_sums(returns, groups, scored)
    others = (sums - returns) / (counts - 1).clamp(min=1)
    return torch.where(counts > 1, others, returns)


class WeightedReturns(NamedTuple):
    """Of each episode: how much its return matters to the gradient's variance, and that return.

    Attributes:
        weights: w = Σ_t γ^{2t} ‖∇ log π(a_t | s_t)‖².
        returns: Σ_t γ^{2t} ‖∇ log π(a_t | s_t)‖² g_t / w, which is g_0 for γ = 1 and a terminal reward;
            0 where w is 0.
    """

    weights: Float[Tensor, " episode"]
    returns: Float[Tensor, " episode"]


def weighted_returns(
    returns: Float[Tensor, "episode token"],
    squared_logit_gradient_norms: Float[Tensor, "episode token"],
    mask: Bool[Tensor, "episode token"],
    discount: float = 1.0,
) -> WeightedReturns:
    """What `optimal` averages: each action's return g_t, weighted by its share in the squared gradient.

    Args:
        squared_logit_gradient_norms: ‖∇ log π(a_t | s_t)‖² of each action.
        mask: True for the actions of scored episodes.
    """
    times = torch.arange(returns.shape[1], device=returns.device, dtype=returns.dtype)
    of_actions = (discount ** (2 * times) * squared_logit_gradient_norms.to(returns.dtype)).masked_fill(
        ~mask, 0.0
    )
    weights = of_actions.sum(dim=1)
    totals = (of_actions * returns.masked_fill(~mask, 0.0)).sum(dim=1)
    return WeightedReturns(weights, torch.where(weights == 0, 0 * totals, totals / weights))


def optimal(
    returns: Float[Tensor, " episode"],
    weighted: WeightedReturns,
    groups: Int[Tensor, " episode"],
    scored: Bool[Tensor, " episode"],
) -> Float[Tensor, " episode"]:
    """The constant baseline of the least variance, estimated from the others of the group: unbiased.

        b* = E[w g] / E[w]        b_i = Σ_{j ≠ i} w_j g_j / Σ_{j ≠ i} w_j

    b* minimises E‖Σ_t γ^t ∇log π(a_t | s_t) (g_t - b)‖² where the scores of different states are orthogonal,
    as they are for a policy whose parameters are its logits: there it is E[Σ_t γ^{2t} ‖∇log π‖² (g_t - b)²]
    (Greensmith, Bartlett & Baxter 2004, here with every action's own return). For any other policy w is a
    stand-in as long as the norms are those in the space of the logits. Where all others have weight 0 the
    plain mean of `leave_one_out` takes its place, and so does what that gives to an episode that is alone.
    """
    of_others = _sums_of_others(weighted.weights, groups, scored)
    # b_i = Σ_{j ≠ i} w_j g_j / Σ_{j ≠ i} w_j
    mean = _sums_of_others(weighted.weights * weighted.returns, groups, scored) / of_others
    return torch.where(of_others == 0, leave_one_out(returns, groups, scored), mean)


def _sums_of_others(
    values: Float[Tensor, " episode"], groups: Int[Tensor, " episode"], scored: Bool[Tensor, " episode"]
) -> Float[Tensor, " episode"]:
    """For each episode the sum over the other scored ones of its group.

    Not the sum of all less its own: rounding would let an episode's own weight back into it.
    """
    is_other = (groups[:, None] == groups) & scored
    is_other.fill_diagonal_(False)
    return torch.where(is_other, values, torch.zeros_like(values)).sum(dim=1)


def greedy(
    returns: Float[Tensor, " episode"], greedy_returns: Float[Tensor, " episode"]
) -> Float[Tensor, " episode"]:
    """b_i = g_0 of the greedy completion of its problem: unbiased. Li et al. 2023 (ReMax).

    Args:
        greedy_returns: by episode; NaN where the greedy completion was not scored. Then there is nothing to
            compare with, and its own return is given, as by `leave_one_out`.
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
    """The baseline of that name for each episode.

    Args:
        weighted: what `optimal` needs.
        greedy_returns: what `greedy` needs.

    Raises:
        ValueError: the name isn't one of `CONSTANT_BASELINES`, or what it needs isn't given.
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
            needed = "weighted returns" if name == "optimal" else "the returns of greedy completions"
            raise ValueError(f"baseline {name!r} needs {needed}")
    raise ValueError(f"unknown baseline {name!r}; there are {', '.join(CONSTANT_BASELINES)}")


def advantages(
    returns: Float[Tensor, "episode token"],
    baseline: Float[Tensor, " episode"],
    mask: Bool[Tensor, "episode token"],
    discount: float = 1.0,
) -> Float[Tensor, "episode token"]:
    """How much better than its baseline each action did, as the gradient of J = E[Σ γ^t r_{t+1}] weighs it.

        A_t = γ^t (g_t - b(s_t))

    The γ^t belongs to the gradient (Sutton & Barto 2018, section 13.3). Leaving it out, as is common,
    gives the gradient of no objective (Nota & Thomas 2020). With γ = 1 it is gone. `mask` is True for the
    actions of scored episodes; elsewhere the advantage is zero.
    """
    weights = discount ** torch.arange(returns.shape[1], device=returns.device, dtype=returns.dtype)
    return (weights * (returns - baseline[:, None])).masked_fill(~mask, 0.0)


def standardize(
    values: Float[Tensor, "episode token"],
    returns: Float[Tensor, " everyone"],
    baseline: Float[Tensor, " everyone"],
    scored: Bool[Tensor, " everyone"],
    epsilon: float = 1e-6,
) -> Float[Tensor, "episode token"]:
    """Advantages divided by one number for the batch: the spread of returns about their baselines.

        A_t / (sqrt(mean_i (g_0^i - b^i)²) + ε)

    The direction of the update stays, its length no longer depends on how large rewards are. The
    expectation changes (the divisor depends on the actions), so this is biased whatever the baseline.
    A batch where every return equals its baseline, but for rounding, compares nothing and gives zeros: with
    γ < 1 or step rewards later actions still have advantages there, and ε alone would make them huge.

    Args:
        values: A_t, of some of the update's episodes or of all.
        returns, baseline, scored: of all of them; of the baseline `value` its first, V(s_0).
    """
    scored_returns = returns.where(scored, torch.zeros_like(returns))
    squares = ((returns - baseline) ** 2).where(scored, torch.zeros_like(returns))
    spread = (squares.sum() / scored.sum().clamp(min=1)).sqrt()
    has_spread = spread > epsilon * scored_returns.abs().sum() / scored.sum().clamp(min=1)
    return torch.where(has_spread, values / (spread + epsilon), torch.zeros_like(values))
