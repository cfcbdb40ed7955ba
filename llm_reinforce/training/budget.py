"""When a run is over: after so many updates, or once so many actions have been sampled."""

import math

from llm_reinforce.config import EvaluationConfig, TrainingConfig
from llm_reinforce.runs import TrainState


def is_over(training: TrainingConfig, state: TrainState) -> bool:
    """Whether the last update is done: `num_updates` of them, or the one that reached `num_tokens`."""
    has_spent = training.num_tokens is not None and state.num_tokens >= training.num_tokens
    return has_spent or state.num_updates >= training.num_updates


def expected_updates(training: TrainingConfig, state: TrainState) -> int:
    """How many updates the run will have: `num_updates`, or what its tokens suffice for.

    The tokens of an update to come are taken to be those of the updates so far, at the mean. It is exact
    once the run is over.
    """
    if training.num_tokens is None or state.num_tokens == 0:
        return training.num_updates
    suffices = math.ceil(state.num_updates * training.num_tokens / state.num_tokens)
    return max(state.num_updates, min(training.num_updates, suffices))


def is_evaluation_due(evaluation: EvaluationConfig, before: TrainState, now: TrainState) -> bool:
    """Whether an update, from `before` to `now`, reached a multiple of `evaluation.every` of its unit."""
    if evaluation.unit == "tokens":
        return before.num_tokens // evaluation.every < now.num_tokens // evaluation.every
    return now.num_updates % evaluation.every == 0
