"""Tests of matrix products, the head in chunks, and drawing, against the plain equations."""

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import nn

from llm_reinforce.policy import drawing
from llm_reinforce.policy.action_head import ActionLogProbs
from llm_reinforce.policy.drawing import BLOCK, draw, invert
from llm_reinforce.policy.fast_path import chunked_head, products
from llm_reinforce.policy.fast_path.chunked_head import action_log_probs
from llm_reinforce.policy.fast_path.products import is_linear, layer_product, outer_product, product
from llm_reinforce.policy_gradient import entropy


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --------------------------------------------------------------------------------- products


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (64, 96, 400), (200, 128, 130)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("has_onednn", [True, False])
@pytest.mark.parametrize("only_avx2", [True, False])
def test_product_equals_that_of_torch(
    shape: tuple[int, int, int],
    transposed: bool,
    only_avx2: bool,
    has_onednn: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(products, "ONLY_AVX2", only_avx2)
    if not has_onednn:
        monkeypatch.setattr(products, "onednn", None)
    rows, inner, columns = shape
    left, right = numbers(rows, inner), numbers(columns, inner, seed=1)
    if transposed:
        left, right = left.t().contiguous().t(), right.t().contiguous().t()
    exact = left.double() @ right.double().t()
    assert (product(left, right) - exact).abs().max() <= 1e-6 * inner


@pytest.mark.parametrize("columns", [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("only_avx2", [True, False])
def test_outer_product_equals_that_of_torch(
    columns: tuple[int, int], only_avx2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(products, "ONLY_AVX2", only_avx2)
    left, right = numbers(50, columns[0]), numbers(50, columns[1], seed=1)
    assert (outer_product(left, right) - left.double().t() @ right.double()).abs().max() <= 1e-5


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_torch_has_the_onednn_product() -> None:
    # without it, the plain product is used, and everything is slower without a warning
    assert products.onednn is not None


def test_linear_layer_and_gradient_equal_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 0)
    layer, inputs = nn.Linear(30, 20), numbers(40, 30).requires_grad_()
    weights = numbers(40, 20, seed=2)
    results = []
    for function in (layer, lambda inputs: layer_product(layer, inputs)):
        layer.zero_grad()
        inputs.grad = None
        outputs = function(inputs)
        (outputs * weights).sum().backward()
        assert layer.weight.grad is not None
        assert layer.bias.grad is not None
        results.append((outputs.detach(), inputs.grad, layer.weight.grad.clone(), layer.bias.grad.clone()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_frozen_weight_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 0)
    layer, inputs = nn.Linear(30, 20, bias=False).requires_grad_(False), numbers(4, 30).requires_grad_()
    layer_product(layer, inputs).sum().backward()
    assert layer.weight.grad is None
    assert inputs.grad is not None


def test_layer_of_another_type_is_called() -> None:
    class Other(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return torch.full((1, 2), 7.0)

    assert is_linear(nn.Linear(3, 2))
    assert not is_linear(Other(3, 2))
    assert layer_product(Other(3, 2), numbers(1, 3)).tolist() == [[7.0, 7.0]]


def test_frozen_layer_saves_no_inputs_for_its_gradient() -> None:
    layer, inputs = nn.Linear(30, 20, bias=False).requires_grad_(False), numbers(4, 30).requires_grad_()
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: (saved.append(tuple(tensor.shape)), tensor)[1], lambda tensor: tensor
    ):
        layer_product(layer, inputs)
    assert saved == [(20, 30)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("is_cached", [False, True])
@pytest.mark.parametrize("frozen", ["", "weight", "inputs"])
def test_cached_outputs_and_gradients_equal_those_of_torch(bias: bool, is_cached: bool, frozen: str) -> None:
    layer = some_layer(bias=bias, dtype=torch.float64)
    inputs = numbers(7, 6, dtype=torch.float64).requires_grad_(frozen != "inputs")
    layer.weight.requires_grad_(frozen != "weight")
    parameters = [inputs, *layer.parameters()]

    def gradients(outputs: torch.Tensor) -> list[torch.Tensor | None]:
        for parameter in parameters:
            parameter.grad = None
        if outputs.requires_grad:
            (outputs * outputs.detach().cos()).sum().backward()
        return [parameter.grad for parameter in parameters]

    plain = layer(inputs)
    cached = plain.detach().clone() if is_cached else None
    ours = layer_product(layer, inputs, cached)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(ours), gradients(plain), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(layer_product(layer, inputs), plain, rtol=1e-12, atol=1e-12)


def some_layer(*, bias: bool, dtype: torch.dtype) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Linear(6, 9, bias=bias, dtype=dtype)


def test_cached_products_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a product was computed")

    monkeypatch.setattr(products, "product", failing)
    cached = numbers(7, 9)
    layer = some_layer(bias=True, dtype=torch.float32)
    assert torch.equal(layer_product(layer, numbers(7, 6), cached), cached)


@pytest.mark.parametrize("kind", ["another layer", "autocast"])
def test_other_layers_are_called(kind: str) -> None:
    layer: nn.Module = some_layer(bias=True, dtype=torch.float32)
    if kind == "another layer":
        layer = nn.Sequential(layer, nn.Tanh())
    inputs = numbers(7, 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        torch.testing.assert_close(layer_product(layer, inputs), layer(inputs), rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------- the head


def plain_log_probs(
    weight: torch.Tensor, hidden: torch.Tensor, actions: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    log_distribution = (hidden @ weight.t() / temperature).log_softmax(dim=1)
    return log_distribution.gather(1, actions[:, None]).squeeze(1), entropy(log_distribution)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("with_entropies", [True, False])
@pytest.mark.parametrize("max_logits", [1, 70, 1 << 23], ids=["row by row", "in chunks", "at once"])
def test_head_in_chunks_equals_the_plain_head(
    max_logits: int, with_entropies: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_head, "MAX_LOGITS", max_logits)
    head = nn.Linear(6, 37, bias=False, dtype=torch.float64)
    hidden = numbers(5, 6, dtype=torch.float64).requires_grad_()
    states = torch.tensor([4, 0, 0, 2, 1, 2, 2, 4, 0, 1, 2])  # some states have several actions, one has none
    actions = torch.randint(37, (11,), generator=torch.Generator().manual_seed(3))
    weights = numbers(2, 11, dtype=torch.float64, seed=4)
    results: list[Any] = []
    for way in ("plain", "computed", "cached"):
        head.zero_grad()
        hidden.grad = None
        if way == "plain":
            log_probs, entropies = plain_log_probs(head.weight, hidden[states], actions, temperature)
        else:
            found = action_log_probs(
                head,
                hidden,
                states,
                actions,
                temperature=temperature,
                with_entropies=with_entropies,
                cached=ActionLogProbs(*results[0][:2]) if way == "cached" else None,
            )
            log_probs = found.log_probs
            assert (found.entropies is None) != with_entropies
            entropies = torch.zeros_like(log_probs) if found.entropies is None else found.entropies
        loss = (weights[0] * log_probs).sum()
        if with_entropies:
            loss = loss + (weights[1] * entropies).sum()
        loss.backward()
        own_entropies = entropies.detach() if with_entropies else None
        assert head.weight.grad is not None
        results.append((log_probs.detach(), own_entropies, hidden.grad, head.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(results[0], results[2], rtol=1e-12, atol=1e-12)


def test_head_with_a_bias_is_called() -> None:
    head, hidden, actions = nn.Linear(6, 37), numbers(4, 6), torch.tensor([0, 1, 2, 36])
    found = action_log_probs(head, hidden, torch.arange(4), actions, temperature=1.0, with_entropies=True)
    expected = head(hidden).log_softmax(1)
    torch.testing.assert_close(found.log_probs, expected.gather(1, actions[:, None]).squeeze(1))
    torch.testing.assert_close(found.entropies, entropy(expected))


def test_frozen_head_gets_no_gradient() -> None:
    head, hidden = nn.Linear(6, 37, bias=False).requires_grad_(False), numbers(4, 6).requires_grad_()
    actions = torch.tensor([0, 1, 2, 36])
    action_log_probs(
        head, hidden, torch.arange(4), actions, temperature=1.0, with_entropies=False
    ).log_probs.sum().backward()
    assert head.weight.grad is None
    assert hidden.grad is not None


def test_action_with_probability_0_gives_no_nan() -> None:
    # logits of ±1e6: the probabilities of all other actions underflow
    weight = torch.tensor([[1e6], [-1e6], [0.0]], dtype=torch.float64)
    head = nn.Linear(1, 3, bias=False, dtype=torch.float64)
    head.weight.data = weight
    hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    found = action_log_probs(
        head, hidden, torch.tensor([0]), torch.tensor([0]), temperature=1.0, with_entropies=True
    )
    assert found.entropies is not None
    (found.log_probs + found.entropies).sum().backward()
    assert found.log_probs.item() == 0.0
    assert found.entropies.item() == 0.0
    assert hidden.grad is not None
    assert hidden.grad.item() == 0.0


# --------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("num_columns", [2, 13, 4 * BLOCK, 4 * BLOCK + 1, 9 * BLOCK + 17])
def test_invert_inverts_the_cumulative_weights(num_columns: int) -> None:
    weights = torch.rand(50, num_columns, generator=torch.Generator().manual_seed(0))
    weights[:, ::3] = 0.0
    uniforms = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actions = invert(weights, uniforms)
    sums = weights.double().cumsum(1)
    for row, action in enumerate(actions.tolist()):
        target = float(uniforms[row] * sums[row, -1])
        before = float(sums[row, action] - weights[row, action])
        assert before - 1e-9 <= target <= float(sums[row, action]) + 1e-9
        assert weights[row, action] > 0


@pytest.mark.parametrize("num_columns", [5, 6 * BLOCK])
@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53, 0.5])
def test_action_with_weight_0_is_never_drawn(num_columns: int, uniform: float) -> None:
    weights = torch.zeros(1, num_columns)
    only = num_columns // 2
    weights[0, only] = 1e-30
    assert invert(weights, torch.tensor([uniform], dtype=torch.float64)).item() == only
    weights[0, [1, only]] = torch.tensor([1.0, 1e-45])  # rounding removes the second weight from the sum
    assert invert(weights, torch.tensor([uniform], dtype=torch.float64)).item() == 1


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("max_logits", [1, 40, 60])
def test_drawing_a_few_rows_at_a_time_gives_the_same_actions(
    max_logits: int, greedy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = numbers(7, 20)
    logits[3] = torch.nan
    uniforms = None if greedy else torch.rand(7, generator=torch.Generator().manual_seed(0)).double()
    together = drawing.draw(logits, 0.7, uniforms)
    sizes: list[int] = []
    plain = drawing.draw_rows
    monkeypatch.setattr(
        drawing, "draw_rows", lambda some, *rest: (sizes.append(len(some)), plain(some, *rest))[1]
    )
    monkeypatch.setattr(drawing, "MAX_LOGITS", max_logits)
    in_parts = drawing.draw(logits, 0.7, uniforms)
    assert sizes == {1: [1] * 7, 40: [2, 2, 2, 1], 60: [3, 3, 1]}[max_logits]
    for one, other in zip(together, in_parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("num_columns", [7, 5 * BLOCK])
def test_drawn_actions_follow_the_distribution(num_columns: int) -> None:
    logits = numbers(1, num_columns) * 2
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = draw(logits.expand(20_000, -1), 1.5, uniforms)
    probabilities = (logits[0].double() / 1.5).softmax(0)
    counts = torch.bincount(drawn.actions, minlength=num_columns).double()
    often = probabilities > 5 / 20_000
    observed = [*counts[often].tolist(), float(counts[~often].sum())]
    expected = [*(probabilities[often] * 20_000).tolist(), float(probabilities[~often].sum()) * 20_000]
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    torch.testing.assert_close(
        drawn.log_probs.exp().double(), probabilities[drawn.actions], rtol=1e-5, atol=0
    )
    assert drawn.entropies.tolist() == pytest.approx(
        [-float((probabilities * probabilities.log()).sum())] * 20_000, abs=1e-5
    )


def test_most_likely_action_is_taken_without_random_numbers() -> None:
    logits = numbers(8, 2000)
    drawn = draw(logits, 0.5, None)
    assert torch.equal(drawn.actions, logits.argmax(1))
    expected = (logits / 0.5).log_softmax(1)
    torch.testing.assert_close(drawn.log_probs, expected.amax(1))
    torch.testing.assert_close(drawn.entropies, entropy(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_columns", [5, 1500])
def test_actions_with_a_logit_of_minus_infinity_are_never_drawn(num_columns: int) -> None:
    logits = torch.full((100, num_columns), -math.inf)
    logits[:, [1, 3]] = 0.0
    uniforms = torch.linspace(0, 1, 101, dtype=torch.float64)[:-1]
    drawn = draw(logits, 1.0, uniforms)
    assert drawn.actions.tolist() == [1] * 50 + [3] * 50
    assert drawn.log_probs.tolist() == pytest.approx([-math.log(2)] * 100)
    assert drawn.entropies.tolist() == pytest.approx([math.log(2)] * 100)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("num_columns", [5, 1500])
def test_logits_without_a_distribution_give_nan_and_an_arbitrary_action(bad: float, num_columns: int) -> None:
    logits: Any = numbers(3, num_columns)
    logits[1, 2] = bad
    drawn = draw(logits, 1.0, torch.full((3,), 0.3, dtype=torch.float64))
    assert 0 <= int(drawn.actions[1]) < num_columns
    assert drawn.log_probs.isnan().tolist() == [False, True, False]
    assert drawn.entropies.isnan().tolist() == [False, True, False]
    alone = draw(logits[[0, 2]], 1.0, torch.full((2,), 0.3, dtype=torch.float64))
    assert torch.equal(drawn.actions[[0, 2]], alone.actions)
    assert torch.equal(drawn.log_probs[[0, 2]], alone.log_probs)


def test_squared_gradient_norm_equals_values_computed_by_hand() -> None:
    # π = (1/2, 1/2): (1 - 1/2)² + (1/2)²; π = (1/4, 3/4), the less likely action: (3/4)² + (3/4)² = 9/8
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    drawn = draw(logits, 1.0, torch.tensor([0.9, 0.1, 0.9], dtype=torch.float64))
    assert drawn.actions.tolist() == [1, 0, 1]
    assert drawn.squared_logit_gradient_norms.tolist() == pytest.approx([1 / 2, 9 / 8, 1 / 8])


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("num_columns", [7, 5 * BLOCK])
def test_squared_gradient_norm_equals_that_of_autograd(num_columns: int, temperature: float) -> None:
    logits = numbers(20, num_columns).double() * 2
    drawn = draw(logits, temperature, torch.rand(20, generator=torch.Generator().manual_seed(0)).double())
    divided = (logits / temperature).requires_grad_()
    divided.log_softmax(1).gather(1, drawn.actions[:, None]).sum().backward()
    assert divided.grad is not None
    torch.testing.assert_close(
        drawn.squared_logit_gradient_norms, divided.grad.square().sum(1), rtol=1e-10, atol=0
    )


def test_squared_gradient_norm_is_accurate_near_probability_1() -> None:
    # π_b = 1e-5 of two other actions: (2e-5)² + 2 · (1e-5)² = 6e-10; 1 - 2π + Σπ² is 1e-7 off
    logits = torch.tensor([[0.0, math.log(1e-5), math.log(1e-5)]])
    assert draw(logits, 1.0, None).squared_logit_gradient_norms.item() == pytest.approx(6e-10, rel=0.02)
    with_minus_infinity = torch.tensor([[0.0, -math.inf]])
    assert draw(with_minus_infinity, 1.0, None).squared_logit_gradient_norms.item() == 0.0
    assert draw(torch.tensor([[0.0, math.nan]]), 1.0, None).squared_logit_gradient_norms.isnan().all()


def test_autocast_does_not_change_drawn_actions() -> None:
    logits = 3 * torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    plain = draw(logits, 1.0, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = draw(logits, 1.0, None)
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))
