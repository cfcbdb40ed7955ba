"""Scoring in the fast way is the plain one: packed prompts, the tree of completions, layer after layer."""

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
    NoWaiting,
    in_plain_ways,
    model_of,
    poisoned,
    policy_of,
    same,
    scored,
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

from llm_reinforce.policy import TokenIds, action_head, sample_completions, token_log_probs
from llm_reinforce.policy.fast_path import completion_tree, packed_forward
from llm_reinforce.policy.fast_path.packed_forward import packable_model


@pytest.mark.parametrize("with_entropies", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_packed_scores_and_gradients_are_the_plain_ones(
    name: str, with_entropies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(name)
    assert packable_model(model) is model
    packed = scored(model, PROMPTS, COMPLETIONS, with_entropies=with_entropies)
    in_plain_ways(monkeypatch)
    plain = scored(model, PROMPTS, COMPLETIONS, with_entropies=with_entropies)
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
    ids=["one action", "no second actions", "one prompt for all", "prompts that begin others"],
)
def test_packed_in_the_corners(
    prompts: list[TokenIds], completions: list[TokenIds], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    packed = scored(model, prompts, completions, with_entropies=True)
    in_plain_ways(monkeypatch)
    same(packed, scored(model, prompts, completions, with_entropies=True))


def test_what_a_rotary_embedding_keeps_stays_as_it_is() -> None:
    class Keeping(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.kept = inner, {}

        def forward(self, inputs: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
            key = tuple(positions.flatten().tolist())
            return self.kept.setdefault(key, self.inner(inputs, positions))

    model = model_of("llama")
    model.model.rotary_emb = Keeping(model.model.rotary_emb)
    first, second = (scored(model, PROMPTS, COMPLETIONS, with_entropies=True) for _ in range(2))
    assert model.model.rotary_emb.kept
    same(first, second)


# several completions a prompt, out of order, of one action and of many
GROUPED = [((1, 2, 3), (4, 6, 12)), ((5,), (7, 12)), ((1, 2, 3), (12,)), ((1, 2, 3), (1, 2, 3, 4, 5))]
GROUPED += [((5,), (6, 6, 12)), ((1, 2, 3), (4, 7, 12)), ((5,), (8, 12)), ((1, 2, 3), (9, 9, 9, 12))]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("bundled", [0, 5, 8, 1000])
def test_completions_that_attend_together_do_not_see_each_other(
    bundled: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(name)
    prompts, completions = map(list, zip(*GROUPED, strict=True))
    monkeypatch.setattr(completion_tree, "BUNDLE_SIZE", bundled)
    numbers = [1 - len(prompt) // 2 for prompt in prompts]
    tree = completion_tree.pack_completions(completions, numbers, [3, 1], torch.device("cpu"))
    assert tree.bundles is not None
    assert len(tree.bundles.slots) == {0: 4, 5: 4, 8: 3, 1000: 2}[bundled]
    packed = scored(model, prompts, completions, with_entropies=True)
    in_plain_ways(monkeypatch)
    same(packed, scored(model, prompts, completions, with_entropies=True))


@given(
    groups=st.lists(
        st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), min_size=1, max_size=6),
        min_size=1,
        max_size=3,
    ),
    bundled=st.integers(0, 12),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_completions_that_begin_alike_are_a_tree_and_each_is_scored_as_if_alone(
    groups: list[list[TokenIds]], bundled: int, data: st.DataObject
) -> None:
    model, starts = model_of("llama"), [(1, 2, 3), (5,), (1, 2)]
    episodes = [(starts[number], one) for number, group in enumerate(groups) for one in group]
    prompts, completions = map(list, zip(*data.draw(st.permutations(episodes)), strict=True))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(completion_tree, "BUNDLE_SIZE", bundled)
        packed = scored(model, prompts, completions, with_entropies=True)
        in_plain_ways(patched)
        same(packed, scored(model, prompts, completions, with_entropies=True))


@pytest.mark.parametrize("rounded", [1, 256])
def test_tokens_that_make_the_number_round_change_nothing(
    rounded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    computed: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda *seen: computed.append(seen[1][0].numel()))
    monkeypatch.setattr(packed_forward, "_is_hooked", lambda module: False)
    monkeypatch.setattr(packed_forward, "MIN_PADDED", rounded)
    walked = scored(model, PROMPTS, COMPLETIONS, with_entropies=True)
    assert computed == [{1: 32, 256: 19}[rounded]]
    in_plain_ways(monkeypatch)
    same(walked, scored(model, PROMPTS, COMPLETIONS, with_entropies=True))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_episode_that_repeats_is_computed_once(name: str) -> None:
    models = {"llama": lambda: model_of("llama"), "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)).eval()}
    model = models[name]().double()
    prompts: list[TokenIds] = [(1, 2), (3,), (1, 2), (1, 2), (3,), (3,)]
    completions: list[TokenIds] = [(4, 12), (4, 12), (4, 12), (12,), (5, 6, 12), (4, 12)]
    width, weights = 3, torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(6, 3)

    def of(rows: list[int]) -> tuple[Tensor, list[Tensor]]:
        """Their log-probabilities, and the gradient of them weighted."""
        model.zero_grad()
        scores = token_log_probs(
            model, [prompts[row] for row in rows], [completions[row] for row in rows], pad_token_id=12
        )
        lengths = torch.tensor([len(completions[row]) for row in rows])
        mask = torch.arange(scores.log_probs.shape[1]) < lengths[:, None]
        log_probs = torch.zeros(len(rows), width, dtype=torch.float64)
        log_probs[:, : mask.shape[1]] = scores.log_probs.masked_fill(~mask, 0.0)
        (log_probs * weights[rows]).sum().backward()
        return log_probs.detach(), [each.grad.clone() for each in model.parameters()]

    together = of([*range(6)])
    alone = [of([row]) for row in range(6)]
    same(together[0], torch.cat([log_probs for log_probs, _ in alone]))
    for number, gradient in enumerate(together[1]):
        same(gradient, sum(gradients[number] for _, gradients in alone))


def test_an_adapter_s_gradient_is_the_plain_one_and_the_rest_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(model_of("llama"), settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at birth, when the adapter does nothing
            torch.nn.init.normal_(parameter, std=0.5)
    model = model.double().eval()
    assert packable_model(model) is model.get_base_model()
    packed = scored(model, PROMPTS, COMPLETIONS, with_entropies=True)
    in_plain_ways(monkeypatch)
    plain = scored(model, PROMPTS, COMPLETIONS, with_entropies=True)
    assert packed[2].keys() == plain[2].keys()
    assert all("lora" in name for name in packed[2])
    same(packed, plain)


def test_under_autocast_the_fast_path_computes_in_half_precision_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama").float()

    def scores() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return token_log_probs(model, PROMPTS[:1], COMPLETIONS[:1], pad_token_id=12).log_probs.detach()

    fast, exact = scores(), token_log_probs(model, PROMPTS[:1], COMPLETIONS[:1], pad_token_id=12).log_probs
    in_plain_ways(monkeypatch)
    plain = scores()
    assert fast.dtype == torch.float32
    assert 0 < (plain - exact).abs().max() < 0.5
    assert 0 < (fast - exact).abs().max() < 0.5


@pytest.mark.parametrize("most", [40, 1 << 23])
def test_a_gradient_is_computed_without_waiting(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(action_head, "MAX_LOGITS", most)  # logits in several parts
    model = model_of("llama")
    with NoWaiting():
        scores = token_log_probs(model, PROMPTS, COMPLETIONS, pad_token_id=12, with_entropies=True)
        assert scores.entropies is not None
        (scores.log_probs + scores.entropies).sum().backward()


@pytest.mark.parametrize(
    "prompts",
    [
        [(8, 1, 2), (1, 2), (3,), (4, 4, 4, 4)],
        [(2, 8, 3), (2, 3, 4), (2, 4), (2, 1, 1, 1)],  # all begin alike
    ],
)
def test_what_is_not_finite_in_one_prompt_spoils_no_other_score(prompts: list[TokenIds]) -> None:
    scores = token_log_probs(
        poisoned(model_of("llama")),
        prompts,
        [(1, 2, 12), (1, 12), (12,), (5, 5, 5)],
        pad_token_id=12,
    )
    lengths = torch.tensor([3, 2, 1, 3])
    is_action = torch.arange(3) < lengths[:, None]
    assert scores.log_probs.isnan().logical_and(is_action).any(dim=1).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("why", "model"),
    [
        ("a window", lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4))),
        ("another architecture", lambda: GPT2LMHeadModel(GPT2Config(**GPT2))),
        ("a wrapper", lambda: torch.nn.Sequential(model_of("llama"))),
    ],
)
def test_other_models_go_the_general_way(why: str, model: Callable[[], torch.nn.Module]) -> None:
    assert packable_model(model()) is None


@pytest.mark.parametrize("place", ["model.layers.1", "model.layers.0.self_attn", "lm_head"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_full_backward_hook"])
def test_models_into_which_something_is_hooked_go_the_general_way(place: str, kind: str) -> None:
    model, calls = model_of("llama"), []
    handle = getattr(model.get_submodule(place), kind)(lambda *arguments: calls.append(1))
    assert packable_model(model) is None
    scored(model, PROMPTS, COMPLETIONS, with_entropies=False)
    assert calls
    handle.remove()
    assert packable_model(model) is model


def test_positions_that_depend_on_the_company_go_the_general_way() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500.0}
    assert packable_model(LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope))) is None


def test_checkpointed_and_spread_models_go_the_general_way() -> None:
    model = model_of("llama")
    assert packable_model(model) is model
    model.gradient_checkpointing_enable()
    assert packable_model(model) is None
    model = model_of("llama")
    model.hf_device_map = {"": 0}
    assert packable_model(model) is None


def test_a_sliding_window_is_respected_by_the_general_way() -> None:
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=2)).eval()
    policy = replace(policy_of(model), end_token_ids=(99,))
    (completion,) = sample_completions(policy, [(1, 2, 3, 4, 5)], max_new_tokens=6, greedy=True)
    token_ids = [1, 2, 3, 4, 5]
    for action in completion.token_ids:
        with torch.no_grad():
            assert int(model(torch.tensor([token_ids]), use_cache=False).logits[0, -1].argmax()) == action
        token_ids.append(action)
