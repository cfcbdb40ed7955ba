"""What sampling has computed is what scoring would compute: same scores, same gradient, fewer products."""

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
    """Three completions of each prompt, two of which are asked several times."""
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


def scored(
    model: Any, episodes: Episodes, activations: Activations | None, temperature: float = TEMPERATURE
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probabilities, entropies, and the gradient of a mixture of them."""
    model.zero_grad()
    scores = token_log_probs(
        model,
        [prompt for prompt, _ in episodes],
        [completion for _, completion in episodes],
        pad_token_id=12,
        temperature=temperature,
        with_entropies=True,
        activations=activations,
    )
    assert scores.entropies is not None
    weights = torch.linspace(-1, 1, scores.log_probs.numel(), dtype=scores.log_probs.dtype)
    weights = weights.reshape(scores.log_probs.shape)
    (weights * scores.log_probs + weights.flip(0) * scores.entropies).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return scores.log_probs.detach(), scores.entropies.detach(), gradients


class Counting:
    """How many numbers products with weights, their gradient's among them, have computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num = 0
        plain = products.product

        def counted(left: Tensor, right: Tensor) -> Tensor:
            self.num += len(left) * len(right)
            return plain(left, right)

        monkeypatch.setattr(products, "product", counted)


def num_forward(model: Any, episodes: Episodes, activations: Activations | None) -> int:
    """How many numbers of products the forward pass computes."""
    with pytest.MonkeyPatch.context() as patched:
        counting = Counting(patched)
        token_log_probs(
            model,
            [prompt for prompt, _ in episodes],
            [completion for _, completion in episodes],
            pad_token_id=12,
            temperature=TEMPERATURE,
            activations=activations,
        )
    return counting.num


@pytest.mark.parametrize("name", MODELS)
def test_scores_and_gradient_are_those_of_a_forward_pass_of_its_own(name: str) -> None:
    policy, activations = policy_of(model_of(name)), Activations(1000)
    episodes = sampled(policy, activations)
    same(scored(policy.model, episodes, activations), scored(policy.model, episodes, None))
    assert num_forward(policy.model, episodes, None) > 0
    assert num_forward(policy.model, episodes, activations) == 0


@pytest.mark.parametrize("batch_size", [1, 3, 7, 11])
@pytest.mark.parametrize("look_every", [1, 3, 8])
def test_wherever_and_whenever_a_completion_was_written(
    batch_size: int, look_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_batch, "ROOM", 2)  # the cache grows several times
    monkeypatch.setattr(slot_batch, "MAX_PROMPT_TOKENS", 10)  # prompts are computed in several parts
    monkeypatch.setitem(sampling.CHECK_EVERY, "cpu", look_every)  # completions share no rows, and go on
    policy, activations = policy_of(model_of("llama")), Activations(10_000)
    episodes = sampled(policy, activations, batch_size=batch_size)
    assert len({len(completion) for _, completion in episodes}) > 3
    same(scored(policy.model, episodes, activations), scored(policy.model, episodes, None))
    assert num_forward(policy.model, episodes, activations) == 0


def test_some_of_the_episodes_in_another_order() -> None:
    policy, activations = policy_of(model_of("qwen2")), Activations(1000)
    episodes = sampled(policy, activations)
    for some in (episodes[::-2], episodes[4:5], [*episodes[7:], episodes[8]]):
        same(scored(policy.model, some, activations), scored(policy.model, some, None))
        assert num_forward(policy.model, some, activations) == 0


def test_greedy_completions() -> None:
    policy, activations = policy_of(model_of("llama")), Activations(1000)
    episodes = sampled(policy, activations, greedy=True)
    same(scored(policy.model, episodes, activations), scored(policy.model, episodes, None))
    assert num_forward(policy.model, episodes, activations) == 0


def test_tokens_are_computed_as_a_round_number_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_forward, "MIN_PADDED", 1)
    policy, activations = policy_of(model_of("llama")), Activations(1000)
    episodes = sampled(policy, activations)
    assert activations.num_tokens % packed_forward.MULTIPLE == 0
    same(scored(policy.model, episodes, activations), scored(policy.model, episodes, None))
    assert num_forward(policy.model, episodes, activations) == 0


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["gate_proj"], "all-linear"])
def test_with_adapters_what_is_plain_is_kept(targets: Any) -> None:
    policy = policy_of(model_of("llama"))
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(policy.model, config).eval().double()
    policy, activations = policy_of(model), Activations(1000)
    episodes = sampled(policy, activations)
    same(scored(model, episodes, activations), scored(model, episodes, None))


def test_what_was_not_sampled_so_is_computed() -> None:
    policy, activations = policy_of(model_of("llama")), Activations(1000)
    episodes = sampled(policy, activations)
    others = [*episodes, ((1, 2, 5), (1, 1, 1, 1, 1, 12))]
    assert num_forward(policy.model, others, activations) == num_forward(policy.model, others, None)
    same(scored(policy.model, others, activations), scored(policy.model, others, None))
    # at another temperature the products would be the same, but not the scores
    same(scored(policy.model, episodes, activations, 1.3), scored(policy.model, episodes, None, 1.3))
    other = model_of("llama, one key for all")
    same(scored(other, episodes, activations), scored(other, episodes, None))


def test_what_is_too_much_is_not_kept() -> None:
    policy, activations = policy_of(model_of("llama")), Activations(20)
    episodes = sampled(policy, activations)
    assert activations.num_tokens > 20
    assert not activations._products
    assert num_forward(policy.model, episodes, activations) == num_forward(policy.model, episodes, None)
    # the next ones find room again
    activations.max_tokens = 1000
    episodes = sampled(policy, activations)
    assert num_forward(policy.model, episodes, activations) == 0


def test_not_even_within_a_pass_more_is_kept_than_there_is_room_for() -> None:
    model, activations = model_of("llama"), Activations(20)
    activations.begin(model, TEMPERATURE)
    inputs = torch.ones(21, 16, dtype=torch.float64)
    activations.multiply([model.model.layers[0].mlp.up_proj], inputs, None, None)
    assert not activations._products


def test_of_a_layer_that_serves_twice_nothing_is_known() -> None:
    model = model_of("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    activations = Activations(1000)
    episodes = sampled(policy_of(model), activations)
    same(scored(model, episodes, activations), scored(model, episodes, None))


def test_what_was_forgotten_is_computed() -> None:
    policy, activations = policy_of(model_of("llama")), Activations(1000)
    episodes = sampled(policy, activations)
    activations.clear()
    assert num_forward(policy.model, episodes, activations) == num_forward(policy.model, episodes, None)


def test_under_autocast_nothing_is_kept() -> None:
    policy, activations = policy_of(model_of("llama").float()), Activations(1000)
    with torch.autocast("cpu", torch.bfloat16):
        episodes = sampled(policy, activations)
        assert not activations._products
        same(scored(policy.model, episodes, activations), scored(policy.model, episodes, None))
