"""Matrix products in the fastest way that the machine offers: the inner loop of sampling and of learning."""

from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALLEST = 1 << 21  # multiplications, below which a product is over before oneDNN has begun


def _find_onednn() -> Any:
    """oneDNN's float32 product, as torch's own compiler calls it; None where this torch lacks it.

    On a CPU torch multiplies float32 matrices by MKL, which uses no AVX-512 on a processor that isn't
    Intel's: on a Zen 5 oneDNN is 2 to 3.5 times faster (`tests/benchmarks/speed.py` prints both).
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
    if _onednn is not None and is_float32_on_cpu and left.numel() * right.shape[0] >= SMALLEST:
        result: Tensor = _onednn(left, right, None, "none", [], "")
        return result
    return left @ right.t()


def outer_products(
    left: Float[Tensor, "row left"], right: Float[Tensor, "row right"]
) -> Float[Tensor, "left right"]:
    """leftᵀ · right, the outer products of their rows summed up, without a gradient.

    A product's first factor is laid out anew, transposed. The narrower of the two costs less, but the result
    is to be transposed then.
    """
    num_saved = len(left) * (left.shape[1] - right.shape[1])
    if num_saved > 2 * left.shape[1] * right.shape[1]:
        return product(right.t(), left.t()).t()
    return product(left.t(), right.t())


class _Linear(torch.autograd.Function):
    """x · Wᵀ + b with its gradient, each product by `product`, unless the result is known."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, known: Tensor | None
    ) -> Tensor:
        # of a frozen layer, as under an adapter, the inputs need not be kept
        of_inputs, of_weight, _, _ = ctx.needs_input_grad
        ctx.save_for_backward(inputs if of_weight else None, weight if of_inputs else None)
        return _with_bias(product(inputs, weight), bias) if known is None else known.view_as(known)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        inputs, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_inputs, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if of_inputs else None,
            outer_products(gradient, inputs) if of_weight else None,
            gradient.sum(dim=0) if of_bias else None,
            None,
        )


def is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the layer is a product, and a bias at most."""
    return type(layer) is nn.Linear


def goes_by_product(layer: nn.Module, inputs: Float[Tensor, "row inner"]) -> TypeGuard[nn.Linear]:
    """Whether `linear` computes the layer itself: a plain one in full precision on a CPU."""
    is_full = inputs.dtype in (torch.float32, torch.float64) and inputs.device.type == "cpu"
    return is_plain(layer) and is_full and not torch.is_autocast_enabled("cpu")


def linear(
    layer: nn.Module,
    inputs: Float[Tensor, "row inner"],
    known: Float[Tensor, "row column"] | None = None,
) -> Float[Tensor, "row column"]:
    """What the layer makes of its inputs.

    A plain `nn.Linear` in full precision on a CPU goes by `product`; every other layer (an adapter's, a
    quantised one, one under autocast) is called as it is.

    Args:
        known: what it makes of them, where that need not be computed but for its gradient; no other layer
            than one that `goes_by_product` has it.
    """
    if not goes_by_product(layer, inputs):
        result: Tensor = layer(inputs)
        return result
    if torch.is_grad_enabled():
        result = _Linear.apply(inputs, layer.weight, layer.bias, known)  # type: ignore[no-untyped-call]
        return result
    return _with_bias(product(inputs, layer.weight), layer.bias) if known is None else known


def _with_bias(
    outputs: Float[Tensor, "row column"], bias: Float[Tensor, " column"] | None
) -> Float[Tensor, "row column"]:
    return outputs if bias is None else outputs + bias
