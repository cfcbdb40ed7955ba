"""Gradient checkpointing: the same gradient from fewer stored activations, on both paths."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_models import COMPLETIONS, GPT2, PROMPTS, SHAPE, model_of
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from llm_reinforce.errors import InputError
from llm_reinforce.policy import checkpointable_layers, own_log_probs, token_log_probs


def adapted() -> Any:
    torch.manual_seed(0)
    return get_peft_model(model_of("llama"), LoraConfig(target_modules="all-linear", init_lora_weights=False))


def gpt2() -> Any:
    """Return a model without a fast path whose layers have dropout, which is off in evaluation mode."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=13, **GPT2 | {"n_layer": 2}, resid_pdrop=0.5)).eval()


def opt() -> Any:
    """Return a model whose layers apply dropout themselves, depending on their own mode."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return OPTForCausalLM(OPTConfig(vocab_size=13, word_embed_proj_dim=16, dropout=0.5, **size)).eval()


def outcome(model: Any, *, plain: bool, gradient_checkpointing: bool) -> tuple[list[torch.Tensor], int]:
    """Return log-probabilities, entropies and gradients, and the size of the stored activations."""
    kept: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no memory is used twice
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    model.zero_grad()
    function = own_log_probs if plain else token_log_probs
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        found = function(
            model,
            PROMPTS,
            COMPLETIONS,
            pad_token_id=12,
            temperature=0.7,
            with_entropies=True,
            gradient_checkpointing=gradient_checkpointing,
        )
    assert found.entropies is not None
    mask = torch.tensor([[number < len(each) for number in range(5)] for each in COMPLETIONS])
    values = [each.masked_fill(~mask, 0.0) for each in (found.log_probs, found.entropies)]
    weights = torch.linspace(-1, 1, mask.numel()).view_as(values[0])
    (weights * values[0] + weights.flip(0) * values[1]).sum().backward()
    gradients = [each.grad.clone() for each in model.parameters() if each.grad is not None]
    return [*(each.detach() for each in values), *gradients], sum(each.nbytes() for each in kept.values())


@pytest.mark.parametrize(
    ("model", "plain"),
    [
        (lambda: model_of("llama"), False),
        (lambda: model_of("qwen3"), False),
        (adapted, False),
        (lambda: model_of("llama"), True),
        (gpt2, True),
        (opt, True),
    ],
    ids=["llama", "qwen3", "adapter", "llama, plain", "gpt2", "opt"],
)
def test_recomputed_layers_give_the_same_gradient(model: Any, plain: bool) -> None:
    made = model()
    for gradient_checkpointing in (False, True):  # the first calls compute trial batches
        outcome(made, plain=plain, gradient_checkpointing=gradient_checkpointing)
    expected, num_all = outcome(made, plain=plain, gradient_checkpointing=False)
    found, num_kept = outcome(made, plain=plain, gradient_checkpointing=True)
    assert len(found) == len(expected) > 5
    # without the sharing of prompts, sums have another order
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert num_kept < 0.8 * num_all
    assert not any("forward" in vars(layer) for layer in checkpointable_layers(made))


def test_long_prompts_are_recomputed_too() -> None:
    model = model_of("llama")
    prompts = [tuple(range(1, 11)) * 5 + (number,) for number in range(2)]
    gradients = []
    for gradient_checkpointing in (False, True):
        model.zero_grad()
        found = token_log_probs(
            model,
            prompts,
            [(1, 2, 3, 4, 5, 6, 7), (2, 1)],
            pad_token_id=12,
            gradient_checkpointing=gradient_checkpointing,
        )
        found.log_probs[0].sum().backward()
        gradients.append([each.grad.clone() for each in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_a_model_without_layers_is_refused() -> None:
    class Other(torch.nn.Module):
        pass

    with pytest.raises(InputError, match="checkpointing: the layers of a Other cannot be recomputed"):
        checkpointable_layers(Other())
    assert len(checkpointable_layers(adapted())) == SHAPE["num_hidden_layers"]
