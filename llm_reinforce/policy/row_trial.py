"""Find the fastest kind of batch in which a row's result does not depend on padding or on other rows.

Once per model, the first row of a padded trial batch is compared with the same row computed alone. The
comparison covers the log-probabilities of given actions, a gradient of these log-probabilities, and the
log-probabilities of sampled actions. Padding changes the result if a model uses the column of a token as its
position, for example. Such a model is run with batches of sequences of equal length.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llm_reinforce.console.messages import note
from llm_reinforce.errors import InputError
from llm_reinforce.policy.batches import Batch, SeparateBatches, WholeBatch
from llm_reinforce.policy.embedding import num_embeddings
from llm_reinforce.policy.language_policy import TokenIds, integers
from llm_reinforce.policy.plain_path import Batching, length_with_constant_positions, plain_log_probs

PROMPT_LENGTHS, NUM_ACTIONS = (2, 5, 2), 2  # number of tokens of each trial prompt and trial completion
MAX_GRADIENT = 1 << 16  # gradients of parameters with at most this number of elements are compared
MIN_TOLERANCE = 1e-5  # relative difference that rounding may cause in float32, with a margin
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
SCORING, SCORING_WITHOUT_CACHE = "scoring", "scoring without cache"  # names of trials


class Trial(NamedTuple):
    """Episodes of a trial batch.

    The first episode is padded. Its outcome is compared with the outcome without padding.
    """

    prompts: list[TokenIds]
    completions: list[TokenIds]


class Outcome(NamedTuple):
    """Log-probabilities of the actions of the first trial episode, and the gradient of their weighted sum."""

    log_probs: Tensor
    gradient: Tensor


_found: "weakref.WeakKeyDictionary[nn.Module, dict[str, Batching]]" = weakref.WeakKeyDictionary()


def scoring_batching(
    model: nn.Module,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    *,
    shares_prompts: bool = True,
) -> Batching:
    """Return the kind of batch in which the log-probabilities of the episodes' actions can be computed.

    See `Batching` for the kinds. The result is not "shared prompts" if `shares_prompts` is False.

    Raises:
        InputError: if the forward pass of the model needs more than token ids, or if the log-probability of
            a token depends on later tokens.
    """
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    name = SCORING if shares_prompts else SCORING_WITHOUT_CACHE
    found = _once(model, name, partial(_find_scoring, shares_prompts=shares_prompts))
    return _for_length(model, found, max(lengths, default=0))


def record_scoring_batching(model: nn.Module, batching: Batching) -> None:
    """Record the kind of batch that a model can compute, so that the model needs no trial.

    The kind must not be "shared prompts".
    """
    _found[model] = {SCORING: batching, SCORING_WITHOUT_CACHE: batching}


def sampling_batching(model: nn.Module, prompts: Sequence[TokenIds], max_new_tokens: int) -> Batching:
    """Return the kind of batch in which completions of the prompts can be sampled; see `Batching`.

    Raises:
        InputError: if the forward pass of the model needs more than token ids, if the sampler cannot copy
            rows of the model's cache, or if the log-probabilities with and without the cache differ.
    """
    longest = max(map(len, prompts), default=0) + max_new_tokens
    return _for_length(model, _once(model, "sampling", _find_sampling), longest)


def check_batching(model: nn.Module) -> None:
    """Check that a model without a fast path can be a policy. Show a notice if batches must not be padded.

    Raises:
        InputError: if the model has a prompt-learning adapter, or under the conditions listed for
            `scoring_batching` and `sampling_batching`.
    """
    adapter = getattr(model, "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        kind = getattr(adapter.peft_type, "value", adapter.peft_type)
        raise InputError(
            f"policy: adapters of type {kind} are not supported, because they put virtual tokens before the "
            "prompt; use an adapter that changes weights, such as LoRA"
        )
    _report(model, *(_once(model, *how) for how in ((SCORING, _find_scoring), ("sampling", _find_sampling))))


def _once(model: nn.Module, what: str, find: Callable[[nn.Module, Trial], Batching]) -> Batching:
    found = _found.setdefault(model, {})
    if what not in found:
        trial = trial_of(model)
        if trial is None:
            return "equal lengths"
        with evaluating(model):
            found[what] = find(model, trial)
    return found[what]


def _for_length(model: nn.Module, batching: Batching, length: int) -> Batching:
    limit = length_with_constant_positions(model)
    is_changed = limit is not None and length > limit and batching != "single rows"
    return "equal lengths" if is_changed else batching


def _find_scoring(model: nn.Module, trial: Trial, *, shares_prompts: bool = True) -> Batching:
    with refusal(model, "a forward pass with token ids alone fails"):
        reference = scored(model, lambda: alone(model, trial))
    _check_causal(model, trial)
    # the additional episode has the first prompt, so that two episodes share a prompt
    prompts, completions = [*trial.prompts, trial.prompts[0]], [*trial.completions, trial.completions[1]]
    ways: list[Batching] = ["shared prompts", "padded rows", "equal lengths"]
    if not shares_prompts or _fault_of_cache(model, trial) is not None:
        ways.remove("shared prompts")
    for batching in ways:

        def log_probs(batching: Batching = batching) -> Tensor:
            found = plain_log_probs(
                model, prompts, completions, pad_token_id=prompts[0][0], batching=batching
            )
            return found.log_probs[0]

        if agree(model, scored(model, log_probs), reference):
            return batching
    return "single rows"


def _find_sampling(model: nn.Module, trial: Trial) -> Batching:
    with refusal(model, "a forward pass with token ids alone fails"):
        reference = alone(model, trial).detach()
    if fault := _fault_of_cache(model, trial):
        raise InputError(f"{_not_supported(model)} {fault}; use another model")
    return _first_that_samples(model, trial, reference)


def _first_that_samples(model: nn.Module, trial: Trial, reference: Tensor) -> Batching:
    pad_token_id, difference = trial.prompts[0][0], 0.0
    ways: dict[Batching, Callable[[], Batch]] = {
        "padded rows": lambda: WholeBatch(model, pad_token_id),
        "equal lengths": lambda: SeparateBatches(model, pad_token_id, single_rows=False),
        "single rows": lambda: SeparateBatches(model, pad_token_id, single_rows=True),
    }
    for batching, new_batch in ways.items():
        with refusal(model, "sampling with a cache of keys and values fails"):
            found = sampled(new_batch(), trial)
        if agree_on(model, found, reference):
            return batching
        difference = float((found - reference).abs().max())
    raise InputError(
        f"{_not_supported(model)} the log-probabilities with and without the cache differ by "
        f"{difference:.2g} nats; use another model"
    )


def _check_causal(model: nn.Module, trial: Trial) -> None:
    """Check that the log-probability of the first action does not depend on the actions after it."""
    first = [completion[:1] for completion in trial.completions]
    whole = scored(model, lambda: alone(model, trial)[:1])
    if agree(model, scored(model, lambda: alone(model, Trial(trial.prompts, first))), whole):
        return
    is_encoder = getattr(_inner(model).config, "is_decoder", None) is False
    hint = "if the model is a decoder, set is_decoder: true in its config.json; otherwise, " * is_encoder
    raise InputError(
        f"{_not_supported(model)} the log-probability of a token depends on later tokens, as in an encoder; "
        f"{hint}use a model that predicts the next token"
    )


def _fault_of_cache(model: nn.Module, trial: Trial) -> str | None:
    """Return the reason why the sampler cannot copy rows of a model's cache; None if it can copy rows."""
    inputs = integers([trial.prompts[0]], next(model.parameters()).device)
    try:
        with torch.no_grad():
            cache = getattr(model(input_ids=inputs, use_cache=True), "past_key_values", None)
    except Exception as error:  # a model may raise any exception
        return f"a forward pass with a cache fails ({reason(error)})"
    if cache is None:
        return "the forward pass returns no cache of keys and values (past_key_values)"
    cache = getattr(cache, "self_attention_cache", cache)
    kinds = {type(layer) for layer in getattr(cache, "layers", [])}
    others = {kind.__name__ for kind in kinds if not _holds_keys_and_values(kind)}
    if type(cache).__module__ != "transformers.cache_utils":  # it may have state besides its layers
        layer_types = getattr(_inner(model).config, "layer_types", None)
        others |= {type(cache).__name__} if layer_types is None else set(layer_types) - ATTENTION
    if not others:
        return None
    return (
        f"the cache holds more than keys and values, such as a recurrent state ({', '.join(sorted(others))})"
    )


