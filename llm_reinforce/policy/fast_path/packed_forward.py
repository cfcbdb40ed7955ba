"""The forward pass of Llama-like models over packed tokens, without padding.

Embeddings, norms, projections and feed-forward layers process each token independently, so the tokens of all
sequences can be the rows of a single matrix. Only attention depends on the sequences. Each caller therefore
passes its own attention function (see `Attend`):

- `packed_log_probs`: a token attends to itself and to the earlier tokens of its episode.
- `SlotBatch`: a token attends to a cache of keys and values.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from llm_reinforce.policy.fast_path.products import layer_product, of_transformers

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # values of `model_type` in a config of transformers
MULTIPLE, MIN_PADDED = 16, 256
"""On a CPU, `MIN_PADDED` tokens or more are padded to a multiple of `MULTIPLE`. Otherwise, nearly every
update would have a new number of tokens, for which oneDNN would have to compile a kernel."""

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention function. The arguments are the index of the layer, the queries `[token, head, channel]`, and the
keys and values `[token, key_head, channel]` of all tokens, including tokens added by `pad_to_multiple`. The
result has the shape of the queries, but may omit the added tokens."""

Multiply = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
"""Function that computes the outputs of a linear layer. The arguments are the layer, its inputs, and the
indices of the tokens to which the inputs belong (None: all tokens)."""


def recompute_product(layer: nn.Module, inputs: Tensor, tokens: Tensor | None) -> Tensor:
    """Compute the outputs of a layer without reusing activations. See `Multiply` for the arguments."""
    return layer_product(layer, inputs)


def packable_model(model: nn.Module) -> Any:
    """Return the model without its adapter wrapper, or None if `forward_packed` does not support the model.

    Llama-like models are supported, with or without adapters in their layers. A model is not supported if it
    has sliding-window attention, positions that depend on the longest sequence of a batch, layers on several
    devices, gradient checkpointing, prompt-learning adapters, or hooks. User-defined subclasses of
    transformers classes are not supported either.
    """
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        if inner.active_peft_config.is_prompt_learning:
            return None
        inner = inner.get_base_model()
    devices = set(getattr(inner, "hf_device_map", {}).values())
    if not _is_llama_like(inner) or len(devices) > 1:
        return None
    window = getattr(inner.config, "sliding_window", None)
    layer_types = getattr(inner.config, "layer_types", None) or ["sliding" if window else "full_attention"]
    is_checkpointed = any(getattr(layer, "gradient_checkpointing", False) for layer in inner.model.layers)
    has_moving_positions = getattr(inner.model.rotary_emb, "rope_type", "") in ("dynamic", "longrope")
    if set(layer_types) != {"full_attention"} or is_checkpointed or has_moving_positions:
        return None
    return None if _has_global_hooks() or any(map(_is_hooked, model.modules())) else inner


