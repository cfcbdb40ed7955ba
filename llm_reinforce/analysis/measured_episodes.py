"""Episodes of a policy, and baselines that are fitted to other episodes of the same policy."""

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

PATIENCE = 10  # fitting of the value head stops after this number of fits without an improvement


@dataclass(frozen=True, slots=True)
class MeasuredEpisodes:
    """Episodes of one policy for computing gradients, and baselines fitted to other episodes of this policy.

    Attributes:
        updates: the episodes of each update. Groups of different updates have different group numbers.
        moving_average: mean return of other episodes of the policy. It replaces the moving average that
            training computes over earlier updates.
        values: for each update, the predicted value V(s_t) of each action. The values come from a value head
            that was fitted to other episodes. The tuple is empty if there is no value head.
    """

    updates: tuple[EpisodeBatch, ...]
    moving_average: MovingAverage
    values: tuple[Float[Tensor, "_episode _token"], ...] = ()

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
) -> MeasuredEpisodes:
    """Collect episodes of `num_problems` problems, which are drawn with replacement.

    In training, the baselines `moving_average` and `value` learn from the episodes of earlier updates. This
    function therefore first collects an equal number of other episodes, and fits these baselines to them.

    Args:
        policy: the policy.
        problems: the problems to draw from.
        rewards: the reward functions.
        settings: settings of the updates, the advantages and the value head.
        sampling: settings of the sampling.
        num_problems: number of problems. A value above `settings.problems_per_update` is rounded up to a
            multiple of `settings.problems_per_update`.
        seed: random seed for choosing problems and sampling episodes.
        progress: function that is called with the number of completed problems. The last number is
            2 * `num_problems`, because the problems of the other episodes are counted too.

    Raises:
        InputError: if no episode could be scored.
    """
    per_update = min(settings.problems_per_update, num_problems)
    num_updates = -(-num_problems // per_update)
    problem_order = random.Random(f"laboratory {seed}")  # another string would change the drawn problems
    generator = torch.Generator(policy.device).manual_seed(seed)
    batches = []
    for number in range(2 * num_updates):
        batches.append(
            collect_episodes(
                policy,
                problem_order.choices(problems, k=per_update),
                rewards,
                episodes_per_problem=settings.episodes_per_problem,
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                generator=generator,
                batch_size=sampling.batch_size,
                first_group=number % num_updates * per_update,
                with_greedy=number >= num_updates,
                length_penalty=settings.length_penalty,
            )
        )
        progress((number + 1) * num_problems // num_updates)
    updates = tuple(batches[num_updates:])
    _check_scored(updates)
    earlier = EpisodeBatch.of([episode for batch in batches[:num_updates] for episode in batch.episodes])
    plain = settings.model_copy(update={"baseline": "none"})
    average = MovingAverage(estimate_advantages(earlier, plain, MovingAverage()).mean_return or 0.0, 1.0)
    head = fitted_value_head(policy, earlier, settings, seed)
    return MeasuredEpisodes(
        updates, average, tuple(predicted_values(policy, head, update) for update in updates)
    )


def _check_scored(updates: Sequence[EpisodeBatch]) -> None:
    if not any(bool(update.scored.any()) for update in updates):
        failures = (episode.failure for update in updates for episode in update.episodes)
        default = "every reward function returned None; check that one of them applies to the problems"
        why = next((repr(failure[:400]) for failure in failures if failure), default)
        raise InputError(f"no episode could be scored: {why}")


def fitted_value_head(
    policy: LanguagePolicy, earlier: EpisodeBatch, settings: ReinforceConfig, seed: int
) -> ValueHead:
    """Return a value head for `baseline: value`, fitted to the returns of the given earlier episodes.

    In training, the value head is fitted to new episodes in every update. Here it is fitted repeatedly to the
    same episodes. A quarter of the groups is therefore held out for early stopping. The returned head has the
    weights with the lowest error on the held-out groups.
    """
    features, shape = _features(policy, earlier), settings.value
    head = ValueHead(features.shape[-1], hidden_size=shape.hidden_size, seed=seed).to(features.device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=shape.learning_rate, weight_decay=0.0)
    plain = settings.model_copy(update={"baseline": "none"})
    estimate = estimate_advantages(earlier, plain, MovingAverage())
    held_out = (earlier.groups % 4 == 0)[:, None] & estimate.mask
    least_error, best_weights, num_fits_since = float("inf"), copy.deepcopy(head.state_dict()), 0
    while num_fits_since < PATIENCE:
        fit_values(
            head,
            optimizer,
            features,
            estimate.returns,
            estimate.mask & ~held_out,
            num_steps=shape.num_steps,
        )
        values = predict_values(head, features, held_out).cpu()
        error = float((values - estimate.returns)[held_out].square().mean())
        num_fits_since += 1
        if error < least_error:
            least_error, best_weights, num_fits_since = error, copy.deepcopy(head.state_dict()), 0
    head.load_state_dict(best_weights)
    return head


def predicted_values(
    policy: LanguagePolicy, head: ValueHead, batch: EpisodeBatch
) -> Float[Tensor, "episode token"]:
    """Return the predicted value V(s_t) for each action, as a tensor on the CPU."""
    features = _features(policy, batch)
    return predict_values(head, features, action_mask(batch.lengths, features.shape[1])).cpu()


def _features(policy: LanguagePolicy, batch: EpisodeBatch) -> Float[Tensor, "episode token feature"]:
    return action_features(
        policy.model,
        [episode.prompt_ids for episode in batch.episodes],
        [episode.completion.token_ids for episode in batch.episodes],
        pad_token_id=policy.pad_token_id,
    )
