"""Attention among the tokens of many sequences that lie side by side: in rows, which don't see each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, scaled_dot_product_attention

from llm_reinforce.policy.fast_path.products import is_full_on_cpu

SMALL = 64
"""Keys a row, up to which a CPU is faster by plain products, whose probabilities take little memory then."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of tokens that attend to rows of tokens.

    Attributes:
        queries: the tokens of each row, of which some may repeat at its end.
        keys: those that they look at, the same for all queries of a row but for the mask.
        places: where in the flattened `queries` each token stands.
        mask: True where a query may look; None: keys and queries are the same tokens, and each looks at those
            up to its own column, as in a prompt.
    """

    queries: Int[Tensor, "row query"]
    keys: Int[Tensor, "row key"]
    places: Int[Tensor, " token"]
    mask: Bool[Tensor, "row query key"] | None = None


class Attention:
    """Attention of the tokens of some rows, those of the second behind those of the first, layer by layer.

        o_i = Σ_j p_ij v_j,   p_ij = exp s_ij / Σ_k exp s_ik,   s_ij = q_i · k_j / √d

    the sums over the keys that a query may look at (Vaswani et al. 2017). Heads that share a key (Ainslie et
    al. 2023) stand as queries below each other, so that no key is copied for them.

    Args:
        rows: all tokens are in them, in the order of their numbers, each as a query once.
    """

    def __init__(self, rows: Sequence[Rows], num_heads: int, num_key_heads: int) -> None:
        self.rows = rows
        self.num_heads, self.num_key_heads = num_heads, num_key_heads

    def __call__(
        self,
        queries: Float[Tensor, "any_token head channel"],
        keys: Float[Tensor, "any_token key_head channel"],
        values: Float[Tensor, "any_token key_head channel"],
    ) -> Float[Tensor, "token head channel"]:
        """What each token mixes of the values; there may be more tokens behind those of the rows."""
        is_small = all(each.keys.shape[1] <= SMALL for each in self.rows)
        if not is_small or not is_full_on_cpu(queries):
            pairs = zip(self.rows, self._masks, strict=True)
            return torch.cat([self._mixed(rows, mask, queries, keys, values) for rows, mask in pairs])
        if torch.is_grad_enabled():
            mixed: Tensor = _SmallAttention.apply(queries, keys, values, self._small)  # type: ignore[no-untyped-call]
            return mixed
        return torch.cat([each.mix(queries, keys, values)[0] for each in self._small])

    @cached_property
    def _small(self) -> "list[_SmallRows]":
        return [_SmallRows.of(each, self.num_heads, self.num_key_heads) for each in self.rows]

    @cached_property
    def _masks(self) -> list[Tensor | None]:
        """Those of queries of several heads below each other."""
        repeats = self.num_heads // self.num_key_heads
        return [None if each.mask is None else each.mask.repeat(1, repeats, 1)[:, None] for each in self.rows]

    def _mixed(
        self, rows: Rows, mask: Tensor | None, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        of_queries, of_keys, of_values = (
            take(packed, slots).transpose(1, 2)
            for packed, slots in ((queries, rows.queries), (keys, rows.keys), (values, rows.keys))
        )
        if mask is None:
            mixed = scaled_dot_product_attention(
                of_queries,
                of_keys,
                of_values,
                is_causal=True,
                enable_gqa=self.num_heads != self.num_key_heads,
            )
        else:
            below = of_queries.reshape(len(of_queries), self.num_key_heads, -1, of_queries.shape[3])
            mixed = scaled_dot_product_attention(below, of_keys, of_values, attn_mask=mask)
        return mixed.view(of_queries.shape).transpose(1, 2).flatten(0, 1).index_select(0, rows.places)


@dataclass(frozen=True, slots=True)
class _SmallRows:
    """Where the vectors of each head stand, in tensors that are flattened to `[vector, channel]`.

    Attributes:
        queries, keys: a row for each row and key's head, the queries of all heads that share the key.
        places: where in the flattened `queries` the vectors of each token stand.
        bias: added to s_ij of all the row's heads: 0, or -∞ where a query may not look.
    """

    queries: Int[Tensor, "shared query"]
    keys: Int[Tensor, "shared key"]
    places: Int[Tensor, " vector"]
    bias: Float[Tensor, "any_row 1 query key"]

    @classmethod
    def of(cls, rows: Rows, num_heads: int, num_key_heads: int) -> "_SmallRows":
        """The same rows, head by head."""
        (num_rows, num_queries), device = rows.queries.shape, rows.queries.device
        heads, key_heads = (torch.arange(num, device=device) for num in (num_heads, num_key_heads))
        row, column = rows.places // num_queries, rows.places % num_queries
        mask = rows.mask
        if mask is None:
            mask = torch.ones(1, num_queries, num_queries, dtype=torch.bool, device=device).tril()
        # MKL is faster with a round number of keys; nobody looks at those that are added
        num_more = -mask.shape[2] % 8
        keys = torch.cat([rows.keys, rows.keys[:, -1:].expand(-1, num_more)], dim=1)
        mask = pad(mask, (0, num_more))
        bias = torch.zeros(mask.shape, device=device).masked_fill_(~mask, -torch.inf)
        return cls(
            queries=(rows.queries[:, None] * num_heads + heads[:, None]).view(num_rows * num_key_heads, -1),
            keys=(keys[:, None] * num_key_heads + key_heads[:, None]).flatten(0, 1),
            places=((row[:, None] * num_heads + heads) * num_queries + column[:, None]).flatten(),
            bias=bias.repeat(1, num_heads // num_key_heads, 1)[:, None],
        )

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What each token mixes; and p, q / √d, k and v of all rows."""
        of_queries, of_keys, of_values = (
            take(packed.flatten(0, 1), places)
            for packed, places in ((queries, self.queries), (keys, self.keys), (values, self.keys))
        )
        of_queries *= queries.shape[2] ** -0.5
        scores = torch.bmm(of_queries, of_keys.mT)
        scores.view(-1, keys.shape[1], *scores.shape[1:]).add_(self.bias)
        probabilities = scores.softmax(dim=-1)
        mixed = torch.bmm(probabilities, of_values).flatten(0, 1).index_select(0, self.places)
        return mixed.view(-1, *queries.shape[1:]), (probabilities, of_queries, of_keys, of_values)


