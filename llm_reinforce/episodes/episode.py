"""Episodes: problems with sampled completions, verdicts and rewards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_reinforce.errors import InputError
from llm_reinforce.policy import Completion, TokenIds
from llm_reinforce.policy_gradient import group_standardized
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import join_failures
from llm_reinforce.verifier import Verdict


@dataclass(frozen=True, slots=True)
class Episode:
    """A completion of a problem with its verdict and rewards.

    Attributes:
        problem: the problem.
        group: number shared by the episodes of one problem in an update.
        prompt_ids: tokens of the initial state s_0.
        completion: the sampled completion.
        verdict: verdict of the verifier, which does not depend on the reward. None if the problem has no
            reference answer.
        rewards: unweighted value of each reward function, by the name of the function. If a function returned
            step rewards, the value is the sum of the step rewards.
        reward: terminal reward r_T, the weighted sum of all rewards except step rewards. None: the episode is
            unscored, because a reward function failed or all reward functions returned None.
        step_rewards: weighted step reward r_{t+1} of each action, without the terminal reward. Empty if there
            are no step rewards.
        failures: error message of each reward function that failed, by the name of the function.
        traceback: traceback of the first failure; empty if there is none.
        extras: values that reward functions logged for this episode, by the name given by the function.
        reward_weights: weight of each entry of `rewards` in the sum.
        reference_log_probs: log π_ref(a_t | s_t) of each action. Empty if there is no reference policy.
    """

    problem: Problem
    group: int
    prompt_ids: TokenIds
    completion: Completion
    verdict: Verdict | None
    rewards: Mapping[str, float | None]
    reward: float | None
    step_rewards: tuple[float, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    traceback: str = ""
    extras: Mapping[str, object] = field(default_factory=dict)
    reward_weights: Mapping[str, float] = field(default_factory=dict)
    reference_log_probs: tuple[float, ...] = ()

    @property
    def total_reward(self) -> float | None:
        """Undiscounted return g_0: the sum of terminal and step rewards. None if the episode is unscored."""
        return None if self.reward is None else self.reward + sum(self.step_rewards)

    @property
    def failure(self) -> str | None:
        """All error messages in `failures` as one line of text, or None if no reward function failed."""
        return join_failures(self.failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeBatch:
    """The episodes of an update, and their rewards and log-probabilities as tensors on the CPU.

    Use `EpisodeBatch.of(episodes)` to build a batch.

    Attributes:
        episodes: sampled episodes. The tensors describe these episodes.
        logged: numbers that reward functions logged for the whole batch, by the name given by the function.
        greedy: one episode per group, with the greedy completion of the group's problem. Empty if no greedy
            completions were sampled.
        lengths: number of actions T of each episode, including the end token.
        groups: group number of each episode, shared by the episodes of one problem.
        scored: False for unscored episodes, which are excluded from the baseline and the loss.
        terminal_rewards: r_T; zero if unscored.
        step_rewards: step reward r_{t+1} of each action, without the terminal reward; None if no episode has
            step rewards.
        behavior_log_probs: log π(a_t | s_t) recorded when the actions were sampled; zero in padding.
        reference_log_probs: log π_ref(a_t | s_t); zero in padding. None if there is no reference policy.
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
    reference_log_probs: Float[Tensor, "episode token"] | None = None

    @classmethod
    def of(
        cls,
        episodes: Sequence[Episode],
        logged: Mapping[str, float] | None = None,
        greedy: Sequence[Episode] = (),
    ) -> "EpisodeBatch":
        """Build a batch from episodes.

        Args:
            episodes: the sampled episodes.
            logged: numbers that reward functions logged for the whole batch, by the name given by the
                function.
            greedy: greedy completions as episodes, one per group.
        """
        has_steps = any(episode.step_rewards for episode in episodes)
        has_reference = bool(episodes) and all(episode.reference_log_probs for episode in episodes)
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
            reference_log_probs=_padded([episode.reference_log_probs for episode in episodes], episodes)
            if has_reference
            else None,
        )

    def __len__(self) -> int:
        return len(self.episodes)

    def part(self, rows: Int[Tensor, " row"]) -> "EpisodeBatch":
        """Return the episodes in the given rows as a batch without logged numbers or greedy completions."""
        return EpisodeBatch.of([self.episodes[row] for row in rows.tolist()])

    def rows_of_update(self, number: int, num_updates: int) -> Int[Tensor, " row"]:
        """Return the rows (episodes) of this batch that belong to one of the updates that share the batch.

        `number` is the index of the update, and `num_updates` is the number of updates that share the batch.
        All episodes of a group belong to the same update. Group g belongs to update g mod `num_updates`.
        Therefore, the groups of an update do not depend on the number of processes.
        """
        return (self.groups % num_updates == number).nonzero().flatten()

    @property
    def num_tokens(self) -> int:
        """Number of tokens sampled for this batch, including those of greedy completions."""
        return sum(len(episode.completion.token_ids) for episode in (*self.episodes, *self.greedy))

    @property
    def terminated(self) -> Bool[Tensor, " episode"]:
        """True for episodes that ended with the end token, False for truncated episodes."""
        return torch.tensor([episode.completion.terminated for episode in self.episodes], dtype=torch.bool)

    def standardized_rewards(self, scored: Bool[Tensor, " episode"]) -> Float[Tensor, " episode"]:
        """Return each episode's weighted sum of rewards, after standardizing each reward within the groups.

        Args:
            scored: True for the episodes that take part in the standardization. The result is zero for all
                other episodes.

        Raises:
            InputError: if an episode has step rewards.
        """
        if self.step_rewards is not None:
            raise InputError(
                "reinforce.standardize_rewards: a reward function returned step rewards, but only rewards of "
                "whole episodes can be standardized; remove this setting, or let the reward function return "
                "a number"
            )
        total = torch.zeros(len(self))
        for name, weight in self.episodes[0].reward_weights.items():
            found = [episode.rewards[name] for episode in self.episodes]
            values = torch.tensor([value or 0.0 for value in found])
            given = scored & torch.tensor([value is not None for value in found])
            total += weight * group_standardized(values, self.groups, given)
        return total

    def squared_logit_gradient_norms(self) -> Float[Tensor, "episode token"]:
        """Return ‖∂ log π(a_t | s_t) / ∂z‖² of each action, where z are the logits; zero in padding.

        These values were recorded when the actions were sampled. The tensor is built only when this method is
        called, because only `baseline: optimal` needs it.

        Raises:
            ValueError: if a completion was not sampled by `sample_completions`.
        """
        rows = [episode.completion.squared_logit_gradient_norms for episode in self.episodes]
        if any(len(row) != len(e.completion.token_ids) for row, e in zip(rows, self.episodes, strict=True)):
            raise ValueError(
                "baseline 'optimal': the squared gradient norms were not recorded when the episodes were "
                "sampled; sample the episodes with sample_completions"
            )
        return _padded(rows, self.episodes)


def _padded(rows: Sequence[Sequence[float]], episodes: Sequence[Episode]) -> Float[Tensor, "episode token"]:
    """Return a float32 tensor with a row per episode, padded with zeros to the longest completion."""
    width = max((len(episode.completion.token_ids) for episode in episodes), default=0)
    # use NumPy, because creating one tensor per row takes longer than the forward pass of a small policy
    padded = np.asarray([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=np.float32)
    return torch.from_numpy(padded.reshape(len(episodes), width))
