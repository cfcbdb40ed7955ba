"""Metrics of an update, and the rows of `episodes.jsonl`."""

import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llm_reinforce.config import ReinforceConfig
from llm_reinforce.episodes import Episode, EpisodeBatch, Estimate
from llm_reinforce.policy import explained_variance
from llm_reinforce.policy_gradient import action_mask, k3
from llm_reinforce.runs import TrainState
from llm_reinforce.training.batch_sampler import Sample
from llm_reinforce.training.gradient_step import UpdateOutcome
from llm_reinforce.training.problem_order import pass_rate

# metrics that differ between two runs with otherwise equal results
TIMES = frozenset({"wall_time", "step_time", "step_time/collect", "step_time/update"})


def update_metrics(
    batch: EpisodeBatch, estimate: Estimate, values: Float[Tensor, "episode token"] | None = None
) -> dict[str, float]:
    """Return the metrics of an update's episodes, by name.

    The page docs/run-directory.md explains each metric. A metric that has no value in this update is omitted.

    Args:
        batch: episodes of the update, of all processes.
        estimate: returns, baselines and advantages of the episodes.
        values: V(s_t) at each action, predicted before the value head was fitted to these episodes. None: the
            run has no value head.
    """
    episodes = batch.episodes
    scored = batch.scored
    totals = [total for episode in episodes if (total := episode.total_reward) is not None]
    rewards = torch.tensor(totals)
    metrics: dict[str, float] = {}
    if len(rewards):
        metrics["reward"] = float(rewards.mean())
        metrics["reward_std"] = float(rewards.std(correction=0))
        metrics["frac_reward_zero_std"] = _frac_reward_zero_std(batch)
    used = estimate.mask.any(dim=1)
    if used.any():
        metrics["baseline"] = float(estimate.baselines[used].mean())
        metrics["advantage_std"] = float(estimate.advantages[estimate.mask].std(correction=0))
    metrics |= _greedy_metrics(batch.greedy)
    if values is not None:
        metrics |= _value_metrics(values, estimate)
    for name in episodes[0].rewards:
        given = [value for episode in episodes if (value := episode.rewards[name]) is not None]
        if given:
            metrics[f"rewards/{name}/mean"] = sum(given) / len(given)
            # the values may be integers or booleans
            metrics[f"rewards/{name}/std"] = float(torch.tensor(given, dtype=torch.float32).std(correction=0))
        num_failed = sum(name in episode.failures for episode in episodes)
        if num_failed:
            metrics[f"rewards/{name}/num_failed"] = num_failed
    if batch.reference_log_probs is not None:
        mask = action_mask(batch.lengths, int(batch.lengths.max()))
        divergence = k3(batch.behavior_log_probs, batch.reference_log_probs, mask)
        metrics["kl"] = float(divergence[mask].mean())
    metrics["entropy"] = mean_entropy(batch)
    count = len(episodes)
    lengths = batch.lengths.float()
    verdicts = [episode.verdict for episode in episodes if episode.verdict is not None]
    is_verified = len(verdicts) == count  # False if the problems have no reference answers
    if is_verified:
        metrics["accuracy"] = sum(verdict.correct for verdict in verdicts) / count
    metrics["num_unscored"] = count - int(scored.sum())
    metrics["completions/mean_length"] = float(lengths.mean())
    metrics["completions/max_length"] = float(lengths.max())
    metrics["completions/clipped_ratio"] = sum(not e.completion.terminated for e in episodes) / count
    if is_verified:
        for kind, share in _failed_answers(episodes).items():
            metrics[f"answers/{kind}"] = share
    for reason in sorted({verdict.reason for verdict in verdicts}):
        metrics[f"verdicts/{reason}"] = sum(verdict.reason == reason for verdict in verdicts) / count
    return metrics


def step_metrics(outcomes: Sequence[UpdateOutcome], settings: ReinforceConfig) -> dict[str, float]:
    """Return the metrics of the optimizer steps of a batch, by name.

    - The loss and the gradient norm are means over the steps that had scored episodes.
    - The share of changed weights and the relative size of a step are means over the steps in which they
      were measured.
    - The learning rate is that of the last step. The signal share is that of the last step whose statistics
      were computed.
    - The metrics of importance weights and probability ratios are computed over the actions of all steps.
    - The difference between the log-probabilities of training and of sampling is taken from the first step,
      because the later steps use a changed policy.
    """
    metrics = {
        "learning_rate": outcomes[-1].learning_rate,
        **reduce(add, [each.counts for each in outcomes]).metrics(settings),
    }
    computed = [each for each in outcomes if each.has_gradient]
    if computed:
        metrics["loss"] = sum(each.loss for each in computed) / len(computed)
        metrics["grad_norm"] = sum(each.grad_norm for each in computed) / len(computed)
    if outcomes[0].max_log_prob_difference is not None:
        metrics["sampling/sampling_logp_difference/max"] = outcomes[0].max_log_prob_difference
    shares = [each.frac_weights_changed for each in outcomes if each.frac_weights_changed is not None]
    if shares:
        metrics["frac_weights_changed"] = sum(shares) / len(shares)
    measured = [each.statistics for each in outcomes if each.statistics is not None]
    if measured:
        metrics["step/relative_norm"] = sum(each.relative_step for each in measured) / len(measured)
        if measured[-1].signal_share is not None:
            metrics["step/signal_share"] = measured[-1].signal_share
    return metrics


