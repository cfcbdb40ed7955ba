"""One gradient step: the gradient of an update's loss, computed in micro-batches, and the optimizer step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from jaxtyping import Float
from torch import Tensor, nn

from llm_reinforce.config import ReinforceConfig
from llm_reinforce.episodes import EpisodeBatch, Estimate
from llm_reinforce.policy import (
    Activations,
    TokenIds,
    is_sharded,
    local_tensor,
    own_log_probs,
    rows_of_passes,
    token_log_probs,
)
from llm_reinforce.policy_gradient import action_mask, entropy_bonus
from llm_reinforce.training.adamw import is_half
from llm_reinforce.training.data_parallel import (
    clip_gradients,
    equal_passes,
    gather_object,
    sum_gradients,
    sum_over_shards,
)
from llm_reinforce.training.objective import NO_RATIOS, RatioCounts, kl_loss, surrogate_loss
from llm_reinforce.training.step_statistics import StepStatistics, step_statistics

MAX_RECOMPUTED = 1 / 8  # largest share of the episodes that `GradientStep.recomputed_difference` recomputes
ATTENDED = 8  # maximum number of positions of keys and values per token of a full micro-batch

Skipped = Literal["no episode was scored", "the gradient is not finite"]


@dataclass(frozen=True, slots=True)
class UpdateOutcome:
    """Outcome of one gradient step.

    Attributes:
        loss: value of the loss; 0 if there is no gradient.
        grad_norm: norm of the whole gradient before clipping; 0 if there is no gradient.
        max_log_prob_difference: largest |Δ log π| of an action in the loss. Δ log π is the difference between
            the log-probability recorded during sampling and the log-probability computed for the loss. If the
            loss reuses the recorded log-probabilities, `recomputed_difference` computes this attribute. None:
            the difference was not measured.
        learning_rate: learning rate of the step.
        skipped: the reason why the weights were not changed; None if the weights were changed.
        frac_weights_changed: among the half-precision weights with a nonzero gradient, the share that the
            step changed. A weight does not change if the step is smaller than half the distance to the next
            number. None if the step was skipped, or if the optimizer has no such weights (for example,
            because it changes float32 copies).
        statistics: size of the step, and share of the gradient that is signal. None if the step was skipped,
            or if the statistics were not computed.
        counts: counts of the importance weights, or of the probability ratios, of the actions in the loss.
    """

    loss: float
    grad_norm: float
    max_log_prob_difference: float | None
    learning_rate: float
    skipped: Skipped | None
    frac_weights_changed: float | None = None
    statistics: StepStatistics | None = None
    counts: RatioCounts = NO_RATIOS

    @property
    def has_gradient(self) -> bool:
        """True if a gradient was computed. The gradient may be infinite or NaN."""
        return self.skipped != "no episode was scored"

    @property
    def is_not_finite(self) -> bool:
        """True if the step was skipped because the gradient is not finite."""
        return self.skipped == "the gradient is not finite"


class PartialLoss(NamedTuple):
    """Contribution of some episodes to the loss of an update, with statistics of their actions.

    Attributes:
        loss: sum of the terms of these episodes in the loss.
        max_log_prob_difference: largest |Δ log π| of an action. None: it was not computed.
        counts: sums over the importance weights or probability ratios of the actions.
    """

    loss: float
    max_log_prob_difference: float | None
    counts: RatioCounts

    def add(self, other: "PartialLoss") -> "PartialLoss":
        """Add two partial losses: sum the losses and the counts, and take the larger |Δ log π|."""
        differences = (self.max_log_prob_difference, other.max_log_prob_difference)
        difference = max((each for each in differences if each is not None), default=None)
        return PartialLoss(self.loss + other.loss, difference, self.counts + other.counts)


@dataclass(frozen=True, slots=True)
class GradientStep:
    """An optimizer step on a loss L: the policy-gradient loss with an entropy bonus and a KL penalty.

        L = -(1/D) Σ_b Σ_t A_t log π(a_t|s_t) - entropy_coefficient · bonus + kl.coefficient · divergence

    D is the denominator of the loss, and A_t is the advantage of action a_t in episode b. With importance
    weights or clipping, `surrogate_loss` replaces the first term. The last term exists only with the
    estimator k3; see `kl_loss`. The loss is computed in micro-batches, whose gradients are accumulated.

    Attributes:
        accelerator: the accelerator of the run.
        model: the model that is trained. With FSDP, it is the sharded copy.
        optimizer: optimizer of the model, prepared by the accelerator.
        pad_token_id: token id with which shorter episodes of a batch are padded.
        temperature: temperature at which the episodes were sampled.
        reinforce: settings of the loss.
        micro_batch_tokens: maximum number of tokens per backward pass. The tokens of a repeated prompt or
            episode are counted once.
        max_grad_norm: maximum norm of the gradient, above which it is scaled down. None: no clipping.
        gradient_checkpointing: keep only the inputs of each layer for the backward pass; see
            `token_log_probs`.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: AcceleratedOptimizer
    pad_token_id: int
    temperature: float
    reinforce: ReinforceConfig
    micro_batch_tokens: int
    max_grad_norm: float | None
    gradient_checkpointing: bool = False

    def __call__(
        self,
        batch: EpisodeBatch,
        estimate: Estimate,
        activations: Activations | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        recomputes: bool = False,
    ) -> UpdateOutcome:
        """Compute the gradient and take the optimizer step.

        The step is skipped if no episode was scored, or if the gradient is not finite.

        Args:
            batch: episodes of this process.
            estimate: advantages of the episodes of this process, and the denominator of the loss, which
                counts the episodes of all processes.
            activations: activations kept when the episodes were sampled. They are reused for the loss and
                then cleared, because they do not match the weights after the step. None: all activations
                are computed again.
            progress: function that is called before each micro-batch with the number of completed
                micro-batches and the number of all micro-batches.
            recomputes: measure `max_log_prob_difference` even if the loss reuses the log-probabilities that
                were recorded during sampling.

        Returns:
            the outcome of the step, which contains the reason if the step was skipped.
        """
        learning_rate = self.optimizer.param_groups[0]["lr"]
        if estimate.mean_return is None:
            if activations is not None:
                activations.clear()
            return UpdateOutcome(0.0, 0.0, None, learning_rate, "no episode was scored")
        own = PartialLoss(0.0, None, NO_RATIOS)
        self.optimizer.zero_grad()
        micro_batches = self.micro_batches(batch, self.rows_with_gradient(batch, estimate))
        if is_sharded(self.model):
            micro_batches = [part for rows in micro_batches for part in self._parts_of_one_pass(batch, rows)]
        passes = equal_passes(micro_batches, self.model, self.accelerator)
        nothing = replace(
            estimate,
            advantages=torch.zeros_like(estimate.advantages),
            mask=torch.zeros_like(estimate.mask),
        )
        if recomputes and activations is not None and activations.num_tokens:
            own = own._replace(max_log_prob_difference=self.recomputed_difference(batch))
        for num_done, (rows, is_counted) in enumerate(passes):
            if progress is not None:
                progress(num_done, len(passes))
            part = self.backward(batch, estimate if is_counted else nothing, rows, activations)
            # reused log-probabilities equal the recorded ones, so their difference would always be 0
            if activations is not None and activations.is_reused:
                part = part._replace(max_log_prob_difference=None)
            own = own.add(part)
        if activations is not None:
            activations.clear()
        first, *others = gather_object(own, self.accelerator)
        loss, difference, counts = reduce(PartialLoss.add, others, first)
        # the gradients are summed, not averaged, because the denominator counts the episodes of all processes
        sum_gradients(self.model, self.accelerator)
        self.accelerator.unscale_gradients()
        grad_norm = clip_gradients(self.model, self.max_grad_norm or float("inf"))
        is_finite = grad_norm < float("inf")  # False for NaN as well
        # with an fp16 scaler, step() skips gradients that are not finite and lowers the scale
        stepped = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        half = [parameter for parameter in stepped if parameter.grad is not None and is_half(parameter)]
        before = [local_tensor(parameter.detach()).clone() for parameter in half]
        if is_finite or self.accelerator.scaler is not None:
            self.optimizer.step()
        skipped: Skipped | None = None if is_finite else "the gradient is not finite"
        changed = frac_changed(before, half, self._sum_over_shards) if is_finite else None
        statistics = step_statistics(self.optimizer, self._sum_over_shards) if is_finite else None
        return UpdateOutcome(loss, grad_norm, difference, learning_rate, skipped, changed, statistics, counts)

    def rows_with_gradient(self, batch: EpisodeBatch, estimate: Estimate) -> list[int]:
        """Return the rows of the episodes that have a gradient.

        An episode whose advantages are all zero has no gradient, so its row is omitted to save time. With an
        entropy bonus or a KL divergence in the loss, every episode has a gradient. If no episode has a
        gradient, one row is returned, because at least one backward pass is needed.

        In the result, the episodes of a group (of one problem) are adjacent, so that they share the
        computation of the prompt. Groups with long episodes come first.
        """
        lengths, groups = batch.lengths.tolist(), batch.groups.tolist()
        longest: dict[int, int] = {}
        for length, group in zip(lengths, groups, strict=True):
            longest[group] = max(length, longest.get(group, 0))
        order = sorted(range(len(batch)), key=lambda row: (-longest[groups[row]], groups[row]))
        if self.reinforce.entropy_coefficient > 0 or self._kl_coefficient > 0:
            return order
        counts = estimate.advantages.ne(0).any(dim=1).tolist()
        return [row for row in order if counts[row]] or order[:1]

    def _sum_over_shards(self, numbers: Sequence[float]) -> Sequence[float]:
        return sum_over_shards(self.model, numbers, self.accelerator)

    def _parts_of_one_pass(self, batch: EpisodeBatch, rows: Sequence[int]) -> list[list[int]]:
        """Divide the rows of a micro-batch into the rows of each forward pass of a sharded model."""
        episodes = [batch.episodes[row] for row in rows]
        prompts = [episode.prompt_ids for episode in episodes]
        completions = [episode.completion.token_ids for episode in episodes]
        return [[rows[index] for index in part] for part in rows_of_passes(self.model, prompts, completions)]

    @property
    def _kl_coefficient(self) -> float:
        """Weight of the KL divergence in the loss; 0 if the loss has no KL divergence."""
        kl = self.reinforce.kl
        return kl.coefficient if kl is not None and kl.estimator == "k3" else 0.0

    def micro_batches(self, batch: EpisodeBatch, rows: Sequence[int]) -> list[list[int]]:
        """Divide the rows into micro-batches.

        A micro-batch has at most `micro_batch_tokens` tokens, or consists of a single row.

        A prompt or episode that is repeated within a micro-batch is computed once, and its tokens are counted
        once.

        A second limit bounds the memory of keys and values: a micro-batch has at most
        `ATTENDED * micro_batch_tokens` positions of keys and values. These positions include padding to the
        longest episode, and the copies of a prompt's keys and values that attention may make for each
        completion. This limit is higher than `micro_batch_tokens`, because a key and a value are small
        compared with the other activations of a token.
        """
        runs: list[list[int]] = [[]]
        seen: set[tuple[TokenIds, ...]] = set()  # prompts and episodes of the current micro-batch
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

    def backward(
        self,
        batch: EpisodeBatch,
        estimate: Estimate,
        rows: Sequence[int],
        activations: Activations | None,
    ) -> PartialLoss:
        """Add the gradient of one micro-batch to the gradients of the model, and return its loss."""
        episodes = [batch.episodes[row] for row in rows]
        with self.accelerator.autocast():
            scores = token_log_probs(
                self.model,
                [episode.prompt_ids for episode in episodes],
                [episode.completion.token_ids for episode in episodes],
                pad_token_id=self.pad_token_id,
                temperature=self.temperature,
                with_entropies=self.reinforce.entropy_coefficient > 0,
                activations=activations,
                gradient_checkpointing=self.gradient_checkpointing,
            )
        num_tokens, device = scores.log_probs.shape[1], scores.log_probs.device
        advantages = estimate.advantages[rows, :num_tokens].to(device)
        mask = estimate.mask[rows, :num_tokens].to(device)
        recorded = batch.behavior_log_probs[rows, :num_tokens].to(device)
        entropies, factors = scores.entropies, None
        if estimate.loss_weights is not None:
            factors = estimate.loss_weights[rows, None].to(device)
            advantages = factors * advantages
            entropies = None if entropies is None else factors * entropies
        loss, counts = surrogate_loss(
            self.reinforce, scores.log_probs, recorded, advantages, mask, estimate.denominator
        )
        if entropies is not None:
            bonus = entropy_bonus(entropies, mask, estimate.denominator)
            loss = loss - self.reinforce.entropy_coefficient * bonus
        if self._kl_coefficient > 0:
            assert batch.reference_log_probs is not None
            reference = batch.reference_log_probs[rows, :num_tokens].to(device)
            divergence = kl_loss(scores.log_probs, reference, recorded, mask, estimate.denominator, factors)
            loss = loss + self._kl_coefficient * divergence
        self.accelerator.backward(nan_unless_finite(loss))
        difference = (scores.log_probs.detach() - recorded).masked_fill(~mask, 0.0).abs().max()
        return PartialLoss(float(loss.detach()), float(difference), counts)

    @torch.no_grad()
    def recomputed_difference(self, batch: EpisodeBatch) -> float:
        """Return the largest |Δ log π| (see `UpdateOutcome`) of the longest episodes.

        The log-probabilities of these episodes are recomputed by the model's own forward pass. This compares
        the fast path with the model at the lengths that occur in the run.
        """
        sizes = [len(each.prompt_ids) + len(each.completion.token_ids) for each in batch.episodes]
        longest_first = sorted(range(len(batch)), key=lambda row: -sizes[row])
        rows = longest_first[: max(1, int(MAX_RECOMPUTED * len(batch)))]
        with self.accelerator.autocast():
            found = own_log_probs(
                self.model,
                [batch.episodes[row].prompt_ids for row in rows],
                [batch.episodes[row].completion.token_ids for row in rows],
                pad_token_id=self.pad_token_id,
                temperature=self.temperature,
            ).log_probs
        num_tokens, device = found.shape[1], found.device
        recorded = batch.behavior_log_probs[rows, :num_tokens].to(device)
        mask = action_mask(batch.lengths[rows], num_tokens).to(device)
        return float((found - recorded).masked_fill(~mask, 0.0).abs().max())


