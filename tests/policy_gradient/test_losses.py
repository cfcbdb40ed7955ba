"""The loss, its gradient and entropies, compared with hand-computed values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_reinforce.policy_gradient import entropy, entropy_bonus, reinforce_loss

LOG_PROBS = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -9.0, -9.0]])
ADVANTAGES = torch.tensor([[2.0, 1.0, -1.0], [4.0, 0.0, 0.0]])
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_loss_is_the_weighted_sum_divided_by_the_denominator():
    # Σ A log π = 2·(-1) + 1·(-2) + (-1)·(-3) + 4·(-0.5) = -2 - 2 + 3 - 2 = -3;  L = 3 / 2
    assert reinforce_loss(LOG_PROBS, ADVANTAGES, MASK, 2).item() == 1.5
    assert reinforce_loss(LOG_PROBS, ADVANTAGES, MASK, 4).item() == 0.75


def test_gradient_is_the_negative_advantage_divided_by_the_denominator():
    log_probs = LOG_PROBS.clone().requires_grad_()
    reinforce_loss(log_probs, ADVANTAGES, MASK, 2).backward()
    assert log_probs.grad.tolist() == [[-1.0, -0.5, 0.5], [-2.0, 0.0, 0.0]]


def test_advantages_get_no_gradient():
    log_probs = LOG_PROBS.clone().requires_grad_()
    advantages = ADVANTAGES.clone().requires_grad_()
    reinforce_loss(log_probs, advantages, MASK, 2).backward()
    assert advantages.grad is None


def test_masked_tokens_with_infinite_log_probs_contribute_nothing():
    log_probs = LOG_PROBS.clone()
    log_probs[1, 1:] = -math.inf
    log_probs.requires_grad_()
    loss = reinforce_loss(log_probs, ADVANTAGES, MASK, 2)
    loss.backward()
    assert loss.item() == 1.5
    assert log_probs.grad[1].tolist() == [-2.0, 0.0, 0.0]


def test_loss_equals_the_weighted_cross_entropy_of_the_article():
    # an episode of T actions is T labeled examples, each weighted by its return
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator)
    actions = torch.randint(5, (2, 3), generator=generator)
    cross_entropy = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), actions.flatten(), reduction="none"
    )
    log_probs = logits.log_softmax(-1).gather(2, actions[:, :, None]).squeeze(2)
    loss = reinforce_loss(log_probs, ADVANTAGES, MASK, 2)
    torch.testing.assert_close(loss, (cross_entropy * ADVANTAGES.flatten()).sum() / 2)


@pytest.mark.parametrize("denominator", [0, -1, math.nan])
def test_denominator_must_be_above_zero(denominator):
    with pytest.raises(ValueError, match="above 0"):
        reinforce_loss(LOG_PROBS, ADVANTAGES, MASK, denominator)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 6), st.integers(0, 1000))
def test_losses_of_two_parts_sum_to_the_loss_of_the_whole(cut, seed):
    generator = torch.Generator().manual_seed(seed)
    log_probs, weights = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 4, generator=generator) < 0.7
    parts = (slice(cut), slice(cut, None))
    summed = sum(reinforce_loss(log_probs[part], weights[part], mask[part], 6) for part in parts)
    torch.testing.assert_close(summed, reinforce_loss(log_probs, weights, mask, 6), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_entropy_of_a_uniform_distribution_is_log_n(n):
    assert entropy(torch.full((n,), -math.log(n))).item() == pytest.approx(math.log(n))


def test_entropy_of_a_biased_coin():
    # -(¼ log ¼ + ¾ log ¾) = 0.5623
    assert entropy(torch.tensor([0.25, 0.75]).log()).item() == pytest.approx(0.5623351)


def test_entropy_keeps_the_leading_dimensions():
    assert entropy(torch.randn(2, 3, 5).log_softmax(-1)).shape == (2, 3)


def test_deterministic_distribution_has_zero_entropy_and_a_finite_gradient():
    logits = torch.tensor([0.0, -math.inf, -math.inf], requires_grad=True)
    certain = entropy(logits.log_softmax(-1))
    certain.backward()
    assert certain.item() == 0.0
    assert logits.grad.tolist() == [0.0, 0.0, 0.0]


def test_token_of_probability_zero_does_not_affect_other_gradients():
    # two equal probabilities and a third of zero: the entropy is at its maximum, so its gradient is 0
    logits = torch.tensor([1.0, 1.0, -math.inf], requires_grad=True)
    value = entropy(logits.log_softmax(-1))
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert logits.grad.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def test_gradient_of_the_entropy():
    # ∂H/∂logit_a = -π_a (log π_a + H)
    logits = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64, requires_grad=True)
    log_distribution = logits.log_softmax(-1)
    value = entropy(log_distribution)
    value.backward()
    expected = -log_distribution.exp() * (log_distribution + value)
    torch.testing.assert_close(logits.grad, expected.detach(), rtol=1e-12, atol=1e-12)


def test_entropy_bonus_sums_over_visited_states():
    entropies = torch.tensor([[1.0, 2.0, math.nan], [3.0, math.inf, 5.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    # (1 + 2 + 3) / 4
    assert entropy_bonus(entropies, mask, 4).item() == 1.5


def test_shapes_are_checked_in_tests():
    # shared_setup.py enables the checks; without them, this mask would be broadcast silently
    with pytest.raises(TypeError, match="mask"):
        reinforce_loss(LOG_PROBS, ADVANTAGES, MASK[:1], 2)
