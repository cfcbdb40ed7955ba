"""Draw actions from distributions that are given as logits, with one random number per action."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 256  # number of consecutive token ids that form a block in `invert`
MAX_LOGITS = 1 << 20  # number of logits processed at once on a CPU; 4 MiB in float32 fit into a CPU cache


class Drawn(NamedTuple):
    """Drawn actions with statistics of their distributions.

    Attributes:
        actions: one token id per row.
        log_probs: log π(a|s), in nats.
        entropies: entropy of π(·|s), in nats.
        squared_logit_gradient_norms: ‖∂ log π(a|s) / ∂z‖², where z are the logits divided by the temperature.
    """

    actions: Int[Tensor, " row"]
    log_probs: Float[Tensor, " row"]
    entropies: Float[Tensor, " row"]
    squared_logit_gradient_norms: Float[Tensor, " row"]


def widest_float(device: torch.device | str) -> torch.dtype:
    """Return float64 if the device supports this type, and otherwise float32.

    float64 is preferred because random numbers in float32 are multiples of 2⁻²⁴. Actions whose probability
    is far below 6·10⁻⁸ are then drawn too rarely or too often. Apple's GPUs (device type `mps`) have no
    float64.
    """
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64


def draw(
    logits: Float[Tensor, "row vocabulary"], temperature: float, uniforms: Float[Tensor, " row"] | None
) -> Drawn:
    """Draw actions from softmax(logits / temperature), or take the most likely actions.

    If the logits of a row define no distribution (a logit is NaN or +inf, or all are -inf), an arbitrary
    action is returned with a log-probability of NaN. An update with such an action has a gradient that is not
    finite. The update is therefore skipped, and the weights do not change. (With `torch.multinomial`, NaN
    would abort the process on a GPU.)

    Args:
        logits: logits of the actions.
        temperature: divisor of the logits.
        uniforms: random numbers in [0, 1), one per row. Probabilities are summed in the data type of these
            numbers. None: take the most likely action.
    """
    num_rows = max(1, MAX_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    if len(logits) <= num_rows:
        return draw_rows(logits, temperature, uniforms)
    parts = [slice(start, start + num_rows) for start in range(0, len(logits), num_rows)]
    drawn = [
        draw_rows(logits[rows], temperature, None if uniforms is None else uniforms[rows]) for rows in parts
    ]
    return Drawn(*(torch.cat(values) for values in zip(*drawn, strict=True)))


def draw_rows(
    logits: Float[Tensor, "row vocabulary"], temperature: float, uniforms: Float[Tensor, " row"] | None
) -> Drawn:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # float64 is unchanged
    if temperature != 1.0:
        logits = logits / temperature
    shifted = logits - logits.amax(dim=1, keepdim=True)
    weights = shifted.exp()
    totals = weights.sum(dim=1)
    # avoid 0 · -inf = NaN; no other value changes, because exp(-1000) is 0 even in float64
    shifted.clamp_(min=-1000.0)
    # H = log Σ e^z - Σ π z, where z is shifted so that its maximum is 0; H is NaN if a logit is NaN or +inf
    with torch.autocast(logits.device.type, enabled=False):  # autocast would use half precision
        entropies = totals.log() - torch.linalg.vecdot(weights, shifted) / totals
    actions = logits.argmax(dim=1) if uniforms is None else invert(weights, uniforms)
    log_probs = shifted.gather(1, actions[:, None]).squeeze(1) - totals.log()
    # ‖∂ log π_a / ∂z‖² = Σ_b (1[a = b] - π_b)² = (1 - π_a)² + Σ_{b ≠ a} π_b², without cancellation
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
    """Return, for each row, the first action at which the cumulative weight exceeds u · Σ weights.

    This is inverse transform sampling.

    The search first finds the block that contains the action, then the action within the block. Sums have the
    data type of `uniforms`, which should be float64 if the device supports this type. An action with weight 0
    is never returned. If a weight is NaN, an arbitrary action is returned.

    Args:
        weights: unnormalized probabilities.
        uniforms: a number u in [0, 1) for each row.
    """
    num_rows, num_columns = weights.shape
    if num_columns <= 4 * BLOCK:
        return _search(weights.to(uniforms.dtype), uniforms, None)[0]
    if num_columns % BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -num_columns % BLOCK))
    blocks = weights.view(num_rows, -1, BLOCK)
    block, rest = _search(blocks.sum(dim=2, dtype=uniforms.dtype), uniforms, None)
    in_block = blocks[torch.arange(num_rows, device=weights.device), block].to(uniforms.dtype)
    within, _ = _search(in_block, uniforms, rest)
    return (block * BLOCK + within).clamp(max=num_columns - 1)


def _search(
    weights: Float[Tensor, "row column"], uniforms: Tensor, targets: Tensor | None
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """Return, for each row, the first column at which the cumulative weight exceeds the target of the row.

    Args:
        weights: weights of the columns.
        uniforms: a number u in [0, 1) for each row.
        targets: target of each row. None: u · Σ weights.

    Returns:
        for each row, the column, and the target minus the sum of the weights before this column.
    """
    sums = weights.cumsum(dim=1)
    # rounding must not move a target past the last nonzero weight
    below_all = torch.nextafter(sums[:, -1], torch.zeros_like(sums[:, -1]))
    targets = torch.minimum(uniforms * sums[:, -1] if targets is None else targets, below_all)
    columns = torch.searchsorted(sums, targets[:, None], right=True).clamp(max=sums.shape[1] - 1)
    before = sums.gather(1, columns) - weights.gather(1, columns)
    return columns.squeeze(1), (targets[:, None] - before).squeeze(1).clamp(min=0.0)
