"""Collect episodes: sample completions of problems, verify their answers and compute their rewards."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from llm_reinforce.config import LengthPenaltyConfig
from llm_reinforce.episodes.credit import step_rewards_by_token
from llm_reinforce.episodes.episode import Episode, EpisodeBatch
from llm_reinforce.policy import (
    Activations,
    Completion,
    LanguagePolicy,
    OnStep,
    TokenIds,
    sample_completions,
)
from llm_reinforce.policy_gradient import length_penalties
from llm_reinforce.problems import Problem, judge_all
from llm_reinforce.rewards import JudgedCompletion, Progress, WeightedReward, combine_rewards


def collect_episodes(
    policy: LanguagePolicy,
    problems: Sequence[Problem],
    rewards: Sequence[WeightedReward],
    *,
    episodes_per_problem: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
    first_group: int = 0,
    progress: Progress | None = None,
    with_greedy: bool = False,
    activations: Activations | None = None,
    on_step: OnStep | None = None,
    length_penalty: LengthPenaltyConfig | None = None,
    sample: Callable[..., list[Completion]] = sample_completions,
) -> EpisodeBatch:
    """Sample, verify and reward `episodes_per_problem` episodes of each problem.

    Args:
        policy: the policy.
        problems: the problems.
        rewards: reward functions with their weights.
        episodes_per_problem: number of episodes of each problem.
        max_new_tokens: maximum number of tokens of a completion.
        temperature: divisor of the logits.
        generator: source of random numbers, on the CPU or on the device of the policy.
        batch_size: maximum number of completions sampled at once. None: no limit.
        first_group: number of the group of the first problem. The next groups are numbered consecutively.
        progress: progress of the run, which reward functions receive as `trainer_state`.
        with_greedy: also sample one greedy completion of each problem. The reward functions are called
            separately on the greedy completions.
        activations: store for the activations of the sampled episodes. Activations of greedy completions are
            not stored. None: do not store activations.
        on_step: function that is called after each step of the sampler with the number of completions that
            have ended and the number of sampled tokens. It is not called for greedy completions.
        length_penalty: penalty on long completions, which is subtracted from the reward. None: no penalty.
        sample: function that samples the completions, with the parameters of `sample_completions`.

    Returns:
        episodes in the order of the problems; the episodes of one problem are adjacent.
    """
    prompts = policy.encode_prompts([problem.policy_prompt for problem in problems])

    def collected(num: int, *, greedy: bool) -> tuple[tuple[Episode, ...], Mapping[str, float]]:
        completions = sample(
            policy,
            prompts,
            num_completions=num,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            greedy=greedy,
            generator=generator,
            batch_size=batch_size,
            activations=None if greedy else activations,
            on_step=None if greedy else on_step,
        )
        penalties = None
        if length_penalty is not None:
            lengths = torch.tensor([len(each.token_ids) for each in completions])
            penalties = length_penalties(
                lengths, length_penalty.from_, max_new_tokens, length_penalty.penalty
            ).tolist()
        return _rewarded(
            policy, problems, prompts, completions, num, rewards, progress, first_group, penalties
        )

    episodes, logged = collected(episodes_per_problem, greedy=False)
    # metrics that reward functions log for greedy completions are discarded
    greedy = collected(1, greedy=True)[0] if with_greedy else ()
    return EpisodeBatch.of(episodes, logged, greedy)


def _rewarded(
    policy: LanguagePolicy,
    problems: Sequence[Problem],
    prompts: Sequence[TokenIds],
    completions: Sequence[Completion],
    num_completions: int,
    rewards: Sequence[WeightedReward],
    progress: Progress | None,
    first_group: int,
    penalties: Sequence[float] | None,
) -> tuple[tuple[Episode, ...], Mapping[str, float]]:
    """Verify and reward completions; return the episodes and the metrics that reward functions logged."""
    problem_of = [problems[index // num_completions] for index in range(len(completions))]
    verdicts = judge_all(
        [
            (one.text, problem, not one.terminated)
            for one, problem in zip(completions, problem_of, strict=True)
        ]
    )
    judged = [
        JudgedCompletion(problem, completion.text, completion.token_ids, verdict)
        for problem, completion, verdict in zip(problem_of, completions, verdicts, strict=True)
    ]
    combined = combine_rewards(
        judged,
        rewards,
        conversational=policy.uses_chat_template,
        progress=progress,
        penalties=penalties,
    )
    episodes = tuple(
        Episode(
            problem=one.problem,
            group=first_group + index // num_completions,
            prompt_ids=prompts[index // num_completions],
            completion=completion,
            verdict=verdicts[index],
            rewards=scored.parts,
            reward=scored.total,
            step_rewards=step_rewards_by_token(
                scored.steps,
                completion.text,
                completion.token_ids,
                partial(policy.completion_text, prompts[index // num_completions]),
            ),
            failures=scored.failures,
            traceback=scored.traceback,
            extras=scored.extras,
            reward_weights=combined.weights,
        )
        for index, (one, completion, scored) in enumerate(
            zip(judged, completions, combined.scored, strict=True)
        )
    )
    return episodes, combined.metrics
