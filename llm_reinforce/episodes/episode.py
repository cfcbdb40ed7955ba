"""An episode: where state, action and reward meet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_reinforce.policy import Completion, TokenIds
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import join_failures
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
        return join_failures(self.failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeBatch:
    """The episodes of one update, and what the equations need of them as tensors on the CPU.

    Built by `EpisodeBatch.of(episodes)`, which checks nothing and computes each tensor once.

    Attributes:
        episodes: the sampled episodes; all tensors are about them.
        logged: the numbers that reward functions logged of the batch as a whole, by name.
        greedy: the greedy completion of each problem as an episode of its group, if there are any.
        lengths: T, the number of actions of each episode, its end token included.
        groups: equal numbers mark the episodes of one problem.
        scored: False if the reward failed: such an episode is left out of baseline and loss.
        terminal_rewards: r_T; zero where unscored.
        step_rewards: r_{t+1} of each action, without the terminal reward; None if no episode has any.
        behavior_log_probs: log π(a_t | s_t) as recorded at sampling; zero in padding.
    """

    episodes: Sequence[Episode]
    logged: Mapping[str, float]
    greedy: Sequence[Episode]
    lengths: Int[Tensor, " episode"]
    groups: Int[Tensor, " episode"]
    scored: Bool[Tensor, " episode"]
    terminal_rewards: Float[Tensor, " episode"]
    step_rewards: Float[Tensor, "episode token"] | None
    behavior_log_probs: Float[Tensor, "episode token"]

    @classmethod
    def of(
        cls,
        episodes: Sequence[Episode],
        logged: Mapping[str, float] | None = None,
        greedy: Sequence[Episode] = (),
    ) -> "EpisodeBatch":
        """Return the batch of these episodes, with its tensors."""
        has_steps = any(episode.step_rewards for episode in episodes)
        return cls(
            episodes=episodes,
            logged=logged or {},
            greedy=greedy,
            lengths=torch.tensor(
                [len(episode.completion.token_ids) for episode in episodes], dtype=torch.long
            ),
            groups=torch.tensor([episode.group for episode in episodes], dtype=torch.long),
            scored=torch.tensor([episode.reward is not None for episode in episodes], dtype=torch.bool),
            terminal_rewards=torch.tensor([float(episode.reward or 0.0) for episode in episodes]),
            step_rewards=_padded([episode.step_rewards for episode in episodes], episodes)
            if has_steps
            else None,
            behavior_log_probs=_padded([episode.completion.log_probs for episode in episodes], episodes),
        )

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def num_tokens(self) -> int:
        """All actions that were taken for this batch, those of greedy completions included."""
        return sum(len(episode.completion.token_ids) for episode in (*self.episodes, *self.greedy))

    def squared_logit_gradient_norms(self) -> Float[Tensor, "episode token"]:
        """Return ‖∂ log π(a_t | s_t) / ∂z‖² as recorded at sampling; zero in padding.

        A method, since only `baseline: optimal` needs it.

        Raises:
            ValueError: a completion has none, because it was not sampled by `sample_completions`.
        """
        rows = [episode.completion.squared_logit_gradient_norms for episode in self.episodes]
        if any(len(row) != len(e.completion.token_ids) for row, e in zip(rows, self.episodes, strict=True)):
            raise ValueError("the squared gradient norms were not recorded when the episodes were sampled")
        return _padded(rows, self.episodes)


def _padded(rows: Sequence[Sequence[float]], episodes: Sequence[Episode]) -> Float[Tensor, "episode token"]:
    """Return the rows as float32, padded with zeros to the longest episode."""
    width = max((len(episode.completion.token_ids) for episode in episodes), default=0)
    # through numpy: one tensor per row takes longer than a small policy's forward pass
    padded = np.asarray([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=np.float64)
    return torch.from_numpy(padded.reshape(len(episodes), width)).float()
