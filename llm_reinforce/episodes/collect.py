"""Collect episodes: the policy answers problems, the answers are judged and rewarded."""

from collections.abc import Mapping, Sequence

import torch

from llm_reinforce.episodes.credit import lay_on_tokens
from llm_reinforce.episodes.episode import Episode, EpisodeBatch
from llm_reinforce.policy import Activations, Completion, LanguagePolicy, TokenIds, sample_completions
from llm_reinforce.problems import Problem, judge
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
) -> EpisodeBatch:
    """Sample, judge and reward `episodes_per_problem` episodes of each problem.

    Args:
        first_group: the group number of the first problem; the others count on from it.
        progress: where the run is, for reward functions with TRL's signature.
        with_greedy: complete each problem greedily as well, once, rewarded by a call of its own.
        activations: where what is computed as the episodes are sampled is kept; not of the greedy ones.

    Returns:
        the episodes in the order of the problems, those of one problem next to each other.
    """
    prompts = policy.encode_prompts([problem.prompt for problem in problems])

    def collected(num: int, *, greedy: bool) -> tuple[tuple[Episode, ...], Mapping[str, float]]:
        completions = sample_completions(
            policy,
            prompts,
            num_completions=num,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            greedy=greedy,
            generator=generator,
            batch_size=batch_size,
            activations=None if greedy else activations,
        )
        return _rewarded(policy, problems, prompts, completions, num, rewards, progress, first_group)

    episodes, logged = collected(episodes_per_problem, greedy=False)
    # what the functions log of the greedy ones is not mixed into what they logged of the others
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
) -> tuple[tuple[Episode, ...], Mapping[str, float]]:
    """The completions judged and rewarded, and what the reward functions logged of all of them."""
    problem_of = [problems[index // num_completions] for index in range(len(completions))]
    verdicts = [judge(one.text, problem) for one, problem in zip(completions, problem_of, strict=True)]
    asked = [
        JudgedCompletion(problem, completion.text, completion.token_ids, verdict)
        for problem, completion, verdict in zip(problem_of, completions, verdicts, strict=True)
    ]
    scores = combine_rewards(asked, rewards, conversational=policy.uses_chat_template, progress=progress)
    episodes = tuple(
        Episode(
            problem=one.problem,
            group=first_group + index // num_completions,
            prompt_ids=prompts[index // num_completions],
            completion=completion,
            verdict=verdicts[index],
            rewards=scored.parts,
            reward=scored.total,
            step_rewards=lay_on_tokens(scored.steps, completion.text, completion.token_ids, policy.decode),
            failures=scored.failures,
            traceback=scored.traceback,
            extras=scored.extras,
        )
        for index, (one, completion, scored) in enumerate(zip(asked, completions, scores.scored, strict=True))
    )
    return episodes, scores.metrics
