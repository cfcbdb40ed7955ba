"""The weights of a policy as files that a server reads."""

import copy
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from llm_reinforce.durable_files import whole_directory
from llm_reinforce.policy import LanguagePolicy


def write_all_weights(policy: LanguagePolicy, directory: Path, *, with_adapter: bool = True) -> None:
    """Write all weights as a checkpoint of their own; an existing directory is replaced.

    The output layer is written as a tensor of its own, even if it shares its weights with the embedding.
    vLLM prepares a separate copy of the output layer on some devices, and does not replace this copy when it
    reloads a checkpoint with shared weights.

    Args:
        policy: the policy.
        directory: directory to write.
        with_adapter: merge a LoRA adapter into the weights; False: write the weights without it.
    """
    model: Any = policy.model
    if isinstance(model, PeftModel):
        wrapped: Any = copy.deepcopy(model)  # merging and unmerging would change the weights by rounding
        model = wrapped.merge_and_unload() if with_adapter else wrapped.unload()
    with whole_directory(directory) as partial:
        _save_untied(model, partial)
        policy.tokenizer.save_pretrained(str(partial))


def _save_untied(model: Any, directory: Path) -> None:
    weights, config = dict(model.state_dict()), model.config
    seen: set[int] = set()
    for name, tensor in weights.items():
        if tensor.data_ptr() in seen:
            weights[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    before = getattr(config, "tie_word_embeddings", None)
    try:
        if before:
            config.tie_word_embeddings = False
        model.save_pretrained(str(directory), state_dict=weights)
    finally:
        if before:
            config.tie_word_embeddings = before


def write_adapter(policy: LanguagePolicy, directory: Path) -> None:
    """Write the LoRA adapter of the policy; an existing directory is replaced."""
    with whole_directory(directory) as partial:
        policy.model.save_pretrained(str(partial))  # type: ignore[operator]


def has_adapter(model: nn.Module) -> bool:
    """Return True if the model is a LoRA adapter with its base."""
    return isinstance(model, PeftModel)
