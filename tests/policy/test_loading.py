"""Tests of loading and saving policies, and of the error messages if loading or saving fails."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Quantization
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from llm_reinforce.config import AdapterConfig, PolicyConfig, RandomInitConfig
from llm_reinforce.errors import InputError
from llm_reinforce.policy import (
    LanguagePolicy,
    character_tokenizer,
    convert_gguf,
    load_policy,
    policy_from_config,
    policy_from_model,
    random_policy,
    sample_completions,
    token_log_probs,
)

ALPHABET = "0123456789+="
SHAPE = RandomInitConfig(
    alphabet=ALPHABET, num_layers=1, num_heads=2, hidden_size=8, intermediate_size=12, max_length=32
)
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' %}S{{ message.content }}."
    "{% else %}U{{ message.content }}.{% endif %}{% endfor %}{% if add_generation_prompt %}A{% endif %}"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny policy, which tests must not change."""
    directory = tmp_path_factory.mktemp("saved") / "model"
    random_policy(SHAPE, seed=1).save(directory)
    return directory


@pytest.fixture
def model_copy(saved: Path, tmp_path: Path) -> Path:
    """Copy of the saved policy, which tests may change."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def weights(policy: LanguagePolicy) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in policy.model.named_parameters()}


def same(left: LanguagePolicy, right: LanguagePolicy) -> bool:
    a, b = weights(left), weights(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def log_probs(policy: LanguagePolicy) -> torch.Tensor:
    end = policy.end_token_ids[0]
    with torch.no_grad():
        return token_log_probs(
            policy.model, [(1, 2), (3,)], [(4, 5, end), (6, end)], pad_token_id=policy.pad_token_id
        ).log_probs


def logits(policy: LanguagePolicy) -> torch.Tensor:
    with torch.no_grad():
        return policy.model(input_ids=torch.tensor([[1, 2, 3, 4]])).logits  # type: ignore[no-any-return]


# ----------------------------------------------------------------------------------- random weights


def test_weights_depend_only_on_the_seed_and_the_global_generator_is_unchanged() -> None:
    before = torch.random.get_rng_state()
    first, repeated, other = (random_policy(SHAPE, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(first, repeated)
    assert not same(first, other)
    torch.manual_seed(5)
    assert same(first, random_policy(SHAPE, seed=1))


def test_random_policy_has_a_token_per_character_and_an_end_token() -> None:
    policy = random_policy(SHAPE)
    assert policy.end_token_ids == (len(ALPHABET),)
    assert policy.pad_token_id == len(ALPHABET)
    assert not policy.model.training
    assert policy.model.get_input_embeddings().padding_idx is None  # type: ignore[operator]
    assert policy.encode_completion("12") == (1, 2, len(ALPHABET))
    assert policy.decode((1, 2, len(ALPHABET))) == "12"


def test_special_token_within_a_completion_is_decoded_as_text() -> None:
    policy = random_policy(SHAPE)
    end = policy.end_token_ids[0]
    assert policy.decode((1, end, 5)) == "1<end>5"  # not 15
    assert policy.decode((1, end, end)) == "1<end>"
    assert policy.decode(()) == policy.decode((end,)) == ""


@pytest.mark.parametrize("text", ["12+34=", " 1  2 ", "a\nb\t", "é∇😀", "a.b ,c 's"])
def test_text_is_unchanged_by_encoding_and_decoding(text: str) -> None:
    tokenizer = character_tokenizer("".join(dict.fromkeys(text)))
    token_ids = tokenizer(text)["input_ids"]
    assert len(token_ids) == len(text)
    assert tokenizer.decode(token_ids) == text
    assert len(tokenizer) == len(set(text)) + 1


def test_message_names_the_characters_missing_in_the_alphabet() -> None:
    policy = random_policy(SHAPE)
    for encode in (policy.encode_prompt, policy.encode_completion):
        with pytest.raises(InputError, match=r"^'1x\+y' .* alphabet lacks 'x', 'y'; "):
            encode("1x+y")


def test_message_names_the_prompt_that_cannot_be_encoded() -> None:
    with pytest.raises(InputError, match=r"^'1x\+y' .* alphabet lacks 'x', 'y'; "):
        random_policy(SHAPE).encode_prompts(["1+1", "1x+y", "2+2"])


def test_encoding_many_prompts_equals_encoding_each() -> None:
    policy = random_policy(SHAPE)
    prompts = ["1+2=", "7", "10+20=", "7"]
    assert policy.encode_prompts(prompts) == [policy.encode_prompt(prompt) for prompt in prompts]
    assert policy.encode_prompts([]) == []
    with pytest.raises(InputError, match="empty prompt"):
        policy.encode_prompts(["1", ""])


@pytest.mark.parametrize("alphabet", ["", "aa"])
def test_invalid_alphabet_is_rejected(alphabet: str) -> None:
    with pytest.raises(InputError, match="alphabet"):
        character_tokenizer(alphabet)


def test_empty_prompt_is_rejected() -> None:
    with pytest.raises(InputError, match="empty prompt"):
        random_policy(SHAPE).encode_prompt("")


# --------------------------------------------------------------------------------- save and load


def test_loaded_policy_equals_the_saved_one(saved: Path) -> None:
    original, loaded = random_policy(SHAPE, seed=1), load_policy(saved)
    assert same(original, loaded)
    assert torch.equal(log_probs(original), log_probs(loaded))
    assert (loaded.end_token_ids, loaded.pad_token_id) == (original.end_token_ids, original.pad_token_id)
    assert loaded.encode_prompt("1+2=") == original.encode_prompt("1+2=")
    assert loaded.model.get_input_embeddings().padding_idx is None  # type: ignore[operator]
    assert not loaded.model.training
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_pad_token_is_saved(model_copy: Path) -> None:
    policy = load_policy(model_copy)
    policy.tokenizer.pad_token = "+"
    policy.save(model_copy)
    assert load_policy(model_copy).pad_token_id == ALPHABET.index("+")


def test_transformers_loads_a_saved_policy(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    token_ids = torch.tensor([tokenizer("1+2=")["input_ids"]])
    with torch.no_grad():
        theirs = model(token_ids).logits
        ours = random_policy(SHAPE, seed=1).model(token_ids).logits
    assert torch.equal(theirs, ours)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == len(ALPHABET)


def test_policy_is_loaded_from_a_run_directory(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "run" / "policy")
    assert same(load_policy(tmp_path / "run"), load_policy(saved))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_that_of_all_weights(saved: Path, dtype: str) -> None:
    assert {parameter.dtype for parameter in load_policy(saved, dtype=dtype).model.parameters()} == {
        getattr(torch, dtype)
    }


def test_policy_section_of_a_recipe_gives_the_same_policies(saved: Path) -> None:
    random = policy_from_config(PolicyConfig(random_init=SHAPE), seed=1)
    assert same(random, policy_from_config(PolicyConfig(name_or_path=str(saved)), seed=9))


def test_tied_weights_are_loaded(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(ALPHABET)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
        eos_token_id=len(ALPHABET),
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_policy(tmp_path)
    assert torch.equal(loaded.model.lm_head.weight, model.model.embed_tokens.weight)  # type: ignore[union-attr, arg-type]


# -------------------------------------------------------------------------------------- adapters


def with_random_adapters(policy: LanguagePolicy) -> LanguagePolicy:
    """Add random numbers to the adapters of a policy, which have no effect at first."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return policy


