"""Matrix products, computed by the fastest available library.

Sampling and training spend most of their time on matrix products.
"""

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


def outer_product(
    left: Float[Tensor, "row left"], right: Float[Tensor, "row right"]
) -> Float[Tensor, "left right"]:
    """Return leftᵀ · right, without gradient. This is a sum over rows.

    oneDNN copies and transposes the first factor of a product. If a copy of `right` costs less than a copy of
    `left`, the product rightᵀ · left is computed and transposed instead. On a CPU with AVX2 but without
    AVX-512, MKL is used, which is faster and needs no copy.
    """
    if ONLY_AVX2 or right.device.type != "cpu":
        return left.t() @ right
    width, other_width = left.shape[1], right.shape[1]
    if len(right) * (width - other_width) > 2 * width * other_width:
        return product(right.t().contiguous(), left.t()).t()
    return product(left.t(), right.t())


def layer_product(
    layer: nn.Module, inputs: Float[Tensor, "row inner"], cached: Float[Tensor, "row column"] | None = None
) -> Float[Tensor, "row column"]:
    """Return the outputs of a linear layer, with gradient.

    A layer for which `is_computed_by_product` returns True is computed with `product`. Other layers (with an
    adapter, quantized, or under autocast) are called as modules.

    Args:
        layer: the layer.
        inputs: the inputs of the layer.
        cached: the outputs of the layer, if they are already known. They are not recomputed, but their
            gradients are computed. Known outputs are allowed only for a layer that is computed with
            `product`.
    """
    if not is_computed_by_product(layer, inputs):
        outputs: Tensor = layer(inputs)
        return outputs
    if torch.is_grad_enabled():
        result: Tensor = _LayerProduct.apply(inputs, layer.weight, layer.bias, cached)  # type: ignore[no-untyped-call]
        return result
    return _forward(inputs, layer.weight, layer.bias, cached)


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


def _forward(inputs: Tensor, weight: Tensor, bias: Tensor | None, cached: Tensor | None) -> Tensor:
    if cached is not None:
        return cached.view_as(cached)
    result = product(inputs, weight)
    return result if bias is None else result.add_(bias)


class _LayerProduct(torch.autograd.Function):
    """Compute y = x · Wᵀ + b, with gradient. Cached outputs are not recomputed.

    The gradients of x, W and b are ∂L/∂y · W, (∂L/∂y)ᵀ · x, and the sum of ∂L/∂y over the rows.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, cached: Tensor | None
    ) -> Tensor:
        # a frozen layer, such as the base layer of a model with an adapter, does not need the inputs
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, weight)
        return _forward(inputs, weight, bias, cached)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias, _ = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if needs_inputs else None,
            outer_product(gradient, inputs) if needs_weight else None,
            gradient.sum(dim=0) if needs_bias else None,
            None,
        )
