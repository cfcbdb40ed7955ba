"""Tests that log-probabilities and gradients of the packed path equal those of the plain path."""

from collections.abc import Callable
from dataclasses import replace

import hypothesis.strategies as st
import peft
import pytest
import torch
from hypothesis import given, settings
from small_models import (
    COMPLETIONS,
    GPT2,
    MODELS,
    PROMPTS,
    SHAPE,
    NoSynchronization,
    log_probs_and_gradient,
    model_of,
    policy_of,
    same,
    use_plain_path,
    with_nan_token,
)
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from llm_reinforce.policy import TokenIds, sample_completions, token_log_probs
from llm_reinforce.policy.fast_path import chunked_head, completion_tree, packed_forward
from llm_reinforce.policy.fast_path.packed_forward import packable_model
from llm_reinforce.policy.parity_check import fast_model


@pytest.mark.parametrize(("name", "with_entropies"), [("llama", False), *((name, True) for name in MODELS)])
def test_packed_log_probs_and_gradients_equal_the_plain_ones(
    name: str, with_entropies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(name)
    assert packable_model(model) is model
    packed = log_probs_and_gradient(model, PROMPTS, COMPLETIONS, with_entropies=with_entropies)
    use_plain_path(monkeypatch)
    plain = log_probs_and_gradient(model, PROMPTS, COMPLETIONS, with_entropies=with_entropies)
    assert plain[2].keys() == packed[2].keys() == dict(model.named_parameters()).keys()
    same(packed, plain)


@pytest.mark.parametrize(
    ("prompts", "completions"),
    [
        ([(1,)], [(12,)]),
        ([(1,), (2, 3)], [(12,), (5,)]),
        ([(4, 4, 4)] * 3, [(12,), (1, 1, 1, 1), (2, 12)]),
        ([(4, 4), (4, 4, 4), (4, 4, 4, 4)], [(1, 2), (2, 12), (1, 12)]),
    ],
    ids=["one action", "no second actions", "one prompt for all", "prompts that are prefixes of others"],
)
def test_packed_log_probs_of_special_cases_equal_the_plain_ones(
    prompts: list[TokenIds], completions: list[TokenIds], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    packed = log_probs_and_gradient(model, prompts, completions, with_entropies=True)
    use_plain_path(monkeypatch)
    same(packed, log_probs_and_gradient(model, prompts, completions, with_entropies=True))


def test_tensors_cached_by_a_rotary_embedding_are_not_changed() -> None:
    class Caching(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.cache = inner, {}

        def forward(self, inputs: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
            key = tuple(position_ids.flatten().tolist())
            return self.cache.setdefault(key, self.inner(inputs, position_ids))

    model = model_of("llama")
    model.model.rotary_emb = Caching(model.model.rotary_emb)
    first, second = (
        log_probs_and_gradient(model, PROMPTS, COMPLETIONS, with_entropies=True) for _ in range(2)
    )
    assert model.model.rotary_emb.cache
    same(first, second)


# several completions per prompt, in mixed order, with one or several actions
GROUPED = [((1, 2, 3), (4, 6, 12)), ((5,), (7, 12)), ((1, 2, 3), (12,)), ((1, 2, 3), (1, 2, 3, 4, 5))]
GROUPED += [((5,), (6, 6, 12)), ((1, 2, 3), (4, 7, 12)), ((5,), (8, 12)), ((1, 2, 3), (9, 9, 9, 12))]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("bundle_size", [0, 5, 8, 1000])
def test_completions_in_a_bundle_do_not_attend_to_each_other(
    bundle_size: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(name)
    prompts, completions = map(list, zip(*GROUPED, strict=True))
    monkeypatch.setattr(completion_tree, "BUNDLE_SIZE", bundle_size)
    numbers = [1 - len(prompt) // 2 for prompt in prompts]
    tree = completion_tree.pack_completions(completions, numbers, [3, 1], torch.device("cpu"))
    assert tree.bundles is not None
    assert len(tree.bundles.slots) == {0: 4, 5: 4, 8: 3, 1000: 2}[bundle_size]
    packed = log_probs_and_gradient(model, prompts, completions, with_entropies=True)
    use_plain_path(monkeypatch)
    same(packed, log_probs_and_gradient(model, prompts, completions, with_entropies=True))


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """Return a model for all examples of a test."""
    return model_of("llama")


@given(
    groups=st.lists(
        st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), min_size=1, max_size=6),
        min_size=1,
        max_size=3,
    ),
    bundle_size=st.integers(0, 12),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_log_probs_of_completions_with_shared_prefixes_equal_the_plain_ones(
    llama: LlamaForCausalLM, groups: list[list[TokenIds]], bundle_size: int, data: st.DataObject
) -> None:
    starts = [(1, 2, 3), (5,), (1, 2)]
    episodes = [(starts[number], one) for number, group in enumerate(groups) for one in group]
    prompts, completions = map(list, zip(*data.draw(st.permutations(episodes)), strict=True))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(completion_tree, "BUNDLE_SIZE", bundle_size)
        packed = log_probs_and_gradient(llama, prompts, completions, with_entropies=True)
        use_plain_path(patched)
        same(packed, log_probs_and_gradient(llama, prompts, completions, with_entropies=True))


@pytest.mark.parametrize("min_padded", [1, 256])
def test_padding_to_a_multiple_does_not_change_the_results(
    min_padded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    computed: list[int] = []
    assert fast_model(model) is model
    model.model.embed_tokens.register_forward_hook(lambda *seen: computed.append(seen[1][0].numel()))
    monkeypatch.setattr(packed_forward, "_is_hooked", lambda module: False)
    monkeypatch.setattr(packed_forward, "MIN_PADDED", min_padded)
    packed = log_probs_and_gradient(model, PROMPTS, COMPLETIONS, with_entropies=True)
    assert computed == [{1: 32, 256: 19}[min_padded]]
    use_plain_path(monkeypatch)
    same(packed, log_probs_and_gradient(model, PROMPTS, COMPLETIONS, with_entropies=True))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_repeated_episodes_have_the_gradient_of_single_ones(name: str) -> None:
    models = {"llama": lambda: model_of("llama"), "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)).eval()}
    model = models[name]().double()
    prompts: list[TokenIds] = [(1, 2), (3,), (1, 2), (1, 2), (3,), (3,)]
    completions: list[TokenIds] = [(4, 12), (4, 12), (4, 12), (12,), (5, 6, 12), (4, 12)]
    width, weights = 3, torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(6, 3)

    def results_of(rows: list[int]) -> tuple[Tensor, list[Tensor]]:
        """Return the log-probabilities of these rows, and the gradient of their weighted sum."""
        model.zero_grad()
        found = token_log_probs(
            model, [prompts[row] for row in rows], [completions[row] for row in rows], pad_token_id=12
        )
        lengths = torch.tensor([len(completions[row]) for row in rows])
        mask = torch.arange(found.log_probs.shape[1]) < lengths[:, None]
        log_probs = torch.zeros(len(rows), width, dtype=torch.float64)
        log_probs[:, : mask.shape[1]] = found.log_probs.masked_fill(~mask, 0.0)
        (log_probs * weights[rows]).sum().backward()
        return log_probs.detach(), [each.grad.clone() for each in model.parameters()]

    together = results_of([*range(6)])
    alone = [results_of([row]) for row in range(6)]
    same(together[0], torch.cat([log_probs for log_probs, _ in alone]))
    for number, gradient in enumerate(together[1]):
        same(gradient, sum(gradients[number] for _, gradients in alone))


def test_gradient_of_an_adapter_equals_the_plain_one_and_the_base_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(model_of("llama"), settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # initialized with zeros, so that the adapter has no effect
            torch.nn.init.normal_(parameter, std=0.5)
    model = model.double().eval()
    assert packable_model(model) is model.get_base_model()
    packed = log_probs_and_gradient(model, PROMPTS, COMPLETIONS, with_entropies=True)
    use_plain_path(monkeypatch)
    plain = log_probs_and_gradient(model, PROMPTS, COMPLETIONS, with_entropies=True)
    assert packed[2].keys() == plain[2].keys()
    assert all("lora" in name for name in packed[2])
    same(packed, plain)


def test_packed_path_computes_in_half_precision_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama").float()

    def autocast_log_probs() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return token_log_probs(model, PROMPTS[:1], COMPLETIONS[:1], pad_token_id=12).log_probs.detach()

    fast, exact = (
        autocast_log_probs(),
        token_log_probs(model, PROMPTS[:1], COMPLETIONS[:1], pad_token_id=12).log_probs,
    )
    use_plain_path(monkeypatch)
    plain = autocast_log_probs()
    assert fast.dtype == torch.float32
    assert 0 < (plain - exact).abs().max() < 0.5
    assert 0 < (fast - exact).abs().max() < 0.5


@pytest.mark.parametrize("max_logits", [40, 1 << 23])
def test_gradient_is_computed_without_synchronization(
    max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_head, "MAX_LOGITS", max_logits)  # logits in several parts
    model = model_of("llama")
    assert fast_model(model) is model
    with NoSynchronization():
        found = token_log_probs(model, PROMPTS, COMPLETIONS, pad_token_id=12, with_entropies=True)
        assert found.entropies is not None
        (found.log_probs + found.entropies).sum().backward()


@pytest.mark.parametrize(
    "prompts",
    [
        [(8, 1, 2), (1, 2), (3,), (4, 4, 4, 4)],
        [(2, 8, 3), (2, 3, 4), (2, 4), (2, 1, 1, 1)],  # all have a common prefix
    ],
)
def test_values_that_are_not_finite_do_not_spread_to_other_prompts(prompts: list[TokenIds]) -> None:
    found = token_log_probs(
        with_nan_token(model_of("llama")),
        prompts,
        [(1, 2, 12), (1, 12), (12,), (5, 5, 5)],
        pad_token_id=12,
    )
    lengths = torch.tensor([3, 2, 1, 3])
    is_action = torch.arange(3) < lengths[:, None]
    assert found.log_probs.isnan().logical_and(is_action).any(dim=1).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("sliding window", lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4))),
        ("another architecture", lambda: GPT2LMHeadModel(GPT2Config(**GPT2))),
        ("a wrapper", lambda: torch.nn.Sequential(model_of("llama"))),
    ],
)
def test_other_models_use_the_plain_path(kind: str, model: Callable[[], torch.nn.Module]) -> None:
    assert packable_model(model()) is None


@pytest.mark.parametrize("place", ["model.layers.1", "model.layers.0.self_attn", "lm_head"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_full_backward_hook"])
def test_models_with_hooks_use_the_plain_path(place: str, kind: str) -> None:
    model, calls = model_of("llama"), []
    handle = getattr(model.get_submodule(place), kind)(lambda *arguments: calls.append(1))
    assert packable_model(model) is None
    log_probs_and_gradient(model, PROMPTS, COMPLETIONS, with_entropies=False)
    assert calls
    handle.remove()
    assert packable_model(model) is model


def test_models_with_dynamic_positions_use_the_plain_path() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500.0}
    assert packable_model(LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope))) is None


def test_checkpointed_and_distributed_models_use_the_plain_path() -> None:
    model = model_of("llama")
    assert packable_model(model) is model
    model.gradient_checkpointing_enable()
    assert packable_model(model) is None
    model = model_of("llama")
    model.hf_device_map = {"": "cpu"}
    assert packable_model(model) is model
    model.hf_device_map = {"model": "cpu", "lm_head": 0}
    assert packable_model(model) is None


def test_plain_path_supports_sliding_windows() -> None:
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=2)).eval()
    policy = replace(policy_of(model), end_token_ids=(99,))
    (completion,) = sample_completions(policy, [(1, 2, 3, 4, 5)], max_new_tokens=6, greedy=True)
    token_ids = [1, 2, 3, 4, 5]
    for action in completion.token_ids:
        with torch.no_grad():
            assert int(model(torch.tensor([token_ids]), use_cache=False).logits[0, -1].argmax()) == action
        token_ids.append(action)
