"""Tests of the learned baseline: its features, its equation and its fit."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from llm_reinforce.errors import InputError
from llm_reinforce.policy import (
    LanguagePolicy,
    TokenIds,
    ValueHead,
    action_features,
    explained_variance,
    fit_values,
    log_probs,
    predict_values,
)
from llm_reinforce.policy.fast_path.packed_forward import packable_model

# ---------------------------------------------------------------------------------------- features

PROMPTS: list[TokenIds] = [(1, 2, 3, 4), (1, 2, 5), (1, 2, 3, 4), (1, 2, 9, 9, 9, 9), (1, 2, 5), (1, 2, 5)]
COMPLETIONS: list[TokenIds] = [(4, 6, 12), (7, 12), (4, 12), (1, 2, 3, 4), (12,), (5, 5, 5, 5, 5)]
LENGTHS = torch.tensor([len(completion) for completion in COMPLETIONS])
SHAPE: dict[str, Any] = {"vocab_size": 13, "bos_token_id": None, "eos_token_id": 12, "pad_token_id": None}
LLAMA: dict[str, Any] = {
    **SHAPE,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}


def with_adapter(model: Any, target_modules: list[str]) -> Any:
    settings = peft.LoraConfig(r=2, target_modules=target_modules, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, settings)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # initialized with zeros, so that the adapter has no effect
            torch.nn.init.normal_(parameter, std=0.5)
    return adapted


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "llama, adapter": lambda: with_adapter(LlamaForCausalLM(LlamaConfig(**LLAMA)), ["q_proj", "down_proj"]),
    "llama, adapter in the head": lambda: with_adapter(LlamaForCausalLM(LlamaConfig(**LLAMA)), ["lm_head"]),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(**SHAPE, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    ),
    "gpt2, adapter": lambda: with_adapter(
        GPT2LMHeadModel(GPT2Config(**SHAPE, n_embd=16, n_layer=2, n_head=2)), ["c_attn"]
    ),
    "gemma2, capped logits": lambda: Gemma2ForCausalLM(Gemma2Config(**LLAMA, sliding_window=4)),
}


def model_of(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return MODELS[name]().eval()


def features_of(model: Any, **options: Any) -> Tensor:
    return action_features(model, PROMPTS, COMPLETIONS, pad_token_id=12, **options)


@pytest.mark.parametrize("name", MODELS)
def test_head_computes_the_logits_from_the_features(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(name)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    cap = getattr(inner.config, "final_logit_softcapping", None)
    with torch.no_grad():  # each state alone, without padding
        plain = [
            [model(torch.tensor([[*prompt, *completion[:t]]])).logits[0, -1] for t in range(len(completion))]
            for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
        ]
    for is_packed, max_tokens in product([True, False], [1, 20, 10_000]):
        assert (packable_model(model) is not None) == name.startswith("llama")  # no hook remains
        with monkeypatch.context() as patch:
            if not is_packed:
                patch.setattr(log_probs, "fast_model", lambda model: None)
            features = features_of(model, max_tokens=max_tokens)
        assert features.shape == (6, 5, 16)
        assert not features.requires_grad
        logits = inner.get_output_embeddings()(features)
        if cap:
            logits = cap * (logits / cap).tanh()
        for row, expected in enumerate(plain):
            num = len(expected)
            torch.testing.assert_close(logits[row, :num], torch.stack(expected), rtol=1e-4, atol=1e-4)
            assert (features[row, num:] == 0).all()
    assert (packable_model(model) is not None) == name.startswith("llama")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_features_of_an_empty_completion_are_zero(name: str) -> None:
    features = action_features(model_of(name), PROMPTS[:2], [(), (4, 5)], pad_token_id=12)
    assert features.shape == (2, 2, 16)
    assert (features[0] == 0).all()
    alone = action_features(model_of(name), PROMPTS[1:2], [(4, 5)], pad_token_id=12)
    torch.testing.assert_close(features[1:], alone, rtol=1e-4, atol=1e-5)


def test_model_without_output_embedding_is_rejected() -> None:
    class Headless(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

    with pytest.raises(InputError, match=r"Headless cannot be read.*choose another baseline"):
        action_features(Headless(), [(1,)], [(1,)], pad_token_id=0)


# --------------------------------------------------------------------------------------------- fit

FEATURES = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[True, True, True], [True, False, False], [True, True, False], [False] * 3])
RETURNS = torch.tensor([[1.0, 1.0, 1.0], [0.0, 9.0, 9.0], [2.0, -1.0, 9.0], [9.0, 9.0, 9.0]])


def new_head(seed: int = 0, learning_rate: float = 1e-2) -> tuple[ValueHead, torch.optim.Optimizer]:
    head = ValueHead(5, hidden_size=7, seed=seed)
    return head, torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.0)


def numbers_of(head: ValueHead, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value for values in optimizer.state_dict()["state"].values() for value in values.values()]
    return [parameter.detach().clone() for parameter in head.parameters()] + [m.clone() for m in moments]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def test_initial_values_are_zero_and_weights_depend_only_on_the_seed() -> None:
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    head, optimizer = new_head()
    assert torch.equal(torch.rand(1), drawn)  # the global generator is unchanged
    assert predict_values(head, FEATURES, MASK).tolist() == [[0.0] * 3] * 4
    assert same(numbers_of(head, optimizer), numbers_of(*new_head()))
    assert not same(numbers_of(head, optimizer), numbers_of(*new_head(seed=1)))


def test_value_equals_the_one_computed_by_hand() -> None:
    head = ValueHead(2, hidden_size=1, seed=0)
    with torch.no_grad():
        head.hidden.weight.copy_(torch.tensor([[2.0, 1.0]]))
        head.hidden.bias.fill_(0.5)
        head.output.weight.fill_(3.0)
        head.output.bias.fill_(-1.0)
    # (1, 5) normalized to mean 0 and variance 1 is (-1, 1): 3 tanh(-2 + 1 + 0.5) - 1
    value = head(torch.tensor([1.0, 5.0]))
    assert value.item() == pytest.approx(3 * math.tanh(-0.5) - 1, abs=1e-4)


def test_step_is_adamw_on_the_mean_squared_error_of_scored_actions() -> None:
    head, optimizer = new_head()
    plain, plain_optimizer = new_head()
    assert fit_values(head, optimizer, FEATURES, RETURNS, MASK, num_steps=3)
    for _ in range(3):
        plain_optimizer.zero_grad()
        (plain(FEATURES[MASK]) - RETURNS[MASK]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        plain_optimizer.step()
    for one, other in zip(head.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_fit_explains_returns_and_no_gradient_flows_into_the_features() -> None:
    head, optimizer = new_head()
    features = torch.randn(64, 4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    mask = torch.ones(64, 4, dtype=torch.bool)
    normal = torch.nn.functional.layer_norm(features.detach(), (5,))
    returns = normal[:, :, 0] - normal[:, :, 1]
    assert fit_values(head, optimizer, features, returns, mask, num_steps=300)
    assert features.grad is None
    explained = explained_variance(predict_values(head, features, mask), returns, mask)
    assert explained is not None
    assert explained > 0.9


def test_two_processes_take_the_same_step_as_one() -> None:
    """Record the sums of each process first, then add those of the other process in the second run."""
    parts = [
        (FEATURES[:1], RETURNS[:1], MASK[:1]),
        (FEATURES[1:, :2], RETURNS[1:, :2], MASK[1:, :2]),
    ]
    recorded: list[Tensor] = []
    for features, returns, mask in parts:
        fit_values(
            *new_head(),
            features,
            returns,
            mask,
            num_steps=1,
            total=lambda sums: recorded.append(sums) or sums,
        )
    heads = []
    for number, (features, returns, mask) in enumerate(parts):
        head, optimizer = new_head()
        fit_values(
            head,
            optimizer,
            features,
            returns,
            mask,
            num_steps=1,
            total=lambda sums, n=number: sums + recorded[1 - n],
        )
        heads.append(numbers_of(head, optimizer))
    assert same(*heads)
    whole, optimizer = new_head()
    fit_values(whole, optimizer, FEATURES, RETURNS, MASK, num_steps=1)
    for one, other in zip(heads[0], numbers_of(whole, optimizer), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 3e38])
@pytest.mark.parametrize("place", ["features", "returns"])
def test_numbers_that_are_not_finite_change_neither_weights_nor_moments(bad: float, place: str) -> None:
    head, optimizer = new_head()
    fit_values(head, optimizer, FEATURES, RETURNS, MASK, num_steps=2)
    before = numbers_of(head, optimizer)
    features, returns = FEATURES.clone(), RETURNS.clone()
    (features if place == "features" else returns)[0, 0] = bad
    is_fitted = fit_values(head, optimizer, features, returns, MASK, num_steps=2)
    # after normalization, this number may or may not be finite: both results are allowed
    if (bad, place) == (3e38, "features"):
        assert is_fitted is not same(numbers_of(head, optimizer), before)
    else:
        assert not is_fitted
        assert same(numbers_of(head, optimizer), before)
    assert all(bool(number.isfinite().all()) for number in numbers_of(head, optimizer))


def test_large_return_does_not_stop_later_learning() -> None:
    head, optimizer = new_head(learning_rate=3e-2)
    assert fit_values(head, optimizer, FEATURES, 1e18 * RETURNS, MASK, num_steps=1)
    fit_values(head, optimizer, FEATURES, RETURNS, MASK, num_steps=300)
    error = (predict_values(head, FEATURES, MASK) - RETURNS)[MASK].square().mean()
    assert error < 0.1


def test_nothing_changes_if_no_episode_is_scored() -> None:
    head, optimizer = new_head()
    fit_values(head, optimizer, FEATURES, RETURNS, MASK, num_steps=1)
    before = numbers_of(head, optimizer)
    assert fit_values(head, optimizer, FEATURES, RETURNS, MASK & False, num_steps=3)
    assert same(numbers_of(head, optimizer), before)


def test_explained_variance_equals_values_computed_by_hand() -> None:
    mask = torch.tensor([[True, True, True, True, False]])
    returns = torch.tensor([[1.0, 2.0, 3.0, 4.0, 99.0]])
    # a constant difference does not matter
    assert explained_variance(returns + 5.0, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.full((1, 5), 2.0), returns, mask) == pytest.approx(0.0)
    # Var(g) = 5/4; g - V = 1, 1, 2, 2, so Var(g - V) = 1/4
    values = torch.tensor([[0.0, 1.0, 1.0, 2.0, 0.0]])
    assert explained_variance(values, returns, mask) == pytest.approx(1 - 0.25 / 1.25)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)  # 1 - 4 Var(g) / Var(g)
    assert explained_variance(values, torch.ones(1, 5), mask) is None
    assert explained_variance(values, returns, mask & False) is None


def test_equal_states_have_equal_values(tiny_policy: LanguagePolicy) -> None:
    # the value depends on the state and not on the action
    features = action_features(
        tiny_policy.model, [(1, 2), (1, 2), (3,)], [(4, 5, 6), (4, 7), (4, 5)], pad_token_id=12
    )
    head = ValueHead(16, hidden_size=8, seed=0)
    with torch.no_grad():
        head.output.weight.normal_(generator=torch.Generator().manual_seed(0))
    values = predict_values(head, features, torch.ones(3, 3, dtype=torch.bool))
    torch.testing.assert_close(values[0, :2], values[1, :2], rtol=1e-5, atol=1e-6)
    assert abs(values[0, 1] - values[2, 1]) > 1e-4