def frac_changed(
    before: Sequence[Tensor],
    parameters: Sequence[nn.Parameter],
    total: Callable[[Sequence[float]], Sequence[float]] = lambda numbers: numbers,
) -> float | None:
    """Among the weights with a nonzero gradient, return the share that a step has changed.

    Return None if no weight has a nonzero gradient.

    Args:
        before: values of the parameters before the step. If the parameters are sharded, these are the values
            that this process holds.
        parameters: the parameters after the step.
        total: function that sums numbers over the processes that have parts of the weights.
    """
    num_changed, num_with_gradient = 0.0, 0.0
    for old, parameter in zip(before, parameters, strict=True):
        assert parameter.grad is not None
        has_gradient = local_tensor(parameter.grad) != 0
        num_with_gradient += int(has_gradient.sum())
        num_changed += int((has_gradient & (local_tensor(parameter.detach()) != old)).sum())
    num_changed, num_with_gradient = total([num_changed, num_with_gradient])
    return num_changed / num_with_gradient if num_with_gradient else None


def nan_unless_finite(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the loss if it is finite, and otherwise NaN with a NaN gradient.

    An infinite loss may have a finite gradient. For example, -log π is infinite at π = 0, but its derivative
    with respect to the logits is finite. With a NaN gradient, all processes and gradient scalers skip the
    step.
    """
    # 1 + 0 · L is 1 or NaN
    return loss * (1.0 + 0.0 * loss.detach())
