"""The expected gradient of REINFORCE equals ∇J to nine digits. Expectations are exact sums without sampling.

The toy policy is a real transformer in float64, with two characters and the end token as actions and at most
three actions per episode. All of its 15 completions can therefore be listed:

    end | 0 end | 1 end | 0 0 end | … | 1 1 end | 0 0 0 | … | 1 1 1     (the last eight are truncated)

Each completion has an arbitrary terminal reward. Each action has an arbitrary step reward and an arbitrary
weight (for `optimal`), which depend on the actions up to it. Each state has an arbitrary value (for `value`),
which depends on the actions before it. J(θ) = Σ_c π(c; θ) Σ_t γ^t r_{t+1}(c) is then a finite sum, and
autograd computes its gradient.

This gradient is compared with the expected update of the trainer, which samples a batch of completions,
assigns rewards, computes returns, subtracts a baseline and follows the gradient of the loss. The expectation
is the sum over all possible batches, each weighted by its probability. Both gradients must agree, or must
differ as the docstrings of the baselines say.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product, repeat
from random import Random

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.nn.functional import pad

from llm_reinforce.policy import LanguagePolicy, TokenIds, sample_completions, token_log_probs
from llm_reinforce.policy_gradient import (
    BASELINES,
    UNBIASED,
    MovingAverage,
    action_mask,
    advantages,
    baseline_values,
    episode_returns,
    generalized_advantages,
    place_rewards,
    reinforce_loss,
    reward_to_go,
    standardize,
    weighted_returns,
)

EXACT = 1e-9  # relative error; rounding errors are about 1e-15
FAR_OFF = 1e-2  # relative error that cannot be due to rounding
DISCOUNTS = (1.0, 0.7)
NUM_SAMPLES = 12_000
PAST = MovingAverage(total=0.3, weight=0.5)  # arbitrary; its value is 0.6


# ------------------------------------------------------------------------------------- the toy policy


def enumerate_completions(num_tokens: int, end: int, max_new_tokens: int) -> list[TokenIds]:
    """Return all sequences of actions that end with the end token or have the maximum length."""
    ended: list[TokenIds] = []
    running: list[TokenIds] = [()]
    for _ in range(max_new_tokens):
        longer = [(*actions, action) for actions in running for action in range(num_tokens)]
        ended += [actions for actions in longer if actions[-1] == end]
        running = [actions for actions in longer if actions[-1] != end]
    return ended + running


@dataclass(frozen=True, eq=False)
class Toy:
    """A prompt with all its completions, their rewards and their probabilities under a policy."""

    policy: LanguagePolicy
    prompt: TokenIds
    completions: list[TokenIds]
    terminal_rewards: Tensor  # [completion]
    step_rewards: Tensor  # [completion, token]; NaN in padding, which must not be used
    # [completion, token], arbitrary numbers above 0; the norms of this policy would be a special case
    squared_logit_gradient_norms: Tensor
    values: Tensor  # [completion, token], V of the state in which each action is taken

    @cached_property
    def greedy(self) -> int:
        """Index of the greedy completion."""
        (completion,) = sample_completions(
            self.policy, [self.prompt], max_new_tokens=self.step_rewards.shape[1], greedy=True
        )
        return self.completions.index(completion.token_ids)

    @cached_property
    def lengths(self) -> Tensor:
        return torch.tensor([len(completion) for completion in self.completions])

    @cached_property
    def all_scored(self) -> Tensor:
        return torch.ones(len(self.completions), dtype=torch.bool)

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """Return log π(a_t | s_t; θ) as [completion, token], zero in padding."""
        prompts = [self.prompt] * len(self.completions)
        scores = token_log_probs(
            self.policy.model,
            prompts,
            self.completions,
            pad_token_id=self.policy.pad_token_id,
            temperature=temperature,
        )
        mask = action_mask(self.lengths, scores.log_probs.shape[1])
        return scores.log_probs.masked_fill(~mask, 0.0)

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """Return π(c; θ) = Π_t π(a_t | s_t; θ) of each completion."""
        return self.log_probs(temperature).sum(dim=1).exp()

    def gradient(self, value: Tensor) -> Tensor:
        """Return ∇θ of a scalar as one vector of all parameters."""
        parameters = list(self.policy.model.parameters())
        return torch.cat(
            [part.flatten() for part in torch.autograd.grad(value, parameters, retain_graph=True)]
        )

    def objective(self, discount: float, with_step_rewards: bool) -> Tensor:
        """Return J(θ) = Σ_c π(c; θ) Σ_t γ^t r_{t+1}(c), computed without functions of the package."""
        returns = []
        for row, completion in enumerate(self.completions):
            last = len(completion) - 1
            value = discount**last * self.terminal_rewards[row]
            if with_step_rewards:
                value = value + sum(discount**t * self.step_rewards[row, t] for t in range(last + 1))
            returns.append(value)
        return (self.probabilities() * torch.stack(returns)).sum()

    def objective_gradient(self, discount: float, with_step_rewards: bool) -> Tensor:
        """Return ∇J(θ), which is computed once for the same arguments."""
        known = self.__dict__.setdefault("objective_gradients", {})
        if (discount, with_step_rewards) not in known:
            gradient = self.gradient(self.objective(discount, with_step_rewards))
            known[discount, with_step_rewards] = gradient
        return known[discount, with_step_rewards]

    @cached_property
    def score_vectors(self) -> Tensor:
        """Return ∇θ log π(a_t | s_t; θ) as [completion, token, parameter], zero in padding."""
        log_probs = self.log_probs()
        size = sum(parameter.numel() for parameter in self.policy.model.parameters())
        vectors = log_probs.new_zeros(*log_probs.shape, size)
        for row, completion in enumerate(self.completions):
            for t in range(len(completion)):
                vectors[row, t] = self.gradient(log_probs[row, t])
        return vectors


@pytest.fixture(scope="module")
def make_toy(exact_policy) -> Callable[..., Toy]:
    """Return the function that makes a toy; the same arguments give the same object."""
    policy = exact_policy(alphabet="01", seed=3)

    @cache
    def make(prompt: str = "10", max_new_tokens: int = 3, in_hindsight: bool = False) -> Toy:
        completions = enumerate_completions(3, policy.end_token_ids[0], max_new_tokens)
        random = Random(f"rewards of {prompt}")
        nowhere = torch.full((len(completions), max_new_tokens), float("nan"), dtype=torch.float64)
        step_rewards, norms, values = nowhere.clone(), nowhere.clone(), nowhere.clone()
        of_actions: dict[TokenIds, float] = defaultdict(lambda: random.gauss(0, 1))
        norms_of_actions: dict[TokenIds, float] = defaultdict(lambda: random.expovariate(1))
        of_states: dict[TokenIds, float] = defaultdict(lambda: random.gauss(0, 1))
        for row, completion in enumerate(completions):
            for t in range(len(completion)):
                norms[row, t] = norms_of_actions[completion[: t + 1]]
                values[row, t] = of_states[completion[:t]]
                # r_{t+1} depends on the actions up to a_t; with in_hindsight, also on later actions
                step_rewards[row, t] = random.gauss(0, 1) if in_hindsight else of_actions[completion[: t + 1]]
        terminal_rewards = [random.gauss(0, 1) for _ in completions]
        return Toy(
            policy,
            policy.encode_prompt(prompt),
            completions,
            torch.tensor(terminal_rewards, dtype=torch.float64),
            step_rewards,
            norms,
            values,
        )

    return make


@pytest.fixture(scope="module")
def toy(make_toy) -> Toy:
    return make_toy()


# ------------------------------------------------------------------------ the update of the trainer


@dataclass(frozen=True)
class Draw:
    """The episodes of one update."""

    lengths: Tensor
    terminal_rewards: Tensor
    step_rewards: Tensor
    groups: Tensor
    scored: Tensor
    squared_logit_gradient_norms: Tensor | None = None
    values: Tensor | None = None
    greedy: "Draw | None" = None  # the greedy completion of each episode's problem

    @property
    def mask(self) -> Tensor:
        return action_mask(self.lengths, int(self.lengths.max())) & self.scored[:, None]

    def split(self, size: int) -> "Iterator[Draw]":
        """Split the episodes into draws of `size` episodes."""
        given = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        greedy = self.greedy.split(size) if self.greedy else repeat(None)
        for parts, of_greedy in zip(
            zip(*(each.split(size) for each in given.values()), strict=False), greedy, strict=False
        ):
            yield Draw(**dict(zip(given, parts, strict=True)), greedy=of_greedy)

    def returns(self, discount: float) -> Tensor:
        num_tokens = int(self.lengths.max())
        steps = self.step_rewards[:, :num_tokens]
        return reward_to_go(place_rewards(self.terminal_rewards, self.lengths, num_tokens, steps), discount)


Estimator = Callable[[Draw], Tensor]
"""A function that returns the weight of each ∇log π(a_t | s_t) in the update, as [episode, token]."""


def weights_of_loss(draw: Draw, values: Tensor) -> Tensor:
    """Return the negative derivatives of the loss with respect to log π(a_t | s_t).

    They determine the gradient, because the loss depends on θ only through these log-probabilities.
    """
    log_probs = torch.zeros_like(values, requires_grad=True)
    reinforce_loss(log_probs, values, draw.mask, float(draw.scored.sum())).backward()
    return -log_probs.grad


@dataclass(frozen=True)
class Reinforce:
    """The trainer's estimator: rewards → returns → baseline → advantages → loss per episode."""

    baseline: str
    discount: float
    standardized: bool = False
    gae_lambda: float = 1.0

    def __call__(self, draw: Draw) -> Tensor:
        returns = draw.returns(self.discount)
        g0 = episode_returns(returns)
        if self.baseline == "value":
            num_tokens = returns.shape[1]
            steps = draw.step_rewards[:, :num_tokens]
            rewards = place_rewards(draw.terminal_rewards, draw.lengths, num_tokens, steps)
            b, state_values = draw.values[:, 0], draw.values[:, :num_tokens]
            values = generalized_advantages(rewards, state_values, draw.mask, self.discount, self.gae_lambda)
        else:
            b = constant_baseline(self.baseline, draw, returns, self.discount)
            values = advantages(returns, b, draw.mask, self.discount)
        if self.standardized:
            values = standardize(values, g0, b, draw.scored)
        return weights_of_loss(draw, values)


