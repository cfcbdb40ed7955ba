"""Matrix products, computed by the fastest available library.

Sampling and training spend most of their time on matrix products.
"""

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
    """Return the function that multiplies float32 matrices with oneDNN, or None if torch lacks oneDNN.

    The returned function is not part of the public interface of torch, but code that `torch.compile`
    generates calls it too. By default, torch multiplies float32 matrices on a CPU with MKL, which uses
    AVX-512 only on processors by Intel. On a Zen 5 processor, oneDNN is 2 to 3.5 times as fast as MKL
    (`tests/benchmarks/speed.py` prints both speeds). On a CPU with AVX2 but without AVX-512, oneDNN is faster
    only for products with few rows and many columns (in the head, for example), and only if the right factor
    is contiguous.
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
    """Return True if `function` computes the same matrix products as torch.

    The products are compared when `_can_use` is called for the first time. Later calls return the stored
    result.
    """
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

    oneDNN copies and transposes the first factor of a product. If one copy of `right` costs less than a copy
    of each left factor, the products rightᵀ · left are computed and transposed instead. On a CPU with AVX2
    but without AVX-512, MKL is used, which is faster and needs no copy.
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
    cached: Sequence[Float[Tensor, "row _"] | None] | None = None,
) -> tuple[Float[Tensor, "row _"], ...]:
    """Return the outputs of linear layers that have the same inputs, with gradient.

    Layers for which `is_computed_by_product` returns True are computed with `product`. Other layers (with an
    adapter, quantized, or under autocast) are called as modules.

    Args:
        layers: the layers.
        inputs: the common inputs of the layers.
        cached: for each layer, its outputs if they are already known, and otherwise None. Known outputs are
            not recomputed, but their gradients are computed. Known outputs are allowed only for layers that
            are computed with `product`.
    """
    if cached is None:
        cached = [None] * len(layers)
    if not all(is_computed_by_product(layer, inputs) for layer in layers):
        return tuple(_layer_product(layer, inputs, own) for layer, own in zip(layers, cached, strict=True))
    tensors: Any = (*(layer.weight for layer in layers), *(layer.bias for layer in layers), *cached)
    if torch.is_grad_enabled():
        outputs: tuple[Tensor, ...] = _Products.apply(inputs, *tensors)  # type: ignore[no-untyped-call]
        return outputs
    return _forward(inputs, tensors)


def is_computed_by_product(layer: nn.Module, inputs: Float[Tensor, "row inner"]) -> TypeGuard[nn.Linear]:
    """Return True if `product` can compute this layer: an `nn.Linear` in float32 or float64 on a CPU."""
    return is_linear(layer) and is_full_precision_on_cpu(inputs)


def is_full_precision_on_cpu(inputs: Tensor) -> bool:
    """Return True if the tensor is a float32 or float64 tensor on a CPU, and autocast is off."""
    is_full = inputs.dtype in (torch.float32, torch.float64) and inputs.device.type == "cpu"
    return is_full and not torch.is_autocast_enabled("cpu")


def of_transformers(module: nn.Module) -> bool:
    """Return True if the class of the module is defined in transformers, False for a user's subclass."""
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


def _forward(inputs: Float[Tensor, "row inner"], tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Return the outputs of layers. `tensors` lists all weights, all biases, and all cached outputs."""
    num = len(tensors) // 3
    results: list[Tensor] = []
    for weight, bias, own in zip(tensors[:num], tensors[num : 2 * num], tensors[2 * num :], strict=True):
        if own is not None:
            results.append(own.view_as(own))
            continue
        assert weight is not None
        result = product(inputs, weight)
        results.append(result if bias is None else result.add_(bias))
    return tuple(results)


class _Products(torch.autograd.Function):
    """Compute x · Wᵀ + b for several layers, with gradient. Cached outputs are not recomputed.

    Let y be the output of a layer. The gradient of x is the sum of ∂L/∂y · W over the layers, and the
    gradient of each W is (∂L/∂y)ᵀ · x.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        num = len(tensors) // 3
        # frozen layers, such as the base layers of a model with an adapter, do not need the inputs
        is_needed = any(ctx.needs_input_grad[1 : 1 + num])
        ctx.save_for_backward(inputs if is_needed else None, *tensors[:num])
        return _forward(inputs, tensors)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *weights = ctx.saved_tensors
        num = len(weights)
        needs_inputs, *needs = ctx.needs_input_grad
        grad_weights: list[Tensor | None] = [None] * num
        if needed := [index for index in range(num) if needs[index]]:
            results = outer_products([gradients[index] for index in needed], inputs)
            for index, result in zip(needed, results, strict=True):
                grad_weights[index] = result
        grad_biases = [
            gradient.sum(dim=0) if is_needed else None
            for gradient, is_needed in zip(gradients, needs[num : 2 * num], strict=True)
        ]
        grad_inputs = None
        if needs_inputs:
            grad_inputs = product(gradients[0], weights[0].t())
            for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
                grad_inputs += product(gradient, weight.t())
        return (grad_inputs, *grad_weights, *grad_biases, *[None] * num)
