"""Preview of a run: the size of the run, and a few episodes of the policy before training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from llm_reinforce.episodes import Episode, collect_episodes
from llm_reinforce.errors import InputError
from llm_reinforce.policy import describe_policy, first_prompt
from llm_reinforce.server import ServerError
from llm_reinforce.training.data_parallel import describe_processes
from llm_reinforce.training.loop import TrainingLoop
from llm_reinforce.training.memory import MemoryPrediction, memory_in_use, predict_memory
from llm_reinforce.training.run_checks import try_rewards


@dataclass(frozen=True, slots=True)
class Preview:
    """Description of a run that has not been started, with a few episodes.

    Attributes:
        policy: one line with the architecture of the policy, its number of parameters and its end tokens.
        device: device of the policy, and the numbers of processes and threads.
        num_training, num_held_out: numbers of training problems and of held-out problems, respectively.
        prompt: prompt of the first training problem as the policy reads it, with special tokens.
        rewards: name and weight of each reward function.
        num_updates: expected number of updates. With a budget of tokens, this number is estimated from the
            lengths of `episodes`.
        episodes: a few episodes of the training problems. The episodes of one problem are adjacent.
        memory: prediction of the peak memory of this process.
        reward_error: error message of a reward function that failed on all trial episodes. None if there is
            no such function.
        server: one line about the model that the server of the run serves. None if there is no server, or if
            `server_error` is set.
        server_error: error message about the server. None if there is no error.
    """

    policy: str
    device: str
    num_training: int
    num_held_out: int
    prompt: str
    rewards: Sequence[tuple[str, float]]
    num_updates: int
    episodes: Sequence[Episode]
    memory: MemoryPrediction
    reward_error: str | None
    server: str | None = None
    server_error: str | None = None


def preview_run(loop: TrainingLoop, *, num_problems: int, num_episodes: int) -> Preview:
    """Sample episodes of the first training problems, call every reward function, and describe the run.

    Nothing is trained and no file is written. The episodes of the preview are always sampled in this process.
    If the run uses a server, the server is only asked which model it serves.

    Args:
        loop: the training loop of the run.
        num_problems: number of training problems for which episodes are sampled.
        num_episodes: number of episodes per problem.
    """
    memory = predict_memory(loop, memory_in_use(loop.policy.device))
    batch = collect_episodes(
        loop.policy,
        loop.problems[:num_problems],
        loop.rewards,
        episodes_per_problem=num_episodes,
        max_new_tokens=loop.sampling.max_new_tokens,
        temperature=loop.sampling.temperature,
        generator=torch.Generator(loop.policy.device).manual_seed(loop.seed),
        length_penalty=loop.reinforce.length_penalty,
    )
    reward_error = server = server_error = None
    try:
        try_rewards(replace(loop.sampler, server=None), loop.state, loop.display.say)
    except InputError as error:
        reward_error = str(error)
    try:
        server = loop.sampler.check_server()
    except ServerError as error:
        server_error = f"sampling.server: {error}"
    shape = loop.reinforce
    per_batch = float(batch.lengths.float().mean()) * shape.problems_per_update * shape.episodes_per_problem
    expected = loop.training.expected_updates(shape.updates_per_batch, max(1, round(per_batch)))
    return Preview(
        policy=describe_policy(loop.policy),
        device=describe_processes(loop.accelerator),
        num_training=len(loop.problems),
        num_held_out=len(loop.held_out),
        prompt=first_prompt(loop.policy, loop.problems),
        rewards=[(reward.name, reward.weight) for reward in loop.rewards],
        num_updates=shape.in_whole_batches(expected),
        episodes=batch.episodes,
        memory=memory,
        reward_error=reward_error,
        server=server,
        server_error=server_error,
    )