def is_within_groups(estimator: Estimator) -> bool:
    """Return True if it is known that the estimator compares episodes only within their group."""
    is_reinforce = isinstance(estimator, Reinforce)
    return is_reinforce and estimator.baseline != "batch_mean" and not estimator.standardized


def constant_baseline(name: str, draw: Draw, returns: Tensor, discount: float) -> Tensor:
    """Return the values of a baseline, called with the arguments that it requires."""
    weighted = greedy_returns = None
    if name == "optimal":
        norms = draw.squared_logit_gradient_norms[:, : returns.shape[1]]
        weighted = weighted_returns(returns, norms, draw.mask, discount)
    if name == "greedy":
        greedy_returns = episode_returns(draw.greedy.returns(discount))
        greedy_returns = greedy_returns.masked_fill(~draw.greedy.scored, torch.nan)
    return baseline_values(
        name,
        episode_returns(returns),
        draw.groups,
        draw.scored,
        PAST,
        weighted=weighted,
        greedy_returns=greedy_returns,
    )


def taken(toys: Sequence[Toy], rows: Tensor, groups: Tensor, *, with_step_rewards: bool) -> Draw:
    """Return the episodes of the completions `rows`, as [draw, toy], all scored."""
    num_tokens = max(toy.step_rewards.shape[1] for toy in toys)

    def of_all(name: str) -> Tensor:
        parts = [getattr(toy, name)[rows[:, index]] for index, toy in enumerate(toys)]
        if name in ("step_rewards", "squared_logit_gradient_norms", "values"):
            parts = [pad(part, (0, num_tokens - part.shape[-1]), value=torch.nan) for part in parts]
        return torch.stack(parts, dim=1).flatten(0, 1)

    steps = of_all("step_rewards")
    return Draw(
        of_all("lengths"),
        of_all("terminal_rewards"),
        steps if with_step_rewards else torch.zeros_like(steps),
        groups,
        of_all("all_scored"),
        of_all("squared_logit_gradient_norms"),
        of_all("values"),
    )


