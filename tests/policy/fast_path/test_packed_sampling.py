"""Tests that completions of the packed path equal those of the plain path."""

import math
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_models import (
    MODELS,
    PROMPTS,
    NoSynchronization,
    model_of,
    policy_of,
    use_plain_path,
    with_nan_token,
)
from torch import Tensor

from llm_reinforce.policy import (
    Completion,
    TokenIds,
    batches,
    sample_completions,
    sampling,
    stream_completions,
)
from llm_reinforce.policy.fast_path import slot_batch
from llm_reinforce.policy.parity_check import fast_model


@pytest.mark.parametrize("name", MODELS)
def test_greedy_completions_equal_those_of_the_plain_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(model_of(name))
    fast = sample_completions(policy, PROMPTS, max_new_tokens=9, greedy=True)
    use_plain_path(monkeypatch)
    plain = sample_completions(policy, PROMPTS, max_new_tokens=9, greedy=True)
    check_same(fast, plain)


def check_same(fast: list[Completion], plain: list[Completion]) -> None:
    for one, other in zip(fast, plain, strict=True):
        assert (one.token_ids, one.terminated, one.text) == (other.token_ids, other.terminated, other.text)
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-10)
        assert one.entropies == pytest.approx(other.entropies, abs=1e-10)
        assert one.squared_logit_gradient_norms == pytest.approx(
            other.squared_logit_gradient_norms, abs=1e-10
        )


@pytest.mark.parametrize(
    ("batch_size", "is_fast", "check_every"),
    [(1, True, 1), (3, True, 3), (11, True, 8), (1000, True, 8), (8, False, 1), (11, False, 8)],
)
def test_completions_do_not_depend_on_the_batch_size_and_the_time_of_checks(
    whole: list[Completion],
    batch_size: int,
    is_fast: bool,
    check_every: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slot_batch, "ROOM", 2)  # the cache grows several times
    monkeypatch.setattr(slot_batch, "MAX_PROMPT_TOKENS", 10)  # prompts are computed in several parts
    if not is_fast:
        use_plain_path(monkeypatch)
    monkeypatch.setattr(sampling, "CHECK_EVERY", {"cpu": check_every})
    check_same(sampled_in_batches(batch_size), whole)


def sampled_in_batches(batch_size: int | None) -> list[Completion]:
    return sample_completions(
        policy_of(model_of("llama")),
        [*PROMPTS, (9,), (8, 8, 8, 8, 8, 8, 8)] * 2,
        num_completions=3,
        max_new_tokens=9,
        temperature=1.2,
        generator=torch.Generator().manual_seed(6),
        batch_size=batch_size,
    )


@pytest.fixture(scope="module")
def whole() -> list[Completion]:
    """Return the completions of all prompts, sampled in one batch."""
    completions = sampled_in_batches(None)
    assert len({len(completion.token_ids) for completion in completions}) == 9  # all lengths occur
    return completions