def _holds_keys_and_values(kind: type) -> bool:
    is_linear = any("LinearAttention" in base.__name__ for base in kind.__mro__)
    return kind.__module__ == "transformers.cache_utils" and not is_linear


def _report(model: nn.Module, scoring: Batching, sampling: Batching) -> None:
    slow = {"equal lengths": "sequences of equal length", "single rows": "one sequence"}
    parts = [
        f"{what} uses batches of {slow[batching]}"
        for what, batching in (("sampling", sampling), ("training", scoring))
        if batching in slow
    ]
    if parts:
        cause = (
            "other sequences of a batch change" if "single rows" in (scoring, sampling) else "padding changes"
        )
        note(
            f"policy: {cause} the log-probabilities of a {type(_inner(model)).__name__}, so "
            f"{' and '.join(parts)}, which is slower"
        )


@contextmanager
def refusal(model: nn.Module, what: str) -> Iterator[None]:
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model may raise any exception
        raise InputError(f"{_not_supported(model)} {what} ({reason(error)}); use another model") from error


def reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _not_supported(model: nn.Module) -> str:
    inner = _inner(model)
    kind = getattr(getattr(inner, "config", None), "model_type", type(inner).__name__)
    return f"policy: models of type {kind} are not supported, because in this {type(inner).__name__}"


