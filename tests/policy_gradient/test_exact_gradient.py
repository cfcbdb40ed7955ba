"""The proof of the whole: REINFORCE's expected gradient is ∇J, to nine digits, without a single sample.

The toy's states and actions are those of a real transformer, in float64, with two characters and the end
token and at most three actions, so that all completions can be written down, 15 of them:

    end | 0 end | 1 end | 0 0 end | … | 1 1 end | 0 0 0 | … | 1 1 1     (the last eight are truncated)

Each has an arbitrary terminal reward, and each action an arbitrary step reward, which depends on the actions
up to it; so has each action an arbitrary weight (for `optimal`), and each state an arbitrary value (for
`value`), which depends on the actions before. Then J(θ) = Σ_c π(c; θ) Σ_t γ^t r_{t+1}(c) is a finite sum,
and autograd gives its gradient. The other side is what the trainer does: draw a batch of completions, lay
out rewards, take returns, subtract a baseline, and follow the gradient of the loss. All batches that can be
drawn are gone through, each weighted by its probability. Both sides must agree, or must differ as the
docstrings say.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
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

EXACT = 1e-9  # relative: rounding leaves about 1e-15
FAR_OFF = 1e-2  # relative: no rounding looks like that
DISCOUNTS = (1.0, 0.7)
PAST = MovingAverage(total=0.3, weight=0.5)  # an arbitrary one: its value is 0.6


# ------------------------------------------------------------------------------------------ the toy


def enumerate_completions(num_tokens: int, end: int, max_new_tokens: int) -> list[TokenIds]:
    """Every sequence of actions that ends with the end token, or with the budget."""
    ended: list[TokenIds] = []
    running: list[TokenIds] = [()]
    for _ in range(max_new_tokens):
        longer = [(*actions, action) for actions in running for action in range(num_tokens)]
        ended += [actions for actions in longer if actions[-1] == end]
        running = [actions for actions in longer if actions[-1] != end]
    return ended + running


@dataclass(frozen=True, eq=False)
class Toy:
    """A prompt, all its completions, what each is worth, and what the policy says of it."""

    policy: LanguagePolicy
    prompt: TokenIds
    completions: list[TokenIds]
    terminal_rewards: Tensor  # [completion]
    step_rewards: Tensor  # [completion, token]; NaN in padding, where nobody may read it
    squared_logit_gradient_norms: (
        Tensor  # the same, above 0: not those of this policy, which would be a special case
    )
    values: Tensor  # the same, of the state that each action is taken in

    @cached_property
    def greedy(self) -> int:
        """Which of the completions is the greedy one."""
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
        """log π(a_t | s_t; θ) as [completion, token], zero in padding."""
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
        """π(c; θ) = Π_t π(a_t | s_t; θ) of each completion."""
        return self.log_probs(temperature).sum(dim=1).exp()

    def gradient(self, value: Tensor) -> Tensor:
        """∇θ of a number, all parameters in one vector."""
        parameters = list(self.policy.model.parameters())
        return torch.cat(
            [part.flatten() for part in torch.autograd.grad(value, parameters, retain_graph=True)]
        )

    def objective(self, discount: float, with_step_rewards: bool) -> Tensor:
        """J(θ) = Σ_c π(c; θ) Σ_t γ^t r_{t+1}(c), from the definition and from nothing of the package."""
        returns = []
        for row, completion in enumerate(self.completions):
            last = len(completion) - 1
            value = discount**last * self.terminal_rewards[row]
            if with_step_rewards:
                value = value + sum(discount**t * self.step_rewards[row, t] for t in range(last + 1))
            returns.append(value)
        return (self.probabilities() * torch.stack(returns)).sum()

    def objective_gradient(self, discount: float, with_step_rewards: bool) -> Tensor:
        """∇J(θ), computed once for the same arguments."""
        known = self.__dict__.setdefault("objective_gradients", {})
        if (discount, with_step_rewards) not in known:
            gradient = self.gradient(self.objective(discount, with_step_rewards))
            known[discount, with_step_rewards] = gradient
        return known[discount, with_step_rewards]

    @cached_property
    def score_vectors(self) -> Tensor:
        """∇θ log π(a_t | s_t; θ) as [completion, token, parameter], zero in padding."""
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
                # r_{t+1} is settled by the actions up to a_t; in hindsight, by those after it as well
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


# ------------------------------------------------------------------- what the trainer makes of a draw


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
    greedy: "Draw | None" = None  # of each episode's problem the greedy completion

    @property
    def mask(self) -> Tensor:
        return action_mask(self.lengths, int(self.lengths.max())) & self.scored[:, None]

    def returns(self, discount: float) -> Tensor:
        num_tokens = int(self.lengths.max())
        steps = self.step_rewards[:, :num_tokens]
        return reward_to_go(place_rewards(self.terminal_rewards, self.lengths, num_tokens, steps), discount)


Estimator = Callable[[Draw], Tensor]
"""What a draw makes of it: the weight of each ∇log π(a_t | s_t) in the step, as [episode, token]."""


def weights_of_loss(draw: Draw, values: Tensor) -> Tensor:
    """The loss knows θ through log π(a_t | s_t) alone: these are minus its derivatives by them."""
    log_probs = torch.zeros_like(values, requires_grad=True)
    reinforce_loss(log_probs, values, draw.mask, float(draw.scored.sum())).backward()
    return -log_probs.grad


@cache
def reinforce(
    baseline: str, discount: float, standardized: bool = False, gae_lambda: float = 1.0
) -> Estimator:
    """The trainer's own way: rewards → returns → baseline → advantages → loss over the episodes' number."""

    def weights(draw: Draw) -> Tensor:
        returns = draw.returns(discount)
        g0 = episode_returns(returns)
        if baseline == "value":
            num_tokens = returns.shape[1]
            steps = draw.step_rewards[:, :num_tokens]
            rewards = place_rewards(draw.terminal_rewards, draw.lengths, num_tokens, steps)
            b, judged = draw.values[:, 0], draw.values[:, :num_tokens]
            values = generalized_advantages(rewards, judged, draw.mask, discount, gae_lambda)
        else:
            b = constant_baseline(baseline, draw, returns, discount)
            values = advantages(returns, b, draw.mask, discount)
        if standardized:
            values = standardize(values, g0, b, draw.scored)
        return weights_of_loss(draw, values)

    return weights


def constant_baseline(name: str, draw: Draw, returns: Tensor, discount: float) -> Tensor:
    """The baseline with what it takes."""
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


def taken(toys: Sequence[Toy], rows: Sequence[int], groups: Tensor, *, with_step_rewards: bool) -> Draw:
    """The draw of these completions, one of each toy, all of them scored."""
    (draw,) = draws(toys, [rows], groups, with_step_rewards=with_step_rewards)
    return draw


def draws(
    toys: Sequence[Toy], all_rows: Sequence[Sequence[int]], groups: Tensor, *, with_step_rewards: bool
) -> Iterator[Draw]:
    """The draws of these completions, in each one of each toy, all of them scored."""
    num_tokens = max(toy.step_rewards.shape[1] for toy in toys)

    def of_all(name: str) -> Tensor:
        parts = []
        for toy, rows in zip(toys, zip(*all_rows, strict=True), strict=True):
            part = getattr(toy, name)[torch.tensor(rows)]
            parts.append(
                pad(part, (0, num_tokens - part.shape[1]), value=torch.nan) if part.dim() > 1 else part
            )
        return torch.stack(parts, dim=1)

    names = ("lengths", "terminal_rewards", "step_rewards", "all_scored")
    lengths, terminal_rewards, steps, scored = map(of_all, names)
    steps = steps if with_step_rewards else torch.zeros_like(steps)
    norms, values = of_all("squared_logit_gradient_norms"), of_all("values")
    for number in range(len(all_rows)):
        yield Draw(
            lengths[number],
            terminal_rewards[number],
            steps[number],
            groups,
            scored[number],
            norms[number],
            values[number],
        )


def expected_gradient(
    toys: Sequence[Toy],
    estimator: Estimator,
    *,
    with_step_rewards: bool = True,
    failure_probability: float = 0.0,
    is_greedy_scored: bool = True,
) -> Tensor:
    """E[what the estimator steps along], over all that can be drawn: one completion of each of `toys`.

    A toy that stands there twice is a group of two episodes. Each episode stays unscored with
    `failure_probability`, whatever its actions; where nothing is scored there is no step. The greedy
    completions are scored or not. Draws that differ in the order of a group's episodes only are computed
    once (`test_the_order_of_the_episodes_in_a_group_does_not_matter`).
    """
    groups = torch.tensor([toys.index(toy) for toy in toys])
    probabilities = [toy.probabilities().tolist() for toy in toys]
    # the estimate is linear in the score vectors, so it is their weights that are summed up
    total = {index: torch.zeros_like(toys[index].step_rewards) for index in set(groups.tolist())}
    scored_patterns = list(product([True, False] if failure_probability else [True], repeat=len(toys)))
    greedy = taken(toys, [toy.greedy for toy in toys], groups, with_step_rewards=with_step_rewards)
    greedy = replace(greedy, scored=torch.full((len(toys),), is_greedy_scored))
    in_order = product(*(range(len(toy.completions)) for toy in toys))
    orders = Counter(tuple(sorted(zip(groups.tolist(), rows, strict=True))) for rows in in_order)
    all_rows = [[row for _, row in pairs] for pairs in orders]
    all_draws = draws(toys, all_rows, groups, with_step_rewards=with_step_rewards)
    for rows, num_orders, complete in zip(all_rows, orders.values(), all_draws, strict=True):
        draw = replace(complete, greedy=greedy)
        probability = float(num_orders)
        for chances, row in zip(probabilities, rows, strict=True):
            probability *= chances[row]
        for pattern in scored_patterns:
            if not any(pattern):
                continue
            num_failed = pattern.count(False)
            chance = failure_probability**num_failed * (1 - failure_probability) ** (len(toys) - num_failed)
            weights = estimator(replace(draw, scored=torch.tensor(pattern)))
            for group, row, row_weights in zip(groups.tolist(), rows, weights, strict=True):
                num_tokens = min(len(row_weights), total[group].shape[1])
                total[group][row, :num_tokens] += probability * chance * row_weights[:num_tokens]
    return sum(
        torch.einsum("ct,ctp->p", weights, toys[index].score_vectors) for index, weights in total.items()
    )


def relative_error(estimate: Tensor, truth: Tensor) -> float:
    return float((estimate - truth).abs().max() / truth.abs().max())


@pytest.fixture(scope="module")
def error_of(toy) -> Callable[..., float]:
    """The relative error of an estimator's expectation over groups of two, against a multiple of ∇J."""
    expectation = cache(
        lambda estimator, steps: expected_gradient([toy] * 2, estimator, with_step_rewards=steps)
    )

    def error(estimator: Estimator, discount: float, *, steps: bool = True, multiple: float = 1.0) -> float:
        return relative_error(
            expectation(estimator, steps), multiple * toy.objective_gradient(discount, steps)
        )

    return error


