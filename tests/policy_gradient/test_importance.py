"""Importance weights and clipping: hand-computed values, exact expectations, and the table of their bias.

The exact tests use the enumerated toy policy π of `test_exact_gradient.py`. The episodes are sampled from
another policy μ, so the expectation of an update is a sum over all pairs of completions, weighted by their
probability under μ. It is compared with ∇J of π.
"""

import copy
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from test_exact_gradient import (
    DISCOUNTS,
    EXACT,
    FAR_OFF,
    Draw,
    Toy,
    constant_baseline,
    make_toy,  # noqa: F401, a fixture
    relative_error,
    taken,
)
from torch import Tensor

from llm_reinforce.config import ClipConfig, ImportanceConfig, ReinforceConfig, ValueConfig
from llm_reinforce.policy import token_log_probs
from llm_reinforce.policy_gradient import (
    UNBIASED,
    action_mask,
    advantages,
    clipped_loss,
    clipped_weights,
    generalized_advantages,
    importance_weights,
    limit_weights,
    log_ratios,
    place_rewards,
    reinforce_loss,
    weighted_advantages,
)
from llm_reinforce.training.objective import surrogate_loss

DOCS = Path(__file__).parents[2] / "docs" / "objectives.md"

# ---------------------------------------------------------------------------------------- computed by hand

RATIOS = torch.tensor([[2.0, 0.5, 3.0], [0.5, 1.0, 1.0]])
ADVANTAGES = torch.tensor([[4.0, 1.0, -2.0], [3.0, 0.0, 0.0]])
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_log_ratios_are_zero_outside_the_mask() -> None:
    log_probs = torch.tensor([[-1.0, -torch.inf]], requires_grad=True)
    behavior = torch.tensor([[-3.0, 0.0]])
    logs = log_ratios(log_probs, behavior, torch.tensor([[True, False]]))
    logs.sum().backward()
    assert logs.tolist() == [[2.0, 0.0]]
    assert log_probs.grad.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("level", "weights", "weighted"),
    [
        ("sequence", [[3.0, 3.0, 3.0], [0.5] * 3], [[12.0, 3.0, -6.0], [1.5, 0.0, 0.0]]),
        # differences 3, 3, -2 have the weights 2, 1, 3: their sums from the end are -6, -3, 3
        ("per_decision", [[2.0, 1.0, 3.0], [0.5] * 3], [[3.0, -3.0, -6.0], [1.5, 0.0, 0.0]]),
        ("token", RATIOS.tolist(), [[8.0, 0.5, -6.0], [1.5, 0.0, 0.0]]),
    ],
)
def test_weights_and_weighted_advantages(level, weights, weighted) -> None:
    found = importance_weights(level, RATIOS.log())
    torch.testing.assert_close(found, torch.tensor(weights))
    torch.testing.assert_close(weighted_advantages(level, ADVANTAGES, found), torch.tensor(weighted))


def test_limits_of_weights() -> None:
    assert limit_weights(RATIOS, None) is RATIOS
    assert limit_weights(RATIOS, 2.0).tolist() == [[2.0, 0.5, 2.0], [0.5, 1.0, 1.0]]
    assert limit_weights(RATIOS, 2.0, "mask").tolist() == [[2.0, 0.5, 0.0], [0.5, 1.0, 1.0]]


def test_gradients_of_ppo_and_cispo() -> None:
    # bounds 0.8 and 1.3; PPO: no gradient if ρ > 1.3 and A > 0 (2 · 4) or if ρ < 0.8 and A < 0
    logs = RATIOS.log().requires_grad_()
    loss = clipped_loss(logs, ADVANTAGES, MASK, 2.0, 0.2, 0.3)
    loss.backward()
    # min(8, 5.2) + min(0.5, 0.8) + min(-6, -2.6) + min(1.5, 2.4) = 1.2
    assert loss.item() == pytest.approx(-1.2 / 2)
    torch.testing.assert_close(logs.grad, -torch.tensor([[0.0, 0.5, -6.0], [1.5, 0.0, 0.0]]) / 2)
    # CISPO: the gradient is the clipped ratio times A
    log_probs = RATIOS.log().requires_grad_()
    weights = clipped_weights(log_probs, 0.2, 0.3)
    reinforce_loss(log_probs, weights * ADVANTAGES, MASK, 2.0).backward()
    torch.testing.assert_close(log_probs.grad, -torch.tensor([[5.2, 0.8, -2.6], [2.4, 0.0, 0.0]]) / 2)


