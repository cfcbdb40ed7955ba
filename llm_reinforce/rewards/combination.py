"""Combine several reward functions into one reward per completion: a weighted sum.

If a function fails for a completion, the completion is unscored. It does not get a reward of 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llm_reinforce.rewards.calls import (
    MAX_FLOAT32,
    JudgedCompletion,
    Progress,
    RewardResult,
    RewardResults,
    StepRewards,
    call_on_each,
)
from llm_reinforce.rewards.isolation import IsolatedFunction
from llm_reinforce.rewards.trl_signature import call_on_batch, has_trl_signature

LENGTH_PENALTY = "length_penalty"  # name of the penalty among the rewards


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """A reward function with a name for logs and a weight for the sum.

    Attributes:
        name: name by which the rewards are logged.
        function: `f(completion, problem)`, a function with TRL's signature, or a function that runs in
            worker processes.
        weight: factor of the reward in the weighted sum.
        conversational: if True, a function with TRL's signature receives lists of messages instead of texts.
            If None, the function receives messages only if the policy has a chat template.
    """

    name: str
    function: Callable[..., Any] | IsolatedFunction
    weight: float = 1.0
    conversational: bool | None = None


@dataclass(frozen=True, slots=True)
class CombinedReward:
    """Combined result of the reward functions for one completion.

    Attributes:
        parts: unweighted value of each function, by the name of the function. The value of step rewards is
            their sum. The value is None if the function returned None or failed. If two functions have the
            same name, the name of the second function gets the suffix `_2`.
        total: terminal reward, the weighted sum of the values that are not step rewards. None if the
            completion is unscored because a function failed or all functions returned None.
        steps: weighted rewards of intermediate steps.
        failures: error messages, by the name of the function that failed.
        traceback: traceback of the first failure that has one; empty if there is none.
        extras: values that the functions logged for this completion, by the name given by the function.
    """

    parts: Mapping[str, float | None]
    total: float | None
    steps: tuple[StepRewards, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    traceback: str = ""
    extras: Mapping[str, object] = field(default_factory=dict)

    @property
    def failure(self) -> str | None:
        """All failures in one line, or None if there are none."""
        return join_failures(self.failures)


@dataclass(frozen=True, slots=True)
class CombinedRewards:
    """Combined rewards of a batch of completions.

    Attributes:
        scored: one combined reward per completion.
        weights: weight of each reward, by the name of its function.
        metrics: numbers that the functions logged for the whole batch, by the name given by the function.
    """

    scored: Sequence[CombinedReward]
    weights: Mapping[str, float]
    metrics: Mapping[str, float]


def join_failures(failures: Mapping[str, str]) -> str | None:
    """Return one line with the name and error message of each failed function; None if no function failed."""
    return "; ".join(f"{name}: {text}" for name, text in failures.items()) or None


def combine_rewards(
    judged: Sequence[JudgedCompletion],
    rewards: Sequence[WeightedReward],
    *,
    conversational: bool = False,
    progress: Progress | None = None,
    penalties: Sequence[float] | None = None,
) -> CombinedRewards:
    """Call every reward function on every completion and return the weighted sums.

    A completion is unscored if a function fails on it, that is, raises an exception or returns an invalid
    value such as NaN.

    Args:
        judged: the completions.
        rewards: the reward functions with their weights.
        conversational: if True, functions with TRL's signature receive lists of messages instead of texts.
            The attribute `conversational` of a reward takes precedence if it is not None.
        progress: progress of the run, which reward functions receive as `trainer_state`.
        penalties: penalty of each completion, which is subtracted from the reward of a scored completion. The
            results contain the negative penalties as values of a further reward named `length_penalty`.
    """
    *names, of_penalty = _unique_names([*(reward.name for reward in rewards), LENGTH_PENALTY])
    results = [
        _call(reward, judged, conversational=conversational, progress=progress or Progress())
        for reward in rewards
    ]
    extras = {name: values for result in results for name, values in result.extras.items()}
    scored = [
        _weighted_sum(
            [
                (name, reward.weight, result.outcomes[index])
                for name, reward, result in zip(names, rewards, results, strict=True)
            ],
            {name: values[index] for name, values in extras.items()} if extras else {},
        )
        for index in range(len(judged))
    ]
    weights = {name: reward.weight for name, reward in zip(names, rewards, strict=True)}
    if penalties is not None:
        weights[of_penalty] = 1.0
        scored = [
            replace(
                one,
                parts={**one.parts, of_penalty: -penalty},
                total=None if one.total is None else one.total - penalty,
            )
            for one, penalty in zip(scored, penalties, strict=True)
        ]
    metrics = {name: value for result in results for name, value in result.metrics.items()}
    return CombinedRewards(scored, weights, metrics)


def _call(
    reward: WeightedReward, judged: Sequence[JudgedCompletion], *, conversational: bool, progress: Progress
) -> RewardResults:
    if reward.conversational is not None:
        conversational = reward.conversational
    if isinstance(reward.function, IsolatedFunction):
        return reward.function.ask(judged, conversational=conversational, progress=progress)
    if has_trl_signature(reward.function):
        return call_on_batch(reward.function, judged, conversational=conversational, progress=progress)
    return call_on_each(reward.function, judged, progress)


def _unique_names(given: Sequence[str]) -> list[str]:
    """Return the names of rewards. A repeated name gets a number, such as `answer_format_2`."""
    names: list[str] = []
    for each in given:
        count, name = 1, each
        while name in names:
            count += 1
            name = f"{each}_{count}"
        names.append(name)
    return names


def _weighted_sum(
    outcomes: Sequence[tuple[str, float, RewardResult]], extras: Mapping[str, object]
) -> CombinedReward:
    """Combine the results for one completion, each given as (name of the function, weight, result)."""
    parts: dict[str, float | None] = {}
    failures: dict[str, str] = {}
    steps: list[StepRewards] = []
    total, is_applicable, traceback = 0.0, False, ""
    for name, weight, outcome in outcomes:
        value = outcome.value
        is_applicable = is_applicable or value is not None
        if isinstance(value, StepRewards):
            steps.append(_weighted(value, weight))
            parts[name] = sum(_values(value))
        else:
            parts[name] = value
            total += 0.0 if value is None else weight * value
        if outcome.failure:
            failures[name] = outcome.failure
            traceback = traceback or outcome.traceback
    magnitude = abs(total) + sum([abs(value) for step in steps for value in _values(step)])
    if not failures and not magnitude <= MAX_FLOAT32:  # also True for NaN
        failures["the weighted sum"] = (
            f"{total:g} plus the step rewards is not finite in float32; reduce the rewards or their weights"
        )
    is_scored = is_applicable and not failures
    return CombinedReward(
        parts,
        total if is_scored else None,
        tuple(steps) if is_scored else (),
        failures,
        traceback,
        extras,
    )


def _weighted(steps: StepRewards, weight: float) -> StepRewards:
    if steps.by_token is not None:
        return StepRewards(by_token=[weight * value for value in steps.by_token])
    return StepRewards([(start, end, weight * value) for start, end, value in steps.spans])


def _values(steps: StepRewards) -> Sequence[float]:
    return [value for _, _, value in steps.spans] if steps.by_token is None else steps.by_token
