"""The reference policy, from which the KL divergence of the trained policy is measured."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from llm_reinforce.config import KLConfig
from llm_reinforce.episodes import EpisodeBatch
from llm_reinforce.errors import InputError, errors_in
from llm_reinforce.policy import LanguagePolicy, load_policy, token_log_probs, trainable_parameters
from llm_reinforce.runs.checkpoint import load_reference


class ReferencePolicy:
    """Reference policy π_ref, which computes log-probabilities of sampled actions.

    With `reference: start`, π_ref is an earlier state of the policy, and only the trainable weights are
    copied. If an adapter is trained, these are the weights of the adapter. While log-probabilities are
    computed, the copy replaces the current weights of the policy.

    Args:
        policy: the policy that is trained.
        settings: the settings `reinforce.kl`.
        accelerator: the accelerator of the run.
        temperature: temperature at which the episodes are sampled.

    Raises:
        InputError: if the reference model cannot be loaded, or has another vocabulary than the policy.
    """

    def __init__(
        self, policy: LanguagePolicy, settings: KLConfig, accelerator: Accelerator, temperature: float
    ) -> None:
        self.policy, self.settings, self.accelerator = policy, settings, accelerator
        self.temperature = temperature
        self.weights: dict[str, Tensor] = {}
        self.model = policy.model
        if not self.is_state_of_policy:
            with errors_in("reinforce.kl.reference"):
                dtype = str(next(policy.model.parameters()).dtype).removeprefix("torch.")
                other = load_policy(settings.reference, dtype=dtype, use_chat_template=False)
            if other.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
                raise InputError(
                    f"reinforce.kl.reference: {settings.reference} has another vocabulary than the policy, "
                    "so the probabilities of tokens cannot be compared; choose a model with the policy's "
                    "tokenizer"
                )
            self.model = other.model.requires_grad_(False).to(accelerator.device)

    @property
    def is_state_of_policy(self) -> bool:
        """True if the reference is an earlier state of the policy, and not another model."""
        return self.settings.reference == "start"

    def set_to_policy(self) -> None:
        """Make the current policy the reference, unless the settings name another model as the reference."""
        if self.is_state_of_policy:
            trained = trainable_parameters(self.policy.model)
            self.weights = {name: parameter.detach().clone() for name, parameter in trained.items()}

    def refresh(self, num_before: int, num_updates: int) -> None:
        """Make the current policy the reference if a multiple of `refresh_every` updates was just reached.

        Args:
            num_before: number of updates of the run before the latest batch.
            num_updates: number of updates of the run after the latest batch.
        """
        every = self.settings.refresh_every
        if every is not None and num_before // every < num_updates // every:
            self.set_to_policy()

    def tensors(self) -> dict[str, Tensor] | None:
        """Return the weights of the reference for a checkpoint; None if the reference is another model."""
        return {name: value.contiguous() for name, value in self.weights.items()} or None

    def restore(self, checkpoint: Path) -> None:
        """Load the weights of the reference from a checkpoint. If the reference is another model, do nothing.

        Raises:
            InputError: if the checkpoint has no reference policy.
        """
        if not self.is_state_of_policy:
            return
        saved = load_reference(checkpoint)
        if saved is None:
            raise InputError(
                f"{checkpoint}: the checkpoint has no reference policy, which reinforce.kl needs; start a "
                "new run with --overwrite"
            )
        self.weights = {name: value.to(self.policy.device) for name, value in saved.items()}

    def with_log_probs(self, batch: EpisodeBatch, micro_batches: Sequence[Sequence[int]]) -> EpisodeBatch:
        """Return the batch with the log-probabilities of its actions under the reference policy.

        Args:
            batch: episodes of this process.
            micro_batches: for each forward pass, the rows of its episodes.
        """
        found: dict[int, tuple[float, ...]] = {}
        self._swap()
        try:
            for rows in micro_batches:
                episodes = [batch.episodes[row] for row in rows]
                with torch.no_grad(), self.accelerator.autocast():
                    log_probs = token_log_probs(
                        self.model,
                        [episode.prompt_ids for episode in episodes],
                        [episode.completion.token_ids for episode in episodes],
                        pad_token_id=self.policy.pad_token_id,
                        temperature=self.temperature,
                    ).log_probs.tolist()
                for row, episode, values in zip(rows, episodes, log_probs, strict=True):
                    found[row] = tuple(values[: len(episode.completion.token_ids)])
        finally:
            self._swap()
        episodes = [
            replace(episode, reference_log_probs=found[row]) for row, episode in enumerate(batch.episodes)
        ]
        return EpisodeBatch.of(episodes, batch.logged, batch.greedy)

    def _swap(self) -> None:
        """Exchange the weights of the policy and of the reference, unless the reference is another model."""
        trained = trainable_parameters(self.policy.model) if self.is_state_of_policy else {}
        for name, parameter in trained.items():
            parameter.data, self.weights[name] = self.weights[name], parameter.data
