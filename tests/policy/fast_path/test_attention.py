"""Tests of both implementations of packed attention (plain products, torch) against the equations."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from llm_reinforce.policy.fast_path import attention
from llm_reinforce.policy.fast_path.attention import Attention, Rows
from llm_reinforce.policy.fast_path.completion_tree import pack_completions
from llm_reinforce.policy.fast_path.packing import pack_prompts

CPU = torch.device("cpu")
CASES = {
    "ragged prompts": ([(1, 2, 3), (5,)], [(4, 6, 12), (7, 12), (4, 6, 6), (8, 12)], [0, 1, 0, 0]),
    "a common prefix": ([(1, 1, 2, 3), (1, 1, 5)], [(4, 6, 12), (7, 9, 12)], [0, 1]),
    "one prompt": ([(1, 2)], [(4, 6, 12), (4, 6, 6, 12)], [0, 0]),
}


def layout_of(name: str) -> tuple[list[Rows], list[list[int]]]:
    """Return the rows of a case and, for each token, the tokens to which it attends."""
    prompts, completions, numbers = CASES[name]
    packed = pack_prompts(prompts, CPU)
    tree = pack_completions(completions, numbers, [len(prompt) for prompt in prompts], CPU)
    assert tree.bundles is not None
    seen: dict[int, list[int]] = {}
    slots = packed.slots.tolist()
    for row, length in zip(slots, packed.lengths.tolist(), strict=True):
        for column in range(length):
            seen[row[column]] = row[: column + 1]
    states = iter(tree.states.tolist())
    for completion, number in zip(completions, numbers, strict=True):
        prompt = slots[number][: len(prompts[number])]
        path = [next(states) - len(prompts) + len(packed.token_ids) for _ in completion][1:]
        for place, token in enumerate(path):
            seen[token] = [*prompt, *path[: place + 1]]
    return [packed.rows, tree.bundles.rows(packed)], [seen[token] for token in range(len(seen))]


def vectors(num_tokens: int, num_heads: int, num_key_heads: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(num_tokens, heads, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (num_heads, num_key_heads, num_key_heads)
    ]


def attention_by_hand(inputs: Sequence[Tensor], seen: Sequence[Sequence[int]]) -> Tensor:
    """Return Σ_j p_ij v_j, computed for one token and one head at a time."""
    queries, keys, values = inputs
    repeats = queries.shape[1] // keys.shape[1]
    mixed = []
    for token, others in enumerate(seen):
        for head in range(queries.shape[1]):
            own = keys[list(others), head // repeats]
            probabilities = (own @ queries[token, head] / math.sqrt(queries.shape[2])).softmax(dim=0)
            mixed.append(probabilities @ values[list(others), head // repeats])
    return torch.stack(mixed).view(len(seen), *queries.shape[1:])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("small", [0, 64])
def test_attention_and_gradient_equal_those_by_hand(
    name: str, heads: tuple[int, int], small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "MAX_SMALL", small)
    rows, seen = layout_of(name)
    # two more tokens than in the rows
    inputs = vectors(len(seen) + 2, *heads)
    weights = torch.randn(len(seen), heads[0], 4, generator=torch.Generator().manual_seed(1)).double()
    results = []
    for mixed in (Attention(rows, *heads)(*inputs), attention_by_hand(inputs, seen)):
        results.append((mixed.detach(), *torch.autograd.grad((mixed * weights).sum(), inputs)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(Attention(rows, *heads)(*inputs), results[0][0], rtol=0.0, atol=1e-12)


def test_several_layers_use_the_same_attention_object() -> None:
    rows, seen = layout_of("ragged prompts")
    attend, inputs = Attention(rows, 2, 2), vectors(len(seen), 2, 2)
    first = attend(*inputs)
    second = attend(first, *inputs[1:])
    expected = attention_by_hand([attention_by_hand(inputs, seen), *inputs[1:]], seen)
    torch.testing.assert_close(second, expected, rtol=1e-10, atol=1e-10)
    gradients, exact = (torch.autograd.grad(mixed.square().sum(), inputs) for mixed in (second, expected))
    torch.testing.assert_close(gradients, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("small", [0, 64])
def test_values_that_are_not_finite_do_not_spread_to_other_prompts(
    bad: float, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "MAX_SMALL", small)
    rows, seen = layout_of("ragged prompts")
    inputs = [vector.detach() for vector in vectors(len(seen), 2, 2)]
    for vector in inputs:
        vector[seen[-1][-1]] = bad  # a token after the last prompt
        vector.requires_grad_()
    mixed = Attention(rows, 2, 2)(*inputs)
    others = sorted({token for those in seen[:-1] for token in those} - set(seen[-1]))
    assert mixed[others].isfinite().all()
    assert not mixed[-1].isfinite().all()
    for gradient in torch.autograd.grad(mixed[others].sum(), inputs):
        assert gradient[others].isfinite().all()


def test_long_rows_and_half_precision_use_the_attention_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, seen = layout_of("one prompt")
    assert max(each.keys.shape[1] for each in rows) < attention.MAX_SMALL
    used: list[str] = []

    def counted(*tensors: Tensor, **options: Any) -> Tensor:
        used.append("torch")
        return scaled_dot_product_attention(*tensors, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", counted)
    inputs = [vector.detach().float() for vector in vectors(len(seen), 2, 2)]
    Attention(rows, 2, 2)(*inputs)
    assert not used
    half = Attention(rows, 2, 2)(*(vector.bfloat16() for vector in inputs))
    assert half.dtype == torch.bfloat16
    assert used
    used.clear()
    monkeypatch.setattr(attention, "MAX_SMALL", max(each.keys.shape[1] for each in rows) - 1)
    Attention(rows, 2, 2)(*inputs)
    assert used
