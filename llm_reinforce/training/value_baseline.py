"""The `value` baseline: V(s_t), predicted by a value head that is fitted to the returns of each update."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from llm_reinforce.config import ValueConfig
from llm_reinforce.episodes import EpisodeBatch, Estimate
from llm_reinforce.errors import InputError
from llm_reinforce.policy import LanguagePolicy, ValueHead, action_features, fit_values, predict_values
from llm_reinforce.policy_gradient import action_mask
from llm_reinforce.runs.checkpoint import load_value_head


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predictions of the value head for an update's episodes, made before the head is fitted to them.

    Attributes:
        values: V(s_t) at each action, on the CPU; zero in padding. The method `predict` returns the values of
            this process's episodes, and the training loop replaces them with those of all processes.
        features: hidden states of the policy from which V was predicted, for the episodes of this process, on
            the policy's device.
    """

    values: Float[Tensor, "episode token"]
    features: Float[Tensor, "own_episode own_token feature"]


class ValueBaseline:
    """A value head and its optimizer. The weights of the head are equal in all processes.

    Args:
        policy: the policy whose hidden states are the input of the head.
        settings: size, learning rate and number of steps of the head.
        accelerator: the accelerator of the run.
        seed: seed of the head's initial weights.

    Raises:
        InputError: if the hidden states of the policy cannot be read.
    """

    def __init__(
        self, policy: LanguagePolicy, settings: ValueConfig, accelerator: Accelerator, *, seed: int
    ) -> None:
        self.policy, self.settings, self.accelerator = policy, settings, accelerator
        end = policy.end_token_ids[:1]
        num_features = self._features([end], [end]).shape[-1]  # only the width of the features is needed
        self.head = ValueHead(num_features, hidden_size=settings.hidden_size, seed=seed).to(policy.device)
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=settings.learning_rate, weight_decay=0.0
        )

    def predict(self, batch: EpisodeBatch) -> Prediction:
        """Return V(s_t) of every action, predicted with the current policy and value head."""
        features = self._features(
            [episode.prompt_ids for episode in batch.episodes],
            [episode.completion.token_ids for episode in batch.episodes],
        )
        mask = action_mask(batch.lengths, features.shape[1])
        return Prediction(predict_values(self.head, features, mask).cpu(), features)

    def fit(self, prediction: Prediction, estimate: Estimate) -> bool:
        """Fit the head to the returns of the scored episodes of all processes.

        Returns:
            True if all steps were taken; False if a step was skipped because its loss or gradient was not
            finite.
        """
        return fit_values(
            self.head,
            self.optimizer,
            prediction.features,
            estimate.returns,
            estimate.mask,
            num_steps=self.settings.num_steps,
            total=lambda numbers: self.accelerator.reduce(numbers, "sum"),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights of the head and the moments of its optimizer, by name, for a checkpoint."""
        moments = self.optimizer.state_dict()["state"]
        return {
            **{f"head.{name}": value.contiguous() for name, value in self.head.state_dict().items()},
            **{
                f"optimizer.{index}.{name}": torch.as_tensor(value).contiguous()
                for index, values in moments.items()
                for name, value in values.items()
            },
        }

    def restore(self, checkpoint: Path, say: Callable[[str], None]) -> None:
        """Load the head and its optimizer from a checkpoint.

        If the checkpoint has no value head, the head keeps its initial weights, and `say` is called with a
        message.

        Raises:
            InputError: if the head in the checkpoint has a different size.
        """
        tensors = load_value_head(checkpoint)
        if tensors is None:
            say(f"checkpoint {checkpoint.name} has no value head; the run continues with a new one")
            return
        moments: dict[int, dict[str, Tensor]] = {}
        weights: dict[str, Tensor] = {}
        for key, value in tensors.items():
            part, name = key.split(".", 1)
            if part == "head":
                weights[name] = value
            else:
                index, moment = name.split(".", 1)
                moments.setdefault(int(index), {})[moment] = value
        try:
            self.head.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(
                f"the value head of checkpoint {checkpoint.name} has a different size; set "
                f"reinforce.value.hidden_size to the size of the saved run: {error}"
            ) from error
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _features(
        self, prompts: list[tuple[int, ...]], completions: list[tuple[int, ...]]
    ) -> Float[Tensor, "episode token feature"]:
        with self.accelerator.autocast():
            return action_features(
                self.policy.model, prompts, completions, pad_token_id=self.policy.pad_token_id
            )
