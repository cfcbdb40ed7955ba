"""One gradient step: the loss of an update's episodes, its gradient in parts, and the optimiser's step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from jaxtyping import Float
from torch import Tensor, nn

from llm_reinforce.episodes import EpisodeBatch, Estimate
from llm_reinforce.policy import Activations, TokenIds, token_log_probs
from llm_reinforce.policy_gradient import entropy_bonus, reinforce_loss
from llm_reinforce.training.data_parallel import sum_gradients

ATTENDED = 8  # keys and values that attention may hold for each token of a micro-batch

Skipped = Literal["no episode was scored", "the gradient isn't finite"]


@dataclass(frozen=True, slots=True)
class UpdateOutcome:
    """What one gradient step did.

    Attributes:
        loss: the surrogate's value, this process's share.
        grad_norm: the gradient's norm before clipping.
        max_log_prob_difference: the largest |Δ log π| between sampling and scoring, of the actions whose
            episodes have a gradient.
        learning_rate: that of this update.
        skipped: why the weights stayed as they were; None: they didn't.
    """

    loss: float
    grad_norm: float
    max_log_prob_difference: float
    learning_rate: float
    skipped: Skipped | None


@dataclass(frozen=True, slots=True)
class GradientStep:
    """Steps on L = -(1/D) Σ_b Σ_t A_t log π(a_t|s_t), less an entropy bonus, summed over micro-batches.

    Attributes:
        optimizer: as the accelerator has prepared it.
        temperature: that of the sampling.
        entropy_coefficient: what the entropy bonus is multiplied by.
        micro_batch_tokens: most tokens a backward pass, prompts and episodes that repeat counted once.
        max_grad_norm: the gradient is clipped to it; None: not at all.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: AcceleratedOptimizer
    pad_token_id: int
    temperature: float
    entropy_coefficient: float
    micro_batch_tokens: int
    max_grad_norm: float | None

    def __call__(
        self, batch: EpisodeBatch, estimate: Estimate, activations: Activations | None = None
    ) -> UpdateOutcome:
        """Take the step, or skip it where there is nothing to learn from or it would spoil the weights.

        `activations`, of the episodes' sampling, are used up: they are those of the weights before.
        """
        learning_rate = self.optimizer.param_groups[0]["lr"]
        if estimate.mean_return is None:
            if activations is not None:
                activations.clear()
            return UpdateOutcome(0.0, 0.0, 0.0, learning_rate, "no episode was scored")
        loss, difference = 0.0, 0.0
        self.optimizer.zero_grad()
        for rows in self.micro_batches(batch, self.rows_that_count(batch, estimate)):
            part_loss, part_difference = self._backward(batch, estimate, rows, activations)
            loss, difference = loss + part_loss, max(difference, part_difference)
        if activations is not None:
            activations.clear()
        # the sum is what the denominator is for, which counts the episodes of all processes
        sum_gradients(self.model, self.accelerator)
        limit = self.max_grad_norm or float("inf")
        grad_norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), limit))
        is_finite = grad_norm < float("inf")  # False for NaN as well
        # fp16's scaler leaves a step out by itself, and learns from it
        if is_finite or self.accelerator.scaler is not None:
            self.optimizer.step()
        skipped: Skipped | None = None if is_finite else "the gradient isn't finite"
        return UpdateOutcome(loss, grad_norm, difference, learning_rate, skipped)

    def rows_that_count(self, batch: EpisodeBatch, estimate: Estimate) -> list[int]:
        """The episodes with a gradient: groups stay together to share their prompt, those of long ones first.

        An episode whose advantages are all zero adds nothing to the gradient and costs as much as any, so it
        is left out; not with an entropy bonus.
        """
        lengths, groups = batch.lengths.tolist(), batch.groups.tolist()
        longest: dict[int, int] = {}
        for length, group in zip(lengths, groups, strict=True):
            longest[group] = max(length, longest.get(group, 0))
        order = sorted(range(len(batch)), key=lambda row: (-longest[groups[row]], groups[row]))
        if self.entropy_coefficient > 0:
            return order
        counts = estimate.advantages.ne(0).any(dim=1).tolist()
        return [row for row in order if counts[row]] or order[:1]

    def micro_batches(self, batch: EpisodeBatch, rows: Sequence[int]) -> list[list[int]]:
        """The rows in runs of at most `micro_batch_tokens` tokens, one row at least.

        What repeats is computed once and counts once. Attention lays keys and values of a prompt before its
        completions, before each where they are long, padded to the longest: of these, which are small beside
        what else a token leaves behind, there may be ATTENDED times as many.
        """
        runs: list[list[int]] = [[]]
        seen: set[tuple[TokenIds, ...]] = set()  # prompts and episodes of the run: each is computed once
        num_tokens, num_rows, width = 0, 0, 0
        for row in rows:
            episode = batch.episodes[row]
            prompt, actions = episode.prompt_ids, episode.completion.token_ids
            is_new = (prompt, actions) not in seen
            cost = len(actions) * is_new + (0 if (prompt,) in seen else len(prompt))
            length = len(prompt) + len(actions)
            is_full = num_tokens + cost > self.micro_batch_tokens
            is_wide = (num_rows + 1) * max(width, length) > ATTENDED * self.micro_batch_tokens
            if runs[-1] and is_new and (is_full or is_wide):
                runs.append([])
                seen, num_tokens, num_rows, width, cost = set(), 0, 0, 0, length
            runs[-1].append(row)
            seen |= {(prompt,), (prompt, actions)}
            num_tokens, num_rows, width = num_tokens + cost, num_rows + is_new, max(width, length)
        return runs

    def _backward(
        self,
        batch: EpisodeBatch,
        estimate: Estimate,
        rows: Sequence[int],
        activations: Activations | None,
    ) -> tuple[float, float]:
        """Add one micro-batch's share of the gradient; return its loss and its largest |Δ log π|."""
        episodes = [batch.episodes[row] for row in rows]
        with self.accelerator.autocast():
            scores = token_log_probs(
                self.model,
                [episode.prompt_ids for episode in episodes],
                [episode.completion.token_ids for episode in episodes],
                pad_token_id=self.pad_token_id,
                temperature=self.temperature,
                with_entropies=self.entropy_coefficient > 0,
                activations=activations,
            )
        num_tokens, device = scores.log_probs.shape[1], scores.log_probs.device
        weights = estimate.advantages[rows, :num_tokens].to(device)
        mask = estimate.mask[rows, :num_tokens].to(device)
        loss = reinforce_loss(scores.log_probs, weights, mask, estimate.denominator)
        if scores.entropies is not None:
            bonus = entropy_bonus(scores.entropies, mask, estimate.denominator)
            loss = loss - self.entropy_coefficient * bonus
        self.accelerator.backward(spoiling_its_gradient(loss))
        recorded = batch.behavior_log_probs[rows, :num_tokens].to(device)
        difference = (scores.log_probs.detach() - recorded).masked_fill(~mask, 0.0).abs().max()
        return float(loss.detach()), float(difference)


def spoiling_its_gradient(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The same loss; its gradient is NaN where the loss isn't finite, in every process and for every scaler.

    L itself may be infinite where its gradient isn't, as it is with -log 0: the derivative of a softmax is
    finite there.
    """
    # 1 + 0 · L is 1 or NaN
    return loss * (1.0 + 0.0 * loss.detach())
