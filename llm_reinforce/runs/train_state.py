"""The state of a run: everything in it that changes, besides tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llm_reinforce.policy_gradient import MovingAverage


@dataclass(frozen=True, slots=True)
class BestEvaluation:
    """The highest accuracy that was measured, and the number of updates before it."""

    update: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class TrainState:
    """Everything that changes during a run besides tensors; no other place lists it.

    A checkpoint holds this state, the trained weights (only the adapter's if there is one), the states of
    optimizer, schedule and fp16 scaler, and with `baseline: value` the value head's weights and moments.
        That is
    all of a run:

    - Every random generator (the sampler's; Python's, numpy's and torch's own) is seeded for each update from
      the run's seed and `num_updates`, and the order of the problems in each epoch from the run's seed.
    - Episodes live within one update, and checkpoints are written between updates.

    Attributes:
        num_updates: updates done (a skipped one counts).
        num_problems: problems drawn so far: the position in the order of the training problems.
        num_tokens: actions sampled so far.
        num_skipped_updates: updates without a step because the gradient was not finite or no episode was
            scored; includes those of the warm start.
        num_not_finite_in_a_row: number of the latest updates in a row whose gradient was not finite.
        moving_average: the baseline of that name.
        best_evaluation: by decoding, the highest accuracy so far and the first update that reached it.
        num_skipped_fits: updates in which the value head skipped some or all of its steps because a loss or
            a gradient was not finite.
    """

    num_updates: int = 0
    num_problems: int = 0
    num_tokens: int = 0
    num_skipped_updates: int = 0
    num_not_finite_in_a_row: int = 0
    moving_average: MovingAverage = field(default_factory=MovingAverage)
    best_evaluation: Mapping[str, BestEvaluation] = field(default_factory=dict)
    num_skipped_fits: int = 0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        best = values.get("best_evaluation", {})
        nested = {
            "moving_average": MovingAverage(**values["moving_average"]),
            "best_evaluation": {decoding: BestEvaluation(**each) for decoding, each in best.items()},
        }
        return cls(**{**values, **nested})

    def with_evaluation(self, decoding: str, accuracy: float) -> "TrainState":
        """Return the state after this accuracy was measured, which may be the best so far."""
        best = self.best_evaluation.get(decoding)
        if best is not None and accuracy <= best.accuracy:
            return self
        measured = BestEvaluation(self.num_updates, accuracy)
        return replace(self, best_evaluation={**self.best_evaluation, decoding: measured})
