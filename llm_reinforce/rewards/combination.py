"""Several reward functions make one score: a weighted sum, in which a failure is no zero."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """A reward function, the name it is logged by, and its weight in the sum.

    Attributes:
        function: `f(completion, problem)`, one with TRL's signature, or one that runs in worker processes.
        conversational: whether a function with TRL's signature is given lists of messages instead of
            texts; None: where the policy has a chat template.
    """

    name: str
    function: Callable[..., Any] | IsolatedFunction
    weight: float = 1.0
    conversational: bool | None = None


@dataclass(frozen=True, slots=True)
class CombinedReward:
    """What the reward functions said of one completion.

    Attributes:
        parts: each function's value by name, unweighted, that of step rewards being their sum; None where
            it did not apply or failed. A second function of one name is `name_2`.
        total: the weighted sum of the parts at the end, the terminal reward; None: unscored, because a
            function failed or none applies. A failed score is not a wrong answer.
        steps: the weighted rewards of intermediate steps.
        failures: what went wrong by the function's name, for people to read.
        traceback: of the first failure, if it has one.
        extras: what the functions logged of this completion.
    """

    parts: Mapping[str, float | None]
    total: float | None
    steps: tuple[StepRewards, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    traceback: str = ""
    extras: Mapping[str, object] = field(default_factory=dict)

    @property
    def failure(self) -> str | None:
        """All that went wrong, in a line; None when nothing did."""
        return failures_in_a_line(self.failures)


@dataclass(frozen=True, slots=True)
class CombinedRewards:
    """The scores of a batch of completions, and the numbers that the functions logged for all of it."""

    scored: Sequence[CombinedReward]
    metrics: Mapping[str, float]


def failures_in_a_line(failures: Mapping[str, str]) -> str | None:
    """What went wrong by the function's name, for people to read; None when nothing did."""
    return "; ".join(f"{name}: {text}" for name, text in failures.items()) or None


def combine_rewards(
    asked: Sequence[JudgedCompletion],
    rewards: Sequence[WeightedReward],
    *,
    conversational: bool = False,
    progress: Progress | None = None,
) -> CombinedRewards:
    """Ask every reward function of every completion; an exception, or what is no finite number: unscored.

    Args:
        conversational: whether functions with TRL's signature are given messages, unless their own
            `conversational` says.
        progress: what those see as `trainer_state`.
    """
    names = _names(rewards)
    answers = [
        _ask(reward, asked, conversational=conversational, progress=progress or Progress())
        for reward in rewards
    ]
    extras = {name: values for answer in answers for name, values in answer.extras.items()}
    scored = [
        _sum(
            [
                (name, reward.weight, answer.outcomes[index])
                for name, reward, answer in zip(names, rewards, answers, strict=True)
            ],
            {name: values[index] for name, values in extras.items()} if extras else {},
        )
        for index in range(len(asked))
    ]
    return CombinedRewards(
        scored, {name: value for answer in answers for name, value in answer.metrics.items()}
    )


def _ask(
    reward: WeightedReward, asked: Sequence[JudgedCompletion], *, conversational: bool, progress: Progress
) -> RewardResults:
    if reward.conversational is not None:
        conversational = reward.conversational
    if isinstance(reward.function, IsolatedFunction):
        return reward.function.ask(asked, conversational=conversational, progress=progress)
    if has_trl_signature(reward.function):
        return call_on_batch(reward.function, asked, conversational=conversational, progress=progress)
    return call_on_each(reward.function, asked)


def _names(rewards: Sequence[WeightedReward]) -> list[str]:
    """Each one's name; answer_format, say, may stand there twice, with two patterns."""
    names: list[str] = []
    for reward in rewards:
        count, name = 1, reward.name
        while name in names:
            count += 1
            name = f"{reward.name}_{count}"
        names.append(name)
    return names


def _sum(outcomes: Sequence[tuple[str, float, RewardResult]], extras: Mapping[str, object]) -> CombinedReward:
    """What the functions' outcomes, each with its name and weight, make together."""
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
    if not failures and not magnitude <= MAX_FLOAT32:  # NaN as well
        failures["the weighted sum"] = f"{total:g} and its steps are not finite in float32"
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
