"""Matrix products in the fastest way that the machine offers: the inner loop of sampling and of learning."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)
ONLY_AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
SMALLEST = 1 << (28 if ONLY_AVX2 else 21)
"""Multiplications, below which a product is over before oneDNN has begun; with AVX2 alone MKL is as fast."""


def _find_onednn() -> Any:
    """oneDNN's float32 product, as torch's own compiler calls it; None where this torch lacks it.

    On a CPU torch multiplies float32 matrices by MKL, which uses no AVX-512 on a processor that isn't
    Intel's: on a Zen 5 oneDNN is 2 to 3.5 times faster (`tests/benchmarks/speed.py` prints both). With AVX2
    alone it wins where many columns meet few rows, as in the head, unless they stand transposed.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_onednn = _find_onednn()


def product(
    left: Float[Tensor, "row inner"], right: Float[Tensor, "column inner"]
) -> Float[Tensor, "row column"]:
    """left · rightᵀ, without a gradient."""
    is_float32_on_cpu = left.dtype == right.dtype == torch.float32 and left.device.type == "cpu"
    pays = left.numel() * right.shape[0] >= SMALLEST and (not ONLY_AVX2 or right.is_contiguous())
    if _onednn is not None and is_float32_on_cpu and pays:
        result: Tensor = _onednn(left, right, None, "none", [], "")
        return result
    return left @ right.t()


def outer_products(
    lefts: Sequence[Float[Tensor, "row _"]], right: Float[Tensor, "row right"]
) -> list[Float[Tensor, "_ right"]]:
    """leftᵀ · right of each left, the outer products of their rows summed up, without a gradient.

    oneDNN copies and transposes a product's first factor: the narrower of the two, or the one that all
    have in common, costs less, but the results are to be transposed then. MKL needs no such thing, and is
    the faster one where AVX2 is all that there is.
    """
    if ONLY_AVX2 or right.device.type != "cpu":
        return [left.t() @ right for left in lefts]
    width = sum(left.shape[1] for left in lefts)
    if len(right) * (width - right.shape[1]) > 2 * width * right.shape[1]:
        transposed = right.t().contiguous()
        return [product(transposed, left.t()).t() for left in lefts]
    return [product(left.t(), right.t()) for left in lefts]


def layer_products(
    layers: Sequence[nn.Module],
    inputs: Float[Tensor, "row inner"],
    *,
    norm: nn.Module | None = None,
    known: Sequence[Float[Tensor, "row _"] | None] | None = None,
) -> tuple[Float[Tensor, "row _"], ...]:
    """What each of the layers makes of the same inputs.

    Plain `nn.Linear`s in full precision on a CPU are computed by `product`, together with an RMSNorm before
    them; other layers (an adapter's, a quantised one, one under autocast) are called as they are.

    Args:
        norm: what the inputs go through first.
        known: what the layers make of them, where nothing but its gradient need be computed; only of those
            that `goes_by_product`.
    """
    if known is None:
        known = [None] * len(layers)
    epsilon = 0.0 if norm is None else _epsilon(norm)
    if epsilon is None or not all(goes_by_product(layer, inputs) for layer in layers):
        normed = inputs if norm is None else norm(inputs)
        return tuple(_layer_product(layer, normed, own) for layer, own in zip(layers, known, strict=True))
    scale: Any = None if norm is None else norm.weight
    tensors: Any = (*(layer.weight for layer in layers), *(layer.bias for layer in layers), *known)
    if torch.is_grad_enabled():
        outputs: tuple[Tensor, ...] = _Products.apply(inputs, scale, epsilon, *tensors)  # type: ignore[no-untyped-call]
        return outputs
    return _forward(inputs, scale, epsilon, tensors)[0]


def goes_by_product(layer: nn.Module, inputs: Float[Tensor, "row inner"]) -> TypeGuard[nn.Linear]:
    """Whether a layer is computed by `product`: a plain one in full precision on a CPU."""
    return is_plain(layer) and is_full_on_cpu(inputs)


