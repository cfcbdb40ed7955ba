"""Episodes of one policy for the laboratory, and what estimators compare them with: learned from others."""

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llm_reinforce.config import ReinforceConfig, SamplingConfig
from llm_reinforce.episodes import EpisodeBatch, collect_episodes, estimate_advantages
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy, ValueHead, action_features, fit_values, predict_values
from llm_reinforce.policy_gradient import MovingAverage, action_mask
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import WeightedReward

PATIENCE = 10  # fits of the value head without a gain before it is taken as it was best


@dataclass(frozen=True, slots=True)
class Collected:
    """Episodes of one policy.

    Attributes:
        updates: as many episodes each as an update has; the groups count on from update to update.
        before: the mean return of other episodes, which stands for that of earlier updates.
        values: V(s_t) of each update's actions, learned from other episodes; none: there is no such baseline.
    """

    updates: tuple[EpisodeBatch, ...]
    before: MovingAverage
    values: tuple[Float[Tensor, "episode token"], ...] = ()

    @property
    def batch(self) -> EpisodeBatch:
        """All episodes of all updates."""
        return EpisodeBatch.of([episode for update in self.updates for episode in update.episodes])


def collect_updates(
    policy: LanguagePolicy,
    problems: Sequence[Problem],
    rewards: Sequence[WeightedReward],
    settings: ReinforceConfig,
    sampling: SamplingConfig,
    *,
    num_problems: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Collected:
    """Episodes of `num_problems` problems, drawn with replacement, and as many again before them.

    Those before are what the moving average is the mean of, and what the value head is fitted to.

    Args:
        num_problems: rounded up to whole updates, where it is more than one update has.
        progress: is told how many problems have been answered, of twice their number.

    Raises:
        InputError: no episode could be scored.
    """
    per_update = min(settings.problems_per_update, num_problems)
    num_updates = -(-num_problems // per_update)
    drawing = random.Random(f"laboratory {seed}")
    generator = torch.Generator(policy.device).manual_seed(seed)
    batches = []
    for number in range(2 * num_updates):
        batches.append(
            collect_episodes(
                policy,
                drawing.choices(problems, k=per_update),
                rewards,
                episodes_per_problem=settings.episodes_per_problem,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                generator=generator,
                batch_size=sampling.batch_size,
                first_group=number % num_updates * per_update,
                with_greedy=number >= num_updates,
            )
        )
        progress((number + 1) * num_problems // num_updates)
    before, measured = batches[:num_updates], tuple(batches[num_updates:])
    _check_scored(measured)
    earlier = EpisodeBatch.of([episode for batch in before for episode in batch.episodes])
    plain = settings.model_copy(update={"baseline": "none"})
    average = MovingAverage(estimate_advantages(earlier, plain, MovingAverage()).mean_return or 0.0, 1.0)
    head = fitted_head(policy, earlier, settings, seed)
    return Collected(measured, average, tuple(predicted(policy, head, update) for update in measured))


def _check_scored(updates: Sequence[EpisodeBatch]) -> None:
    if not any(bool(update.scored.any()) for update in updates):
        failures = (episode.failure for update in updates for episode in update.episodes)
        why = next((repr(failure[:400]) for failure in failures if failure), "no reward function applies")
        raise InputError(f"no episode could be scored: {why}")


def fitted_head(
    policy: LanguagePolicy, earlier: EpisodeBatch, settings: ReinforceConfig, seed: int
) -> ValueHead:
    """A value head for `baseline: value`, fitted to the returns of these episodes.

    Training fits it to fresh episodes in every update; here there are these alone, so a quarter of the groups
    is kept back, and what was best on them is taken: else the head would learn the others by heart.
    """
    features, shape = _features(policy, earlier), settings.value
    head = ValueHead(features.shape[-1], hidden_size=shape.hidden_size, seed=seed).to(features.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=shape.learning_rate, weight_decay=0.0)
    plain = settings.model_copy(update={"baseline": "none"})
    estimate = estimate_advantages(earlier, plain, MovingAverage())
    is_kept_back = (earlier.groups % 4 == 0)[:, None] & estimate.mask
    best, found, since = float("inf"), copy.deepcopy(head.state_dict()), 0
    while since < PATIENCE:
        fit_values(
            head,
            optimizer,
            features,
            estimate.returns,
            estimate.mask & ~is_kept_back,
            num_steps=shape.num_steps,
        )
        values = predict_values(head, features, is_kept_back).cpu()
        error = float((values - estimate.returns)[is_kept_back].square().mean())
        since += 1
        if error < best:
            best, found, since = error, copy.deepcopy(head.state_dict()), 0
    head.load_state_dict(found)
    return head


def predicted(policy: LanguagePolicy, head: ValueHead, batch: EpisodeBatch) -> Float[Tensor, "episode token"]:
    """V(s_t) of each action, on the CPU."""
    features = _features(policy, batch)
    return predict_values(head, features, action_mask(batch.lengths, features.shape[1])).cpu()


def _features(policy: LanguagePolicy, batch: EpisodeBatch) -> Float[Tensor, "episode token feature"]:
    return action_features(
        policy.model,
        [episode.prompt_ids for episode in batch.episodes],
        [episode.completion.token_ids for episode in batch.episodes],
        pad_token_id=policy.pad_token_id,
    )