def expected_gradient(
    toys: Sequence[Toy],
    estimator: Estimator,
    *,
    with_step_rewards: bool = True,
    failure_probability: float = 0.0,
    is_greedy_scored: bool = True,
) -> Tensor:
    """Return the expected update of an estimator over all possible draws of one completion per toy.

    A toy that is listed twice is a group of two episodes. Each episode is unscored with
    `failure_probability`, independently of its actions. If no episode is scored, the update is zero.
    `is_greedy_scored` applies to all greedy completions. Draws that differ only in the order of a group's
    episodes are computed once (`test_order_of_the_episodes_in_a_group_does_not_matter`). If the estimator
    compares episodes only within their group, all draws are groups of one large update.
    """
    kinds, longest = [toys.index(toy) for toy in toys], max(toy.step_rewards.shape[1] for toy in toys)
    in_order = product(*(range(len(toy.completions)) for toy in toys))
    orders = Counter(tuple(sorted(zip(kinds, rows, strict=True))) for rows in in_order)
    patterns = torch.tensor([each for each in product([True, False], repeat=len(toys)) if any(each)])
    patterns = patterns if failure_probability else patterns[:1]
    # [draw, toy], each draw with each pattern of scored episodes
    rows = torch.tensor([[row for _, row in pairs] for pairs in orders]).repeat_interleave(len(patterns), 0)
    scored = patterns.repeat(len(orders), 1)
    chances = torch.tensor(list(orders.values()), dtype=torch.float64).repeat_interleave(len(patterns))
    of_scored = torch.tensor([failure_probability, 1 - failure_probability], dtype=torch.float64)
    for index, toy in enumerate(toys):
        chances *= toy.probabilities().detach()[rows[:, index]] * of_scored[scored[:, index].long()]
    # groups are numbered through all draws, so that all draws can be one large update
    groups = (torch.tensor(kinds) + len(toys) * torch.arange(len(rows))[:, None]).flatten()
    all_draws, greedy = (
        taken(toys, which, groups, with_step_rewards=with_step_rewards)
        for which in (rows, torch.tensor([toy.greedy for toy in toys]).expand(len(rows), -1))
    )
    greedy = replace(greedy, scored=torch.full((len(groups),), is_greedy_scored))
    all_draws = replace(all_draws, scored=scored.flatten(), greedy=greedy)
    if is_within_groups(estimator):
        # the loss of each draw is divided by its own number of scored episodes
        weights = estimator(all_draws).unflatten(0, rows.shape)
        weights = weights * (scored.sum() / scored.sum(dim=1))[:, None, None]
    else:
        parts = map(estimator, all_draws.split(len(toys)))
        weights = torch.stack([pad(part, (0, longest - part.shape[1])) for part in parts])
    # the estimate is linear in the gradients ∇log π, so their weights are summed
    expected = torch.zeros(())
    for index, toy in enumerate(toys):
        total = torch.zeros_like(toy.step_rewards)
        weighted = chances[:, None] * weights[:, index, : total.shape[1]]
        total[:, : weighted.shape[1]].index_add_(0, rows[:, index], weighted)
        expected = expected + torch.einsum("ct,ctp->p", total, toy.score_vectors)
    return expected