def test_metrics_of_weights_and_clipped_ratios() -> None:
    def counted(**settings) -> dict[str, float]:
        one = ReinforceConfig(updates_per_batch=2, **settings)
        zeros = torch.zeros_like(RATIOS)
        return surrogate_loss(one, RATIOS.log(), zeros, ADVANTAGES, MASK, 2.0).counts.metrics(one)

    # weights 2 (truncated) and 1/2
    assert counted(importance={"level": "sequence"}) == pytest.approx(
        {
            "importance/mean": 1.25,
            "importance/frac_truncated": 0.5,
            "importance/effective_sample_size": 2.5**2 / (2 * 4.25),
        }
    )
    # weights 2, 1/2, 0 (masked) and 1/2
    masked = counted(importance={"level": "token", "beyond_limit": "mask"})
    assert masked["importance/mean"] == pytest.approx(0.75)
    assert masked["importance/frac_truncated"] == 0.25
    assert counted(clip={"low": 0.2, "high": 0.3}) == {"clip/frac_low": 0.0, "clip/frac_high": 0.25}
    cispo = counted(clip={"form": "cispo", "low": 0.2, "high": 0.3})
    assert cispo == {"clip/frac_low": 0.5, "clip/frac_high": 0.5}


@pytest.mark.parametrize("correction", [{"importance": {"level": "token"}}, {"clip": {"low": 0.2}}])
def test_metrics_of_ratios_ignore_episodes_without_an_advantage(correction) -> None:
    one = ReinforceConfig(updates_per_batch=2, **correction)
    zeros = torch.zeros_like(RATIOS)
    none = surrogate_loss(one, RATIOS.log(), zeros, zeros, MASK, 2.0)
    assert none.counts.metrics(one) == {}


@pytest.mark.parametrize(
    "settings",
    [
        *({"importance": {"level": level}} for level in ("sequence", "per_decision", "token")),
        *({"clip": {"form": form}} for form in ("ppo", "cispo")),
    ],
    ids=str,
)
def test_ratios_of_one_give_the_gradient_of_reinforce(settings) -> None:
    def gradient(one: ReinforceConfig) -> Tensor:
        log_probs = (-RATIOS).requires_grad_()
        surrogate_loss(one, log_probs, log_probs.detach(), ADVANTAGES, MASK, 2.0).loss.backward()
        return log_probs.grad

    one = ReinforceConfig(updates_per_batch=2, **settings)
    torch.testing.assert_close(gradient(one), gradient(ReinforceConfig()))


# ------------------------------------------------------------------------------------ exact expectations


@pytest.fixture(scope="module")
def toy(make_toy) -> Toy:  # noqa: F811
    return make_toy()


@pytest.fixture(scope="module")
def behavior(toy, exact_policy) -> Callable[[float], Tensor]:
    """Return the function that gives log μ(a_t | s_t) as [completion, token].

    The weights of μ are those of π, moved by a share of the way to another random policy.
    """
    other = exact_policy(alphabet="01", seed=4).model

    @cache
    def log_probs(share: float) -> Tensor:
        model = copy.deepcopy(toy.policy.model)
        with torch.no_grad():
            for own, far in zip(model.parameters(), other.parameters(), strict=True):
                own.lerp_(far, share)
            prompts = [toy.prompt] * len(toy.completions)
            scores = token_log_probs(
                model, prompts, toy.completions, pad_token_id=toy.policy.pad_token_id
            ).log_probs
        return scores.masked_fill(~action_mask(toy.lengths, scores.shape[1]), 0.0)

    return log_probs


def all_pairs(toy: Toy, *, with_step_rewards: bool) -> tuple[Tensor, Draw]:
    """Return all pairs of completions, as [pair, 2], and their episodes as one batch of groups of two."""
    numbers = torch.arange(len(toy.completions))
    pairs = torch.cartesian_prod(numbers, numbers)
    groups = torch.arange(len(pairs)).repeat_interleave(2)
    draw = taken([toy], pairs.flatten()[:, None], groups, with_step_rewards=with_step_rewards)
    greedy = torch.full((len(groups), 1), toy.greedy)
    of_greedy = taken([toy], greedy, groups, with_step_rewards=with_step_rewards)
    return pairs, Draw(**{**vars(draw), "greedy": of_greedy})


