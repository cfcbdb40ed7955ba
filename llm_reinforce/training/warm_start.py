"""Supervised warm start: train the policy on the solutions of problems before the policy-gradient updates.

The solutions are treated as if the policy had sampled them: the loss is the policy-gradient loss with all
advantages equal to 1.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from llm_reinforce.config import TrainingConfig, WarmStartConfig
from llm_reinforce.console.run_display import Display
from llm_reinforce.errors import InputError, RunStoppedError
from llm_reinforce.policy import LanguagePolicy, is_sharded, rows_of_passes, token_log_probs
from llm_reinforce.policy_gradient import action_mask, reinforce_loss
from llm_reinforce.problems import Problem
from llm_reinforce.training.adamw import adamw
from llm_reinforce.training.data_parallel import (
    clip_gradients,
    equal_passes,
    gather_object,
    sum_gradients,
)
from llm_reinforce.training.gradient_step import nan_unless_finite
from llm_reinforce.training.optimizer import learning_rate_schedule

BETAS = (0.9, 0.999)  # decay rates of AdamW's moment estimates


def warm_start(
    policy: LanguagePolicy,
    model: nn.Module,
    problems: Sequence[Problem],
    settings: WarmStartConfig,
    training: TrainingConfig,
    *,
    accelerator: Accelerator,
    display: Display,
    seed: int,
    is_stopped: Callable[[], bool],
) -> int:
    """Train the policy on the solutions of problems, with an optimizer of its own.

    If a problem has no solution, the policy is trained on the answer. The loss of an update is the mean of
    -log π(a_t | s_t) over the tokens of the update's solutions, in nats. Several processes share the problems
    of an update.

    Args:
        policy: the policy.
        model: the model of the policy, or its sharded copy. It is trained in place.
        problems: the demonstrations or training problems. Each update draws some of these problems with
            replacement. With `epochs`, each epoch uses every problem once.
        settings: number of updates or epochs, batch size and learning rate.
        training: settings of the run. The warm start uses `optimizer`, `master_weights`,
            `gradient_checkpointing` and `max_not_finite`.
        accelerator: the accelerator of the run.
        display: display of the progress.
        seed: seed of the random choice of problems.
        is_stopped: function that is called before each update. If it returns True, the warm start ends early.

    Returns:
        number of updates that were skipped because their gradient was not finite.

    Raises:
        RunStoppedError: if `training.max_not_finite` updates in a row were skipped.
    """
    changed = {"learning_rate": settings.learning_rate, "betas": BETAS, "weight_decay": 0.0}
    adam = adamw(model, training.model_copy(update=changed))
    num_of_all = settings.length(len(problems))
    num_warmup = min(settings.num_warmup_updates, num_of_all)
    schedule = learning_rate_schedule("cosine", adam, num_warmup, num_of_all)
    # accelerator.prepare is not used, because it would unscale fp16 gradients once per prepared optimizer
    optimizer = AcceleratedOptimizer(adam, scaler=accelerator.scaler)
    num_skipped, num_in_a_row = 0, 0
    for num_updates, drawn in enumerate(_batches(problems, settings, seed), 1):
        if is_stopped():
            break
        optimizer.zero_grad()
        own_loss = _backward(policy, model, drawn, accelerator, training)
        sum_gradients(model, accelerator)
        accelerator.unscale_gradients(optimizer)
        norm = clip_gradients(model, 1.0)
        is_finite = math.isfinite(norm)
        # with an fp16 scaler, step() skips gradients that are not finite
        if is_finite or accelerator.scaler is not None:
            optimizer.step()
        schedule.step()
        loss = sum(gather_object(own_loss, accelerator))
        num_skipped, num_in_a_row = num_skipped + (not is_finite), 0 if is_finite else num_in_a_row + 1
        if num_in_a_row == 1:
            display.say(
                f"update {num_updates} of the warm start is skipped: its gradient is not finite (norm "
                f"{norm:.3g}, loss {loss:.3g}); the weights are unchanged"
            )
        if num_in_a_row >= training.max_not_finite:
            raise RunStoppedError(
                f"the gradients of the last {num_in_a_row} updates of the warm start were not finite; no "
                "checkpoint is saved. Lower training.warm_start.learning_rate, or use a higher-precision "
                "dtype or mixed_precision, and start the run again with --overwrite"
            )
        display.warm_start(num_updates, num_of_all, loss)
    return num_skipped


def _batches(
    problems: Sequence[Problem], settings: WarmStartConfig, seed: int
) -> Iterator[Sequence[Problem]]:
    """Yield the problems of each update, drawn with replacement or, with `epochs`, in random order."""
    if settings.epochs is None:
        generator = random.Random(f"warm start {seed} 0")
        for _ in range(settings.length(len(problems))):
            yield generator.choices(problems, k=settings.batch_size)
        return
    order: list[Problem] = []
    for epoch in range(settings.epochs):
        order += random.Random(f"warm start {seed} epoch {epoch}").sample(problems, len(problems))
    for start in range(0, len(order), settings.batch_size):
        yield order[start : start + settings.batch_size]


def target_of(problem: Problem) -> str:
    """Return the text that a warm start trains on: the problem's solution or, if there is none, its answer.

    Raises:
        InputError: if the problem has neither a solution nor an answer.
    """
    target = problem.solution or problem.answer
    if target is None:
        raise InputError(
            f"training.warm_start: problem {problem.id!r} has neither a solution nor an answer to train on; "
            "remove training.warm_start, or set answer_column"
        )
    return target


def _backward(
    policy: LanguagePolicy,
    model: nn.Module,
    problems: Sequence[Problem],
    accelerator: Accelerator,
    training: TrainingConfig,
) -> float:
    """Compute the gradient of this process's share of the loss, and return the value of the share.

    The loss is the mean of -log π(a_t | s_t) over the tokens of all problems' solutions or answers.
    """
    completions = [policy.encode_completion(target_of(problem)) for problem in problems]
    num_actions = sum(map(len, completions))
    own = [*range(len(problems))][accelerator.process_index :: accelerator.num_processes]
    rows = own or [0]  # a process without rows also makes a pass, because a sharded model needs all processes
    prompts = policy.encode_prompts([problems[row].policy_prompt for row in rows])
    completions = [completions[row] for row in rows]
    parts = [[*range(len(rows))]]
    if is_sharded(model):
        parts = rows_of_passes(model, prompts, completions)
    total = 0.0
    for part, is_counted in equal_passes(parts, model, accelerator):
        with accelerator.autocast():
            scores = token_log_probs(
                model,
                [prompts[row] for row in part],
                [completions[row] for row in part],
                pad_token_id=policy.pad_token_id,
                gradient_checkpointing=training.gradient_checkpointing,
            )
        lengths = torch.tensor([len(completions[row]) for row in part], device=policy.device)
        mask = action_mask(lengths, scores.log_probs.shape[1])
        weights = torch.full_like(scores.log_probs, float(is_counted and bool(own)))
        loss = reinforce_loss(scores.log_probs, weights, mask, float(num_actions))
        accelerator.backward(nan_unless_finite(loss))
        total += float(loss.detach())
    return total
