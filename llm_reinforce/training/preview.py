"""A few episodes of a run before it is trained, and what the run would be."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llm_reinforce.config import Config
from llm_reinforce.episodes import Episode, collect_episodes
from llm_reinforce.errors import InputError
from llm_reinforce.policy import describe_policy
from llm_reinforce.runs import TrainState
from llm_reinforce.training.budget import expected_updates
from llm_reinforce.training.loop import TrainingLoop


@dataclass(frozen=True, slots=True)
class Preview:
    """A run before its first update; nothing was trained and no file was written.

    Attributes:
        policy: the architecture of the policy, its number of parameters and its end tokens.
        device: device of the policy.
        num_training, num_held_out: numbers of problems.
        rewards: name and weight of each reward function.
        num_updates: expected number of updates; with a budget of tokens an estimate from these episodes.
        episodes: a few episodes, those of one problem next to each other.
        reward_error: the error of a reward function that failed on all trial episodes; None if there is none.
    """

    policy: str
    device: str
    num_training: int
    num_held_out: int
    rewards: Sequence[tuple[str, float]]
    num_updates: int
    episodes: Sequence[Episode]
    reward_error: str | None


def preview_run(loop: TrainingLoop, config: Config, *, num_problems: int, num_episodes: int) -> Preview:
    """Sample episodes of the first training problems, and call every reward function.

    Args:
        loop: the training loop of the run.
        config: all settings of the run.
        num_problems: number of problems.
        num_episodes: number of episodes per problem.
    """
    batch = collect_episodes(
        loop.policy,
        loop.problems[:num_problems],
        loop.rewards,
        episodes_per_problem=num_episodes,
        max_new_tokens=config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        generator=torch.Generator(loop.policy.device).manual_seed(config.seed),
    )
    try:
        loop.try_rewards()
        reward_error = None
    except InputError as error:
        reward_error = str(error)
    shape = config.reinforce
    per_update = float(batch.lengths.float().mean()) * shape.problems_per_update * shape.episodes_per_problem
    return Preview(
        policy=describe_policy(loop.policy),
        device=str(loop.policy.device),
        num_training=len(loop.problems),
        num_held_out=len(loop.held_out),
        rewards=[(reward.name, reward.weight) for reward in loop.rewards],
        num_updates=expected_updates(config.training, TrainState(1, num_tokens=max(1, round(per_update)))),
        episodes=batch.episodes,
        reward_error=reward_error,
    )