def estimated_advantages(draw: Draw, settings: ReinforceConfig) -> Tensor:
    returns = draw.returns(settings.discount)
    if settings.baseline != "value":
        b = constant_baseline(settings.baseline, draw, returns, settings.discount)
        return advantages(returns, b, draw.mask, settings.discount)
    rewards = place_rewards(draw.terminal_rewards, draw.lengths, returns.shape[1], draw.step_rewards)
    return generalized_advantages(
        rewards, draw.values, draw.mask, settings.discount, settings.value.gae_lambda
    )


def action_weights(toy: Toy, behavior: Tensor, settings: ReinforceConfig, steps: bool) -> Tensor:
    """Return the weights of ∇log π in the update of each pair, as [pair, episode, token]."""
    pairs, draw = all_pairs(toy, with_step_rewards=steps)
    log_probs = toy.log_probs().detach()[pairs.flatten()].requires_grad_()
    weights = estimated_advantages(draw, settings)
    loss = surrogate_loss(settings, log_probs, behavior[pairs.flatten()], weights, draw.mask, 2.0).loss
    (gradient,) = torch.autograd.grad(loss, log_probs)
    return -gradient.unflatten(0, pairs.shape)


def moments(toy: Toy, behavior: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """Return the expected update, and the root of its total variance, over all pairs sampled from μ."""
    numbers = torch.arange(len(toy.completions))
    pairs = torch.cartesian_prod(numbers, numbers)
    of_pairs = torch.einsum("pet,petx->px", weights, toy.score_vectors[pairs])
    chances = behavior.sum(dim=1).exp()[pairs].prod(dim=1)
    mean = chances @ of_pairs
    return mean, float((chances @ (of_pairs - mean).square().sum(dim=1)).sqrt())


def error(toy: Toy, behavior: Tensor, settings: ReinforceConfig, steps: bool = True) -> float:
    mean, _ = moments(toy, behavior, action_weights(toy, behavior, settings, steps))
    return relative_error(mean, toy.objective_gradient(settings.discount, steps))


def weighted(
    level: str, limit: float | None = None, beyond_limit: str = "truncate", **others
) -> ReinforceConfig:
    importance = ImportanceConfig(level=level, limit=limit, beyond_limit=beyond_limit)
    return ReinforceConfig(updates_per_batch=2, importance=importance, **others)


@pytest.mark.parametrize("steps", [False, True], ids=["terminal reward", "step rewards"])
@pytest.mark.parametrize("discount", DISCOUNTS)
@pytest.mark.parametrize("level", ["sequence", "per_decision"])
def test_weights_without_a_limit_are_unbiased_with_every_unbiased_baseline(
    toy, behavior, level, discount, steps
) -> None:
    for baseline in sorted(UNBIASED):
        settings = weighted(level, discount=discount, baseline=baseline)
        assert error(toy, behavior(0.5), settings, steps) < EXACT, baseline


def test_episodes_of_another_policy_are_biased_without_weights(toy, behavior) -> None:
    assert error(toy, behavior(0.5), ReinforceConfig()) > FAR_OFF
    assert error(toy, toy.log_probs().detach(), ReinforceConfig()) < EXACT


def test_limits_and_ratios_of_single_actions_are_biased(toy, behavior) -> None:
    for settings in (
        weighted("sequence", 1.2),
        weighted("sequence", 1.2, "mask"),
        weighted("per_decision", 1.2),
        weighted("token"),
        ReinforceConfig(updates_per_batch=2),
        ReinforceConfig(updates_per_batch=2, clip=ClipConfig(form="cispo")),
    ):
        assert error(toy, behavior(0.5), settings) > FAR_OFF


def test_product_up_to_the_action_alone_is_biased(toy, behavior) -> None:
    # the rewards after an action depend on later actions, whose ratios are missing
    pairs, draw = all_pairs(toy, with_step_rewards=True)
    logs = (toy.log_probs().detach() - behavior(0.5))[pairs.flatten()]
    plain = estimated_advantages(draw, ReinforceConfig())
    prefix = (importance_weights("per_decision", logs) * plain / 2).unflatten(0, pairs.shape)
    mean, _ = moments(toy, behavior(0.5), prefix)
    assert relative_error(mean, toy.objective_gradient(1.0, True)) > FAR_OFF


@pytest.mark.parametrize("gae_lambda", [0.0, 0.9])
def test_per_decision_weights_with_lambda_below_1(toy, behavior, gae_lambda) -> None:
    # with weights, the expectation is that of the same estimator with episodes of π
    settings = weighted("per_decision", baseline="value", value=ValueConfig(gae_lambda=gae_lambda))
    on_policy, _ = moments(
        toy, own := toy.log_probs().detach(), action_weights(toy, own, settings, steps=True)
    )
    mean, _ = moments(toy, behavior(0.5), action_weights(toy, behavior(0.5), settings, steps=True))
    assert relative_error(mean, on_policy) < EXACT


def test_per_decision_weights_equal_those_of_the_episode_with_a_terminal_reward(toy, behavior) -> None:
    for baseline in ("none", "leave_one_out"):
        one, other = (
            action_weights(toy, behavior(0.5), weighted(level, baseline=baseline), steps=False)
            for level in ("sequence", "per_decision")
        )
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "value"])
def test_per_decision_weights_have_a_lower_variance_with_step_rewards(toy, behavior, baseline) -> None:
    # this is not a theorem: with a large distance between the policies, the order can be reversed
    one, other = (
        moments(toy, behavior(0.1), action_weights(toy, behavior(0.1), settings, steps=True))[1]
        for settings in (weighted(level, baseline=baseline) for level in ("sequence", "per_decision"))
    )
    assert other < 0.98 * one