def test_lora_trains_only_adapters_and_starts_at_the_base_model(saved: Path) -> None:
    policy = load_policy(saved, lora=AdapterConfig(rank=2))
    for name, parameter in policy.model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
    assert torch.equal(logits(policy), logits(load_policy(saved)))
    assert not policy.model.training


def test_adapters_depend_only_on_the_seed(saved: Path) -> None:
    before = torch.random.get_rng_state()
    first, repeated, other = (load_policy(saved, lora=AdapterConfig(rank=2), seed=seed) for seed in (1, 1, 2))
    assert same(first, repeated)
    assert not same(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_adapter_is_saved_without_its_base_and_loaded_with_it(saved: Path, tmp_path: Path) -> None:
    policy = with_random_adapters(load_policy(saved, lora=AdapterConfig(rank=2)))
    policy.save(tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in name for name in stored)
    loaded = load_policy(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(policy))
    assert not torch.equal(logits(loaded), logits(load_policy(saved)))
    trained = {name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in weights(loaded) if "lora_" in name}
    base = AutoModelForCausalLM.from_pretrained(saved)
    by_peft = PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(by_peft(torch.tensor([[1, 2, 3, 4]])).logits, logits(policy))


def test_base_with_a_relative_path_is_found_from_another_directory(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    policy = with_random_adapters(load_policy(saved.name, lora=AdapterConfig(rank=2)))
    policy.save(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(load_policy("adapter")), logits(policy))


def test_alpha_below_1_is_not_rounded_to_0(saved: Path) -> None:
    half = with_random_adapters(load_policy(saved, lora=AdapterConfig(rank=2, alpha=0.5)))
    assert not torch.equal(logits(half), logits(load_policy(saved)))


@pytest.mark.parametrize("targets", [("no_such",), "("])
def test_target_modules_without_a_match_are_rejected(saved: Path, targets: Any) -> None:
    with pytest.raises(InputError, match=r"policy\.lora\.target_modules"):
        load_policy(saved, lora=AdapterConfig(target_modules=targets))


def test_second_adapter_is_rejected(saved: Path, tmp_path: Path) -> None:
    load_policy(saved, lora=AdapterConfig(rank=2)).save(tmp_path)
    with pytest.raises(InputError, match="already has an adapter"):
        load_policy(tmp_path, lora=AdapterConfig(rank=2))


def adapter_of(base: Path, directory: Path) -> Path:
    """Save an adapter without tokenizer files, as peft does, and return its directory."""
    policy = with_random_adapters(load_policy(base, lora=AdapterConfig(rank=2)))
    policy.model.save_pretrained(str(directory))  # type: ignore[operator]
    return directory


def test_adapter_without_tokenizer_has_the_tokenizer_of_its_base(saved: Path, tmp_path: Path) -> None:
    adapter = adapter_of(saved, tmp_path / "adapter")
    assert not list(adapter.glob("tokenizer*"))
    assert load_policy(adapter).encode_prompt("1+2=") == load_policy(saved).encode_prompt("1+2=")


def test_base_with_a_relative_path_is_found_beside_the_adapter(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(saved, tmp_path / "base")
    adapter = adapter_of(tmp_path / "base", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "../base"}))
    monkeypatch.chdir("/")
    load_policy(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "./gone"}))
    message = error_of(adapter)
    assert "base model './gone' was not found" in message
    assert f"in / and in {adapter}" in message


