"""Write the weights of a policy to files that a server reads."""

import copy
import os
from pathlib import Path
from typing import Any

from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import nn

from llm_reinforce.durable_files import whole_directory
from llm_reinforce.policy import LanguagePolicy, without_progress_bars


def server_directory(output_dir: str) -> Path:
    """Return the directory with the files for the server of a run. It is next to the run's directory."""
    path = Path(os.path.abspath(Path(output_dir).expanduser()))
    return path.with_name(f"{path.name}.server")


def has_adapter(model: nn.Module) -> bool:
    """Return True if the model is a base model with a LoRA adapter."""
    return isinstance(model, PeftModel)


def write_adapter(policy: LanguagePolicy, directory: Path) -> None:
    """Write the LoRA adapter of the policy. An existing directory is replaced."""
    with whole_directory(directory) as partial, without_progress_bars():
        # by default, peft asks the hub at each call whether the base model has the same vocabulary
        policy.model.save_pretrained(str(partial), save_embedding_layers=False)  # type: ignore[operator]


def write_all_weights(policy: LanguagePolicy, directory: Path) -> None:
    """Write all weights of the policy. An existing directory is replaced.

    If the policy has a LoRA adapter, the adapter is merged into the written weights. Quantized weights are
    dequantized, which does not change the policy.
    """
    model: Any = policy.model
    if isinstance(model, PeftModel):
        model = _merged(model)
    with whole_directory(directory) as partial:
        _save_untied(model, partial)


def write_served_model(policy: LanguagePolicy, directory: Path) -> None:
    """Write the model and the tokenizer that a server loads when it starts.

    An existing directory is replaced. A LoRA adapter is left out, because the server receives the adapter
    later. Quantized weights are dequantized.
    """
    model: Any = policy.model
    if isinstance(model, PeftModel):
        model = copy.deepcopy(model).unload()  # type: ignore[operator]
    if getattr(model, "is_quantized", False):
        model = copy.deepcopy(model).dequantize()
    with whole_directory(directory) as partial:
        _save_untied(model, partial)
        policy.tokenizer.save_pretrained(str(partial))


def _merged(model: PeftModel) -> Any:
    """Return a copy of the base model with the adapter merged into its weights.

    The copy is needed because merging and unmerging would change the weights of the policy by rounding.
    """
    if not getattr(model.get_base_model(), "is_quantized", False):
        return copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]
    # peft would quantize the merged weights again, which rounds them
    base: Any = copy.deepcopy(model).unload()  # type: ignore[operator]
    merged = get_peft_model(base.dequantize(), copy.deepcopy(model.peft_config[model.active_adapter]))
    adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
    set_peft_model_state_dict(merged, adapter)  # type: ignore[no-untyped-call]
    return merged.merge_and_unload()  # type: ignore[operator]


def _save_untied(model: Any, directory: Path) -> None:
    """Save a model, with its output layer as a separate tensor.

    On a CPU, vLLM prepares a copy of the output layer, even if the layer shares its weights with the
    embedding. When vLLM reloads shared weights, it does not replace this copy.
    """
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
        with without_progress_bars():
            model.save_pretrained(str(directory), state_dict=weights)
    finally:
        if before:
            config.tie_word_embeddings = before