# --------------------------------------------------------------------------------------- the table of bias

SHARES = (0.03, 0.1, 0.3)
FORMS = {
    "no correction": ReinforceConfig(),
    "`sequence`, no limit": weighted("sequence"),
    "`per_decision`, no limit": weighted("per_decision"),
    "`token`, no limit": weighted("token"),
    "`sequence`, truncate": weighted("sequence", 2.0),
    "`per_decision`, truncate": weighted("per_decision", 2.0),
    "`token`, truncate": weighted("token", 2.0),
    "`sequence`, mask": weighted("sequence", 2.0, "mask"),
    "`per_decision`, mask": weighted("per_decision", 2.0, "mask"),
    "`token`, mask": weighted("token", 2.0, "mask"),
    "`clip`, ppo": ReinforceConfig(updates_per_batch=2),
    "`clip`, cispo": ReinforceConfig(updates_per_batch=2, clip=ClipConfig(form="cispo", low=1.0, high=4.0)),
}
PREFIX = "product up to the action (not offered)"


def measured_table(toy: Toy, behavior: Callable[[float], Tensor]) -> dict[str, list[float]]:
    """Return the rows of the table: bias and noise of each form for each distance, relative to ‖∇J‖."""
    truth = toy.objective_gradient(1.0, True)
    pairs, draw = all_pairs(toy, with_step_rewards=True)
    plain, table = estimated_advantages(draw, ReinforceConfig()), {}
    for share in SHARES:
        log_mu = behavior(share)
        logs = toy.log_probs().detach() - log_mu
        distance = float(-(log_mu.sum(dim=1).exp() * logs.sum(dim=1)).sum())
        table.setdefault("KL(μ‖π); largest weight", []).extend([distance, float(logs.sum(dim=1).max().exp())])
        of_forms = {name: action_weights(toy, log_mu, form, steps=True) for name, form in FORMS.items()}
        products = importance_weights("per_decision", logs[pairs.flatten()])
        of_forms[PREFIX] = (products * plain / 2).unflatten(0, pairs.shape)
        for name, weights in of_forms.items():
            mean, spread = moments(toy, log_mu, weights)
            sizes = [float((mean - truth).norm() / truth.norm()), spread / float(truth.norm())]
            table.setdefault(name, []).extend(sizes)
    return table


def test_table_of_bias_in_the_documentation(toy, behavior) -> None:
    text = DOCS.read_text(encoding="utf-8").split("<!-- table: bias -->\n")[1]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()[2:]
    shown = {}
    for line in lines:
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        shown[name] = [float(cell.rstrip("%")) / (100 if cell.endswith("%") else 1) for cell in cells]
    measured = measured_table(toy, behavior)
    assert list(shown) == list(measured)
    for name, numbers in measured.items():
        assert shown[name] == pytest.approx(numbers, abs=0.0051), name