# ---------------------------------------------------------------------------- prompts and end tokens


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """Directory of a tiny policy whose tokenizer has a chat template."""
    policy = random_policy(SHAPE.model_copy(update={"alphabet": ALPHABET + "SUA."}))
    policy.tokenizer.chat_template = TEMPLATE
    policy.save(tmp_path / "chat")
    return tmp_path / "chat"


def test_prompt_is_inserted_into_the_chat_template(chat: Path) -> None:
    def encoded(**arguments: Any) -> str:
        policy = load_policy(chat, **arguments)
        return policy.decode(policy.encode_prompt("1+2="))

    assert encoded() == "U1+2=.A"
    assert encoded(system_prompt="7") == "S7.U1+2=.A"
    assert encoded(use_chat_template=False) == "1+2="


def test_message_if_the_chat_template_does_not_accept_a_system_turn(chat: Path) -> None:
    policy = load_policy(chat, system_prompt="7")
    policy.tokenizer.chat_template = "{{ raise_exception('no ' + messages[0].role) }}"
    with pytest.raises(InputError, match="does not accept system and user messages: no system"):
        policy.encode_prompt("1")


def test_system_prompt_without_a_chat_template_is_rejected(saved: Path, chat: Path) -> None:
    for path, is_used in ((saved, True), (chat, False)):
        message = error_of(path, system_prompt="7", use_chat_template=is_used)
        assert "policy.system_prompt has no effect" in message