def test_new_prompts_reuse_the_slots_of_ended_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(model_of("llama"))
    assert fast_model(policy.model) is policy.model
    filled: list[int] = []
    fill = slot_batch.SlotBatch.fill

    def counted_fill(batch: Any, rows: Tensor, prompts: list[TokenIds], of_prompt: Tensor) -> Tensor:
        filled.append(len(rows))
        return fill(batch, rows, prompts, of_prompt)

    monkeypatch.setattr(slot_batch.SlotBatch, "fill", counted_fill)
    steps: list[int] = []
    step = slot_batch.SlotBatch.step

    def counted(batch: Any, actions: Tensor, *rest: Any) -> Tensor:
        steps.append(len(actions))
        return step(batch, actions, *rest)

    monkeypatch.setattr(slot_batch.SlotBatch, "step", counted)
    prompts = [(number % 12,) for number in range(64)]
    numbers = torch.rand((64, 1, 40), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = list(
        stream_completions(policy, prompts, max_new_tokens=40, uniforms=lambda n: numbers[n], batch_size=8)
    )
    assert sorted(prompt for prompt, _ in results) == list(range(64))
    assert [prompt for prompt, _ in results] != list(range(64))  # not in the order of the prompts
    assert sum(filled) == 64
    assert filled[0] == 8
    assert max(filled[1:]) < 8  # does not wait for a whole batch to end
    assert min(filled[:-1]) >= 2  # does not refill a single slot
    num_sampled = sum(len(completion.token_ids) for _, (completion,) in results)
    assert sum(steps) < 1.5 * num_sampled  # most rows of a step are in use


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 0.4, 1.0, 3.0])
def test_completions_share_a_row_until_their_actions_differ(
    temperature: float, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(model_of("llama"))
    if not is_fast:
        use_plain_path(monkeypatch)
    kind: Any = slot_batch.SlotBatch if is_fast else batches.WholeBatch
    num_rows: list[int] = []
    step = kind.step

    def counted(batch: Any, actions: Tensor, *rest: Any) -> Tensor:
        num_rows.append(len(actions))
        return step(batch, actions, *rest)

    monkeypatch.setattr(kind, "step", counted)

    def sampled() -> tuple[list[Completion], list[int]]:
        num_rows.clear()
        completions = sample_completions(
            policy,
            PROMPTS,
            num_completions=8,
            max_new_tokens=7,
            temperature=temperature,
            generator=torch.Generator().manual_seed(3),
            batch_size=24,
        )
        return completions, list(num_rows)

    shared, few = sampled()
    monkeypatch.setattr(sampling, "CHECK_EVERY", {"cpu": 8})
    alone, many = sampled()
    check_same(shared, alone)
    prefixes = {
        (PROMPTS[number // 8], one.token_ids[:num])
        for number, one in enumerate(shared)
        for num in range(1, len(one.token_ids))
    }
    assert len(prefixes) <= sum(few) < sum(many)
    if temperature == 0.05:  # most completions of a prompt are equal
        assert sum(few) < sum(many) / 4


@pytest.mark.parametrize("path", ["fast path", "plain path", "plain path, rows of equal length"])
def test_sampling_does_not_synchronize_between_checks(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(model_of("llama"))
    monkeypatch.setattr(sampling, "CHECK_EVERY", {"cpu": 8})
    batch: Any = slot_batch.SlotBatch(policy.model, 12, 9, has_fixed_shapes=True)
    if path == "plain path":
        batch = batches.WholeBatch(policy.model, 12)
    elif path == "plain path, rows of equal length":
        batch = batches.SeparateBatches(policy.model, 12, single_rows=False)
    generation = sampling.Generation(policy, batch, 12, 9)
    numbers = torch.rand((6, 2, 9), generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def read(tensor: Tensor) -> Any:
        raise AssertionError("tolist was called")

    def write(*arguments: Any) -> Any:
        raise AssertionError("copying integers to a GPU synchronizes")

    with monkeypatch.context() as patched:
        generation.start(deque(range(6)), PROMPTS, 2, lambda prompt: numbers[prompt])
        patched.setattr(Tensor, "tolist", read)
        for module in (sampling, batches, slot_batch):
            patched.setattr(module, "integers", write)
        with NoSynchronization():
            for _ in range(7):
                generation.step(0.7)
                assert list(generation.pop_ended()) == []
                generation.advance(may_shrink=True)
    generation.step(0.7)
    assert len(list(generation.pop_ended())) > 6


def test_uniforms_is_called_in_the_order_of_the_prompts() -> None:
    policy, called = policy_of(model_of("llama")), []

    def uniforms(prompt: int) -> Tensor:
        called.append(prompt)
        return torch.full((2, 4), 0.5, dtype=torch.float64)

    list(
        stream_completions(
            policy, PROMPTS, num_completions=2, max_new_tokens=4, uniforms=uniforms, batch_size=4
        )
    )
    assert called == list(range(6))


def test_sampling_records_no_gradient_and_leaves_gradients_enabled() -> None:
    policy = policy_of(model_of("llama"))
    generation = sampling.Generation(policy, slot_batch.SlotBatch(policy.model, 6, 3), 6, 3)
    generation.start(deque(range(6)), PROMPTS, 1, None)
    generation.step(1.0)
    generation.advance(may_shrink=True)
    assert torch.is_grad_enabled()
    tensors = [generation.logits, generation.log_probs, *generation.batch.keys, *generation.batch.values]
    assert all(tensor.grad_fn is None for tensor in tensors)


def test_no_prompts_give_no_completions() -> None:
    assert sample_completions(policy_of(model_of("llama")), [], max_new_tokens=3) == []


@pytest.mark.parametrize("prefix", [(), (2, 3)])
@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_values_that_are_not_finite_do_not_spread_to_other_prompts(
    batch_size: int | None, prefix: TokenIds
) -> None:
    policy = replace(policy_of(with_nan_token(model_of("llama"))), end_token_ids=(12,))
    prompts: list[TokenIds] = [(*prefix, *rest) for rest in [(8, 1, 2), (1, 2), (3,), (4, 4, 4, 4)]]
    numbers = torch.rand((4, 1, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    numbers[:, :, 0] = torch.tensor([0.5, 0.3, 0.4, 0.2])[:, None]
    stream = stream_completions(
        policy, prompts, max_new_tokens=3, uniforms=lambda n: numbers[n], batch_size=batch_size
    )
    for prompt, (completion,) in stream:
        if 8 not in completion.token_ids:
            assert any(map(math.isnan, completion.log_probs)) == (prompt == 0)
