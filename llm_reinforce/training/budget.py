"""Length of a run: a number of updates and, optionally, a budget of sampled tokens and a target accuracy."""

from llm_reinforce.config import EvaluationConfig, TrainingConfig
from llm_reinforce.runs import TrainState


def is_over(training: TrainingConfig, state: TrainState) -> bool:
    """Return True if the run is complete.

    A run is complete after `num_updates` updates, after `num_tokens` sampled tokens, or when it has reached
    the accuracy `stop_at`. In addition, its last evaluation must be complete.
    """
    return makes_no_more_updates(training, state) and not state.pending_evaluations


def makes_no_more_updates(training: TrainingConfig, state: TrainState) -> bool:
    """Return True if the run has made all updates, used its token budget or reached its target accuracy."""
    has_spent = training.num_tokens is not None and state.num_tokens >= training.num_tokens
    has_reached = training.stop_at is not None and state.accuracy_reached >= training.stop_at
    return has_spent or has_reached or state.num_updates >= training.num_updates


def is_evaluation_due(evaluation: EvaluationConfig, before: TrainState, now: TrainState) -> bool:
    """Return True if the updates from `before` to `now` reached a multiple of `evaluation.every`.

    The setting `evaluation.unit` decides whether updates or sampled tokens are counted.
    """
    if evaluation.unit == "tokens":
        return before.num_tokens // evaluation.every < now.num_tokens // evaluation.every
    return before.num_updates // evaluation.every < now.num_updates // evaluation.every
