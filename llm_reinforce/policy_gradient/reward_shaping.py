"""Reward shaping: a penalty on long episodes, and rewards standardized within the episodes of a problem."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def length_penalties(
    lengths: Int[Tensor, " episode"], start: int, longest: int, penalty: float
) -> Float[Tensor, " episode"]:
    """Return the length penalty of each episode, which is to be subtracted from its reward.

        penalty · clip((T - start) / (longest - start), 0, 1)

    Source: Yu et al. 2025 (DAPO), equation 13, where the penalty is 1.

    Args:
        lengths: number of actions T of each episode.
        start: episodes of at most this length have no penalty.
        longest: length with the full penalty, above `start`.
        penalty: the full penalty.
    """
    return penalty * ((lengths - start) / (longest - start)).clamp(0.0, 1.0)


def group_standardized(
    values: Float[Tensor, " episode"], groups: Int[Tensor, " episode"], given: Bool[Tensor, " episode"]
) -> Float[Tensor, " episode"]:
    """Subtract from each value the mean of its group, and divide by the standard deviation of the group.

        (r_i - m) / s        m = (1/n) Σ_j r_j,  s² = (1/n) Σ_j (r_j - m)²

    The sums are over those values of the group for which `given` is True. The result is 0 if these values are
    all equal, and where `given` is False.

    Source: Liu et al. 2026 (GDPO), equation 4.
    """
    _, index = torch.unique(groups, return_inverse=True)
    num_groups = int(index.max()) + 1 if len(groups) else 0

    def means(numbers: Tensor) -> Tensor:
        sums = numbers.new_zeros(num_groups).index_add_(0, index, numbers.masked_fill(~given, 0.0))
        counts = numbers.new_zeros(num_groups).index_add_(0, index, given.to(numbers.dtype))
        return (sums / counts.clamp(min=1))[index]

    exact = values.double()
    differences = exact - means(exact)
    spread = means(differences.square()).sqrt()
    # the mean of equal values may have a rounding error
    is_used = given & (spread > 1e-9 * means(exact.abs()))
    return torch.where(is_used, differences / spread, 0.0).to(values.dtype)
