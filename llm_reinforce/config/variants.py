"""Published objectives as settings of the section `reinforce`."""

from collections.abc import Mapping
from typing import Any, Literal

Variant = Literal["reinforce", "rloo", "remax", "ppo", "grpo", "dr_grpo", "dapo", "cispo"]

_PPO = {"form": "ppo", "low": 0.2, "high": 0.2}

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "reinforce": {"baseline": "none", "standardize": False, "denominator": "episodes"},
    "rloo": {"baseline": "leave_one_out", "standardize": False, "denominator": "episodes"},
    "remax": {"baseline": "greedy", "standardize": False, "denominator": "episodes"},
    "ppo": {"baseline": "batch_mean", "standardize": "batch", "denominator": "tokens", "clip": _PPO},
    "grpo": {
        "baseline": "group_mean",
        "standardize": "group",
        "denominator": "episode_lengths",
        "clip": _PPO,
    },
    "dr_grpo": {"baseline": "group_mean", "standardize": False, "denominator": "episodes", "clip": _PPO},
    "dapo": {
        "baseline": "group_mean",
        "standardize": "group",
        "denominator": "tokens",
        "clip": {"form": "ppo", "low": 0.2, "high": 0.28},
    },
    "cispo": {
        "baseline": "group_mean",
        "standardize": "group",
        "denominator": "tokens",
        "clip": {"form": "cispo", "low": 1.0, "high": 4.0},
    },
}
"""Settings of each value of `reinforce.variant`.

The user can change the bounds `low` and `high` of `clip`, but not its `form`. `clip` is used only with
several updates per batch.

Sources: Williams 1992 (reinforce); Ahmadian et al. 2024 (rloo); Li et al. 2023 (remax); Schulman et al. 2017,
without a critic (ppo); Shao et al. 2024 (grpo); Liu et al. 2025 (dr_grpo); Yu et al. 2025 (dapo);
MiniMax 2025 (cispo), with the upper bound of Khatri et al. 2025.
"""