def _inner(model: nn.Module) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn off dropout and autocast within the context.

    To save time, only small parameters require gradients within the context.
    """
    was_training = model.training
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    small = [parameter for parameter in trained if parameter.numel() <= MAX_GRADIENT]
    large = [parameter for parameter in trained if parameter.numel() > MAX_GRADIENT and small]
    device = next(model.parameters()).device.type
    if was_training:
        model.eval()
    for parameter in large:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        for parameter in large:
            parameter.requires_grad_(True)
        if was_training:
            model.train()


def trial_of(
    model: nn.Module, prompt_lengths: Sequence[int] = PROMPT_LENGTHS, *, is_limited: bool = True
) -> Trial | None:
    """Return a trial with an episode for each prompt length, or None if the model is too small for a trial.

    If `is_limited` is True, the result is also None if an episode would have more tokens than the model has
    positions.
    """
    head = getattr(_inner(model), "get_output_embeddings", lambda: None)()
    sizes = [num_embeddings(model), getattr(head, "out_features", None)]
    size = min((size for size in sizes if isinstance(size, int)), default=0)
    config = getattr(_inner(model), "config", None)
    limit = getattr(config, "max_position_embeddings", None)
    longest = max(prompt_lengths) + NUM_ACTIONS
    if size < 2 or (is_limited and isinstance(limit, int) and 0 < limit < longest):
        return None
    # some models treat the pad token as padding, even without a mask
    padding = {getattr(config, "pad_token_id", None), getattr(_inner(model), "padding_idx", None)}
    known = [token for token in range(size) if token not in padding]
    tokens = iter(known[(7 * index) % len(known)] for index in count())
    prompts = [tuple(islice(tokens, length)) for length in prompt_lengths]
    return Trial(prompts, [tuple(islice(tokens, NUM_ACTIONS)) for _ in prompts])


def alone(model: nn.Module, trial: Trial) -> Tensor:
    first = trial.prompts[:1], trial.completions[:1]
    return plain_log_probs(model, *first, pad_token_id=trial.prompts[0][0], batching="single rows").log_probs[
        0
    ]


def scored(model: nn.Module, log_probs: Callable[[], Tensor]) -> Outcome:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = log_probs()
    if not found.requires_grad:
        return Outcome(found.detach(), found.new_zeros(1))
    # weighted with different numbers, because the gradient of an unweighted sum may be zero
    weights = torch.arange(1, len(found) + 1, dtype=found.dtype, device=found.device)
    gradients = torch.autograd.grad(found, parameters, weights, allow_unused=True, materialize_grads=True)
    return Outcome(found.detach(), torch.cat([gradient.flatten().float() for gradient in gradients]))


@torch.no_grad()
def sampled(batch: Batch, trial: Trial) -> Tensor:
    """Return the log-probabilities of the first episode's actions, computed with a cache as in sampling.

    Rows of the cache are also copied, because the sampler copies rows.
    """
    actions = integers(trial.completions, torch.device("cpu"))
    rows = range(len(trial.prompts))
    logits = [batch.fill(rows, trial.prompts, rows)]
    for _ in range(2):  # reverse the rows twice, to try the copying of rows
        batch.copy(rows, rows[::-1])
    lengths = [len(prompt) for prompt in trial.prompts]
    for column in range(NUM_ACTIONS - 1):
        lengths = [length + 1 for length in lengths]
        chosen = actions[:, column].to(logits[0].device)
        logits.append(batch.step(chosen, min(lengths), max(lengths)))
    values = torch.stack(logits, 1)
    values = values.to(torch.promote_types(values.dtype, torch.float32)).log_softmax(-1)
    return values.gather(-1, actions.to(values.device)[..., None])[0, :, 0]


def agree(model: nn.Module, found: Outcome, reference: Outcome) -> bool:
    norm = float(reference.gradient.norm())
    limit = max(1e-3, _tolerance(model)) * norm + 1e-9
    # a model whose weights are NaN has no gradient to compare
    is_close = float((found.gradient - reference.gradient).norm()) <= limit or not math.isfinite(norm)
    return is_close and agree_on(model, found.log_probs, reference.log_probs)


def agree_on(model: nn.Module, found: Tensor, reference: Tensor) -> bool:
    tolerance = _tolerance(model)
    return torch.allclose(found, reference, rtol=tolerance, atol=tolerance, equal_nan=True)


def _tolerance(model: nn.Module) -> float:
    """Return the relative difference that rounding may cause in the data type of the model."""
    return max(MIN_TOLERANCE, 16 * torch.finfo(next(model.parameters()).dtype).eps)
