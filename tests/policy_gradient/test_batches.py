"""Exact expected updates with masked truncated episodes, length penalties and penalties on the KL divergence.

All pairs of completions of the enumerated toy policy of `test_exact_gradient.py` are episodes of one batch,
and each pair is the group of one update. Their advantages are computed as in training, in float32.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_exact_gradient import FAR_OFF, Toy, make_toy, relative_error  # noqa: F401, a fixture
from torch import Tensor

from llm_reinforce.config import KLConfig, ReinforceConfig
from llm_reinforce.episodes import Episode, EpisodeBatch, estimate_advantages
from llm_reinforce.policy import Completion
from llm_reinforce.policy_gradient import (
    MovingAverage,
    action_mask,
    group_standardized,
    k3,
    length_penalties,
)
from llm_reinforce.problems import Problem
from llm_reinforce.training.objective import kl_loss

EXACT = 1e-5  # relative error; the tensors of a batch have the precision of float32
DOCS = Path(__file__).parents[2] / "docs" / "objectives.md"
PROBLEM = Problem("10", "1")


@pytest.fixture(scope="module")
def toy(make_toy) -> Toy:  # noqa: F811
    return make_toy()


def pairs_of(toy: Toy) -> Tensor:
    numbers = torch.arange(len(toy.completions))
    return torch.cartesian_prod(numbers, numbers)


def episode_of(
    toy: Toy, row: int, behavior: Tensor, reference: Tensor | None, *, with_steps: bool
) -> Episode:
    actions, length = toy.completions[row], len(toy.completions[row])
    log_probs = tuple(behavior[row, :length].tolist())
    completion = Completion(
        token_ids=actions,
        text="",
        log_probs=log_probs,
        entropies=(0.0,) * length,
        squared_logit_gradient_norms=(0.0,) * length,
        terminated=actions[-1] == toy.policy.end_token_ids[0],
    )
    reward = float(toy.terminal_rewards[row])
    return Episode(
        PROBLEM,
        0,
        toy.prompt,
        completion,
        None,
        {"reward": reward},
        reward,
        tuple(toy.step_rewards[row, :length].tolist()) if with_steps else (),
        reward_weights={"reward": 1.0},
        reference_log_probs=() if reference is None else tuple(reference[row, :length].tolist()),
    )


def expected_update(
    toy: Toy,
    settings: ReinforceConfig,
    reference: Tensor | None = None,
    *,
    with_steps: bool = False,
    behavior: Tensor | None = None,
) -> Tensor:
    """Return the expected gradient over all pairs, each divided by its number of episodes in the loss.

    The episodes are sampled from the policy with the log-probabilities `behavior`, by default the toy policy.
    Each episode has the importance weight π / behavior.
    """
    pairs, own = pairs_of(toy), toy.log_probs().detach()
    behavior = own if behavior is None else behavior
    ratios = (own - behavior).sum(dim=1).exp()
    of_rows = [
        episode_of(toy, row, behavior, reference, with_steps=with_steps)
        for row in range(len(toy.completions))
    ]
    episodes = [
        replace(of_rows[row], group=group) for group, pair in enumerate(pairs.tolist()) for row in pair
    ]
    estimate = estimate_advantages(EpisodeBatch.of(episodes), settings, MovingAverage())
    counts = estimate.mask.any(dim=1).unflatten(0, pairs.shape).sum(dim=1).clamp(min=1)
    weights = estimate.advantages.masked_fill(~estimate.mask, 0.0).double().unflatten(0, pairs.shape)
    weights = ratios[pairs][:, :, None] * weights
    chances = behavior.sum(dim=1).exp()[pairs].prod(dim=1) / counts
    return torch.einsum("p,pet,petx->x", chances, weights, toy.score_vectors[pairs])


def is_terminated(toy: Toy) -> Tensor:
    end = toy.policy.end_token_ids[0]
    return torch.tensor([completion[-1] == end for completion in toy.completions])


# ----------------------------------------------------------------------------------------- truncated: mask


def test_masking_follows_the_gradient_of_the_mean_reward_of_terminated_episodes(toy) -> None:
    terminated, chances = is_terminated(toy), toy.probabilities()
    share = chances[terminated].sum()
    mean = toy.gradient((chances * toy.terminal_rewards)[terminated].sum() / share)
    # a group of two has a gradient if both of its episodes terminate
    found = expected_update(toy, ReinforceConfig(truncated="mask"))
    assert relative_error(found, float(share.detach()) ** 2 * mean) < EXACT

    truth = toy.objective_gradient(1.0, False)
    shown = [float(1 - share.detach()), float((mean - truth).norm() / truth.norm())]
    text = " ".join(DOCS.read_text(encoding="utf-8").split())
    (sentence,) = re.findall(r"(\d+)% of the episodes of the toy policy are truncated.*? by (\d+)% of", text)
    assert [float(number) / 100 for number in sentence] == pytest.approx(shown, abs=0.0051)
    cosine = torch.cosine_similarity(mean, truth, dim=0)
    assert f"cosine of the angle between this gradient and ∇J is {cosine:.2f}" in text


def test_masking_without_a_baseline_is_biased(toy) -> None:
    found = expected_update(toy, ReinforceConfig(truncated="mask", baseline="none"))
    assert relative_error(found, toy.objective_gradient(1.0, False)) > FAR_OFF


def test_counted_truncated_episodes_are_unbiased(toy) -> None:
    for steps in (False, True):
        found = expected_update(toy, ReinforceConfig(), with_steps=steps)
        assert relative_error(found, toy.objective_gradient(1.0, steps)) < EXACT


# ------------------------------------------------------------------------------------------- hand-computed


def test_length_penalty_grows_linearly_up_to_the_longest_completion() -> None:
    # L_max = 20, L_cache = 4: 0 up to 16 tokens, then (16 - T) / 4
    lengths = torch.tensor([3, 16, 17, 18, 20])
    assert length_penalties(lengths, 16, 20, 1.0).tolist() == [0.0, 0.0, 0.25, 0.5, 1.0]
    assert length_penalties(lengths, 16, 20, 2.0).tolist() == [0.0, 0.0, 0.5, 1.0, 2.0]


def test_rewards_are_standardized_within_groups() -> None:
    values = torch.tensor([1.0, 3.0, 7.0, 0.1, 0.1, 0.1, 5.0])
    groups = torch.tensor([4, 4, 4, 2, 2, 2, 0])
    given = torch.tensor([True, True, False, True, True, True, True])
    found = group_standardized(values, groups, given)
    assert found.tolist() == [-1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


# ------------------------------------------------------------------------------------------ KL divergence


def log_probs_of_another_policy(toy: Toy, seed: int) -> Tensor:
    """Return log-probabilities as [completion, token] from the toy policy with other weights."""
    parameters = list(toy.policy.model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        found = toy.log_probs()
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    assert relative_error(found.exp(), toy.log_probs().detach().exp()) > FAR_OFF
    return found


@pytest.fixture(scope="module")
def reference(toy: Toy) -> Tensor:
    """Return log π_ref(a_t | s_t)."""
    return log_probs_of_another_policy(toy, seed=1)


@pytest.fixture(scope="module")
def behavior(toy: Toy) -> Tensor:
    """Return log μ(a_t | s_t) of a policy that samples."""
    return log_probs_of_another_policy(toy, seed=2)


@pytest.mark.parametrize("discount", [1.0, 0.7])
def test_k1_in_the_reward_follows_the_gradient_of_the_divergence_from_the_reference(
    toy, reference, discount
) -> None:
    # J - coefficient Σ_t γ^t KL(π‖π_ref), summed over whole episodes
    settings = ReinforceConfig(kl=KLConfig(coefficient=0.5), discount=discount)
    times = discount ** torch.arange(reference.shape[1])
    divergence = (toy.probabilities() * ((toy.log_probs() - reference) * times).sum(dim=1)).sum()
    truth = toy.objective_gradient(discount, True) - 0.5 * toy.gradient(divergence)
    found = expected_update(toy, settings, reference, with_steps=True)
    assert relative_error(found, truth) < EXACT
    assert relative_error(found, toy.objective_gradient(discount, True)) > FAR_OFF


def states_of(toy: Toy) -> dict[tuple[int, ...], list[int]]:
    """Return, for each state, the completions that pass through it, in order."""
    states: dict[tuple[int, ...], list[int]] = {}
    for row, completion in enumerate(toy.completions):
        for t in range(len(completion)):
            states.setdefault(completion[:t], []).append(row)
    return states


def test_k3_in_the_loss_follows_the_gradient_of_the_reverse_divergence_at_visited_states(
    toy, reference
) -> None:
    mask = action_mask(toy.lengths, reference.shape[1])
    log_probs = toy.log_probs()
    loss = (toy.probabilities().detach() * k3(log_probs, reference, mask).sum(dim=1)).sum()
    found = toy.gradient(loss)

    reverse = forward = torch.zeros(())
    for state, rows in states_of(toy).items():
        t, visited = len(state), float(toy.probabilities().detach()[rows].sum())
        of_action = {toy.completions[row][t]: row for row in rows}
        own, other = (table[list(of_action.values()), t] for table in (log_probs, reference))
        assert float(own.detach().exp().sum()) == pytest.approx(1.0)
        reverse = reverse + visited * (other.exp() * (other - own)).sum()  # KL(π_ref(·|s) ‖ π(·|s))
        forward = forward + visited * (own.exp() * (own - other)).sum()  # KL(π(·|s) ‖ π_ref(·|s))
    assert relative_error(found, toy.gradient(reverse)) < 1e-9
    assert relative_error(found, toy.gradient(forward)) > FAR_OFF
    # as a number, k3 estimates the forward divergence
    assert float(loss.detach()) == pytest.approx(float(forward.detach()), rel=1e-9)


def test_k1_of_an_earlier_policy_follows_the_difference_of_two_divergences(toy, reference, behavior) -> None:
    settings = ReinforceConfig(kl=KLConfig(coefficient=0.5))
    found = expected_update(toy, settings, reference, behavior=behavior)
    own, chances = toy.log_probs(), toy.probabilities()
    first, second = ((chances * (own - other).sum(dim=1)).sum() for other in (reference, behavior))
    truth = toy.objective_gradient(1.0, False) - 0.5 * toy.gradient(first - second)
    assert relative_error(found, truth) < 1e-4


def test_k3_of_an_earlier_policy_is_weighted_by_the_ratio(toy, reference, behavior) -> None:
    # at the states that the earlier policy visits, the gradient is that of KL(π_ref‖π)
    mask, log_probs = action_mask(toy.lengths, reference.shape[1]), toy.log_probs()
    total = torch.zeros(())
    for row, chance in enumerate(behavior.sum(dim=1).exp().tolist()):
        part = slice(row, row + 1)
        total = total + chance * kl_loss(log_probs[part], reference[part], behavior[part], mask[part], 1.0)
    reverse = torch.zeros(())
    for state, rows in states_of(toy).items():
        t, visited = len(state), float(behavior.sum(dim=1).exp()[rows].sum())
        of_action = {toy.completions[row][t]: row for row in rows}
        own, other = (table[list(of_action.values()), t] for table in (log_probs, reference))
        reverse = reverse + visited * (other.exp() * (other - own)).sum()
    assert relative_error(toy.gradient(total), toy.gradient(reverse)) < 1e-9


def test_k3_by_hand() -> None:
    # x = 2: 2 - 1 - log 2
    log_probs = torch.tensor([[-2.0, -1.0]], requires_grad=True)
    reference = log_probs.detach() + torch.tensor([[2.0, torch.inf]]).log()
    found = k3(log_probs, reference, torch.tensor([[True, False]]))
    found.sum().backward()
    torch.testing.assert_close(found, torch.tensor([[1.0 - torch.tensor(2.0).log(), 0.0]]))
    torch.testing.assert_close(log_probs.grad, torch.tensor([[1.0 - 2.0, 0.0]]))


def test_episodes_without_a_reference_are_rejected(toy) -> None:
    with pytest.raises(ValueError, match="no log-probabilities of the reference"):
        expected_update(toy, ReinforceConfig(kl=KLConfig(coefficient=0.5)))