def is_full_on_cpu(inputs: Tensor) -> bool:
    """Whether they are in full precision on a CPU, and what is made of them is too."""
    is_full = inputs.dtype in (torch.float32, torch.float64) and inputs.device.type == "cpu"
    return is_full and not torch.is_autocast_enabled("cpu")


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the layer is a product, and a bias at most."""
    return type(layer) is nn.Linear


def _layer_product(
    layer: nn.Module, inputs: Float[Tensor, "row inner"], known: Float[Tensor, "row column"] | None
) -> Float[Tensor, "row column"]:
    if goes_by_product(layer, inputs):
        return layer_products([layer], inputs, known=[known])[0]
    outputs: Tensor = layer(inputs)
    return outputs


def _epsilon(norm: nn.Module) -> float | None:
    """What an RMSNorm adds to the mean square; None of every other norm."""
    if type(norm) is nn.RMSNorm:
        return norm.eps if norm.elementwise_affine else None
    return float(norm.variance_epsilon) if type(norm) in NORMS else None  # type: ignore[arg-type]


def _forward(
    inputs: Float[Tensor, "row inner"],
    scale: Float[Tensor, " inner"] | None,
    epsilon: float,
    tensors: Sequence[Tensor | None],
) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
    """What `_Products` computes: the results, n (or x, where there is no scale) and 1 / r."""
    num = len(tensors) // 3
    weights, biases, known = tensors[:num], tensors[num : 2 * num], tensors[2 * num :]
    normal, inverse_r = inputs, None
    if scale is not None:
        mean_squares = torch.linalg.vecdot(inputs, inputs)[:, None] / inputs.shape[1]
        inverse_r = mean_squares.add_(epsilon).rsqrt_()
        normal = inputs * inverse_r
    results: list[Tensor] = []
    scaled = None
    for weight, bias, own in zip(weights, biases, known, strict=True):
        if own is not None:
            results.append(own.view_as(own))
            continue
        assert weight is not None
        scaled = (normal if scale is None else normal * scale) if scaled is None else scaled
        result = product(scaled, weight)
        results.append(result if bias is None else result.add_(bias))
    return tuple(results), normal, inverse_r


class _Products(torch.autograd.Function):
    """x̂ · Wᵀ + b of several W with its gradient; a result that is known isn't computed.

    x̂ is the input x, or x over its root mean square (Zhang & Sennrich 2019), scaled:

        x̂ = s n,   n = x / r,   r² = mean(x²) + ε
        ∂L/∂x = (v - n mean(v n)) / r,   v = s ∂L/∂x̂
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, scale: Tensor | None, epsilon: float, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        results, normal, inverse_r = _forward(inputs, scale, epsilon, tensors)
        num = len(results)
        # of frozen layers, as under an adapter, the inputs need not be kept
        is_needed = scale is not None or any(ctx.needs_input_grad[3 : 3 + num])
        ctx.save_for_backward(normal if is_needed else None, inverse_r, scale, *tensors[:num])
        return results

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normal, inverse_r, scale, *weights = ctx.saved_tensors
        num = len(weights)
        needs_inputs, needs_scale, _, *needs = ctx.needs_input_grad
        of_weights: list[Tensor | None] = [None] * num
        if needed := [number for number in range(num) if needs[number]]:
            scaled = normal if scale is None else normal * scale
            results = outer_products([gradients[number] for number in needed], scaled)
            for number, result in zip(needed, results, strict=True):
                of_weights[number] = result
        of_biases = [
            gradient.sum(dim=0) if is_needed else None
            for gradient, is_needed in zip(gradients, needs[num : 2 * num], strict=True)
        ]
        of_inputs, of_scale = None, None
        if needs_inputs or needs_scale:
            of_inputs = product(gradients[0], weights[0].t())
            for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
                of_inputs += product(gradient, weight.t())
        if of_inputs is not None and scale is not None:
            of_scale = (of_inputs * normal).sum(dim=0) if needs_scale else None
            of_normal = of_inputs.mul_(scale)
            mean = torch.linalg.vecdot(of_normal, normal)[:, None] / normal.shape[1]
            of_inputs = of_normal.addcmul_(normal, mean, value=-1.0).mul_(inverse_r)
        return (of_inputs, of_scale, None, *of_weights, *of_biases, *[None] * num)
