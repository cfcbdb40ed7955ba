"""Matrix products with the fastest available library. They take most of the time of sampling and training."""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llm_reinforce.console.messages import note

ONLY_AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
MIN_MULTIPLICATIONS = 1 << (28 if ONLY_AVX2 else 21)
"""Minimum number of multiplications of a product for which oneDNN is used. For smaller products, the overhead
of oneDNN is larger than its advantage over MKL. The number is larger on a CPU with AVX2 but without AVX-512,
because MKL is then as fast as oneDNN for most products.
"""


def _find_onednn() -> Any:
    """Return the function of oneDNN that multiplies float32 matrices. None: torch was built without oneDNN.

    The function is private. It is also called by code that `torch.compile` generates. On a CPU, torch
    multiplies float32 matrices with MKL, which uses AVX-512 only on processors by Intel. On a Zen 5
    processor, oneDNN is 2 to 3.5 times as fast as MKL (`tests/benchmarks/speed.py` prints both speeds). On a
    CPU with AVX2 but without AVX-512, oneDNN is faster only for products with few rows and many columns (in
    the head, for example), and only if the right factor is contiguous.
    """
    backend = getattr(torch.backends, "mkldnn", None)
    if backend is None or not backend.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", _missing)


def _missing(*arguments: Any) -> Tensor:
    raise AttributeError("torch.ops.mkldnn._linear_pointwise does not exist")


onednn = _find_onednn()
_is_usable: dict[Any, bool] = {None: False}
"""For each function, True if its values are correct. A function that has failed is not used again."""


def product(
    left: Float[Tensor, "row inner"], right: Float[Tensor, "column inner"]
) -> Float[Tensor, "row column"]:
    """Return left · rightᵀ, without gradient."""
    is_float32_on_cpu = left.dtype == right.dtype == torch.float32 and left.device.type == "cpu"
    is_large = left.numel() * right.shape[0] >= MIN_MULTIPLICATIONS
    is_faster = is_large and (not ONLY_AVX2 or right.is_contiguous())
    if is_float32_on_cpu and is_faster and _can_use(onednn):
        try:
            return _call(onednn, left, right)
        except Exception as error:  # a private function may change in any way
            result = left @ right.t()  # if this product fails as well, oneDNN is not the cause
            _do_not_use(onednn, error)
            return result
    return left @ right.t()


def _call(function: Any, left: Tensor, right: Tensor) -> Tensor:
    result: Tensor = function(left, right, None, "none", [], "")
    return result


def _can_use(function: Any) -> bool:
    """Return True if the function works. Its values are compared with those of torch on the first call."""
    if function not in _is_usable:
        _is_usable[function] = True
        left, right = (
            torch.arange(64.0 * 192).sin().view(64, 192),
            torch.arange(192.0 * 192).cos().view(192, 192),
        )
        for one, other in ((left, right), (left.t().contiguous().t(), right), (left, right.t())):
            try:
                torch.testing.assert_close(_call(function, one, other), one @ other.t(), rtol=1e-4, atol=1e-4)
            except Exception as error:  # a private function may change in any way
                _do_not_use(function, error)
                break
    return _is_usable[function]


def _do_not_use(function: Any, error: Exception) -> None:
    _is_usable[function] = False
    fault = (
        "gives wrong values"
        if isinstance(error, AssertionError)
        else f"fails ({str(error).split(chr(10))[0]})"
    )
    note(
        f"policy: oneDNN's matrix product {fault} in torch {torch.__version__}, so the product of torch is "
        "used instead; sampling and training may be slower"
    )


def outer_products(
    lefts: Sequence[Float[Tensor, "row _"]], right: Float[Tensor, "row right"]
) -> list[Float[Tensor, "_ right"]]:
    """Return leftᵀ · right for each left factor, without gradient. The products are sums over rows.

    oneDNN copies and transposes the first factor of a product. If copying the right factor, which all
    products share, costs less than copying the left factors, the transposed products rightᵀ · left are
    computed. On a CPU with AVX2 but without AVX-512, MKL is used, which is faster and needs no copy.
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
    cached: Sequence[Float[Tensor, "row _"] | None] | None = None,
) -> tuple[Float[Tensor, "row _"], ...]:
    """Return the outputs of linear layers that have the same inputs, with gradient.

    Layers for which `is_computed_by_product` returns True are computed with `product`, together with an
    RMSNorm of the inputs. Other layers (with an adapter, quantized, or under autocast) are called as modules.

    Args:
        layers: the layers.
        inputs: the common inputs of the layers.
        norm: norm that is applied to the inputs first. None: no norm.
        cached: for each layer, its outputs if they are already known, and otherwise None. Known outputs are
            not recomputed, but their gradients are computed. Known outputs are allowed only for layers that
            are computed with `product`.
    """
    if cached is None:
        cached = [None] * len(layers)
    epsilon = 0.0 if norm is None else _epsilon(norm)
    if epsilon is None or not all(is_computed_by_product(layer, inputs) for layer in layers):
        normed = inputs if norm is None else norm(inputs)
        return tuple(_layer_product(layer, normed, own) for layer, own in zip(layers, cached, strict=True))
    scale: Any = None if norm is None else norm.weight
    tensors: Any = (*(layer.weight for layer in layers), *(layer.bias for layer in layers), *cached)
    if torch.is_grad_enabled():
        outputs: tuple[Tensor, ...] = _Products.apply(inputs, scale, epsilon, *tensors)  # type: ignore[no-untyped-call]
        return outputs
    return _forward(inputs, scale, epsilon, tensors)[0]


def is_computed_by_product(layer: nn.Module, inputs: Float[Tensor, "row inner"]) -> TypeGuard[nn.Linear]:
    """Return True if `product` can compute this layer: an `nn.Linear` in float32 or float64 on a CPU."""
    return is_linear(layer) and is_full_precision_on_cpu(inputs)


def is_full_precision_on_cpu(inputs: Tensor) -> bool:
    """Return True if the tensor is a float32 or float64 tensor on a CPU, and autocast is off."""
    is_full = inputs.dtype in (torch.float32, torch.float64) and inputs.device.type == "cpu"
    return is_full and not torch.is_autocast_enabled("cpu")


def of_transformers(module: nn.Module) -> bool:
    """Return True if the class of the module is defined in transformers, and not derived by a user."""
    return type(module).__module__.startswith("transformers.models.")


def is_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Return True for an `nn.Linear`, but not for an instance of a subclass, such as a quantized layer."""
    return type(layer) is nn.Linear