def relative_error(estimate: Tensor, truth: Tensor) -> float:
    return float((estimate - truth).abs().max() / truth.abs().max())


@pytest.fixture(scope="module")
def error_of(toy) -> Callable[..., float]:
    """Return a function that compares an estimator's expectation over groups of two with a multiple of ∇J.

    It returns the relative error.
    """
    expectation = cache(
        lambda estimator, steps: expected_gradient([toy] * 2, estimator, with_step_rewards=steps)
    )

    def error(estimator: Estimator, discount: float, *, steps: bool = True, multiple: float = 1.0) -> float:
        return relative_error(
            expectation(estimator, steps), multiple * toy.objective_gradient(discount, steps)
        )

    return error


# ------------------------------------------------------------------------- properties of the toy policy


def test_all_completions_are_listed_and_their_probabilities_sum_to_one(toy):
    end = toy.policy.end_token_ids[0]
    assert len(set(toy.completions)) == 15
    assert sum(completion[-1] == end for completion in toy.completions) == 7
    assert toy.log_probs().dtype == torch.float64
    assert abs(toy.probabilities().sum().item() - 1) < 1e-12
    assert toy.probabilities().min().item() > 1e-3  # an error in any completion is noticeable


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_draws_completions_with_these_probabilities(toy, temperature):
    # χ² test with 14 degrees of freedom
    generator = torch.Generator().manual_seed(0)
    samples = sample_completions(
        toy.policy,
        [toy.prompt],
        num_completions=NUM_SAMPLES,
        max_new_tokens=3,
        temperature=temperature,
        generator=generator,
    )
    counts = dict.fromkeys(toy.completions, 0)
    for sample in samples:
        counts[sample.token_ids] += 1
    expected = (NUM_SAMPLES * toy.probabilities(temperature)).tolist()
    assert chisquare(list(counts.values()), expected, sum_check=False).pvalue > 1e-4
    # the test has power: the same counts do not fit another temperature
    other = (NUM_SAMPLES * toy.probabilities(temperature * 1.2)).tolist()
    assert chisquare(list(counts.values()), other, sum_check=False).pvalue < 1e-4