def test_prompt_is_unchanged_without_a_chat_template(saved: Path) -> None:
    policy = load_policy(saved, use_chat_template=True)
    assert not policy.uses_chat_template
    assert policy.decode(policy.encode_prompt("1+2=")) == "1+2="


def test_all_end_tokens_of_the_generation_config_are_used(model_copy: Path) -> None:
    config = json.loads((model_copy / "generation_config.json").read_text())
    for ends, expected in (([12, 3], (12, 3)), ([3, 12], (3, 12)), (3, (12,)), (None, (12,))):
        config["eos_token_id"] = ends
        (model_copy / "generation_config.json").write_text(json.dumps(config))
        assert load_policy(model_copy).end_token_ids == expected


def test_completions_end_with_the_token_that_ends_a_turn(chat: Path) -> None:
    config = json.loads((chat / "generation_config.json").read_text())
    end = len(ALPHABET) + 4
    (chat / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [3, end]}))
    (chat / "chat_template.jinja").write_text(TEMPLATE + "<end>")
    policy = load_policy(chat)
    assert policy.end_token_ids == (end, 3)
    assert policy.encode_completion("12") == (1, 2, end)
    assert load_policy(chat, use_chat_template=False).end_token_ids == (3, end)


def test_policy_without_an_end_token_is_rejected(model_copy: Path) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads((model_copy / name).read_text())
        (model_copy / name).write_text(json.dumps({k: v for k, v in values.items() if "eos" not in k}))
    with pytest.raises(InputError, match="no end token"):
        load_policy(model_copy)


# ----------------------------------------------------------------------------------------- errors


def error_of(name: str | Path, **arguments: Any) -> str:
    """Return the message of the error, which must have one line and must be raised quickly."""
    started = time.perf_counter()
    with pytest.raises(InputError) as caught:
        load_policy(name, **arguments)
    message = str(caught.value)
    assert time.perf_counter() - started < 3
    assert "\n" not in message
    assert "Traceback" not in message
    return message


def test_message_about_a_missing_policy(tmp_path: Path) -> None:
    assert "no such directory or file" in error_of(tmp_path / "missing")
    assert "no such directory or file" in error_of("./missing")
    assert "no such file" in error_of(tmp_path / "missing.gguf")
    (tmp_path / "empty").mkdir()
    assert "no model in this directory" in error_of(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("")
    assert "unsupported type of file" in error_of(tmp_path / "notes.txt")


SMALL: dict[str, Any] = {"vocab_size": 13, "hidden_size": 16, "num_hidden_layers": 2, "eos_token_id": 12}
HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("model_type", "shape"),
    [
        ("mamba", {"state_size": 4}),
        ("rwkv", {"attention_hidden_size": 16, "intermediate_size": 16}),
        ("jamba", {**HEADS, "num_experts": 2, "mamba_d_state": 4, "use_mamba_kernels": False}),
        ("lfm2", {**HEADS, "layer_types": ["conv", "full_attention"]}),
    ],
)
def test_model_with_a_recurrent_state_is_rejected(
    model_copy: Path, model_type: str, shape: dict[str, Any]
) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL, **shape))
    model.save_pretrained(model_copy)
    assert f"models of type {model_type} are not supported" in error_of(model_copy)


