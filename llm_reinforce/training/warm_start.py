"""A short supervised start: the training problems' own answers, as if the policy had sampled them.

It is the policy-gradient loss with every advantage 1: an episode of T actions is T labelled examples.
"""

import random
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from jaxtyping import Float
from torch import Tensor, nn

from llm_reinforce.config import WarmStartConfig
from llm_reinforce.console.run_display import Display
from llm_reinforce.errors import RunStoppedError
from llm_reinforce.policy import LanguagePolicy, token_log_probs
from llm_reinforce.policy_gradient import action_mask, reinforce_loss
from llm_reinforce.problems import Problem
from llm_reinforce.training.data_parallel import sum_gradients
from llm_reinforce.training.gradient_step import spoiling_its_gradient
from llm_reinforce.training.learning_rates import learning_rate_schedule


def warm_start(
    policy: LanguagePolicy,
    problems: Sequence[Problem],
    settings: WarmStartConfig,
    *,
    accelerator: Accelerator,
    display: Display,
    seed: int,
    is_stopped: Callable[[], bool],
    max_not_finite: int,
) -> int:
    """Train the policy on the answers (a worked solution where there is one) with an optimiser of its own.

    Each update's loss is the mean over its actions of - log π(action), in nats; of several processes, the
    mean of theirs. It ends early, half done, once `is_stopped` says so.

    Returns:
        how many updates were left out, because their gradients weren't finite.

    Raises:
        RunStoppedError: so it was with `max_not_finite` updates in a row.
    """
    model = policy.model
    adam = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = learning_rate_schedule("cosine", adam, settings.num_warmup_updates, settings.num_updates)
    # not by accelerator.prepare: fp16's gradients would be unscaled once for each optimiser that it knows
    optimizer = AcceleratedOptimizer(adam, scaler=accelerator.scaler)
    generator = random.Random(f"warm start {seed} {accelerator.process_index}")
    num_skipped, num_in_a_row = 0, 0
    for num_updates in range(1, settings.num_updates + 1):
        if is_stopped():
            break
        drawn = generator.choices(problems, k=settings.batch_size)
        loss = _loss(policy, drawn, accelerator)
        optimizer.zero_grad()
        accelerator.backward(spoiling_its_gradient(loss) / accelerator.num_processes)
        sum_gradients(model, accelerator)
        accelerator.unscale_gradients(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        is_finite = bool(norm.isfinite())
        if is_finite or accelerator.scaler is not None:  # the scaler leaves such a step out by itself
            optimizer.step()
        schedule.step()
        num_skipped, num_in_a_row = num_skipped + (not is_finite), 0 if is_finite else num_in_a_row + 1
        if num_in_a_row == 1:
            display.say(
                f"update {num_updates} of the warm start is left out: its gradient isn't finite (norm "
                f"{float(norm):.3g}, loss {float(loss.detach()):.3g}); the weights stay"
            )
        if num_in_a_row >= max_not_finite:
            raise RunStoppedError(
                f"the gradients of the last {num_in_a_row} updates of the warm start weren't finite. Nothing "
                "is kept of it: a lower training.warm_start.learning_rate, dtype or mixed_precision of more "
                "bits may help, in a run that --overwrite begins anew"
            )
        display.warm_start(num_updates, settings.num_updates, float(loss.detach()))
    return num_skipped


def _loss(policy: LanguagePolicy, problems: Sequence[Problem], accelerator: Accelerator) -> Float[Tensor, ""]:
    """The mean of - log π(action) over the actions of these problems' answers."""
    completions = [policy.encode_completion(problem.solution or problem.answer) for problem in problems]
    with accelerator.autocast():
        scores = token_log_probs(
            policy.model,
            policy.encode_prompts([problem.prompt for problem in problems]),
            completions,
            pad_token_id=policy.pad_token_id,
        )
    lengths = torch.tensor([len(completion) for completion in completions], device=policy.device)
    mask = action_mask(lengths, scores.log_probs.shape[1])
    ones = torch.ones_like(scores.log_probs)
    return reinforce_loss(scores.log_probs, ones, mask, float(lengths.sum()))
