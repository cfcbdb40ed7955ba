"""Check that the fast path gives the same results as the model's forward pass.

The fast path does not call the model's forward pass. It would not notice a patched class, another version of
transformers, or a setting that it does not know. Therefore, the results of the fast path and of the forward
pass are compared on a few tokens when a model is loaded. They are compared again if the code of the model or
the settings of the model have changed.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llm_reinforce.console.messages import note
from llm_reinforce.policy.fast_path.packed_forward import packable_model
from llm_reinforce.policy.fast_path.packed_log_probs import packed_log_probs
from llm_reinforce.policy.fast_path.slot_batch import SlotBatch
from llm_reinforce.policy.row_trial import (
    NUM_ACTIONS,
    PROMPT_LENGTHS,
    Trial,
    agree,
    agree_on,
    alone,
    check_batching,
    evaluating,
    reason,
    refusal,
    sampled,
    scored,
    trial_of,
)

PLAIN = (bool, int, float, str)
DESCRIPTIVE = ("architectures", "dtype", "_name_or_path", "transformers_version")
"""Settings that the forward pass does not read. Some of them are set when the model is saved."""
LONG_PROMPT = 72  # in tokens; above `attention.MAX_SMALL`, so that attention over long rows is compared too


_is_same: dict[tuple[Any, ...], bool] = {}
"""For the code and settings of a model (see `_code_of`), True if the fast path agreed with the model."""


def fast_model(model: nn.Module) -> Any:
    """Return the model without its adapter wrapper if the fast path supports it, and otherwise None.

    The fast path is compared with the forward pass of the model on the first call, and when the code or the
    settings of the model have changed. If the results differ, a notice is shown.

    Raises:
        InputError: if the forward pass of the model needs more than token ids.
    """
    packable = packable_model(model)
    if packable is None:
        return None
    code = _code_of(model, packable)
    if code not in _is_same:
        _is_same[code] = _compare(model, packable)
    return packable if _is_same[code] else None


def check_model(model: nn.Module) -> None:
    """Check that a model can be a policy, and show a notice if its batches must not be padded.

    Raises:
        InputError: if the model cannot be a policy; see `check_batching`.
    """
    if fast_model(model) is None:
        check_batching(model)


def _code_of(model: nn.Module, packable: Any) -> tuple[Any, ...]:
    """Return the functions and plain settings that determine what the forward pass of a model computes.

    The result does not contain the values of the weights. It does not contain the attribute `training`
    either, because a policy is always in evaluation mode.
    """
    of_modules: list[Any] = []
    for module in model.modules():
        of_modules.append(type(module).forward)
        plain = [value for name, value in vars(module).items() if type(value) in PLAIN and name != "training"]
        weights = [(each.dtype, each.device) for each in module._parameters.values() if each is not None]
        of_modules += [*plain, *weights]
    # functions in the module of the class, such as the function that rotates queries
    functions = [value for value in vars(sys.modules[type(packable).__module__]).values() if callable(value)]
    registry = getattr(sys.modules.get("transformers.modeling_utils"), "ALL_ATTENTION_FUNCTIONS", {})
    settings = repr({name: value for name, value in vars(packable.config).items() if name not in DESCRIPTIVE})
    return *of_modules, *functions, *registry.values(), settings


def _compare(model: nn.Module, packable: Any) -> bool:
    """Compare the fast path with the forward pass of the model, and show a notice if they differ."""
    short, long = (trial_of(model, lengths, is_limited=False) for lengths in (PROMPT_LENGTHS, (LONG_PROMPT,)))
    if short is None or long is None:
        return False

    def packed(trial: Trial) -> Callable[[], Tensor]:
        return lambda: packed_log_probs(packable, *trial, 1.0, False, None).log_probs[0]

    with evaluating(model):
        with refusal(model, "a forward pass with token ids alone fails"):
            expected = scored(model, lambda: alone(model, short))
            with torch.no_grad():
                expected_of_long = alone(model, long)
        try:
            slots = SlotBatch(packable, len(short.prompts), NUM_ACTIONS)
            is_same = agree(model, scored(model, packed(short)), expected)
            is_same = is_same and agree_on(model, sampled(slots, short), expected.log_probs)
            with torch.no_grad():
                is_same = is_same and agree_on(model, packed(long)(), expected_of_long)
            fault = "gives other log-probabilities than transformers"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a changed layer may raise any exception
            is_same, fault = False, f"fails ({reason(error)})"
    if not is_same:
        note(
            f"policy: the fast path {fault} for this {type(packable).__name__}, so it is not used; sampling "
            "and training are slower"
        )
    return is_same
