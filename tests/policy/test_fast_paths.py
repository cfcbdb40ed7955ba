"""Every fast path is the plain one: the walk through Llama-like models, packed tokens, the cache in slots."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import peft
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llm_reinforce.policy import (
    Completion,
    LanguagePolicy,
    TokenIds,
    action_head,
    batches,
    character_tokenizer,
    completion_tree,
    decoder,
    sample_completions,
    sampling,
    scoring,
    stream_completions,
    token_log_probs,
)
from llm_reinforce.policy.decoder import llama_like

SHAPE: dict[str, Any] = {
    "vocab_size": 13,
    "bos_token_id": None,
    "eos_token_id": 12,
    "pad_token_id": None,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama, a key for each head": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE | {"num_key_value_heads": 4})),
    "llama, one key for all": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE | {"num_key_value_heads": 1})),
    "llama, biases": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "llama, scaled positions": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0})
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
}
GPT2 = {"n_embd": 8, "n_layer": 1, "n_head": 1}
PROMPTS: list[TokenIds] = [(1, 2, 3, 4), (1, 2, 5), (1, 2, 3, 4), (1, 2, 9, 9, 9, 9), (1, 2, 5), (1, 2, 5)]
COMPLETIONS: list[TokenIds] = [(4, 6, 12), (7, 12), (4, 12), (1, 2, 3, 4), (12,), (5, 5, 5, 5, 5)]


def model_of(name: str) -> Any:
    """In float64 throughout, with biases that are not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = MODELS[name]().eval().double()
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.5)
    # transformers' RMSNorm rounds to float32 whatever its input is; torch's computes the same in float64
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = torch.nn.RMSNorm(child.weight.shape, child.variance_epsilon, dtype=torch.float64)
                setattr(parent, child_name, norm)
    return model


def policy_of(model: torch.nn.Module) -> LanguagePolicy:
    return LanguagePolicy(
        model, character_tokenizer("0123456789+="), end_token_ids=(12, 3, 7), pad_token_id=12
    )