def test_gradient_of_a_batch_is_the_weighted_sum_of_log_prob_gradients(toy):
    # five episodes, backpropagated through transformer and loss
    rows = [0, 4, 9, 2, 9]
    pick = torch.tensor(rows)
    num_tokens = 3
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(len(rows), num_tokens, generator=generator, dtype=torch.float64)
    draw = Draw(
        toy.lengths[pick], toy.terminal_rewards[pick], toy.step_rewards[pick], pick, torch.tensor([True] * 5)
    )
    scores = token_log_probs(
        toy.policy.model,
        [toy.prompt] * len(rows),
        [toy.completions[row] for row in rows],
        pad_token_id=toy.policy.pad_token_id,
    )
    loss = reinforce_loss(scores.log_probs, values, draw.mask, float(len(rows)))
    combined = torch.einsum("ct,ctp->p", weights_of_loss(draw, values), toy.score_vectors[pick])
    assert relative_error(combined, -toy.gradient(loss)) < EXACT


@pytest.mark.parametrize("standardized", [False, True], ids=["", "standardized"])
@pytest.mark.parametrize("baseline", sorted(BASELINES))
def test_order_of_the_episodes_in_a_group_does_not_matter(toy, baseline, standardized):
    estimator = Reinforce(baseline, 0.7, standardized)
    groups, scored = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([True, True, False, True, True])
    rows, order = torch.tensor([4, 9, 14, 0, 2]), torch.tensor([2, 0, 1, 4, 3])
    greedy = taken([toy], torch.full((5, 1), toy.greedy), groups, with_step_rewards=True)
    one, other = (
        replace(taken([toy], each[:, None], groups, with_step_rewards=True), scored=which, greedy=greedy)
        for each, which in ((rows, scored), (rows[order], scored[order]))
    )
    assert torch.allclose(estimator(one)[order], estimator(other), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------- unbiased baselines


@pytest.mark.parametrize("steps", [False, True], ids=["terminal reward", "step rewards"])
@pytest.mark.parametrize("discount", DISCOUNTS)
@pytest.mark.parametrize("baseline", sorted(UNBIASED))
def test_expected_gradient_equals_the_gradient_of_the_objective(error_of, baseline, discount, steps):
    assert error_of(Reinforce(baseline, discount), discount, steps=steps) < EXACT


@pytest.mark.parametrize("discount", DISCOUNTS)
def test_unbiased_lists_exactly_the_unbiased_baselines(error_of, discount):
    exact = {name for name in BASELINES if error_of(Reinforce(name, discount), discount) < EXACT}
    assert exact == UNBIASED


@pytest.mark.parametrize("steps", [False, True], ids=["terminal reward", "step rewards"])
@pytest.mark.parametrize("baseline", ["group_mean", "batch_mean"])
def test_mean_that_includes_the_episode_shortens_the_gradient(error_of, baseline, steps):
    # (1 - 1/n) ∇J with n = 2
    estimator = Reinforce(baseline, 1.0)
    assert error_of(estimator, 1.0, steps=steps, multiple=1 / 2) < EXACT
    assert error_of(estimator, 1.0, steps=steps) == pytest.approx(1 / 2)


@pytest.mark.parametrize("baseline", ["group_mean", "batch_mean"])
def test_mean_that_includes_the_episode_changes_the_direction_with_a_discount(error_of, baseline):
    estimator = Reinforce(baseline, 0.7)
    assert error_of(estimator, 0.7) > FAR_OFF
    assert error_of(estimator, 0.7, multiple=1 / 2) > FAR_OFF


@pytest.mark.parametrize("baseline", sorted(UNBIASED))
def test_standardization_makes_every_baseline_biased(make_toy, baseline):
    toy = make_toy(max_new_tokens=2)
    estimate = expected_gradient([toy] * 2, Reinforce(baseline, 1.0, standardized=True))
    assert relative_error(estimate, toy.objective_gradient(1.0, True)) > FAR_OFF


@pytest.mark.parametrize(
    ("baseline", "multiple"),
    [
        ("none", 1),
        ("moving_average", 1),
        ("leave_one_out", 1),
        ("optimal", 1),
        ("greedy", 1),
        ("value", 1),
        ("group_mean", 1 / 2),
        ("batch_mean", 3 / 4),
    ],
)
def test_expected_gradient_with_two_episodes_of_each_of_two_problems(make_toy, baseline, multiple):
    # (1 - 1/n) with n = 2 for the group, (1 - 1/N) with N = 4 for the batch; 7² 3² batches
    one, other = make_toy("10", max_new_tokens=2), make_toy("0", max_new_tokens=1)
    truth = (one.objective_gradient(1.0, True) + other.objective_gradient(1.0, True)) / 2
    estimate = expected_gradient([one, one, other, other], Reinforce(baseline, 1.0))
    assert relative_error(estimate, multiple * truth) < EXACT


# --------------------------------------------------------------------- generalized advantage estimation


def true_values(toy: Toy, discount: float, with_step_rewards: bool) -> Tensor:
    """Return V(s_t) = E[g_t | s_t] as [completion, token], from all completions that continue each state."""
    rows = range(len(toy.completions))
    draw = taken(
        [toy], torch.tensor(rows)[:, None], torch.zeros(len(rows)), with_step_rewards=with_step_rewards
    )
    returns, chances = draw.returns(discount), toy.probabilities().detach()
    values = torch.zeros_like(returns)
    for row, completion in enumerate(toy.completions):
        for t in range(len(completion)):
            same_state = [other for other in rows if toy.completions[other][:t] == completion[:t]]
            values[row, t] = (chances[same_state] * returns[same_state, t]).sum() / chances[same_state].sum()
    return values


def with_values(toy: Toy, values: Tensor) -> Toy:
    """Return the toy with other state values; what has been computed does not depend on them and is kept."""
    changed = replace(toy, values=values)
    vars(changed).update({name: value for name, value in vars(toy).items() if name not in vars(changed)})
    return changed


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("discount", DISCOUNTS)
def test_lambda_below_1_is_biased_unless_values_are_the_true_ones(toy, discount, gae_lambda):
    for steps in (True, False):
        truth = toy.objective_gradient(discount, steps)
        estimator = Reinforce("value", discount, gae_lambda=gae_lambda)
        arbitrary = expected_gradient([toy], estimator, with_step_rewards=steps)
        assert relative_error(arbitrary, truth) > FAR_OFF
        exact = with_values(toy, true_values(toy, discount, steps))
        assert relative_error(expected_gradient([exact], estimator, with_step_rewards=steps), truth) < EXACT


def test_bias_grows_as_lambda_decreases(toy):
    truth = toy.objective_gradient(1.0, True)
    errors = [
        relative_error(expected_gradient([toy], Reinforce("value", 1.0, gae_lambda=gae_lambda)), truth)
        for gae_lambda in (1.0, 0.9, 0.5, 0.0)
    ]
    assert errors[0] < EXACT
    assert errors == sorted(errors)


def test_baseline_that_depends_on_the_action_is_biased(toy):
    # values that contain the episode's own return; the trainer avoids this by predicting values before the
    # fit
    fitted = with_values(toy, toy.values + 0.5 * toy.terminal_rewards[:, None])
    truth = toy.objective_gradient(1.0, False)
    estimate = expected_gradient([fitted], Reinforce("value", 1.0), with_step_rewards=False)
    assert relative_error(estimate, truth) > FAR_OFF


# ---------------------------------------------------------------------------------- the optimal baseline


@pytest.mark.parametrize("steps", [False, True], ids=["terminal reward", "step rewards"])
@pytest.mark.parametrize("discount", DISCOUNTS)
def test_optimal_baseline_has_minimum_variance_if_logits_are_the_parameters(toy, discount, steps):
    # a policy with one logit for each state and action: ∂log π(a)/∂logit_b = 1[a = b] - π_b
    rows = range(len(toy.completions))
    draw = taken([toy], torch.tensor(rows)[:, None], torch.zeros(len(rows)), with_step_rewards=steps)
    random, chances = Random("logits"), {}
    states = {completion[:t] for completion in toy.completions for t in range(len(completion))}
    for state in sorted(states):
        chances[state] = torch.tensor([random.gauss(0, 1) for _ in range(3)], dtype=torch.float64).softmax(0)
    place = {state: 3 * number for number, state in enumerate(sorted(states))}
    scores = torch.zeros(len(rows), 3, 3 * len(states), dtype=torch.float64)
    probabilities = torch.ones(len(rows), dtype=torch.float64)
    for row, completion in enumerate(toy.completions):
        for t, action in enumerate(completion):
            state = completion[:t]
            probabilities[row] *= chances[state][action]
            scores[row, t, place[state] : place[state] + 3] = -chances[state]
            scores[row, t, place[state] + action] += 1.0
    assert probabilities.sum().item() == pytest.approx(1.0)
    returns = draw.returns(discount)

    def variance(b: float) -> float:
        constant = torch.full((len(rows),), b, dtype=torch.float64)
        values = advantages(returns, constant, draw.mask, discount)
        gradients = torch.einsum("ct,ctp->cp", values, scores)
        mean = probabilities @ gradients
        return float(probabilities @ (gradients - mean).square().sum(dim=1))

    weights, means = weighted_returns(returns, scores.square().sum(dim=2), draw.mask, discount)
    # b* = E[w g] / E[w]
    best = float((probabilities * weights * means).sum() / (probabilities * weights).sum())
    plain_mean = float((probabilities * returns[:, 0]).sum())
    assert abs(best - plain_mean) > 1e-2
    assert variance(best) < variance(plain_mean)
    # the variance is a parabola in b that is symmetric around its minimum
    for distance in (0.01, 1.0):
        assert variance(best - distance) == pytest.approx(variance(best + distance), rel=1e-9)
        assert variance(best - distance) > variance(best)


# ------------------------------------------------------------------------------------ unscored episodes


@pytest.mark.parametrize("discount", DISCOUNTS)
@pytest.mark.parametrize("baseline", ["none", "moving_average", "greedy", "value"])
def test_random_failures_of_rewards_do_not_change_the_expectation(make_toy, baseline, discount):
    # given that at least one episode is scored, with probability 1 - 0.3², the expectation is ∇J
    toy = make_toy(max_new_tokens=2)
    truth = toy.objective_gradient(discount, True)
    estimate = expected_gradient([toy, toy], Reinforce(baseline, discount), failure_probability=0.3)
    assert relative_error(estimate / (1 - 0.3**2), truth) < EXACT


TWO_OF_THREE_SCORED = 0.7**3 + 3 * 0.7**2 * 0.3  # at least two scored, each failing with probability 0.3


@pytest.mark.parametrize("baseline", ["leave_one_out", "optimal"])
@pytest.mark.parametrize("steps", [False, True], ids=["terminal reward", "step rewards"])
def test_single_scored_episode_of_a_group_does_not_change_the_policy(make_toy, steps, baseline):
    # with at least two scored episodes the expectation is ∇J, otherwise 0
    toy = make_toy(max_new_tokens=2)
    truth = toy.objective_gradient(1.0, steps)
    estimate = expected_gradient(
        [toy] * 3, Reinforce(baseline, 1.0), with_step_rewards=steps, failure_probability=0.3
    )
    assert relative_error(estimate, TWO_OF_THREE_SCORED * truth) < EXACT


def test_single_scored_episode_of_a_group_is_biased_with_a_discount(make_toy):
    # γ^t (g_t - g_0) is not zero, see the docstring of leave_one_out
    toy = make_toy(max_new_tokens=2)
    truth = toy.objective_gradient(0.7, False)
    estimate = expected_gradient(
        [toy] * 3, Reinforce("leave_one_out", 0.7), with_step_rewards=False, failure_probability=0.3
    )
    assert relative_error(estimate, TWO_OF_THREE_SCORED * truth) > FAR_OFF


@pytest.mark.parametrize("steps", [False, True], ids=["terminal reward", "step rewards"])
def test_unscored_greedy_completion_gives_zero_gradient(make_toy, steps):
    toy = make_toy(max_new_tokens=2)
    truth = toy.objective_gradient(1.0, steps)
    estimate = expected_gradient(
        [toy, toy], Reinforce("greedy", 1.0), with_step_rewards=steps, is_greedy_scored=False
    )
    assert float(estimate.abs().max()) < EXACT * float(truth.abs().max())


def test_counting_a_failed_reward_as_zero_is_biased(make_toy):
    def zero_where_unscored(draw: Draw) -> Tensor:
        rewards = draw.terminal_rewards.masked_fill(~draw.scored, 0.0)
        steps = draw.step_rewards.masked_fill(~draw.scored[:, None], 0.0)
        everyone = torch.ones_like(draw.scored)
        taken_for_zero = replace(draw, terminal_rewards=rewards, step_rewards=steps, scored=everyone)
        return Reinforce("none", 1.0)(taken_for_zero)

    toy = make_toy(max_new_tokens=2)
    truth = toy.objective_gradient(1.0, True)
    estimate = expected_gradient([toy, toy], zero_where_unscored, failure_probability=0.3)
    assert relative_error(estimate / (1 - 0.3**2), truth) > FAR_OFF


# ---------------------------------------------------------------------- the test detects common mistakes


def without_the_end_token(draw: Draw, discount: float) -> Tensor:
    """Mask the end token, as if padding were found by token values and the end token were the pad token."""
    weights = Reinforce("none", discount)(draw)
    is_last = torch.arange(weights.shape[1]) == draw.lengths[:, None] - 1
    is_terminated = draw.lengths[:, None] < 3
    return weights.masked_fill(is_last & is_terminated, 0.0)


def without_the_discount_of_time(draw: Draw, discount: float) -> Tensor:
    """Omit γ^t: Σ_t ∇log π g_t is not the gradient of any objective (Nota & Thomas 2020)."""
    returns = draw.returns(discount)
    return weights_of_loss(draw, advantages(returns, torch.zeros_like(returns[:, 0]), draw.mask))


def one_token_late(draw: Draw, discount: float) -> Tensor:
    """Weight the log-probability of each token by the return of the token before it."""
    late = Reinforce("none", discount)(draw).roll(1, dims=1)
    late[:, 0] = 0.0
    return late.masked_fill(~draw.mask, 0.0)


def one_token_early(draw: Draw, discount: float) -> Tensor:
    """Weight the log-probability of each token by the return of the token after it."""
    early = Reinforce("none", discount)(draw).roll(-1, dims=1)
    early[:, -1] = 0.0
    return early


def mean_over_padding(draw: Draw, discount: float) -> Tensor:
    """Divide by the size of the padded tensor, as `(advantages * log_probs).mean()` does."""
    return Reinforce("none", discount)(draw) / draw.mask.shape[1]


def mean_over_each_episode(draw: Draw, discount: float) -> Tensor:
    """Divide each episode by its length, as the original GRPO; long wrong answers get too little weight."""
    return Reinforce("none", discount)(draw) / draw.lengths[:, None]


def sum_of_what_came_before(draw: Draw, discount: float) -> Tensor:
    """Sum the rewards before each action instead of the rewards after it."""
    before = draw.returns(discount).flip(1)
    return weights_of_loss(draw, advantages(before, torch.zeros_like(before[:, 0]), draw.mask, discount))


@pytest.mark.parametrize(
    "mistake",
    [
        without_the_end_token,
        without_the_discount_of_time,
        one_token_late,
        one_token_early,
        mean_over_padding,
        mean_over_each_episode,
        sum_of_what_came_before,
    ],
)
def test_each_mistake_is_detected(error_of, mistake):
    assert error_of(lambda draw: mistake(draw, 0.7), 0.7) > FAR_OFF


def whole_return(draw: Draw) -> Tensor:
    """Weight every action by the return g_0 of the whole episode instead of g_t (γ = 1)."""
    returns = draw.returns(1.0)
    same_for_all = episode_returns(returns)[:, None].expand_as(returns)
    return weights_of_loss(draw, advantages(same_for_all, torch.zeros_like(returns[:, 0]), draw.mask))


def test_whole_return_for_every_action_is_a_different_unbiased_estimate(toy, error_of):
    # Σ ∇log π · g_0 and Σ ∇log π · g_t have the same expectation, but are different estimates
    assert error_of(whole_return, 1.0) < EXACT
    last = slice(-1, None)  # "1 1 1", with three step rewards
    draw = Draw(
        toy.lengths[last],
        toy.terminal_rewards[last],
        toy.step_rewards[last],
        torch.tensor([0]),
        torch.tensor([True]),
    )
    difference = whole_return(draw) - Reinforce("none", 1.0)(draw)
    assert difference[0, 0].item() == 0.0
    assert difference[0, 1:].abs().min().item() > 0.1


def test_step_rewards_that_depend_on_later_actions_bias_reward_to_go(make_toy):
    # If r_{t+1} also depends on actions after a_t, as with a judge that reads the whole completion first,
    # reward-to-go does not credit those actions. It is biased, and the whole return is not.
    toy = make_toy(in_hindsight=True)
    truth = toy.objective_gradient(1.0, True)
    assert relative_error(expected_gradient([toy], Reinforce("none", 1.0)), truth) > FAR_OFF
    assert relative_error(expected_gradient([toy], whole_return), truth) < EXACT