def _layer_product(
    layer: nn.Module, inputs: Float[Tensor, "row inner"], cached: Float[Tensor, "row column"] | None
) -> Float[Tensor, "row column"]:
    if is_computed_by_product(layer, inputs):
        return layer_products([layer], inputs, cached=[cached])[0]
    outputs: Tensor = layer(inputs)
    return outputs


def _epsilon(norm: nn.Module) -> float | None:
    """Return the epsilon of an RMSNorm, or None for other norms and for norms without epsilon or scale."""
    if type(norm) is nn.RMSNorm:
        return norm.eps if norm.elementwise_affine else None
    is_rms_norm = of_transformers(norm) and type(norm).__name__.endswith("RMSNorm")
    return float(norm.variance_epsilon) if is_rms_norm else None  # type: ignore[arg-type]


def _forward(
    inputs: Float[Tensor, "row inner"],
    scale: Float[Tensor, " inner"] | None,
    epsilon: float,
    tensors: Sequence[Tensor | None],
) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
    """Compute the equations of `_Products`.

    Returns:
        the outputs of the layers, the normalized inputs n, and 1 / r. Without a norm, x is returned in place
        of n, and None in place of 1 / r.
    """
    num = len(tensors) // 3
    weights, biases, cached = tensors[:num], tensors[num : 2 * num], tensors[2 * num :]
    normal, inverse_r = inputs, None
    if scale is not None:
        mean_squares = torch.linalg.vecdot(inputs, inputs)[:, None] / inputs.shape[1]
        inverse_r = mean_squares.add_(epsilon).rsqrt_()
        normal = inputs * inverse_r
    results: list[Tensor] = []
    scaled = None
    for weight, bias, own in zip(weights, biases, cached, strict=True):
        if own is not None:
            results.append(own.view_as(own))
            continue
        assert weight is not None
        scaled = (normal if scale is None else normal * scale) if scaled is None else scaled
        result = product(scaled, weight)
        results.append(result if bias is None else result.add_(bias))
    return tuple(results), normal, inverse_r


class _Products(torch.autograd.Function):
    """Compute x̂ · Wᵀ + b for several layers, with gradient. Cached outputs are not recomputed.

    x̂ is the input x, or the RMSNorm of x with scale s (Zhang & Sennrich 2019):

        x̂ = s n,   n = x / r,   r² = mean(x²) + ε
        ∂L/∂x = (v - n mean(v n)) / r,   v = s ∂L/∂x̂
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, scale: Tensor | None, epsilon: float, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        results, normal, inverse_r = _forward(inputs, scale, epsilon, tensors)
        num = len(results)
        # frozen layers, such as the base layers of a model with an adapter, do not need the inputs
        is_needed = scale is not None or any(ctx.needs_input_grad[3 : 3 + num])
        ctx.save_for_backward(normal if is_needed else None, inverse_r, scale, *tensors[:num])
        return results

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normal, inverse_r, scale, *weights = ctx.saved_tensors
        num = len(weights)
        needs_inputs, needs_scale, _, *needs = ctx.needs_input_grad
        grad_weights: list[Tensor | None] = [None] * num
        if needed := [index for index in range(num) if needs[index]]:
            scaled = normal if scale is None else normal * scale
            results = outer_products([gradients[index] for index in needed], scaled)
            for index, result in zip(needed, results, strict=True):
                grad_weights[index] = result
        grad_biases = [
            gradient.sum(dim=0) if is_needed else None
            for gradient, is_needed in zip(gradients, needs[num : 2 * num], strict=True)
        ]
        grad_inputs, grad_scale = None, None
        if needs_inputs or needs_scale:
            grad_inputs = product(gradients[0], weights[0].t())
            for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
                grad_inputs += product(gradient, weight.t())
        if grad_inputs is not None and scale is not None:
            grad_scale = (grad_inputs * normal).sum(dim=0) if needs_scale else None
            grad_normal = grad_inputs.mul_(scale)
            mean = torch.linalg.vecdot(grad_normal, normal)[:, None] / normal.shape[1]
            grad_inputs = grad_normal.addcmul_(normal, mean, value=-1.0).mul_(inverse_r)
        return (grad_inputs, grad_scale, None, *grad_weights, *grad_biases, *[None] * num)