# ---------------------------------------------------------------------------- the toy is what it says


def test_all_completions_are_there_and_their_probabilities_sum_to_one(toy):
    end = toy.policy.end_token_ids[0]
    assert len(set(toy.completions)) == 15
    assert sum(completion[-1] == end for completion in toy.completions) == 7
    assert toy.log_probs().dtype == torch.float64
    assert abs(toy.probabilities().sum().item() - 1) < 1e-12
    assert toy.probabilities().min().item() > 1e-3  # none so rare that a mistake in it wouldn't show


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_sampler_draws_completions_with_these_probabilities(toy, temperature):
    # what is summed over here is what the trainer samples from: 20,000 samples, χ² with 14 degrees of freedom
    generator = torch.Generator().manual_seed(0)
    samples = sample_completions(
        toy.policy,
        [toy.prompt],
        num_completions=20_000,
        max_new_tokens=3,
        temperature=temperature,
        generator=generator,
    )
    counts = dict.fromkeys(toy.completions, 0)
    for sample in samples:
        counts[sample.token_ids] += 1
    expected = (20_000 * toy.probabilities(temperature)).tolist()
    assert chisquare(list(counts.values()), expected, sum_check=False).pvalue > 1e-4
    # and the test can tell: the same counts don't fit another temperature
    other = (20_000 * toy.probabilities(temperature * 1.2)).tolist()
    assert chisquare(list(counts.values()), other, sum_check=False).pvalue < 1e-4


