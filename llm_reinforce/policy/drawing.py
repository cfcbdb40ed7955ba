"""Draw actions from logits: one pass over the vocabulary, one random number a draw."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 256  # probabilities that are summed up before a draw looks for its own among them
MAX_LOGITS = 1 << 20  # drawn from at once on a CPU: 4 MiB in float32, which a core's cache may hold


class Drawn(NamedTuple):
    """One action a row, and what it was drawn from.

    Attributes:
        log_probs: log π(a|s), in nats.
        entropies: H(π(·|s)), in nats.
        squared_logit_gradient_norms: ‖∂ log π(a|s) / ∂z‖², z the logits after division by the temperature.
    """

    actions: Int[Tensor, " row"]
    log_probs: Float[Tensor, " row"]
    entropies: Float[Tensor, " row"]
    squared_logit_gradient_norms: Float[Tensor, " row"]


def draw(
    logits: Float[Tensor, "row vocabulary"], temperature: float, uniforms: Float[Tensor, " row"] | None
) -> Drawn:
    """Draw from softmax(logits / temperature), or take the likeliest action.

    Logits that aren't finite make no distribution. Any action is drawn then, with a log-probability of NaN,
    so that the gradient isn't finite and no weight moves; on a GPU to draw from NaN would be fatal.

    Args:
        uniforms: numbers in [0, 1), float64, one a row; None: take the likeliest.
    """
    num_rows = max(1, MAX_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    if len(logits) <= num_rows:
        return _draw(logits, temperature, uniforms)
    parts = [slice(start, start + num_rows) for start in range(0, len(logits), num_rows)]
    drawn = [_draw(logits[rows], temperature, None if uniforms is None else uniforms[rows]) for rows in parts]
    return Drawn(*(torch.cat(values) for values in zip(*drawn, strict=True)))


def _draw(
    logits: Float[Tensor, "row vocabulary"], temperature: float, uniforms: Float[Tensor, " row"] | None
) -> Drawn:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # float64 stays
    if temperature != 1.0:
        logits = logits / temperature
    shifted = logits - logits.amax(dim=1, keepdim=True)
    weights = shifted.exp()
    totals = weights.sum(dim=1)
    shifted.clamp_(min=-1000.0)  # where the weight is 0 in float64 too: 0 · -inf would be NaN
    # H = log Σ e^z - Σ π z, z shifted so that the largest is 0; NaN where the row isn't finite
    with torch.autocast(logits.device.type, enabled=False):  # it would take the product in half precision
        entropies = totals.log() - torch.linalg.vecdot(weights, shifted) / totals
    actions = logits.argmax(dim=1) if uniforms is None else invert(weights, uniforms)
    log_probs = shifted.gather(1, actions[:, None]).squeeze(1) - totals.log()
    # ‖∂ log π_a / ∂z‖² = Σ_b (1[a = b] - π_b)² = (1 - π_a)² + Σ_{b ≠ a} π_b², where nothing cancels
    others = torch.linalg.vector_norm(weights.scatter_(1, actions[:, None], 0.0), dim=1) / totals
    squared_norms = log_probs.expm1().square() + others.square()
    is_nan = entropies.isnan()
    return Drawn(
        actions,
        log_probs.masked_fill(is_nan, torch.nan),
        entropies,
        squared_norms.masked_fill(is_nan, torch.nan),
    )


def invert(weights: Float[Tensor, "row vocabulary"], uniforms: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The action at which the cumulated weights pass u · Σ weights: first the block of it, then within.

    Sums are in float64. An action of weight 0 is never drawn; of weights that are NaN any is.
    """
    num_rows, num_columns = weights.shape
    if num_columns <= 4 * BLOCK:
        return _pass(weights.double(), uniforms, None)[0]
    if num_columns % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -num_columns % BLOCK))
    blocks = weights.view(num_rows, -1, BLOCK)
    block, rest = _pass(blocks.sum(dim=2, dtype=torch.float64), uniforms, None)
    within, _ = _pass(blocks[torch.arange(num_rows, device=weights.device), block].double(), uniforms, rest)
    return (block * BLOCK + within).clamp(max=num_columns - 1)


def _pass(
    weights: Float[Tensor, "row column"], uniforms: Tensor, targets: Tensor | None
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """Where the cumulated weights pass the target, and what of the target is left for that column."""
    sums = weights.cumsum(dim=1)
    # rounding must not carry a target past the last weight that isn't zero
    below_all = torch.nextafter(sums[:, -1], torch.zeros_like(sums[:, -1]))
    targets = torch.minimum(uniforms * sums[:, -1] if targets is None else targets, below_all)
    columns = torch.searchsorted(sums, targets[:, None], right=True).clamp(max=sums.shape[1] - 1)
    before = sums.gather(1, columns) - weights.gather(1, columns)
    return columns.squeeze(1), (targets[:, None] - before).squeeze(1).clamp(min=0.0)
