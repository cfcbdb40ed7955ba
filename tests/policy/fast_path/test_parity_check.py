"""The fast path is used only if it agrees with the model's own forward pass; one notice says so otherwise."""

import functools
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from processes import run_forked
from small_models import SHAPE, model_of
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from llm_reinforce.policy import (
    LanguagePolicy,
    character_tokenizer,
    parity_check,
    policy_from_model,
    sample_completions,
    token_log_probs,
)
from llm_reinforce.policy.fast_path import products
from llm_reinforce.policy.parity_check import fast_model

Patch = Callable[[Any, pytest.MonkeyPatch], None]


def llama(**changes: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return LlamaForCausalLM(LlamaConfig(**SHAPE | changes)).eval()


def own_log_probs(model: Any, prompt: tuple[int, ...], completion: tuple[int, ...]) -> Tensor:
    """Return the log-probabilities of the forward pass of the model itself."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    first, actions = len(prompt) - 1, torch.tensor(completion)[:, None]
    return logits[first:-1].log_softmax(-1).gather(1, actions)[:, 0]


def check_policy(model: Any) -> None:
    """Check that sampling and log-probabilities follow the forward pass of the model itself."""
    policy = LanguagePolicy(model, character_tokenizer("0123456789+="), end_token_ids=(12,), pad_token_id=12)
    prompts = [tuple(number % 11 for number in range(80)), (1, 2, 3)]
    sampled = sample_completions(policy, prompts, max_new_tokens=4)
    found = token_log_probs(model, prompts, [one.token_ids for one in sampled], pad_token_id=12).log_probs
    for row, (prompt, one) in enumerate(zip(prompts, sampled, strict=True)):
        expected = own_log_probs(model, prompt, one.token_ids)
        torch.testing.assert_close(found[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)
        assert one.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


# ------------------------------------------------------------------------- a changed forward pass


def scaled_mlp(model: Any, patch: pytest.MonkeyPatch) -> None:
    forward = modeling_llama.LlamaMLP.forward
    patch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: 1.1 * forward(self, x))


def other_rotation(model: Any, patch: pytest.MonkeyPatch) -> None:
    rotate = modeling_llama.apply_rotary_pos_emb
    patch.setattr(
        modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin, *rest: rotate(q, k, cos, -sin, *rest)
    )


def extra_norm(model: Any, patch: pytest.MonkeyPatch) -> None:
    forward = modeling_llama.LlamaDecoderLayer.forward

    def normed(self: Any, *arguments: Any, **keywords: Any) -> Tensor:
        return self.input_layernorm(forward(self, *arguments, **keywords))

    patch.setattr(modeling_llama.LlamaDecoderLayer, "forward", normed)


def window_of(size: int) -> Patch:
    def with_window(model: Any, patch: pytest.MonkeyPatch) -> None:
        def attention(
            module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **rest: Any
        ) -> tuple[Tensor, None]:
            last = torch.arange(key.shape[2])
            distance = last[-query.shape[2] :, None] - last
            bias = torch.zeros(distance.shape).masked_fill((distance < 0) | (distance >= size), -torch.inf)
            return modeling_llama.eager_attention_forward(module, query, key, value, bias, scaling)

        patch.setitem(modeling_llama.ALL_ATTENTION_FUNCTIONS._global_mapping, f"window {size}", attention)
        model.config._attn_implementation_internal = f"window {size}"

    return with_window


def soft_cap(model: Any, patch: pytest.MonkeyPatch) -> None:
    forward = type(model).forward

    def capped(self: Any, *arguments: Any, **keywords: Any) -> Any:
        output = forward(self, *arguments, **keywords)
        output.logits = 2.0 * torch.tanh(output.logits / 2.0)
        return output

    patch.setattr(type(model), "forward", capped)


def other_scaling(model: Any, patch: pytest.MonkeyPatch) -> None:
    model.model.layers[1].self_attn.scaling *= 1.5


def own_layer(model: Any, patch: pytest.MonkeyPatch) -> None:
    class Halved(type(model.model.layers[0].mlp)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * super().forward(x)

    model.model.layers[0].mlp.__class__ = Halved


def hook_on_the_model(model: Any, patch: pytest.MonkeyPatch) -> None:
    def halve(module: Any, inputs: Any, output: Any) -> None:
        output.logits = 0.5 * output.logits

    model.register_forward_hook(halve)


def forward_of_the_instance(model: Any, patch: pytest.MonkeyPatch) -> None:
    forward = model.forward

    def halved(*arguments: Any, **keywords: Any) -> Any:
        output = forward(*arguments, **keywords)
        output.logits = 0.5 * output.logits
        return output

    model.forward = functools.wraps(forward)(halved)  # the sampler reads the parameters of `forward`


def hook_on_all_modules(model: Any, patch: pytest.MonkeyPatch) -> None:
    def scale(module: nn.Module, inputs: Any, output: Any) -> Any:
        return 1.1 * output if isinstance(module, modeling_llama.LlamaMLP) else None

    handle = nn.modules.module.register_module_forward_hook(scale)
    patch.setattr(model, "handle", handle, raising=False)


PATCHES: dict[str, Patch] = {
    "scaled MLP": scaled_mlp,
    "other rotation": other_rotation,
    "extra norm": extra_norm,
    "attention with a short window": window_of(3),
    "attention with a long window": window_of(60),
    "soft cap": soft_cap,
    "other scaling": other_scaling,
    "a layer of another class": own_layer,
}
SILENT: dict[str, Patch] = {
    "hook on the model": hook_on_the_model,
    "forward of the instance": forward_of_the_instance,
    "hook on all modules": hook_on_all_modules,
}


@pytest.mark.parametrize("name", PATCHES)
@pytest.mark.parametrize("is_loaded_before", [False, True])
def test_changed_forward_pass_is_noticed(
    name: str,
    is_loaded_before: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = llama()
    if is_loaded_before:
        policy_from_model(model, character_tokenizer("0123456789+="))
        assert fast_model(model) is model
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(parity_check, "_is_same", {})
    PATCHES[name](model, monkeypatch)
    if not is_loaded_before:
        policy_from_model(model, character_tokenizer("0123456789+="))
    assert fast_model(model) is None
    check_policy(model)
    message = capsys.readouterr().err
    assert message.count("the fast path gives other log-probabilities") == 1
    assert "LlamaForCausalLM, so it is not used; sampling and training are slower" in message


@pytest.mark.parametrize("name", SILENT)
def test_hooks_and_replaced_methods_are_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    assert fast_model(model) is model
    SILENT[name](model, monkeypatch)
    try:
        assert fast_model(model) is None
        check_policy(model)
    finally:
        if hasattr(model, "handle"):
            model.handle.remove()


def test_layer_that_the_fast_path_cannot_compute_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    model = llama()
    feed_forward = model.model.layers[0].mlp
    feed_forward.up_projection = feed_forward.up_proj
    del feed_forward.up_proj
    feed_forward.__class__ = type(
        "Renamed",
        (nn.Module,),
        {"forward": lambda self, x: self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_projection(x))},
    )
    assert fast_model(model) is None
    assert "the fast path fails (AttributeError" in capsys.readouterr().err
    check_policy(model)


def test_adapter_and_data_type_that_change_after_loading_are_used() -> None:
    model = llama()
    assert fast_model(model) is model
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    check_policy(model.eval())
    check_policy(model.to(torch.float64))


def test_model_with_weights_that_are_not_finite_uses_the_fast_path() -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    assert fast_model(model) is model


# ------------------------------------------------------------------------- other versions of libraries


def refuse(*arguments: Any) -> Tensor:
    raise RuntimeError("unexpected argument\nat some place")


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (refuse, "fails (unexpected argument)"),
        (lambda left, right, *rest: left @ right.t() + 0.01, "gives wrong values"),
        (lambda left, right, *rest: None, "fails"),
        (products._missing, "fails (torch.ops.mkldnn._linear_pointwise does not exist)"),
    ],
    ids=["raises", "wrong values", "no result", "missing"],
)
def test_plain_product_replaces_a_private_one_that_does_not_work(
    function: Any, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(products, "onednn", function)
    monkeypatch.setattr(products, "ONLY_AVX2", False)
    monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(products, "_is_usable", {})
    check_policy(llama(hidden_size=32))
    message = capsys.readouterr().err
    assert message.count("oneDNN's matrix product") == 1
    assert f"oneDNN's matrix product {fault}" in message
    assert "the product of torch is used instead" in message


def test_private_product_that_fails_later_is_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def works_three_times(left: Tensor, right: Tensor, *rest: Any) -> Tensor:
        calls.append(1)
        return left @ right.t() if len(calls) <= 3 else refuse()

    monkeypatch.setattr(products, "_is_usable", {})
    monkeypatch.setattr(products, "onednn", works_three_times)
    monkeypatch.setattr(products, "ONLY_AVX2", False)
    monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 0)
    check_policy(llama(hidden_size=40))
    assert len(calls) == 4
    assert capsys.readouterr().err.count("oneDNN's matrix product fails") == 1


def import_with_other_libraries() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "llm_reinforce"]:
        del sys.modules[name]
    for name in ("llama", "mistral", "qwen2", "qwen3"):
        module = f"transformers.models.{name}.modeling_{name}"
        sys.modules[module] = types.ModuleType(module)  # without any class
    for name in [name for name in vars(transformers) if name.endswith("ForCausalLM") and name[:4] != "Auto"]:
        delattr(transformers, name)
    torch.backends.mkldnn.is_available = lambda: False  # type: ignore[assignment]
    importlib.import_module("llm_reinforce.training")
    assert importlib.import_module("llm_reinforce.policy.fast_path.products").onednn is None
    print("imported")


def test_package_can_be_imported_without_the_classes_of_transformers_and_without_onednn() -> None:
    done = run_forked(import_with_other_libraries, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "imported"


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_models_are_recognized_by_their_family_and_not_by_the_name_of_their_class(family: str) -> None:
    model = model_of(family)
    model.__class__ = type("Renamed", (type(model),), {"__module__": type(model).__module__})
    assert fast_model(model) is model