def in_plain_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no model is walked through, and nothing is shared."""
    for module in (scoring, sampling):
        monkeypatch.setattr(module, "llama_like", lambda model: None)
    monkeypatch.setattr(scoring, "keeps_keys_and_values", lambda model: False)


def scored(
    model: Any, prompts: list[TokenIds], completions: list[TokenIds], *, with_entropies: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probabilities and entropies, and the gradient of a mixture of them."""
    model.zero_grad()
    scores = token_log_probs(
        model, prompts, completions, pad_token_id=12, temperature=0.7, with_entropies=with_entropies
    )
    lengths = torch.tensor([len(completion) for completion in completions])
    mask = torch.arange(scores.log_probs.shape[1]) < lengths[:, None]
    entropies = torch.zeros_like(scores.log_probs) if scores.entropies is None else scores.entropies
    values = (scores.log_probs.masked_fill(~mask, 0.0), entropies.masked_fill(~mask, 0.0))
    weights = torch.linspace(-1, 1, mask.numel(), dtype=torch.float64).reshape(mask.shape)
    (weights * values[0] + weights.flip(0) * values[1]).sum().backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return values[0].detach(), values[1].detach(), gradients


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("with_entropies", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_packed_scores_and_gradients_are_the_plain_ones(
    name: str, with_entropies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(name)
    assert llama_like(model) is model
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
    monkeypatch.setattr(completion_tree, "BUNDLED", bundled)
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
        patched.setattr(completion_tree, "BUNDLED", bundled)
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
    monkeypatch.setattr(decoder, "_is_hooked", lambda module: False)
    monkeypatch.setattr(decoder, "ROUNDED", rounded)
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
    assert llama_like(model) is model.get_base_model()
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


@pytest.mark.parametrize("name", MODELS)
def test_greedy_from_slots_is_greedy_from_the_model_s_own_cache(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(model_of(name))
    fast = sample_completions(policy, PROMPTS, max_new_tokens=9, greedy=True)
    in_plain_ways(monkeypatch)
    plain = sample_completions(policy, PROMPTS, max_new_tokens=9, greedy=True)
    check_same(fast, plain)


def check_same(fast: list[Completion], plain: list[Completion]) -> None:
    for one, other in zip(fast, plain, strict=True):
        assert (one.token_ids, one.terminated, one.text) == (other.token_ids, other.terminated, other.text)
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-10)
        assert one.entropies == pytest.approx(other.entropies, abs=1e-10)
        assert one.squared_score_norms == pytest.approx(other.squared_score_norms, abs=1e-10)


@pytest.mark.parametrize(
    ("batch_size", "is_fast", "look_every"),
    [(1, True, 1), (3, True, 1), (8, True, 8), (11, True, 3), (1000, True, 8), (8, False, 1), (11, False, 8)],
)
def test_what_is_sampled_does_not_depend_on_the_batch_nor_on_when_one_looks(
    batch_size: int, is_fast: bool, look_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, prompts = policy_of(model_of("llama")), [*PROMPTS, (9,), (8, 8, 8, 8, 8, 8, 8)] * 3
    monkeypatch.setattr(batches, "ROOM", 2)  # the cache grows several times
    monkeypatch.setattr(batches, "MAX_PROMPT_TOKENS", 10)  # prompts are computed in several parts

    def sampled(size: int | None) -> list[Completion]:
        return sample_completions(
            policy,
            prompts,
            num_completions=3,
            max_new_tokens=9,
            temperature=1.2,
            generator=torch.Generator().manual_seed(5),
            batch_size=size,
        )

    whole = sampled(None)
    assert len({len(completion.token_ids) for completion in whole}) == 9  # they end at all times
    if not is_fast:
        in_plain_ways(monkeypatch)
    monkeypatch.setattr(sampling, "LOOK_EVERY", {"cpu": look_every})
    check_same(sampled(batch_size), whole)


def test_new_prompts_take_the_places_of_what_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(model_of("llama"))
    filled: list[int] = []
    plain = batches.SlotBatch.fill

    def watched(batch: Any, rows: Tensor, prompts: list[TokenIds], of_prompt: Tensor) -> Tensor:
        filled.append(len(rows))
        return plain(batch, rows, prompts, of_prompt)

    monkeypatch.setattr(batches.SlotBatch, "fill", watched)
    steps: list[int] = []
    step = batches.SlotBatch.step

    def counted(batch: Any, actions: Tensor, *rest: Any) -> Tensor:
        steps.append(len(actions))
        return step(batch, actions, *rest)

    monkeypatch.setattr(batches.SlotBatch, "step", counted)
    prompts = [(number % 12,) for number in range(64)]
    numbers = torch.rand((64, 1, 40), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    arrived = list(
        stream_completions(policy, prompts, max_new_tokens=40, uniforms=lambda n: numbers[n], batch_size=8)
    )
    assert sorted(prompt for prompt, _ in arrived) == list(range(64))
    assert [prompt for prompt, _ in arrived] != list(range(64))  # as they end
    assert sum(filled) == 64
    assert filled[0] == 8
    assert max(filled[1:]) < 8  # never waits for all of a batch
    assert min(filled[:-1]) >= 2  # nor refills for a single one
    written = sum(len(completion.token_ids) for _, (completion,) in arrived)
    assert sum(steps) < 1.5 * written  # most rows of a step are of use


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 0.4, 1.0, 3.0])
def test_completions_share_a_row_until_their_actions_differ(
    temperature: float, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(model_of("llama"))
    if not is_fast:
        in_plain_ways(monkeypatch)
    kind: Any = batches.SlotBatch if is_fast else batches.WholeBatch
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
    monkeypatch.setattr(sampling, "LOOK_EVERY", {"cpu": 8})
    alone, many = sampled()
    check_same(shared, alone)
    beginnings = {
        (PROMPTS[number // 8], one.token_ids[:num])
        for number, one in enumerate(shared)
        for num in range(1, len(one.token_ids))
    }
    assert len(beginnings) <= sum(few) < sum(many)
    if temperature == 0.05:  # hardly any of a group differ
        assert sum(few) < sum(many) / 4


class _NoWaiting(TorchDispatchMode):
    """Fails where the CPU would have to wait for what a GPU has computed."""

    waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in func.name() for name in self.waits), func.name()
        if "index" in func.name():
            indices = [one for each in args[1:2] for one in (each if isinstance(each, list) else [])]
            assert all(one is None or one.dtype == torch.long for one in indices), "by a mask: counted first"
        return func(*args, **kwargs or {})


def test_between_two_looks_nobody_waits_for_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(model_of("llama"))
    monkeypatch.setattr(sampling, "LOOK_EVERY", {"cpu": 8})
    writing = sampling._Writing(policy, batches.SlotBatch(policy.model, 12, 9), 12, 9)
    numbers = torch.rand((6, 2, 9), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    writing.begin(deque(range(6)), PROMPTS, 2, lambda prompt: numbers[prompt])

    def read(tensor: Tensor) -> Any:
        raise AssertionError("read")

    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "tolist", read)
        with _NoWaiting():
            for _ in range(7):
                writing.act(0.7)
                assert list(writing.take_ended()) == []
                writing.advance(may_shrink=True)
    writing.act(0.7)
    assert len(list(writing.take_ended())) > 6


@pytest.mark.parametrize("most", [40, 1 << 23])
def test_a_gradient_is_computed_without_waiting(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(action_head, "MAX_LOGITS", most)  # logits in several parts
    model = model_of("llama")
    with _NoWaiting():
        scores = token_log_probs(model, PROMPTS, COMPLETIONS, pad_token_id=12, with_entropies=True)
        assert scores.entropies is not None
        (scores.log_probs + scores.entropies).sum().backward()


def test_the_uniforms_of_a_prompt_are_asked_for_in_the_prompts_order() -> None:
    policy, asked = policy_of(model_of("llama")), []

    def uniforms(prompt: int) -> Tensor:
        asked.append(prompt)
        return torch.full((2, 4), 0.5, dtype=torch.float64)

    list(
        stream_completions(
            policy, PROMPTS, num_completions=2, max_new_tokens=4, uniforms=uniforms, batch_size=4
        )
    )
    assert asked == list(range(6))


def test_nothing_is_kept_for_a_gradient_and_the_caller_s_gradients_stay_on() -> None:
    policy = policy_of(model_of("llama"))
    writing = sampling._Writing(policy, batches.SlotBatch(policy.model, 6, 3), 6, 3)
    writing.begin(deque(range(6)), PROMPTS, 1, None)
    writing.act(1.0)
    writing.advance(may_shrink=True)
    assert torch.is_grad_enabled()
    kept = [writing.logits, writing.log_probs, *writing.batch.keys, *writing.batch.values]
    assert all(tensor.grad_fn is None for tensor in kept)


def test_no_prompts_no_completions() -> None:
    assert sample_completions(policy_of(model_of("llama")), [], max_new_tokens=3) == []


@pytest.mark.parametrize(
    ("why", "model"),
    [
        ("a window", lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4))),
        ("another architecture", lambda: GPT2LMHeadModel(GPT2Config(**GPT2))),
        ("a wrapper", lambda: torch.nn.Sequential(model_of("llama"))),
    ],
)
def test_other_models_go_the_general_way(why: str, model: Callable[[], torch.nn.Module]) -> None:
    assert llama_like(model()) is None


@pytest.mark.parametrize("place", ["model.layers.1", "model.layers.0.self_attn", "lm_head"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_full_backward_hook"])
def test_models_into_which_something_is_hooked_go_the_general_way(place: str, kind: str) -> None:
    model, calls = model_of("llama"), []
    handle = getattr(model.get_submodule(place), kind)(lambda *arguments: calls.append(1))
    assert llama_like(model) is None
    scored(model, PROMPTS, COMPLETIONS, with_entropies=False)
    assert calls
    handle.remove()
    assert llama_like(model) is model


def test_positions_that_depend_on_the_company_go_the_general_way() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500.0}
    assert llama_like(LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope))) is None


def poisoned(model: Any) -> Any:
    """The token 8 makes everything NaN that can look at it."""
    with torch.no_grad():
        model.model.embed_tokens.weight[8] = torch.nan
    return model


@pytest.mark.parametrize("beginning", [(), (2, 3)])
@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_what_is_not_finite_in_one_prompt_stays_there(batch_size: int | None, beginning: TokenIds) -> None:
    policy = replace(policy_of(poisoned(model_of("llama"))), end_token_ids=(12,))
    prompts: list[TokenIds] = [(*beginning, *rest) for rest in [(8, 1, 2), (1, 2), (3,), (4, 4, 4, 4)]]
    numbers = torch.rand((4, 1, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    numbers[:, :, 0] = torch.tensor([0.5, 0.3, 0.4, 0.2])[:, None]
    stream = stream_completions(
        policy, prompts, max_new_tokens=3, uniforms=lambda n: numbers[n], batch_size=batch_size
    )
    for prompt, (completion,) in stream:
        if 8 not in completion.token_ids:
            assert any(map(math.isnan, completion.log_probs)) == (prompt == 0)


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


def test_checkpointed_and_spread_models_go_the_general_way() -> None:
    model = model_of("llama")
    assert llama_like(model) is model
    model.gradient_checkpointing_enable()
    assert llama_like(model) is None
    model = model_of("llama")
    model.hf_device_map = {"": 0}
    assert llama_like(model) is None


def test_a_sliding_window_is_respected_by_the_general_way() -> None:
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=2)).eval()
    policy = replace(policy_of(model), end_token_ids=(99,))
    (completion,) = sample_completions(policy, [(1, 2, 3, 4, 5)], max_new_tokens=6, greedy=True)
    token_ids = [1, 2, 3, 4, 5]
    for action in completion.token_ids:
        with torch.no_grad():
            assert int(model(torch.tensor([token_ids]), use_cache=False).logits[0, -1].argmax()) == action
        token_ids.append(action)
