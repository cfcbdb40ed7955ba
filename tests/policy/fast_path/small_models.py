"""Small float64 models of every supported kind, and the plain path as a reference for the fast path."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llm_reinforce.policy import (
    LanguagePolicy,
    TokenIds,
    character_tokenizer,
    log_probs,
    sampling,
    token_log_probs,
)

SHAPE: dict[str, Any] = {
    "vocab_size": 13,
    "bos_token_id": None,
    "eos_token_id": 12,
    "pad_token_id": None,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama, a key for each head": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE | {"num_key_value_heads": 4})),
    "llama, one key for all": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE | {"num_key_value_heads": 1})),
    "llama, biases": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "llama, scaled positions": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0})
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
}
GPT2 = {"n_embd": 8, "n_layer": 1, "n_head": 1}
PROMPTS: list[TokenIds] = [(1, 2, 3, 4), (1, 2, 5), (1, 2, 3, 4), (1, 2, 9, 9, 9, 9), (1, 2, 5), (1, 2, 5)]
COMPLETIONS: list[TokenIds] = [(4, 6, 12), (7, 12), (4, 12), (1, 2, 3, 4), (12,), (5, 5, 5, 5, 5)]


def model_of(name: str) -> Any:
    """Return a model that computes in float64, with nonzero biases."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = MODELS[name]().eval().double()
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.5)
    # the RMSNorm of transformers always computes in float32, but the RMSNorm of torch in float64
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = torch.nn.RMSNorm(child.weight.shape, child.variance_epsilon, dtype=torch.float64)
                setattr(parent, child_name, norm)
    return model


def policy_of(model: torch.nn.Module) -> LanguagePolicy:
    return LanguagePolicy(
        model, character_tokenizer("0123456789+="), end_token_ids=(12, 3, 7), pad_token_id=12
    )


def use_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the fast path and the sharing of prompts until the end of the test."""
    for module in (log_probs, sampling):
        monkeypatch.setattr(module, "fast_model", lambda model: None)
    monkeypatch.setattr(log_probs, "scoring_batching", lambda *arguments, **options: "padded rows")


def log_probs_and_gradient(
    model: Any, prompts: list[TokenIds], completions: list[TokenIds], *, with_entropies: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return log-probabilities, entropies, and the gradient of a weighted sum of them."""
    model.zero_grad()
    found = token_log_probs(
        model, prompts, completions, pad_token_id=12, temperature=0.7, with_entropies=with_entropies
    )
    lengths = torch.tensor([len(completion) for completion in completions])
    mask = torch.arange(found.log_probs.shape[1]) < lengths[:, None]
    entropies = torch.zeros_like(found.log_probs) if found.entropies is None else found.entropies
    values = (found.log_probs.masked_fill(~mask, 0.0), entropies.masked_fill(~mask, 0.0))
    weights = torch.linspace(-1, 1, mask.numel(), dtype=torch.float64).reshape(mask.shape)
    (weights * values[0] + weights.flip(0) * values[1]).sum().backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return values[0].detach(), values[1].detach(), gradients


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def with_nan_token(model: Any) -> Any:
    """Set the embedding of token 8 to NaN, so that every output that depends on this token is NaN."""
    with torch.no_grad():
        model.model.embed_tokens.weight[8] = torch.nan
    return model


class NoSynchronization(TorchDispatchMode):
    """Mode in which operations raise an error if the CPU would have to wait for results of a GPU."""

    synchronizing = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in func.name() for name in self.synchronizing), func.name()
        if "index" in func.name():
            indices = [one for each in args[1:2] for one in (each if isinstance(each, list) else [])]
            assert all(one is None or one.dtype == torch.long for one in indices), (
                "indexing by a mask synchronizes, because the number of results must be known"
            )
        result = func(*args, **kwargs or {})
        if "copy" in func.name():
            devices = {each.device for each in tree_leaves((args, result)) if isinstance(each, Tensor)}
            assert len(devices) == 1, "copying to another device synchronizes"
        return result
