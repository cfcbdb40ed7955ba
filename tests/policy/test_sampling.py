"""Tests of sampling against a plain implementation: one episode at a time, a forward pass for every token.

The tests of the gradient check further properties of sampled log-probabilities.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from llm_reinforce.config import RandomInitConfig
from llm_reinforce.policy import (
    Completion,
    LanguagePolicy,
    TokenIds,
    random_policy,
    sample_completions,
    token_log_probs,
)

PROMPTS: list[TokenIds] = [(1, 2, 3), (4,), (5, 6, 7, 8, 9, 10), (0, 0), (3,), (1, 2, 3)]
MAX_NEW_TOKENS = 12
EXACT = 1e-9  # tolerance in float64


@pytest.fixture
def policy(exact_policy: Callable[..., LanguagePolicy]) -> LanguagePolicy:
    """A float64 policy with several end tokens, so that completions often terminate."""
    policy = exact_policy()
    end = policy.end_token_ids[0]
    return replace(policy, end_token_ids=(end, 3, 7))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distribution(policy: LanguagePolicy, token_ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Return log π(· | token_ids) from a forward pass over all tokens."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0, -1]
    return (logits / temperature).log_softmax(-1)  # type: ignore[no-any-return]


def greedy_by_hand(policy: LanguagePolicy, prompt: TokenIds, max_new_tokens: int) -> TokenIds:
    token_ids = list(prompt)
    for _ in range(max_new_tokens):
        token_ids.append(int(distribution(policy, token_ids).argmax()))
        if token_ids[-1] in policy.end_token_ids:
            break
    return tuple(token_ids[len(prompt) :])


def check_against_plain(
    policy: LanguagePolicy, prompt: TokenIds, completion: Completion, temperature: float, tolerance: float
) -> None:
    """Check that all recorded numbers equal those of plain forward passes."""
    numbers = (completion.log_probs, completion.entropies, completion.squared_logit_gradient_norms)
    assert {len(row) for row in numbers} == {len(completion.token_ids)}
    for t, token_id in enumerate(completion.token_ids):
        log_distribution = distribution(policy, [*prompt, *completion.token_ids[:t]], temperature)
        assert completion.log_probs[t] == pytest.approx(float(log_distribution[token_id]), abs=tolerance)
        entropy = -float((log_distribution.exp() * log_distribution).sum())
        assert completion.entropies[t] == pytest.approx(entropy, abs=tolerance)
        probabilities = log_distribution.exp()
        squared_norm = float(1 - 2 * probabilities[token_id] + probabilities.square().sum())
        assert completion.squared_logit_gradient_norms[t] == pytest.approx(squared_norm, abs=tolerance)


def is_well_formed(policy: LanguagePolicy, completion: Completion, max_new_tokens: int) -> bool:
    *before, last = completion.token_ids
    if any(token_id in policy.end_token_ids for token_id in before):
        return False
    ended = last in policy.end_token_ids
    return ended == completion.terminated and (ended or len(completion.token_ids) == max_new_tokens)


def test_greedy_takes_the_most_likely_token(policy: LanguagePolicy) -> None:
    completions = sample_completions(policy, PROMPTS, max_new_tokens=MAX_NEW_TOKENS, greedy=True)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert completion.token_ids == greedy_by_hand(policy, prompt, MAX_NEW_TOKENS)
        check_against_plain(policy, prompt, completion, 1.0, EXACT)
    assert len({len(completion.token_ids) for completion in completions}) > 1  # at different times


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_greedy_completions_do_not_depend_on_the_batch_size(policy: LanguagePolicy, batch_size: int) -> None:
    whole = sample_completions(policy, PROMPTS, max_new_tokens=MAX_NEW_TOKENS, greedy=True)
    parts = sample_completions(
        policy, PROMPTS, max_new_tokens=MAX_NEW_TOKENS, greedy=True, batch_size=batch_size
    )
    for one, other in zip(whole, parts, strict=True):
        assert one.token_ids == other.token_ids
        assert one.log_probs == pytest.approx(other.log_probs, abs=EXACT)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_rows_that_leave_the_batch_do_not_change_the_others(
    policy: LanguagePolicy, temperature: float
) -> None:
    completions = sample_completions(
        policy,
        PROMPTS,
        num_completions=4,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=temperature,
        generator=generator(),
    )
    assert len(completions) == 4 * len(PROMPTS)
    lengths = {len(completion.token_ids) for completion in completions}
    assert len(lengths) > 4  # so that rows have left the batch
    for index, completion in enumerate(completions):
        assert is_well_formed(policy, completion, MAX_NEW_TOKENS)
        check_against_plain(policy, PROMPTS[index // 4], completion, temperature, EXACT)


def test_float32_numbers_agree_with_the_plain_implementation(tiny_policy: LanguagePolicy) -> None:
    policy = replace(tiny_policy, end_token_ids=(*tiny_policy.end_token_ids, 3, 7))
    completions = sample_completions(
        policy, PROMPTS, num_completions=2, max_new_tokens=MAX_NEW_TOKENS, generator=generator()
    )
    for index, completion in enumerate(completions):
        check_against_plain(policy, PROMPTS[index // 2], completion, 1.0, 1e-5)


def test_episode_ends_with_an_end_token_or_at_the_token_budget(policy: LanguagePolicy) -> None:
    completions = sample_completions(
        policy, [(1,)], num_completions=64, max_new_tokens=4, generator=generator()
    )
    assert all(is_well_formed(policy, completion, 4) for completion in completions)
    assert {completion.terminated for completion in completions} == {True, False}
    ends = {completion.token_ids[-1] for completion in completions if completion.terminated}
    assert ends == set(policy.end_token_ids)  # each of the three end tokens occurs


def test_token_budget_can_be_one(policy: LanguagePolicy) -> None:
    completions = sample_completions(
        policy, PROMPTS, num_completions=8, max_new_tokens=1, generator=generator()
    )
    assert all(len(completion.token_ids) == 1 for completion in completions)
    assert all(is_well_formed(policy, completion, 1) for completion in completions)


def test_text_does_not_contain_the_end_token(tiny_policy: LanguagePolicy) -> None:
    completions = sample_completions(
        tiny_policy, [(1,)], num_completions=32, max_new_tokens=6, generator=generator()
    )
    assert any(completion.terminated for completion in completions)
    for completion in completions:
        written = completion.token_ids[:-1] if completion.terminated else completion.token_ids
        assert completion.text == "".join("0123456789+="[token_id] for token_id in written)


def test_completions_depend_only_on_the_seed(policy: LanguagePolicy) -> None:
    def sample(seed: int) -> list[Completion]:
        return sample_completions(
            policy, PROMPTS, num_completions=3, max_new_tokens=8, generator=generator(seed)
        )

    torch.manual_seed(1)
    first = sample(0)
    torch.manual_seed(2)
    assert sample(0) == first
    assert sample(1) != first


def test_sampling_with_a_generator_leaves_the_global_generator_unchanged(policy: LanguagePolicy) -> None:
    before = torch.random.get_rng_state()
    sample_completions(policy, PROMPTS, max_new_tokens=4, generator=generator())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_completions_of_a_prompt_are_adjacent(policy: LanguagePolicy) -> None:
    completions = sample_completions(
        policy, PROMPTS, num_completions=2, max_new_tokens=5, greedy=True, batch_size=5
    )
    alone = [sample_completions(policy, [prompt], max_new_tokens=5, greedy=True)[0] for prompt in PROMPTS]
    assert [c.token_ids for c in completions] == [c.token_ids for c in alone for _ in range(2)]


def test_entropies_and_log_probs_equal_those_of_token_log_probs(policy: LanguagePolicy) -> None:
    completions = sample_completions(
        policy, PROMPTS, max_new_tokens=MAX_NEW_TOKENS, temperature=0.8, generator=generator()
    )
    with torch.no_grad():
        computed = token_log_probs(
            policy.model,
            PROMPTS,
            [completion.token_ids for completion in completions],
            pad_token_id=policy.pad_token_id,
            temperature=0.8,
            with_entropies=True,
        )
    assert computed.entropies is not None
    for row, completion in enumerate(completions):
        length = len(completion.token_ids)
        assert computed.entropies[row, :length].tolist() == pytest.approx(completion.entropies, abs=EXACT)
        assert computed.log_probs[row, :length].tolist() == pytest.approx(completion.log_probs, abs=EXACT)


def test_high_temperature_samples_uniformly() -> None:
    shape = RandomInitConfig(
        alphabet="01", num_layers=1, num_heads=1, hidden_size=4, intermediate_size=4, max_length=8
    )
    policy = random_policy(shape)
    completions = sample_completions(
        policy, [(0,)], num_completions=600, max_new_tokens=1, temperature=1e6, generator=generator()
    )
    counts = [sum(completion.token_ids == (token,) for completion in completions) for token in range(3)]
    assert min(counts) > 200 - 4 * math.sqrt(600 * 2 / 9)


def test_sampling_does_not_change_the_model(policy: LanguagePolicy) -> None:
    before = [parameter.clone() for parameter in policy.model.parameters()]
    sample_completions(policy, PROMPTS, max_new_tokens=3, generator=generator())
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in policy.model.parameters())