def test_the_gradient_of_a_batch_is_the_weighted_sum_of_its_score_vectors(toy):
    # five episodes, with backpropagation through transformer and loss together
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
def test_the_order_of_the_episodes_in_a_group_does_not_matter(toy, baseline, standardized):
    estimator = reinforce(baseline, 0.7, standardized)
    groups, scored = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([True, True, False, True, True])
    rows, order = torch.tensor([4, 9, 14, 0, 2]), torch.tensor([2, 0, 1, 4, 3])
    greedy = taken([toy] * 5, [toy.greedy] * 5, groups, with_step_rewards=True)
    one, other = (
        replace(taken([toy] * 5, each.tolist(), groups, with_step_rewards=True), scored=which, greedy=greedy)
        for each, which in ((rows, scored), (rows[order], scored[order]))
    )
    assert torch.allclose(estimator(one)[order], estimator(other), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------- what is unbiased is so


@pytest.mark.parametrize("steps", [False, True], ids=["terminal reward", "step rewards"])
@pytest.mark.parametrize("discount", DISCOUNTS)
@pytest.mark.parametrize("baseline", sorted(UNBIASED))
def test_the_expected_gradient_is_exactly_that_of_the_objective(error_of, baseline, discount, steps):
    assert error_of(reinforce(baseline, discount), discount, steps=steps) < EXACT


@pytest.mark.parametrize("discount", DISCOUNTS)
def test_unbiased_lists_exactly_the_baselines_that_are(error_of, discount):
    exact = {name for name in BASELINES if error_of(reinforce(name, discount), discount) < EXACT}
    assert exact == UNBIASED


@pytest.mark.parametrize("steps", [False, True], ids=["terminal reward", "step rewards"])
@pytest.mark.parametrize("baseline", ["group_mean", "batch_mean"])
def test_a_mean_that_holds_the_episode_itself_shortens_the_gradient(error_of, baseline, steps):
    # (1 - 1/n) ∇J with n = 2
    estimator = reinforce(baseline, 1.0)
    assert error_of(estimator, 1.0, steps=steps, multiple=1 / 2) < EXACT
    assert error_of(estimator, 1.0, steps=steps) == pytest.approx(1 / 2)


@pytest.mark.parametrize("baseline", ["group_mean", "batch_mean"])
def test_with_a_discount_such_a_mean_is_biased_in_direction_too(error_of, baseline):
    estimator = reinforce(baseline, 0.7)
    assert error_of(estimator, 0.7) > FAR_OFF
    assert error_of(estimator, 0.7, multiple=1 / 2) > FAR_OFF


@pytest.mark.parametrize("baseline", sorted(UNBIASED))
def test_standardizing_biases_every_baseline(error_of, baseline):
    assert error_of(reinforce(baseline, 1.0, standardized=True), 1.0) > FAR_OFF


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
def test_two_episodes_of_each_of_two_problems(make_toy, baseline, multiple):
    # (1 - 1/n) with n = 2 for the group, (1 - 1/N) with N = 4 for the batch; 7² 3² batches
    one, other = make_toy("10", max_new_tokens=2), make_toy("0", max_new_tokens=1)
    truth = (one.objective_gradient(1.0, True) + other.objective_gradient(1.0, True)) / 2
    estimate = expected_gradient([one, one, other, other], reinforce(baseline, 1.0))
    assert relative_error(estimate, multiple * truth) < EXACT


# ------------------------------------------------------------------------- values in the place of rewards


def true_values(toy: Toy, discount: float, with_step_rewards: bool) -> Tensor:
    """V(s_t) = E[g_t | s_t], from all completions that go on from each state, as [completion, token]."""
    rows = range(len(toy.completions))
    draw = taken([toy] * len(rows), rows, torch.zeros(len(rows)), with_step_rewards=with_step_rewards)
    returns, chances = draw.returns(discount), toy.probabilities().detach()
    values = torch.zeros_like(returns)
    for row, completion in enumerate(toy.completions):
        for t in range(len(completion)):
            going_on = [other for other in rows if toy.completions[other][:t] == completion[:t]]
            values[row, t] = (chances[going_on] * returns[going_on, t]).sum() / chances[going_on].sum()
    return values


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("discount", DISCOUNTS)
def test_below_lambda_1_it_is_biased_unless_the_values_are_the_true_ones(toy, discount, gae_lambda):
    for steps in (True, False):
        truth = toy.objective_gradient(discount, steps)
        estimator = reinforce("value", discount, gae_lambda=gae_lambda)
        arbitrary = expected_gradient([toy], estimator, with_step_rewards=steps)
        assert relative_error(arbitrary, truth) > FAR_OFF
        knowing = replace(toy, values=true_values(toy, discount, steps))
        assert relative_error(expected_gradient([knowing], estimator, with_step_rewards=steps), truth) < EXACT


def test_the_bias_grows_as_lambda_falls(toy):
    truth = toy.objective_gradient(1.0, True)
    errors = [
        relative_error(expected_gradient([toy], reinforce("value", 1.0, gae_lambda=gae_lambda)), truth)
        for gae_lambda in (1.0, 0.9, 0.5, 0.0)
    ]
    assert errors[0] < EXACT
    assert errors == sorted(errors)


def test_a_baseline_that_knows_the_action_would_be_biased(toy):
    # one's own return as a part of the values: what predicting before fitting is for
    fitted = replace(toy, values=toy.values + 0.5 * toy.terminal_rewards[:, None])
    truth = toy.objective_gradient(1.0, False)
    estimate = expected_gradient([fitted], reinforce("value", 1.0), with_step_rewards=False)
    assert relative_error(estimate, truth) > FAR_OFF


# ------------------------------------------------------------------------------ the least of all variances


@pytest.mark.parametrize("steps", [False, True], ids=["terminal reward", "step rewards"])
@pytest.mark.parametrize("discount", DISCOUNTS)
def test_no_constant_has_less_variance_than_the_optimal_one_where_logits_are_the_parameters(
    toy, discount, steps
):
    # a policy of one logit for each state and action: its scores are 1[a = b] - π_b in the state's logits
    rows = range(len(toy.completions))
    draw = taken([toy] * len(rows), rows, torch.zeros(len(rows)), with_step_rewards=steps)
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
    # the variance is a parabola in b, whose lowest point lies between equally high ones
    for distance in (0.01, 1.0):
        assert variance(best - distance) == pytest.approx(variance(best + distance), rel=1e-9)
        assert variance(best - distance) > variance(best)


# ------------------------------------------------------------------------------------ unscored episodes


@pytest.mark.parametrize("discount", DISCOUNTS)
@pytest.mark.parametrize("baseline", ["none", "moving_average", "greedy", "value"])
def test_scoring_that_fails_at_random_leaves_the_expectation(make_toy, baseline, discount):
    # given that anything was scored, which has probability 1 - 0.3², the expectation is ∇J
    toy = make_toy(max_new_tokens=2)
    truth = toy.objective_gradient(discount, True)
    estimate = expected_gradient([toy, toy], reinforce(baseline, discount), failure_probability=0.3)
    assert relative_error(estimate / (1 - 0.3**2), truth) < EXACT


TWO_OF_THREE_SCORED = 0.7**3 + 3 * 0.7**2 * 0.3  # probability that at least two are, if each fails with 0.3


@pytest.mark.parametrize("baseline", ["leave_one_out", "optimal"])
@pytest.mark.parametrize("steps", [False, True], ids=["terminal reward", "step rewards"])
def test_an_episode_left_alone_by_failed_scoring_does_not_move_the_policy(make_toy, steps, baseline):
    # both need two scored episodes to compare; given those the expectation is ∇J, otherwise 0
    toy = make_toy(max_new_tokens=2)
    truth = toy.objective_gradient(1.0, steps)
    estimate = expected_gradient(
        [toy] * 3, reinforce(baseline, 1.0), with_step_rewards=steps, failure_probability=0.3
    )
    assert relative_error(estimate, TWO_OF_THREE_SCORED * truth) < EXACT


def test_with_a_discount_an_episode_left_alone_does_move_it(make_toy):
    # γ^t (g_t - g_0) isn't zero: as the docstring of leave_one_out says
    toy = make_toy(max_new_tokens=2)
    truth = toy.objective_gradient(0.7, False)
    estimate = expected_gradient(
        [toy] * 3, reinforce("leave_one_out", 0.7), with_step_rewards=False, failure_probability=0.3
    )
    assert relative_error(estimate, TWO_OF_THREE_SCORED * truth) > FAR_OFF


@pytest.mark.parametrize("steps", [False, True], ids=["terminal reward", "step rewards"])
def test_where_the_greedy_completion_was_not_scored_nothing_moves(make_toy, steps):
    toy = make_toy(max_new_tokens=2)
    truth = toy.objective_gradient(1.0, steps)
    estimate = expected_gradient(
        [toy, toy], reinforce("greedy", 1.0), with_step_rewards=steps, is_greedy_scored=False
    )
    assert float(estimate.abs().max()) < EXACT * float(truth.abs().max())


def test_a_failed_score_taken_for_a_zero_reward_would_be_biased(make_toy):
    def zero_where_unscored(draw: Draw) -> Tensor:
        rewards = draw.terminal_rewards.masked_fill(~draw.scored, 0.0)
        steps = draw.step_rewards.masked_fill(~draw.scored[:, None], 0.0)
        everyone = torch.ones_like(draw.scored)
        taken_for_zero = replace(draw, terminal_rewards=rewards, step_rewards=steps, scored=everyone)
        return reinforce("none", 1.0)(taken_for_zero)

    toy = make_toy(max_new_tokens=2)
    truth = toy.objective_gradient(1.0, True)
    estimate = expected_gradient([toy, toy], zero_where_unscored, failure_probability=0.3)
    assert relative_error(estimate / (1 - 0.3**2), truth) > FAR_OFF


# -------------------------------------------------------- the test can tell: each mistake alone is found


def without_the_end_token(draw: Draw, discount: float) -> Tensor:
    """The usual mistake where padding is told by token values and the pad token is the end token."""
    weights = reinforce("none", discount)(draw)
    is_last = torch.arange(weights.shape[1]) == draw.lengths[:, None] - 1
    is_terminated = draw.lengths[:, None] < 3
    return weights.masked_fill(is_last & is_terminated, 0.0)


def without_the_discount_of_time(draw: Draw, discount: float) -> Tensor:
    """Σ_t ∇log π g_t, without γ^t: the gradient of no objective (Nota & Thomas 2020)."""
    returns = draw.returns(discount)
    return weights_of_loss(draw, advantages(returns, torch.zeros_like(returns[:, 0]), draw.mask))


def one_token_late(draw: Draw, discount: float) -> Tensor:
    """Each return meets the log-probability of the token after its own."""
    late = reinforce("none", discount)(draw).roll(1, dims=1)
    late[:, 0] = 0.0
    return late.masked_fill(~draw.mask, 0.0)


def one_token_early(draw: Draw, discount: float) -> Tensor:
    """Each return meets the log-probability of the token before its own."""
    early = reinforce("none", discount)(draw).roll(-1, dims=1)
    early[:, -1] = 0.0
    return early


def mean_over_padding(draw: Draw, discount: float) -> Tensor:
    """`(advantages * log_probs).mean()`: the divisor is the padded tensor's size, not a count of episodes."""
    return reinforce("none", discount)(draw) / draw.mask.shape[1]


def mean_over_each_episode(draw: Draw, discount: float) -> Tensor:
    """Each episode divided by its own length, as GRPO first did: long wrong answers are let off."""
    return reinforce("none", discount)(draw) / draw.lengths[:, None]


def sum_of_what_came_before(draw: Draw, discount: float) -> Tensor:
    """The rewards up to the action instead of those that follow it."""
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
def test_each_mistake_is_found(error_of, mistake):
    assert error_of(lambda draw: mistake(draw, 0.7), 0.7) > FAR_OFF


def whole_return(draw: Draw) -> Tensor:
    """Every action weighted by the return of the whole episode, g_0 instead of g_t (γ = 1)."""
    returns = draw.returns(1.0)
    same_for_all = episode_returns(returns)[:, None].expand_as(returns)
    return weights_of_loss(draw, advantages(same_for_all, torch.zeros_like(returns[:, 0]), draw.mask))


def test_the_whole_return_for_every_action_is_unbiased_too_but_another_estimate(toy, error_of):
    # from Σ ∇log π · g_0 to Σ ∇log π · g_t: the same expectation, other samples
    assert error_of(whole_return, 1.0) < EXACT
    last = slice(-1, None)  # "1 1 1", with three step rewards
    draw = Draw(
        toy.lengths[last],
        toy.terminal_rewards[last],
        toy.step_rewards[last],
        torch.tensor([0]),
        torch.tensor([True]),
    )
    difference = whole_return(draw) - reinforce("none", 1.0)(draw)
    assert difference[0, 0].item() == 0.0
    assert difference[0, 1:].abs().min().item() > 0.1


def test_a_step_reward_given_in_hindsight_is_no_reward_of_that_step(make_toy):
    # Where r_{t+1} depends on actions after a_t too (a judge who reads the whole completion first), those
    # actions have a share in it, and reward-to-go doesn't tell them: it is biased, the whole return isn't.
    toy = make_toy(in_hindsight=True)
    truth = toy.objective_gradient(1.0, True)
    assert relative_error(expected_gradient([toy], reinforce("none", 1.0)), truth) > FAR_OFF
    assert relative_error(expected_gradient([toy], whole_return), truth) < EXACT
