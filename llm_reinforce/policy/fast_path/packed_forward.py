"""The forward pass of Llama-like models over tokens that lie side by side, without padding.

Embedding, norms, projections and the feed-forward part treat every token alike, so they take the tokens of
all sequences as rows of one matrix. Only attention knows which token belongs to which sequence, and that is
the caller's: the scorer attends within episodes, the sampler to its cache.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

from llm_reinforce.policy.fast_path.products import layer_products

LLAMA_LIKE = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
ROUND, ROUNDED = 16, 256
"""On a CPU so many tokens or more are computed as a multiple of 16, for oneDNN prepares each number of rows
that it hasn't met: that of an update's tokens would nearly always be new."""

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention: the layer's number, then queries `[token, head, channel]`, keys and values `[token, key_head,
channel]` of all tokens as `rounded` has them; what the first of them, which are the caller's own, mix of the
values, as the queries."""

Multiply = Callable[[Sequence[nn.Module], Tensor, nn.Module | None, Tensor | None], tuple[Tensor, ...]]
"""Products with the weights of layers: these, their inputs, the norm before them if there is one, and which
of all tokens the inputs are of; None: all."""


def recompute_products(
    layers: Sequence[nn.Module], inputs: Tensor, norm: nn.Module | None, tokens: Tensor | None
) -> tuple[Tensor, ...]:
    """The products, computed."""
    return layer_products(layers, inputs, norm=norm)


def packable_model(model: nn.Module) -> Any:
    """The model whose layers `decode` can walk through, adapters in them or not; None for every other.

    Not those that attend to a window only, whose positions depend on the longest sequence at hand, that are
    spread over devices, or into which somebody has hooked something.
    """
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        if inner.active_peft_config.is_prompt_learning:
            return None
        inner = inner.get_base_model()
    if type(inner) not in LLAMA_LIKE or hasattr(inner, "hf_device_map"):
        return None
    window = getattr(inner.config, "sliding_window", None)
    layer_types = getattr(inner.config, "layer_types", None) or ["sliding" if window else "full_attention"]
    is_checkpointed = any(getattr(layer, "gradient_checkpointing", False) for layer in inner.model.layers)
    has_moving_positions = getattr(inner.model.rotary_emb, "rope_type", "") in ("dynamic", "longrope")
    if set(layer_types) != {"full_attention"} or is_checkpointed or has_moving_positions:
        return None
    return None if any(_is_hooked(module) for module in inner.modules() if module is not inner) else inner


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
    multiply: Multiply = recompute_products,
) -> Float[Tensor, "read hidden"]:
    """The last hidden states of the tokens that are read, before the final norm and the head.

    Args:
        model: what `packable_model` gave.
        positions: of each token in its own sequence, from 0.
        read: the tokens' numbers; the last layer computes no others behind its attention. None: all.
        multiply: how products are computed, of the tokens as `rounded` has them.
    """
    num_tokens = len(token_ids)
    # a round number, by a token that is there: another's might not be finite, nor its gradient 0
    token_ids, positions = rounded(token_ids), rounded(positions)
    hidden: Tensor = model.model.embed_tokens(token_ids)
    cosines, sines = model.model.rotary_emb(hidden[None], positions[None])
    half = sines.shape[-1] // 2
    signed = torch.cat([-sines[0, :, :half], sines[0, :, half:]], dim=1)
    rotation = cosines[0, :, None], signed[:, None]
    tokens: Tensor | None = None
    for number, layer in enumerate(model.model.layers):
        mixed = _mixed(layer, number, hidden, rotation, attend, multiply)
        if read is not None and number == len(model.model.layers) - 1:
            tokens = rounded(read)
            hidden, mixed = hidden.index_select(0, tokens), mixed.index_select(0, tokens)
        hidden = hidden + multiply([layer.self_attn.o_proj], mixed, None, tokens)[0]
        mlp, norm = layer.mlp, layer.post_attention_layernorm
        gate, up = multiply([mlp.gate_proj, mlp.up_proj], hidden, norm, tokens)
        hidden = hidden + multiply([mlp.down_proj], mlp.act_fn(gate) * up, None, tokens)[0]
    return hidden[: num_tokens if read is None else len(read)]


def rounded(numbers: Int[Tensor, " row"]) -> Int[Tensor, " at_least_row"]:
    """As many that oneDNN has them prepared; the first one stands for what is missing."""
    is_rounded = numbers.device.type == "cpu" and len(numbers) >= ROUNDED
    num_more = -len(numbers) % ROUND if is_rounded else 0
    return torch.cat([numbers, numbers[:1].expand(num_more)]) if num_more else numbers


def _mixed(
    layer: Any,
    number: int,
    hidden: Float[Tensor, "token hidden"],
    rotation: tuple[Tensor, Tensor],
    attend: Attend,
    multiply: Multiply,
) -> Float[Tensor, "token mixed"]:
    """What a layer's attention mixes of all heads' values."""
    attention = layer.self_attn
    shape = (len(hidden), -1, attention.head_dim)
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    queries, keys, values = (
        each.view(shape) for each in multiply(projections, hidden, layer.input_layernorm, None)
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
    """Rotary position embedding (Su et al. 2021), the halves of the channels paired as in transformers.

        x'_i = x_i cos φ_i ∓ x_j sin φ_i,   j = i ± half

    The sines of the first half come with their minus.
    """
    if torch.is_grad_enabled():
        rotated: Tensor = _Rotation.apply(vectors, cosines, sines)  # type: ignore[no-untyped-call]
        return rotated
    return _rotated(vectors, cosines, sines)


def _rotated(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    return (vectors * cosines).addcmul_(vectors.roll(vectors.shape[-1] // 2, -1), sines)


class _Rotation(torch.autograd.Function):
    """Its gradient is rotated back, by minus the angle; the two channels of a pair have one angle."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _rotated(vectors, cosines, sines)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return _rotated(gradients[0], cosines, -sines), None, None