@pytest.mark.parametrize("name", ["somebody/some-model", "some-model", "not a name?"])
def test_message_about_a_hub_id_without_a_hub(name: str) -> None:
    message = error_of(name)
    assert repr(name) in message
    assert "smollm2-135m" in message


def test_message_about_a_model_that_is_not_fetched_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_REINFORCE_CACHE", str(tmp_path))
    assert "`llm-reinforce fetch smollm2-135m`" in error_of("smollm2-135m")


def _truncate_weights(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:700])


def _corrupt_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"\xff" * 99)


def _remove_a_tensor(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def _change_a_shape(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(3, 3)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def _corrupt_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def _corrupt_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{")


def _remove_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    "break_it",
    [
        _truncate_weights,
        _corrupt_weights,
        _remove_a_tensor,
        _change_a_shape,
        _corrupt_config,
        _corrupt_tokenizer,
        _remove_tokenizer,
    ],
)
def test_message_about_a_broken_model_names_its_directory(
    model_copy: Path, break_it: Callable[[Path], None]
) -> None:
    break_it(model_copy)
    assert str(model_copy) in error_of(model_copy)


def test_message_about_a_wrong_shape_names_the_tensor(model_copy: Path) -> None:
    _change_a_shape(model_copy)
    assert "lm_head.weight" in error_of(model_copy)


def test_message_about_an_adapter_of_another_shape_names_the_tensor(saved: Path, tmp_path: Path) -> None:
    adapter = adapter_of(saved, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = min(tensors)
    tensors[name] = torch.zeros(7, 7)
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
    assert "size mismatch" in error_of(adapter)


def test_message_about_pickled_weights_says_how_to_convert_them(model_copy: Path, tmp_path: Path) -> None:
    adapter = adapter_of(model_copy, tmp_path / "adapter")
    (model_copy / "model.safetensors").unlink()
    torch.save({}, model_copy / "pytorch_model.bin")
    for directory in (model_copy, adapter):
        message = error_of(directory)
        assert f"M.from_pretrained('{model_copy}').save_pretrained('{model_copy}')" in message


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "model.pt"])
def test_message_about_weights_of_another_format_names_the_file(model_copy: Path, name: str) -> None:
    (model_copy / "model.safetensors").rename(model_copy / name)
    assert f"the weights are in {name}, but only safetensors are read" in error_of(model_copy)


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_size": "a"},
        {"num_attention_heads": 0},
        {"hidden_act": "unknown"},
        {"rope_parameters": {"rope_type": "unknown"}},
        {"_attn_implementation": "flash_attention_2"},
        {"dtype": "unknown"},
    ],
)
def test_invalid_settings_of_a_model_are_rejected(model_copy: Path, settings: dict[str, Any]) -> None:
    file = model_copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    assert str(model_copy) in error_of(model_copy)


def test_named_chat_templates_without_a_default_are_rejected(model_copy: Path) -> None:
    policy = load_policy(model_copy)
    policy.tokenizer.chat_template = {"rag": TEMPLATE, "tool_use": TEMPLATE}
    policy.save(model_copy)
    assert "no default chat template" in error_of(model_copy)
    assert not load_policy(model_copy, use_chat_template=False).uses_chat_template


def test_pad_token_outside_the_embedding_is_replaced(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(ALPHABET)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    size = len(tokenizer) - 1
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, eos_token_id=size - 1)
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(tmp_path)
    prompts = policy.encode_prompts(["1+2=", "12+34="])
    for each in (policy, policy_from_model(model, tokenizer)):
        assert len(sample_completions(each, prompts, max_new_tokens=2)) == 2
    for pad_token_id in (policy.pad_token_id, size, -1):
        found = token_log_probs(policy.model, prompts, [(1, 2), (3,)], pad_token_id=pad_token_id)
        assert found.log_probs.isfinite().all()
    with pytest.raises(InputError, match=r"token '\[PAD\]' \(id 13\) has no embedding"):
        sample_completions(policy, [(1, 13)], max_new_tokens=2)
    with pytest.raises(InputError, match="token id 13 has no embedding"):
        token_log_probs(policy.model, [(1, 2)], [(13,)], pad_token_id=0)