def _is_llama_like(model: Any) -> bool:
    """Return True if the model has a type in `FAMILIES`, a class of transformers, and a head `lm_head`.

    The class itself is not compared, because transformers may rename or move it.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return kind in FAMILIES and of_transformers(model) and hasattr(model, "lm_head")


def _has_global_hooks() -> bool:
    """Return True if there are hooks that torch calls for every module, such as those of some profilers."""
    return bool(getattr(torch.nn.modules.module, "_has_any_global_hook", bool)())


def _is_hooked(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or "forward" in vars(module)


def forward_packed(
    model: Any,
    token_ids: Int[Tensor, " token"],
    positions: Int[Tensor, " token"],
    attend: Attend,
    read: Int[Tensor, " read"] | None = None,
    multiply: Multiply = recompute_product,
    *,
    gradient_checkpointing: bool = False,
) -> Float[Tensor, "read hidden"]:
    """Return the hidden states of some tokens after the last layer, before the final norm and the head.

    Args:
        model: a model returned by `packable_model`.
        token_ids: token ids of all sequences, concatenated.
        positions: position of each token in its sequence, from 0.
        attend: attention function; see `Attend`.
        read: indices of the tokens whose hidden states are returned. The last layer processes only these
            tokens after its attention. None: all tokens.
        multiply: function that computes the outputs of a linear layer; see `Multiply`.
        gradient_checkpointing: keep only the inputs of each layer, and recompute the other activations in the
            backward pass.
    """
    num_tokens = len(token_ids)
    # the padding repeats the first token, because the embedding of another token might not be finite
    token_ids, positions = pad_to_multiple(token_ids), pad_to_multiple(positions)
    hidden: Tensor = model.model.embed_tokens(token_ids)
    cosines, sines = model.model.rotary_emb(hidden[None], positions[None])
    half = sines.shape[-1] // 2
    signed = torch.cat([-sines[0, :, :half], sines[0, :, half:]], dim=1)
    rotation = cosines[0, :, None], signed[:, None]
    tokens: Tensor | None = None
    for number, layer in enumerate(model.model.layers):
        if read is not None and number == len(model.model.layers) - 1:
            tokens = pad_to_multiple(read)
        compute = partial(_layer_outputs, layer, number, rotation, attend, multiply, tokens)
        if gradient_checkpointing:
            hidden = checkpoint(compute, hidden, use_reentrant=False, preserve_rng_state=False)
        else:
            hidden = compute(hidden)
    return hidden[: num_tokens if read is None else len(read)]


def _layer_outputs(
    layer: Any,
    number: int,
    rotation: tuple[Tensor, Tensor],
    attend: Attend,
    multiply: Multiply,
    tokens: Int[Tensor, " read"] | None,
    hidden: Float[Tensor, "token hidden"],
) -> Float[Tensor, "_ hidden"]:
    """Return the hidden states after a layer, for the tokens in `tokens` (None: for all tokens)."""
    mixed = _mixed(layer, number, hidden, rotation, attend, multiply)
    if tokens is not None:
        hidden, mixed = hidden.index_select(0, tokens), mixed.index_select(0, tokens)
    hidden = hidden + multiply(layer.self_attn.o_proj, mixed, tokens)
    mlp, inputs = layer.mlp, layer.post_attention_layernorm(hidden)
    gate, up = (multiply(projection, inputs, tokens) for projection in (mlp.gate_proj, mlp.up_proj))
    return hidden + multiply(mlp.down_proj, mlp.act_fn(gate) * up, tokens)


def pad_to_multiple(numbers: Int[Tensor, " row"]) -> Int[Tensor, " at_least_row"]:
    """Pad a tensor at the end with copies of its first number, to a length that is a multiple of `MULTIPLE`.

    A tensor is returned unchanged if it is not on a CPU or has fewer than `MIN_PADDED` numbers.
    """
    is_padded = numbers.device.type == "cpu" and len(numbers) >= MIN_PADDED
    num_more = -len(numbers) % MULTIPLE if is_padded else 0
    return torch.cat([numbers, numbers[:1].expand(num_more)]) if num_more else numbers


def _mixed(
    layer: Any,
    number: int,
    hidden: Float[Tensor, "token hidden"],
    rotation: tuple[Tensor, Tensor],
    attend: Attend,
    multiply: Multiply,
) -> Float[Tensor, "token mixed"]:
    """Return the outputs of a layer's attention before the output projection. The heads are concatenated."""
    attention = layer.self_attn
    shape = (len(hidden), -1, attention.head_dim)
    inputs = layer.input_layernorm(hidden)
    queries, keys, values = (
        multiply(projection, inputs, None).view(shape)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):  # Qwen3
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    mixed = attend(number, _rotate(queries, *rotation), _rotate(keys, *rotation), values)
    num_more = len(hidden) - len(mixed)
    return pad(mixed.flatten(1), (0, 0, 0, num_more)) if num_more else mixed.flatten(1)


def _rotate(
    vectors: Float[Tensor, "token head channel"],
    cosines: Float[Tensor, "token 1 channel"],
    sines: Float[Tensor, "token 1 channel"],
) -> Float[Tensor, "token head channel"]:
    """Apply rotary position embeddings (Su et al. 2021), with channels paired as in transformers.

        x'_i = x_i cos φ_i ∓ x_j sin φ_i,   j = i ± half

    Here `half` is half the number of channels. The caller must negate the sines of the first half of the
    channels.
    """
    if torch.is_grad_enabled():
        rotated: Tensor = _Rotation.apply(vectors, cosines, sines)  # type: ignore[no-untyped-call]
        return rotated
    return _rotated(vectors, cosines, sines)


def _rotated(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    return (vectors * cosines).addcmul_(vectors.roll(vectors.shape[-1] // 2, -1), sines)


class _Rotation(torch.autograd.Function):
    """Rotary position embedding. In the backward pass, the gradient is rotated by the negative angle."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _rotated(vectors, cosines, sines)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return _rotated(gradients[0], cosines, -sines), None, None