def run_metrics(state: TrainState, sample: Sample, settings: ReinforceConfig) -> dict[str, float]:
    """Return counts over the whole run, and metrics of features that are not always used, by name.

    These features are the server, the value head, the target entropy, the refills and the curriculum.

    Args:
        state: train state after the batch.
        sample: episodes of the batch.
        settings: settings of the loss and of the batches.
    """
    metrics: dict[str, float] = {
        "num_tokens": state.num_tokens,
        "num_skipped_updates": state.num_skipped_updates,
        **sample.server_metrics,
    }
    if settings.baseline == "value":
        metrics["value/num_skipped_fits"] = state.num_skipped_fits
    if state.entropy_coefficient is not None:
        metrics["entropy_coefficient"] = state.entropy_coefficient
    if settings.refill:
        metrics |= sample.refills.metrics(sample.batch, settings)
    if settings.curriculum:
        rates = [pass_rate(sample.pass_counts, index) for index in sample.pass_counts]
        metrics["curriculum/num_problems"] = len(rates)
        metrics["curriculum/pass_rate"] = math.fsum(rates) / len(rates)
    return metrics


def mean_entropy(batch: EpisodeBatch) -> float:
    """Return the mean entropy of the next-token distribution at the sampled actions, in nats.

    A sampling server returns no entropies. In this case, the result is the mean of -log π of the sampled
    actions, which is an unbiased estimate of the mean entropy.
    """
    entropies = [
        entropy
        for episode in batch.episodes
        for entropy in (
            episode.completion.entropies or [-log_prob for log_prob in episode.completion.log_probs]
        )
    ]
    return sum(entropies) / max(1, len(entropies))


def _greedy_metrics(greedy: Sequence[Episode]) -> dict[str, float]:
    """Return the metrics of the greedy completions, by name. Empty if there are no greedy completions."""
    totals = [total for episode in greedy if (total := episode.total_reward) is not None]
    metrics = {"greedy/reward": sum(totals) / len(totals)} if totals else {}
    if num_unscored := len(greedy) - len(totals):
        metrics["greedy/num_unscored"] = num_unscored
    return metrics


def _value_metrics(values: Float[Tensor, "episode token"], estimate: Estimate) -> dict[str, float]:
    """Return the metrics of the value head's predictions, by name."""
    metrics = {}
    if estimate.mask.any():
        errors = (values - estimate.returns)[estimate.mask]
        metrics["value/loss"] = float(errors.square().mean())
    explained = explained_variance(values, estimate.returns, estimate.mask)
    if explained is not None:
        metrics["value/explained_variance"] = explained
    return metrics


def _failed_answers(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return the fraction of episodes with each kind of failure, by the name of the kind.

    An episode is `wrong` if it has a wrong answer, `unparseable` if it terminated without an answer, and
    `truncated` if it was truncated before it gave an answer.
    """
    kinds = [
        "wrong"
        if not verdict.is_unparseable
        else "unparseable"
        if episode.completion.terminated
        else "truncated"
        for episode in episodes
        if (verdict := episode.verdict) is not None and not verdict.correct
    ]
    return {kind: kinds.count(kind) / len(episodes) for kind in ("wrong", "unparseable", "truncated")}


def _frac_reward_zero_std(batch: EpisodeBatch) -> float:
    """Return the fraction of groups whose scored episodes all have the same reward.

    With a baseline that is computed from the group, the episodes of such a group have no gradient.
    """
    by_group: dict[int, set[float]] = {}
    for episode in batch.episodes:
        if (total := episode.total_reward) is not None:
            by_group.setdefault(episode.group, set()).add(total)
    return sum(len(rewards) == 1 for rewards in by_group.values()) / len(by_group)


def describe_episode(
    episode: Episode,
    returns: Float[Tensor, " token"],
    advantages: Float[Tensor, " token"],
    token_texts: Sequence[str],
) -> dict[str, Any]:
    """Return an episode as a row of `episodes.jsonl`.

    The answer and the verdict are None if the problem has no reference answer.

    Args:
        episode: the episode, with T actions.
        returns: return g_t of each action; at least T numbers.
        advantages: advantage A_t of each action; at least T numbers.
        token_texts: text of each action.
    """
    length = len(episode.completion.token_ids)
    verdict = episode.verdict
    return {
        "problem": episode.problem.id,
        "group": episode.group,
        "prompt": episode.problem.prompt,
        "completion": episode.completion.text,
        "answer": episode.problem.answer,
        "correct": verdict.correct if verdict else None,
        "extracted": verdict.extracted if verdict else None,
        "reason": verdict.reason if verdict else None,
        "terminated": episode.completion.terminated,
        "reward": episode.reward,
        "rewards": dict(episode.rewards),
        "step_rewards": list(episode.step_rewards),
        "failure": episode.failure,
        "extras": dict(episode.extras),
        "token_ids": list(episode.completion.token_ids),
        "tokens": list(token_texts),
        "behavior_log_probs": list(episode.completion.log_probs),
        "entropies": list(episode.completion.entropies),
        "returns": _numbers(returns[:length]),
        "advantages": _numbers(advantages[:length]),
    }


def _numbers(values: Tensor) -> list[float]:
    numbers: list[float] = torch.as_tensor(values).tolist()
    return numbers
