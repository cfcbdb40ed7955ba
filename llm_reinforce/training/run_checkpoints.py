"""Save the state of a run to the run's directory, and restore the state."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from llm_reinforce.checkpoint_files import find_checkpoint, num_updates_of
from llm_reinforce.config import EvaluationConfig, TrainingConfig
from llm_reinforce.errors import InputError
from llm_reinforce.policy import GatheredState, ShardedModel
from llm_reinforce.runs import TrainState
from llm_reinforce.runs.checkpoint import load_checkpoint, remove_old_checkpoints, save_checkpoint
from llm_reinforce.runs.run_directory import RunDirectory
from llm_reinforce.training.agreement import check_same_checkpoint
from llm_reinforce.training.optimizer import set_learning_rates
from llm_reinforce.training.reference import ReferencePolicy
from llm_reinforce.training.value_baseline import ValueBaseline


@dataclass(frozen=True)
class RunCheckpoints:
    """The checkpoints of a recorded run.

    Attributes:
        run_directory: directory of the run.
        model: model whose trainable weights are saved.
        optimizer: optimizer of the run.
        schedule: learning-rate schedule of the run.
        accelerator: the accelerator of the run. Only the main process writes files while it is alive.
        training, evaluation: settings of the run.
        value_baseline: value head with its optimizer; None if the run has no value head.
        reference: reference policy; None if the run has no reference policy.
        sharded: sharded copy of the model, whose weights the optimizer updates; None without FSDP.
    """

    run_directory: RunDirectory
    model: nn.Module
    optimizer: Optimizer
    schedule: Any
    accelerator: Accelerator
    training: TrainingConfig
    evaluation: EvaluationConfig
    value_baseline: ValueBaseline | None
    reference: ReferencePolicy | None
    sharded: ShardedModel | None = None

    def is_due(self, state: TrainState, before: TrainState | None) -> bool:
        """Return True if a checkpoint should be saved after the latest update.

        A checkpoint is saved every `checkpoint_every` updates, after a new best evaluation with `keep_best`,
        and after a warm start.

        Args:
            state: train state after the latest update.
            before: train state before the latest update. None: no update has been made yet.
        """
        every = self.training.checkpoint_every
        earlier = -1 if before is None else before.num_updates
        is_save_due = every is not None and earlier // every < state.num_updates // every
        is_warm = state.num_updates == 0 and self.training.warm_start is not None
        is_best = self._best_update(state) == state.num_updates and not state.pending_evaluations
        return is_save_due or is_warm or is_best

    def save(self, state: TrainState) -> None:
        """Save a checkpoint in the main process. With FSDP, all processes must call this method."""
        optimizer = self.optimizer if self.sharded is None else GatheredState(self.optimizer)
        if self.accelerator.is_main_process:
            self._write(state, optimizer)

    def save_without_others(self, state: TrainState) -> bool:
        """Save a checkpoint after another process of the run was lost, possibly the main process.

        If the main process was lost, another process saves the checkpoint. This process must get the lock of
        the run's directory, which the main process holds until it ends. In addition, the logs must contain
        the lines of the latest update. With FSDP, nothing is saved, because a part of the optimizer's state
        is lost with the process.

        Args:
            state: train state after the latest update.

        Returns:
            True if there is a checkpoint of this state.
        """
        if self.sharded is not None:
            return False
        if self.accelerator.is_main_process:
            self._write(state, self.optimizer)
            return True
        # the run's directory is on another machine
        if not (self.run_directory.path / "recipe.yaml").is_file():
            return False
        try:
            with self.run_directory.locked():
                newest, _ = find_checkpoint(self.run_directory.checkpoints)
                if newest is None or num_updates_of(newest) < state.num_updates:
                    if not self.run_directory.has_logs_of(state.num_updates):
                        return False
                    self._write(state, self.optimizer)
                return True
        except InputError:  # another process holds the lock
            return False

    def _write(self, state: TrainState, optimizer: Optimizer | GatheredState) -> None:
        self.run_directory.sync_logs()
        save_checkpoint(
            self.run_directory.checkpoints,
            state,
            self.model,
            optimizer,
            self.schedule,
            keep=self.training.num_checkpoints_kept,
            scaler=self.accelerator.scaler,
            value_head=self.value_baseline.tensors() if self.value_baseline else None,
            reference=self.reference.tensors() if self.reference else None,
            best=self._best_update(state),
        )

    def restore(self, say: Callable[[str], None]) -> TrainState | None:
        """Load the newest complete checkpoint, and return its train state; None if there is no checkpoint.

        The log lines of updates after the checkpoint are removed, because the resumed run writes them again.

        Args:
            say: function that shows a message to the user.

        Raises:
            InputError: if the processes have found different checkpoints.
        """
        state: TrainState | None = None
        directory, faults = find_checkpoint(self.run_directory.checkpoints)
        for fault in faults:
            say(f"skipped checkpoint {fault}")
        check_same_checkpoint(directory.name if directory else None, self.accelerator)
        if directory is None:
            say("no complete checkpoint: the run starts from the beginning")
        else:
            state = load_checkpoint(
                directory, self.model, self.optimizer, self.schedule, self.accelerator.scaler
            )
            if self.sharded is not None:
                self.sharded.load()
            set_learning_rates(self.optimizer, self.schedule)
            say(f"resuming from {directory.name}")
            if self.value_baseline:
                self.value_baseline.restore(directory, say)
            if self.reference:
                self.reference.restore(directory)
        if self.accelerator.is_main_process:
            if directory is not None and state is not None:
                # an earlier process may have been killed after a save, before it removed old checkpoints
                keep = self.training.num_checkpoints_kept
                remove_old_checkpoints(directory, keep, self._best_update(state))
            num_updates = -1 if state is None else state.num_updates
            pending = () if state is None else state.pending_evaluations
            self.run_directory.cut_logs(num_updates, pending)
        return state

    def _best_update(self, state: TrainState) -> int | None:
        """Return the number of updates before the best evaluation; None if no best checkpoint is kept."""
        best = state.best_evaluation.get(self.evaluation.decodings[0])
        return best.update if best is not None and self.training.keep_best else None