class _SmallAttention(torch.autograd.Function):
    """The equations of `Attention` by plain products, and their derivatives; a vector is looked up but once.

    ∂L/∂s_ij = p_ij (g_ij - Σ_k p_ik g_ik),   g_ij = ∂L/∂o_i · v_j
    ∂L/∂q_i = Σ_j ∂L/∂s_ij k_j / √d,   ∂L/∂k_j = Σ_i ∂L/∂s_ij q_i / √d,   ∂L/∂v_j = Σ_i p_ij ∂L/∂o_i
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, rows: Sequence[_SmallRows]
    ) -> Tensor:
        mixed, kept = zip(*(each.mix(queries, keys, values) for each in rows), strict=True)
        ctx.rows, ctx.shapes = rows, (queries.shape, keys.shape)
        ctx.save_for_backward(*(tensor for tensors in kept for tensor in tensors))
        return torch.cat(mixed)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        shape, key_shape = ctx.shapes
        of_mixed, channels = gradients[0].flatten(0, 1), shape[2]
        of_queries = of_mixed.new_zeros(shape).flatten(0, 1)
        of_keys, of_values = (of_mixed.new_zeros(key_shape).flatten(0, 1) for _ in range(2))
        start = 0
        for number, rows in enumerate(ctx.rows):
            probabilities, q, k, v = ctx.saved_tensors[4 * number : 4 * number + 4]
            own = slice(start, start + len(rows.places))
            start = own.stop
            # what stands at a row's end again has no gradient
            of_outputs = torch.zeros_like(q)
            of_outputs.view(-1, channels).index_copy_(0, rows.places, of_mixed[own])
            of_scores = torch.bmm(of_outputs, v.mT)
            of_scores -= torch.linalg.vecdot(probabilities, of_scores)[:, :, None]
            of_scores *= probabilities
            of_rows = torch.bmm(of_scores, k).mul_(channels**-0.5).flatten(0, 1)
            torch.index_select(of_rows, 0, rows.places, out=of_queries[own])
            places = rows.keys.flatten()
            of_keys.index_add_(0, places, torch.bmm(of_scores.mT, q).flatten(0, 1))
            of_values.index_add_(0, places, torch.bmm(probabilities.mT, of_outputs).flatten(0, 1))
        return of_queries.view(shape), of_keys.view(key_shape), of_values.view(key_shape), None


def take(packed: Tensor, slots: Int[Tensor, "row column"]) -> Tensor:
    """What stands in the slots, `[row, column, …]`."""
    return packed.index_select(0, slots.flatten()).view(*slots.shape, *packed.shape[1:])
