"""Attention for many sequences whose tokens are packed into one tensor.

The tokens are divided into rows. A query attends only to the keys of its row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, scaled_dot_product_attention

from llm_reinforce.policy.fast_path.products import is_full_precision_on_cpu

MAX_SMALL = 64
"""Maximum number of keys per row for which attention is computed with plain matrix products on a CPU. For
short rows, plain products are faster than the attention function of torch. The attention probabilities of
short rows, which are stored for the backward pass, take little memory."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of query tokens with the key tokens to which they attend.

    Attributes:
        queries: indices of the query tokens of each row. The last token may be repeated as padding.
        keys: indices of the key tokens of each row, which are shared by all queries of the row.
        places: for each token, its index in the flattened `queries`.
        mask: True where a query attends to a key. None: keys and queries are the same tokens, and attention
            is causal, as in a prompt.
    """

    queries: Int[Tensor, "row query"]
    keys: Int[Tensor, "row key"]
    places: Int[Tensor, " token"]
    mask: Bool[Tensor, "row query key"] | None = None


class Attention:
    """Attention of packed tokens. One object serves all layers, because every layer has the same rows.

        o_i = Σ_j p_ij v_j,   p_ij = exp s_ij / Σ_k exp s_ik,   s_ij = q_i · k_j / √d

    The sums are over the keys to which a query attends (Vaswani et al. 2017). If several query heads share a
    key head (Ainslie et al. 2023), their queries are treated as additional queries to this key head. The keys
    then need not be copied.

    Args:
        rows: groups of rows. A row is a set of queries and the keys to which they attend, and all rows of a
            group have the same width. Apart from padding, every token is a query in exactly one row. The
            queries of the first group are the first tokens of the packed sequence, the queries of the second
            group are the next tokens, and so on.
        num_heads: number of query heads.
        num_key_heads: number of key and value heads.
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
        """Return the output o_i of each query token. The inputs may have further tokens at the end."""
        is_small = all(each.keys.shape[1] <= MAX_SMALL for each in self.rows)
        if not is_small or not is_full_precision_on_cpu(queries):
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
        """Masks of the rows, repeated for the query heads that share a key head."""
        repeats = self.num_heads // self.num_key_heads
        return [None if each.mask is None else each.mask.repeat(1, repeats, 1)[:, None] for each in self.rows]

    def _mixed(
        self, rows: Rows, mask: Tensor | None, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        q, k, v = (
            gather(packed, slots).transpose(1, 2)
            for packed, slots in ((queries, rows.queries), (keys, rows.keys), (values, rows.keys))
        )
        if mask is None:
            mixed = scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=self.num_heads != self.num_key_heads
            )
        else:
            stacked = q.reshape(len(q), self.num_key_heads, -1, q.shape[3])
            mixed = scaled_dot_product_attention(stacked, k, v, attn_mask=mask)
        return mixed.view(q.shape).transpose(1, 2).flatten(0, 1).index_select(0, rows.places)


@dataclass(frozen=True, slots=True)
class _SmallRows:
    """Rows of query and key vectors, as indices into tensors that are flattened to `[vector, channel]`.

    There is one row of vectors for each pair of a row of tokens and a key head.

    Attributes:
        queries: for each row, the indices of the query vectors of all heads that share the key head.
        keys: for each row, the indices of the key and value vectors.
        places: for each vector of each token, its index in the flattened `queries`.
        bias: 0 where a query attends to a key and -∞ elsewhere; added to s_ij of all heads.
    """

    queries: Int[Tensor, "shared query"]
    keys: Int[Tensor, "shared key"]
    places: Int[Tensor, " vector"]
    bias: Float[Tensor, "any_row 1 query key"]

    @classmethod
    def of(cls, rows: Rows, num_heads: int, num_key_heads: int) -> "_SmallRows":
        """Build the rows of vectors from rows of tokens."""
        (num_rows, num_queries), device = rows.queries.shape, rows.queries.device
        heads, key_heads = (torch.arange(num, device=device) for num in (num_heads, num_key_heads))
        row, column = rows.places // num_queries, rows.places % num_queries
        mask = rows.mask
        if mask is None:
            mask = torch.ones(1, num_queries, num_queries, dtype=torch.bool, device=device).tril()
        # MKL is faster if the number of keys is a multiple of 8; no query attends to the added keys
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
        """Return the outputs o of the tokens, and the tensors that the backward pass needs.

        These tensors are p, q / √d, k and v of all rows.
        """
        q, k, v = (
            gather(packed.flatten(0, 1), places)
            for packed, places in ((queries, self.queries), (keys, self.keys), (values, self.keys))
        )
        q *= queries.shape[2] ** -0.5
        logits = torch.bmm(q, k.mT)
        logits.view(-1, keys.shape[1], *logits.shape[1:]).add_(self.bias)
        probabilities = logits.softmax(dim=-1)
        mixed = torch.bmm(probabilities, v).flatten(0, 1).index_select(0, self.places)
        return mixed.view(-1, *queries.shape[1:]), (probabilities, q, k, v)


class _SmallAttention(torch.autograd.Function):
    """Attention of short rows, computed with plain matrix products. See `Attention` for the equations.

    The derivatives are:

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
        grad_mixed, channels = gradients[0].flatten(0, 1), shape[2]
        grad_queries = grad_mixed.new_zeros(shape).flatten(0, 1)
        grad_keys, grad_values = (grad_mixed.new_zeros(key_shape).flatten(0, 1) for _ in range(2))
        start, saved = 0, ctx.saved_tensors  # read once, because each read may recompute a checkpointed layer
        for index, rows in enumerate(ctx.rows):
            probabilities, q, k, v = saved[4 * index : 4 * index + 4]
            own = slice(start, start + len(rows.places))
            start = own.stop
            # the gradient remains zero for repeated tokens at the end of a row
            grad_outputs = torch.zeros_like(q)
            grad_outputs.view(-1, channels).index_copy_(0, rows.places, grad_mixed[own])
            grad_logits = torch.bmm(grad_outputs, v.mT)
            grad_logits -= torch.linalg.vecdot(probabilities, grad_logits)[:, :, None]
            grad_logits *= probabilities
            grad_rows = torch.bmm(grad_logits, k).mul_(channels**-0.5).flatten(0, 1)
            torch.index_select(grad_rows, 0, rows.places, out=grad_queries[own])
            places = rows.keys.flatten()
            grad_keys.index_add_(0, places, torch.bmm(grad_logits.mT, q).flatten(0, 1))
            grad_values.index_add_(0, places, torch.bmm(probabilities.mT, grad_outputs).flatten(0, 1))
        return grad_queries.view(shape), grad_keys.view(key_shape), grad_values.view(key_shape), None


def gather(packed: Tensor, slots: Int[Tensor, "row column"]) -> Tensor:
    """Return the vectors of the tokens whose indices are in `slots`, with shape `[row, column, …]`."""
    return packed.index_select(0, slots.flatten()).view(*slots.shape, *packed.shape[1:])