class _Malicious:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_pickled_weights_are_not_loaded(model_copy: Path, tmp_path: Path) -> None:
    (model_copy / "model.safetensors").unlink()
    torch.save({"lm_head.weight": _Malicious(tmp_path / "created")}, model_copy / "pytorch_model.bin")
    assert "safetensors" in error_of(model_copy)
    torch.save(dict(random_policy(SHAPE).model.state_dict()), model_copy / "pytorch_model.bin")
    assert "safetensors" in error_of(model_copy)
    assert not (tmp_path / "created").exists()


def test_pickled_adapter_is_not_loaded(saved: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    load_policy(saved, lora=AdapterConfig(rank=2)).save(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"x": _Malicious(tmp_path / "created")}, adapter / "adapter_model.bin")
    assert "adapter_model.safetensors is missing" in error_of(adapter)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("content", ["[]", "{}", '{"base_model_name_or_path": null}'])
def test_message_about_an_adapter_without_a_base(tmp_path: Path, saved: Path, content: str) -> None:
    load_policy(saved, lora=AdapterConfig(rank=2)).save(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(content)
    assert "base_model_name_or_path" in error_of(tmp_path / "adapter")


def test_message_about_an_adapter_whose_base_is_missing(model_copy: Path, tmp_path: Path) -> None:
    load_policy(model_copy, lora=AdapterConfig(rank=2)).save(tmp_path / "adapter")
    shutil.rmtree(model_copy)
    assert str(model_copy) in error_of(tmp_path / "adapter")


def test_code_of_a_model_does_not_run(tmp_path: Path) -> None:
    code = tmp_path / "model"
    code.mkdir()
    (code / "config.json").write_text(
        json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"}})
    )
    (code / "c.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'created')!r})\n")
    error_of(code)
    assert not (tmp_path / "created").exists()


# ------------------------------------------------------------------------------------------ GGUF


def _byte_alphabet() -> list[str]:
    """Return the 256 characters that stand for bytes in the tokenizers of GPT-2."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def write_gguf(
    path: Path,
    quantization: Quantization = Quantization.Q8_0,
    pad_token: str = "<|im_end|>",
    spare_token: str = "<|endoftext|>",
    omitted: str = "",
) -> dict[str, np.ndarray]:
    """Write a Llama with one layer as a GGUF file and return its matrices after quantization."""
    tokens = [spare_token, "<|im_start|>", "<|im_end|>", *_byte_alphabet(), "12"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(64)
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(tokens.index(pad_token))
    random = np.random.default_rng(0)
    shapes = {"attn_q": (32, 32), "attn_k": (32, 32), "attn_v": (32, 32), "attn_output": (32, 32)}
    shapes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    named = {f"blk.0.{name}.weight": shape for name, shape in shapes.items() if name != omitted}
    matrices = {}
    for name, shape in {"token_embd.weight": (len(tokens), 32), **named}.items():
        quantized = gguf.quantize(random.normal(size=shape).astype(np.float32), quantization)
        writer.add_tensor(name, quantized, raw_dtype=quantization)
        matrices[name] = gguf.dequantize(quantized, quantization)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return matrices


@pytest.mark.parametrize(
    "quantization", [Quantization.F32, Quantization.Q4_0, Quantization.Q4_1, Quantization.Q8_0]
)
def test_gguf_file_is_converted_to_float32_and_can_be_trained(
    tmp_path: Path, quantization: Quantization
) -> None:
    matrices = write_gguf(tmp_path / "tiny.gguf", quantization)
    directory = convert_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny")
    assert directory == tmp_path / "tiny"
    assert (directory / "model.safetensors").is_file()
    policy = load_policy(directory)
    inner: Any = policy.model.model
    # exact equality of two implementations of dequantization, those of transformers and gguf
    for ours, name in (
        (inner.embed_tokens, "token_embd"),
        (inner.layers[0].self_attn.v_proj, "blk.0.attn_v"),
        (inner.layers[0].self_attn.o_proj, "blk.0.attn_output"),
        (inner.layers[0].mlp.down_proj, "blk.0.ffn_down"),
    ):
        assert np.array_equal(ours.weight.detach().numpy(), matrices[f"{name}.weight"]), name
    # rotary embeddings pair adjacent rows in llama.cpp, and rows half a head apart in transformers
    reordered = matrices["blk.0.attn_q.weight"].reshape(2, 8, 2, 32).swapaxes(1, 2).reshape(32, 32)
    assert np.array_equal(inner.layers[0].self_attn.q_proj.weight.detach().numpy(), reordered)
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.float32}
    token_log_probs(policy.model, [(5, 6)], [(7, 2)], pad_token_id=0).log_probs.sum().backward()
    assert all(parameter.grad is not None for parameter in policy.model.parameters())


def test_tokenizer_of_a_gguf_file_is_converted(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    policy = load_policy(convert_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny"))
    assert policy.end_token_ids == (2,)
    text = "12+3= é\n"
    assert policy.decode(policy.encode_prompt(text)) == text
    assert len(policy.encode_prompt("12")) == 1  # the merge of the tokenizer
    assert policy.encode_prompt("<|im_end|>12")[0] == 2


@pytest.mark.parametrize(
    ("pad_token", "spare_token", "expected"),
    [
        ("<|im_end|>", "<|endoftext|>", "<|endoftext|>"),  # the pad token equals the end token
        ("<|im_end|>", "<spare>", "<|im_end|>"),
        ("<|im_start|>", "<|endoftext|>", "<|im_start|>"),
    ],
)
def test_pad_token_is_the_spare_token_if_there_is_one(
    tmp_path: Path, pad_token: str, spare_token: str, expected: str
) -> None:
    write_gguf(tmp_path / "tiny.gguf", pad_token=pad_token, spare_token=spare_token)
    policy = load_policy(convert_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny"))
    assert policy.tokenizer.convert_ids_to_tokens(policy.pad_token_id) == expected


def test_gguf_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_REINFORCE_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    first = load_policy(tmp_path / "tiny.gguf")
    written = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    times = [file.stat().st_mtime_ns for file in written]
    assert same(load_policy(tmp_path / "tiny.gguf"), first)
    assert [file.stat().st_mtime_ns for file in written] == times
    write_gguf(tmp_path / "tiny.gguf", Quantization.F32)  # another file with the same name
    assert not same(load_policy(tmp_path / "tiny.gguf"), first)


@pytest.mark.parametrize("size", [0, 3, 20, 400, 0.5, 0.99])
def test_truncated_gguf_file_is_rejected_and_leaves_no_files(tmp_path: Path, size: float) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(size if size >= 1 else size * len(whole))])
    _check_rejected_without_files(tmp_path / "cut.gguf", tmp_path / "out")


def test_garbage_in_a_gguf_file_is_rejected_and_leaves_no_files(tmp_path: Path) -> None:
    (tmp_path / "garbage.gguf").write_bytes(b"garbage" * 99)
    _check_rejected_without_files(tmp_path / "garbage.gguf", tmp_path / "out")


def test_gguf_file_without_a_tensor_is_rejected_and_leaves_no_files(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", omitted="ffn_up")
    _check_rejected_without_files(tmp_path / "tiny.gguf", tmp_path / "out")


def _check_rejected_without_files(file: Path, directory: Path) -> None:
    before = set(file.parent.iterdir())
    with pytest.raises(InputError, match="cannot read this GGUF file") as caught:
        convert_gguf(file, directory)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(file.parent.iterdir()) == before
