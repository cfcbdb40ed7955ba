"""An episode: where state, action and reward meet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_reinforce.policy import Completion, TokenIds
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import failures_in_a_line
from llm_reinforce.verifier import Verdict


@dataclass(frozen=True, slots=True)
class Episode:
    """One completion of one problem, judged and rewarded.

    Attributes:
        group: equal for the episodes of one problem in an update.
        prompt_ids: the initial state s_0.
        verdict: right or wrong, whatever the reward says.
        rewards: each reward function's value by name, unweighted; that of step rewards is their sum.
        reward: the terminal reward r_T, the weighted sum of those at the end; None: unscored.
        step_rewards: r_{t+1} of each action, weighted and without the terminal reward; empty: none.
        failures: why it is unscored, by the reward function's name, for people to read.
        traceback: of the first failure.
        extras: what reward functions logged of this episode.
    """

    problem: Problem
    group: int
    prompt_ids: TokenIds
    completion: Completion
    verdict: Verdict
    rewards: Mapping[str, float | None]
    reward: float | None
    step_rewards: tuple[float, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    traceback: str = ""
    extras: Mapping[str, object] = field(default_factory=dict)

    @property
    def total_reward(self) -> float | None:
        """Terminal and step rewards together, the undiscounted return g_0; None: unscored."""
        return None if self.reward is None else self.reward + sum(self.step_rewards)

    @property
    def failure(self) -> str | None:
        """All that went wrong, in a line; None when nothing did."""
        return failures_in_a_line(self.failures)


@dataclass(frozen=True, slots=True)
class EpisodeBatch:
    """The episodes of one update, and the numbers of them that the equations take (on the CPU).

    Attributes:
        episodes: those that were sampled; all tensors here are of them.
        logged: the numbers that reward functions gave of the batch as a whole, by name.
        greedy: the greedy completion of each problem as an episode of its group, where it was asked for.
    """

    episodes: Sequence[Episode]
    logged: Mapping[str, float] = field(default_factory=dict)
    greedy: Sequence[Episode] = ()

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def lengths(self) -> Int[Tensor, " episode"]:
        """T, the number of actions of each episode, its end token included."""
        return torch.tensor(
            [len(episode.completion.token_ids) for episode in self.episodes], dtype=torch.long
        )

    @property
    def num_tokens(self) -> int:
        """All actions that were taken for this batch, those of greedy completions too."""
        return sum(len(episode.completion.token_ids) for episode in (*self.episodes, *self.greedy))

    @property
    def groups(self) -> Int[Tensor, " episode"]:
        """Equal numbers mark the episodes of one problem."""
        return torch.tensor([episode.group for episode in self.episodes], dtype=torch.long)

    @property
    def scored(self) -> Bool[Tensor, " episode"]:
        """False where the reward failed: such an episode stays out of baseline and loss."""
        return torch.tensor([episode.reward is not None for episode in self.episodes], dtype=torch.bool)

    @property
    def terminal_rewards(self) -> Float[Tensor, " episode"]:
        """r_T; zero where unscored."""
        return torch.tensor([float(episode.reward or 0.0) for episode in self.episodes])

    @property
    def step_rewards(self) -> Float[Tensor, "episode token"] | None:
        """r_{t+1} of each action, without the terminal reward; None where no episode has any."""
        if not any(episode.step_rewards for episode in self.episodes):
            return None
        return self._padded([episode.step_rewards for episode in self.episodes])

    @property
    def behavior_log_probs(self) -> Float[Tensor, "episode token"]:
        """log π(a_t | s_t) as recorded at sampling; zero in padding."""
        return self._padded([episode.completion.log_probs for episode in self.episodes])

    @property
    def squared_score_norms(self) -> Float[Tensor, "episode token"]:
        """‖∂ log π(a_t | s_t) / ∂z‖² as recorded at sampling; zero in padding.

        Raises:
            ValueError: a completion has none, since it was not sampled by `sample_completions`.
        """
        rows = [episode.completion.squared_score_norms for episode in self.episodes]
        if any(len(row) != len(e.completion.token_ids) for row, e in zip(rows, self.episodes, strict=True)):
            raise ValueError("the squared norms of the scores weren't recorded as the episodes were sampled")
        return self._padded(rows)

    def _padded(self, rows: Sequence[Sequence[float]]) -> Float[Tensor, "episode token"]:
        """The rows filled up with zeros to the longest episode, float32."""
        width = max(len(episode.completion.token_ids) for episode in self.episodes)
        # one tensor of all, by way of numpy: a tensor a row takes longer than a small policy's forward pass
        return torch.from_numpy(np.asarray([[*row, *[0.0] * (width - len(row))] for row in rows])).float()
