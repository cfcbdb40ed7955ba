"""Train state: everything that changes during a run, except tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llm_reinforce.policy_gradient import MovingAverage


@dataclass(frozen=True, slots=True)
class BestEvaluation:
    """Highest accuracy of a run so far.

    Attributes:
        update: number of updates that had been made before the evaluation.
        accuracy: fraction of completions that are correct.
    """

    update: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class TrainState:
    """Everything that changes during a run, except tensors.

    A checkpoint contains this state, the trained weights (with `lora`, those of the adapter), and the states
    of the optimizer, the schedule and the fp16 scaler. With `baseline: value`, it also contains the weights
    of the value head and the moments of its optimizer. With `kl`, it also contains the weights of a reference
    policy that is an earlier policy of the run. Nothing else is needed to resume a run:

    - All random generators (of the sampler, Python, NumPy and torch) are seeded for each update with a number
      that depends on the seed of the run and `num_updates`.
    - The order of the problems in an epoch depends only on the seed of the run and the number of the epoch.
    - Episodes exist only during an update, and checkpoints are saved between updates.

    Attributes:
        num_updates: number of updates made so far, including skipped updates.
        num_problems: number of problems used so far. It is also the position of the next problem in the order
            of the problems over all epochs.
        num_tokens: number of tokens sampled so far.
        num_skipped_updates: number of updates that did not change the weights, because the gradient was not
            finite or no episode was scored. Skipped updates of the supervised warm start are included.
        num_not_finite_in_a_row: number of consecutive updates, up to the latest one, whose gradients were not
            finite.
        moving_average: moving average of returns, for `baseline: moving_average`.
        best_evaluation: highest accuracy so far, and the update at which it was first reached, by decoding
            ("greedy" or "sampled").
        accuracy_reached: lower limit of the accuracy's 95% interval in the first decoding mode of
            `evaluation.decodings`, as the maximum over all evaluations so far.
        num_skipped_fits: number of updates in which steps of the value head were skipped, because their loss
            or gradient was not finite.
        entropy_coefficient: weight of the entropy bonus in the next update, with `entropy_target`. None:
            before the first update, or without a target.
        pass_counts: with `curriculum`, a mapping from the index of each problem that has been sampled to the
            discounted numbers of its correct episodes and of all its episodes.
        pending_evaluations: decodings ("greedy" or "sampled") whose evaluation is due but was not completed,
            because the run was stopped. A resumed run first completes these evaluations.
        seconds: duration of the run up to this state, including the time before the run was resumed. The
            duration is ignored when two states are compared.
    """

    num_updates: int = 0
    num_problems: int = 0
    num_tokens: int = 0
    num_skipped_updates: int = 0
    num_not_finite_in_a_row: int = 0
    moving_average: MovingAverage = field(default_factory=MovingAverage)
    best_evaluation: Mapping[str, BestEvaluation] = field(default_factory=dict)
    accuracy_reached: float = 0.0
    num_skipped_fits: int = 0
    entropy_coefficient: float | None = None
    pass_counts: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    pending_evaluations: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainState":
        """Build a state from a dict that was made with `dataclasses.asdict`, saved as JSON and loaded."""
        best = values.get("best_evaluation", {})
        nested = {
            "moving_average": MovingAverage(**values["moving_average"]),
            "best_evaluation": {decoding: BestEvaluation(**each) for decoding, each in best.items()},
            "pass_counts": {
                int(index): (counts[0], counts[1]) for index, counts in values.get("pass_counts", {}).items()
            },
            "pending_evaluations": tuple(values.get("pending_evaluations", ())),
        }
        return cls(**{**values, **nested})

    def with_evaluation(self, decoding: str, accuracy: float) -> "TrainState":
        """Return a state in which the evaluation is no longer pending and the best evaluation is updated."""
        pending = tuple(each for each in self.pending_evaluations if each != decoding)
        best = self.best_evaluation.get(decoding)
        if best is None or accuracy > best.accuracy:
            best = BestEvaluation(self.num_updates, accuracy)
        both = {**self.best_evaluation, decoding: best}
        return replace(self, best_evaluation=both, pending_evaluations=pending)
