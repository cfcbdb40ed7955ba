"""Tests of kept activations: they save products and do not change log-probabilities or gradients."""

from typing import Any

import peft
import pytest
import torch
from small_models import MODELS, PROMPTS, model_of, policy_of, same
from torch import Tensor

from llm_reinforce.policy import (
    Activations,
    LanguagePolicy,
    TokenIds,
    sample_completions,
    sampling,
    token_log_probs,
)
from llm_reinforce.policy.fast_path import packed_forward, products, slot_batch

TEMPERATURE = 0.7
Episodes = list[tuple[TokenIds, TokenIds]]


def sampled(
    policy: LanguagePolicy, activations: Activations, *, batch_size: int | None = None, **rest: Any
) -> Episodes:
    """Sample three completions of each prompt; two of the prompts occur several times."""
    completions = sample_completions(
        policy,
        PROMPTS,
        num_completions=3,
        max_new_tokens=7,
        temperature=TEMPERATURE,
        generator=torch.Generator().manual_seed(5),
        batch_size=batch_size,
        activations=activations,
        **rest,
    )
    return [(PROMPTS[index // 3], completion.token_ids) for index, completion in enumerate(completions)]


def log_probs_and_gradient(
    model: Any, episodes: Episodes, activations: Activations | None, temperature: float = TEMPERATURE
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return log-probabilities, entropies, and the gradient of a weighted sum of them."""
    model.zero_grad()
    found = token_log_probs(
        model,
        [prompt for prompt, _ in episodes],
        [completion for _, completion in episodes],
        pad_token_id=12,
        temperature=temperature,
        with_entropies=True,
        activations=activations,
    )
    assert found.entropies is not None
    weights = torch.linspace(-1, 1, found.log_probs.numel(), dtype=found.log_probs.dtype)
    weights = weights.reshape(found.log_probs.shape)
    (weights * found.log_probs + weights.flip(0) * found.entropies).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found.log_probs.detach(), found.entropies.detach(), gradients


class Counter:
    """Count the numbers that products with weights compute, including products for gradients."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num = 0
        plain = products.product

        def counted(left: Tensor, right: Tensor) -> Tensor:
            self.num += len(left) * len(right)
            return plain(left, right)

        monkeypatch.setattr(products, "product", counted)


def num_products(model: Any, episodes: Episodes, activations: Activations | None) -> int:
    """Return the number of numbers that the products of a forward pass compute."""
    with pytest.MonkeyPatch.context() as patched:
        counter = Counter(patched)
        token_log_probs(
            model,
            [prompt for prompt, _ in episodes],
            [completion for _, completion in episodes],
            pad_token_id=12,
            temperature=TEMPERATURE,
            activations=activations,
        )
    return counter.num


@pytest.mark.parametrize("name", MODELS)
def test_results_equal_those_without_kept_activations(name: str) -> None:
    policy, activations = policy_of(model_of(name)), Activations(1000)
    episodes = sampled(policy, activations)
    same(
        log_probs_and_gradient(policy.model, episodes, activations),
        log_probs_and_gradient(policy.model, episodes, None),
    )
    assert num_products(policy.model, episodes, None) > 0
    assert num_products(policy.model, episodes, activations) == 0


@pytest.mark.parametrize(("batch_size", "check_every"), [(1, 8), (3, 1), (7, 3), (11, 8)])
def test_results_do_not_depend_on_slots_and_time_of_sampling(
    batch_size: int, check_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_batch, "ROOM", 2)  # the cache grows several times
    monkeypatch.setattr(slot_batch, "MAX_PROMPT_TOKENS", 10)  # prompts are computed in several parts
    # above 1, completions share no rows and continue after their end
    monkeypatch.setitem(sampling.CHECK_EVERY, "cpu", check_every)
    policy, activations = policy_of(model_of("llama")), Activations(10_000)
    episodes = sampled(policy, activations, batch_size=batch_size)
    assert len({len(completion) for _, completion in episodes}) > 3
    same(
        log_probs_and_gradient(policy.model, episodes, activations),
        log_probs_and_gradient(policy.model, episodes, None),
    )
    assert num_products(policy.model, episodes, activations) == 0


def test_subset_of_the_episodes_in_another_order() -> None:
    policy, activations = policy_of(model_of("qwen2")), Activations(1000)
    episodes = sampled(policy, activations)
    for some in (episodes[::-2], episodes[4:5], [*episodes[7:], episodes[8]]):
        same(
            log_probs_and_gradient(policy.model, some, activations),
            log_probs_and_gradient(policy.model, some, None),
        )
        assert num_products(policy.model, some, activations) == 0


def test_activations_of_greedy_completions_are_kept() -> None:
    policy, activations = policy_of(model_of("llama")), Activations(1000)
    episodes = sampled(policy, activations, greedy=True)
    same(
        log_probs_and_gradient(policy.model, episodes, activations),
        log_probs_and_gradient(policy.model, episodes, None),
    )
    assert num_products(policy.model, episodes, activations) == 0


def test_activations_of_padded_tokens_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_forward, "MIN_PADDED", 1)
    policy, activations = policy_of(model_of("llama")), Activations(1000)
    episodes = sampled(policy, activations)
    assert activations.num_tokens % packed_forward.MULTIPLE == 0
    same(
        log_probs_and_gradient(policy.model, episodes, activations),
        log_probs_and_gradient(policy.model, episodes, None),
    )
    assert num_products(policy.model, episodes, activations) == 0


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["gate_proj"], "all-linear"])
def test_models_with_adapters_are_supported(targets: Any) -> None:
    policy = policy_of(model_of("llama"))
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(policy.model, config).eval().double()
    policy, activations = policy_of(model), Activations(1000)
    episodes = sampled(policy, activations)
    same(log_probs_and_gradient(model, episodes, activations), log_probs_and_gradient(model, episodes, None))


def test_episodes_that_were_not_sampled_are_recomputed() -> None:
    policy, activations = policy_of(model_of("llama")), Activations(1000)
    episodes = sampled(policy, activations)
    others = [*episodes, ((1, 2, 5), (1, 1, 1, 1, 1, 12))]
    assert num_products(policy.model, others, activations) == num_products(policy.model, others, None)
    same(
        log_probs_and_gradient(policy.model, others, activations),
        log_probs_and_gradient(policy.model, others, None),
    )
    # at another temperature, the products are the same but the log-probabilities are not
    same(
        log_probs_and_gradient(policy.model, episodes, activations, 1.3),
        log_probs_and_gradient(policy.model, episodes, None, 1.3),
    )
    other = model_of("llama, one key for all")
    same(log_probs_and_gradient(other, episodes, activations), log_probs_and_gradient(other, episodes, None))


def test_nothing_is_kept_if_there_are_too_many_tokens() -> None:
    policy, activations = policy_of(model_of("llama")), Activations(20)
    episodes = sampled(policy, activations)
    assert activations.num_tokens > 20
    assert not activations._products
    assert num_products(policy.model, episodes, activations) == num_products(policy.model, episodes, None)
    # the next samples are kept again
    activations.max_tokens = 1000
    episodes = sampled(policy, activations)
    assert num_products(policy.model, episodes, activations) == 0


def test_limit_applies_within_a_forward_pass() -> None:
    model, activations = model_of("llama"), Activations(20)
    activations.begin(model, TEMPERATURE)
    inputs = torch.ones(21, 16, dtype=torch.float64)
    activations.multiply(model.model.layers[0].mlp.up_proj, inputs, None)
    assert not activations._products


def test_tied_layers_are_recomputed() -> None:
    model = model_of("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    activations = Activations(1000)
    episodes = sampled(policy_of(model), activations)
    same(log_probs_and_gradient(model, episodes, activations), log_probs_and_gradient(model, episodes, None))


def test_cleared_activations_are_recomputed() -> None:
    policy, activations = policy_of(model_of("llama")), Activations(1000)
    episodes = sampled(policy, activations)
    activations.clear()
    assert num_products(policy.model, episodes, activations) == num_products(policy.model, episodes, None)


def test_nothing_is_kept_under_autocast() -> None:
    policy, activations = policy_of(model_of("llama").float()), Activations(1000)
    with torch.autocast("cpu", torch.bfloat16):
        episodes = sampled(policy, activations)
        assert not activations._products
        same(
            log_probs_and_gradient(policy.model, episodes, activations),
            log_probs_and_gradient(policy.model, episodes, None),
        )
