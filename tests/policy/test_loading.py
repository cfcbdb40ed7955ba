"""From names and files to a policy: what comes back is what was saved, and what can't be used says why."""

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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llm_reinforce.config import AdapterConfig, PolicyConfig, RandomInitConfig
from llm_reinforce.errors import InputError
from llm_reinforce.policy import (
    LanguagePolicy,
    character_tokenizer,
    convert_gguf,
    load_policy,
    policy_from_config,
    random_policy,
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
    """The directory of a tiny policy; not to be changed."""
    directory = tmp_path_factory.mktemp("saved") / "model"
    random_policy(SHAPE, seed=1).save(directory)
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
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


def test_the_seed_makes_the_weights_and_no_other_random_number_moves() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (random_policy(SHAPE, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(first, again)
    assert not same(first, other)
    torch.manual_seed(5)
    assert same(first, random_policy(SHAPE, seed=1))


def test_a_random_policy_acts_on_its_alphabet_and_ends_with_its_end_token() -> None:
    policy = random_policy(SHAPE)
    assert policy.end_token_ids == (len(ALPHABET),)
    assert policy.pad_token_id == len(ALPHABET)
    assert not policy.model.training
    assert policy.model.get_input_embeddings().padding_idx is None  # type: ignore[operator]
    assert policy.encode_completion("12") == (1, 2, len(ALPHABET))
    assert policy.decode((1, 2, len(ALPHABET))) == "12"


def test_a_special_token_within_a_completion_is_text() -> None:
    policy = random_policy(SHAPE)
    end = policy.end_token_ids[0]
    assert policy.decode((1, end, 5)) == "1<end>5"  # and no 15
    assert policy.decode((1, end, end)) == "1<end>"
    assert policy.decode(()) == policy.decode((end,)) == ""


@pytest.mark.parametrize("text", ["12+34=", " 1  2 ", "a\nb\t", "é∇😀", "a.b ,c 's"])
def test_characters_survive_the_tokenizer(text: str) -> None:
    tokenizer = character_tokenizer("".join(dict.fromkeys(text)))
    token_ids = tokenizer(text)["input_ids"]
    assert len(token_ids) == len(text)
    assert tokenizer.decode(token_ids) == text
    assert len(tokenizer) == len(set(text)) + 1


def test_a_foreign_character_is_named() -> None:
    policy = random_policy(SHAPE)
    for encode in (policy.encode_prompt, policy.encode_completion):
        with pytest.raises(InputError, match=r"^'1x\+y' .* alphabet lacks 'x', 'y'; "):
            encode("1x+y")


def test_of_many_prompts_the_foreign_one_is_named() -> None:
    with pytest.raises(InputError, match=r"^'1x\+y' .* alphabet lacks 'x', 'y'; "):
        random_policy(SHAPE).encode_prompts(["1+1", "1x+y", "2+2"])


def test_many_prompts_are_encoded_as_each_of_them_is() -> None:
    policy = random_policy(SHAPE)
    prompts = ["1+2=", "7", "10+20=", "7"]
    assert policy.encode_prompts(prompts) == [policy.encode_prompt(prompt) for prompt in prompts]
    assert policy.encode_prompts([]) == []
    with pytest.raises(InputError, match="empty prompt"):
        policy.encode_prompts(["1", ""])


@pytest.mark.parametrize("alphabet", ["", "aa"])
def test_an_alphabet_holds_each_character_once(alphabet: str) -> None:
    with pytest.raises(InputError, match="alphabet"):
        character_tokenizer(alphabet)


def test_an_empty_prompt_is_no_state() -> None:
    with pytest.raises(InputError, match="empty prompt"):
        random_policy(SHAPE).encode_prompt("")


# --------------------------------------------------------------------------------- save and load


def test_what_is_saved_is_what_is_loaded(saved: Path) -> None:
    original, loaded = random_policy(SHAPE, seed=1), load_policy(saved)
    assert same(original, loaded)
    assert torch.equal(log_probs(original), log_probs(loaded))
    assert (loaded.end_token_ids, loaded.pad_token_id) == (original.end_token_ids, original.pad_token_id)
    assert loaded.encode_prompt("1+2=") == original.encode_prompt("1+2=")
    assert loaded.model.get_input_embeddings().padding_idx is None  # type: ignore[operator]
    assert not loaded.model.training
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_another_pad_token_survives(copy: Path) -> None:
    policy = load_policy(copy)
    policy.tokenizer.pad_token = "+"
    policy.save(copy)
    assert load_policy(copy).pad_token_id == ALPHABET.index("+")


def test_plain_transformers_reads_what_is_saved(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    token_ids = torch.tensor([tokenizer("1+2=")["input_ids"]])
    with torch.no_grad():
        theirs = model(token_ids).logits
        ours = random_policy(SHAPE, seed=1).model(token_ids).logits
    assert torch.equal(theirs, ours)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == len(ALPHABET)


def test_a_run_directory_stands_for_its_policy(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "run" / "policy")
    assert same(load_policy(tmp_path / "run"), load_policy(saved))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_the_weights(saved: Path, dtype: str) -> None:
    assert {parameter.dtype for parameter in load_policy(saved, dtype=dtype).model.parameters()} == {
        getattr(torch, dtype)
    }


def test_a_recipe_section_makes_the_same_policies(saved: Path) -> None:
    drawn = policy_from_config(PolicyConfig(random_init=SHAPE), seed=1)
    assert same(drawn, policy_from_config(PolicyConfig(name_or_path=str(saved)), seed=9))


def test_tied_weights_are_whole(tmp_path: Path) -> None:
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


def shaken(policy: LanguagePolicy) -> LanguagePolicy:
    """The policy with random adapters: at birth they do nothing."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return policy


def test_lora_trains_adapters_alone_and_starts_as_the_base(saved: Path) -> None:
    policy = load_policy(saved, lora=AdapterConfig(rank=2))
    for name, parameter in policy.model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
    assert torch.equal(logits(policy), logits(load_policy(saved)))
    assert not policy.model.training


def test_the_adapters_come_from_their_own_seed(saved: Path) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (load_policy(saved, lora=AdapterConfig(rank=2), seed=seed) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_adapter_is_saved_alone_and_found_with_its_base(saved: Path, tmp_path: Path) -> None:
    policy = shaken(load_policy(saved, lora=AdapterConfig(rank=2)))
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


def test_a_base_named_by_a_relative_path_is_found_from_elsewhere(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    policy = shaken(load_policy(saved.name, lora=AdapterConfig(rank=2)))
    policy.save(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(load_policy("adapter")), logits(policy))


def test_a_small_alpha_is_not_rounded_to_nothing(saved: Path) -> None:
    half = shaken(load_policy(saved, lora=AdapterConfig(rank=2, alpha=0.5)))
    assert not torch.equal(logits(half), logits(load_policy(saved)))


@pytest.mark.parametrize("targets", [("no_such",), "("])
def test_targets_that_fit_nothing_are_named(saved: Path, targets: Any) -> None:
    with pytest.raises(InputError, match=r"policy\.lora\.target_modules"):
        load_policy(saved, lora=AdapterConfig(target_modules=targets))


def test_an_adapter_takes_no_second_one(saved: Path, tmp_path: Path) -> None:
    load_policy(saved, lora=AdapterConfig(rank=2)).save(tmp_path)
    with pytest.raises(InputError, match="adapter already"):
        load_policy(tmp_path, lora=AdapterConfig(rank=2))


# ---------------------------------------------------------------------------------- prompts and ends


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """A tiny policy whose tokenizer has a chat template."""
    policy = random_policy(SHAPE.model_copy(update={"alphabet": ALPHABET + "SUA."}))
    policy.tokenizer.chat_template = TEMPLATE
    policy.save(tmp_path / "chat")
    return tmp_path / "chat"


def test_a_prompt_goes_into_the_chat_template(chat: Path) -> None:
    def asked(**arguments: Any) -> str:
        policy = load_policy(chat, **arguments)
        return policy.decode(policy.encode_prompt("1+2="))

    assert asked() == "U1+2=.A"
    assert asked(system_prompt="7") == "S7.U1+2=.A"
    assert asked(use_chat_template=False) == "1+2="


def test_a_template_that_knows_no_system_turn(chat: Path) -> None:
    policy = load_policy(chat, system_prompt="7")
    policy.tokenizer.chat_template = "{{ raise_exception('no ' + messages[0].role) }}"
    with pytest.raises(InputError, match="refuses a system and user turn: no system"):
        policy.encode_prompt("1")


def test_a_system_prompt_is_read_or_refused(saved: Path, chat: Path) -> None:
    for path, is_used in ((saved, True), (chat, False)):
        told = refusal(path, system_prompt="7", use_chat_template=is_used)
        assert "policy.system_prompt isn't read" in told


def test_without_a_template_a_prompt_is_plain(saved: Path) -> None:
    policy = load_policy(saved, use_chat_template=True)
    assert not policy.uses_chat_template
    assert policy.decode(policy.encode_prompt("1+2=")) == "1+2="


def test_all_end_tokens_of_the_generation_config_end_an_episode(copy: Path) -> None:
    config = json.loads((copy / "generation_config.json").read_text())
    for ends, expected in (([12, 3], (12, 3)), ([4, 3], (4, 3, 12)), (3, (3, 12)), (None, (12,))):
        config["eos_token_id"] = ends
        (copy / "generation_config.json").write_text(json.dumps(config))
        assert load_policy(copy).end_token_ids == expected


def test_a_completion_ends_with_the_token_that_ends_a_turn(chat: Path) -> None:
    config = json.loads((chat / "generation_config.json").read_text())
    (chat / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": 3}))
    (chat / "chat_template.jinja").write_text(TEMPLATE + "<end>")
    end = len(ALPHABET) + 4
    policy = load_policy(chat)
    assert policy.end_token_ids == (end, 3)
    assert policy.encode_completion("12") == (1, 2, end)
    assert load_policy(chat, use_chat_template=False).end_token_ids == (3, end)


def test_a_policy_that_cannot_end_is_refused(copy: Path) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({k: v for k, v in values.items() if "eos" not in k}))
    with pytest.raises(InputError, match="no end token"):
        load_policy(copy)


# ------------------------------------------------------------------------------- what can't be loaded


def refusal(name: str | Path, **arguments: Any) -> str:
    """The message of a policy that can't be loaded: one line, told at once."""
    started = time.perf_counter()
    with pytest.raises(InputError) as caught:
        load_policy(name, **arguments)
    message = str(caught.value)
    assert time.perf_counter() - started < 3
    assert "\n" not in message
    assert "Traceback" not in message
    return message


def test_nothing_there(tmp_path: Path) -> None:
    assert "no such directory or file" in refusal(tmp_path / "missing")
    assert "no such directory or file" in refusal("./missing")
    assert "no such file" in refusal(tmp_path / "missing.gguf")
    (tmp_path / "empty").mkdir()
    assert "no model in this directory" in refusal(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("")
    assert "not a file of this kind" in refusal(tmp_path / "notes.txt")


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
def test_what_remembers_otherwise_is_refused(copy: Path, model_type: str, shape: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL, **shape))
    model.save_pretrained(copy)
    assert f"of the type {model_type} can't be trained" in refusal(copy)


@pytest.mark.parametrize("name", ["somebody/some-model", "some-model", "not a name?"])
def test_a_hub_id_without_a_hub(name: str) -> None:
    message = refusal(name)
    assert repr(name) in message
    assert "smollm2-135m" in message


def test_a_fetchable_name_tells_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_REINFORCE_CACHE", str(tmp_path))
    assert "`llm-reinforce fetch smollm2-135m`" in refusal("smollm2-135m")


def _cut_weights(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:700])


def _spoil_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"\xff" * 99)


def _take_a_tensor(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def _change_a_shape(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(3, 3)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def _spoil_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def _spoil_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{")


def _take_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    "break_it",
    [
        _cut_weights,
        _spoil_weights,
        _take_a_tensor,
        _change_a_shape,
        _spoil_config,
        _spoil_tokenizer,
        _take_tokenizer,
    ],
)
def test_a_broken_directory(copy: Path, break_it: Callable[[Path], None]) -> None:
    break_it(copy)
    assert str(copy) in refusal(copy)


class _Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_is_never_opened(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"lm_head.weight": _Trap(tmp_path / "sprung")}, copy / "pytorch_model.bin")
    assert "safetensors" in refusal(copy)
    torch.save(dict(random_policy(SHAPE).model.state_dict()), copy / "pytorch_model.bin")
    assert "safetensors" in refusal(copy)
    assert not (tmp_path / "sprung").exists()


def test_a_pickled_adapter_is_never_opened(saved: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    load_policy(saved, lora=AdapterConfig(rank=2)).save(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"x": _Trap(tmp_path / "sprung")}, adapter / "adapter_model.bin")
    assert "no adapter_model.safetensors" in refusal(adapter)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", ["[]", "{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_without_a_base(tmp_path: Path, saved: Path, content: str) -> None:
    load_policy(saved, lora=AdapterConfig(rank=2)).save(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(content)
    assert "base_model_name_or_path" in refusal(tmp_path / "adapter")


def test_an_adapter_whose_base_is_gone(copy: Path, tmp_path: Path) -> None:
    load_policy(copy, lora=AdapterConfig(rank=2)).save(tmp_path / "adapter")
    shutil.rmtree(copy)
    assert str(copy) in refusal(tmp_path / "adapter")


def test_a_models_own_code_does_not_run(tmp_path: Path) -> None:
    code = tmp_path / "model"
    code.mkdir()
    (code / "config.json").write_text(
        json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"}})
    )
    (code / "c.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\n")
    refusal(code)
    assert not (tmp_path / "sprung").exists()


# ------------------------------------------------------------------------------------------ GGUF


def _byte_alphabet() -> list[str]:
    """The 256 characters that GPT-2's tokenizers write bytes with."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + index) for index in range(len(hidden))]


def write_gguf(
    path: Path,
    quantization: Quantization = Quantization.Q8_0,
    pad_token: str = "<|im_end|>",
    spare_token: str = "<|endoftext|>",
    left_out: str = "",
) -> dict[str, np.ndarray]:
    """A Llama of one layer, as llama.cpp keeps it; returns its matrices as they can be read back."""
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
    named = {f"blk.0.{name}.weight": shape for name, shape in shapes.items() if name != left_out}
    kept = {}
    for name, shape in {"token_embd.weight": (len(tokens), 32), **named}.items():
        quantized = gguf.quantize(random.normal(size=shape).astype(np.float32), quantization)
        writer.add_tensor(name, quantized, raw_dtype=quantization)
        kept[name] = gguf.dequantize(quantized, quantization)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


@pytest.mark.parametrize(
    "quantization", [Quantization.F32, Quantization.Q4_0, Quantization.Q4_1, Quantization.Q8_0]
)
def test_a_gguf_file_becomes_float32_that_can_be_trained(tmp_path: Path, quantization: Quantization) -> None:
    kept = write_gguf(tmp_path / "tiny.gguf", quantization)
    directory = convert_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny")
    assert directory == tmp_path / "tiny"
    assert (directory / "model.safetensors").is_file()
    policy = load_policy(directory)
    inner: Any = policy.model.model
    # exactly: transformers' own dequantising and gguf's are two implementations
    for ours, name in (
        (inner.embed_tokens, "token_embd"),
        (inner.layers[0].self_attn.v_proj, "blk.0.attn_v"),
        (inner.layers[0].self_attn.o_proj, "blk.0.attn_output"),
        (inner.layers[0].mlp.down_proj, "blk.0.ffn_down"),
    ):
        assert np.array_equal(ours.weight.detach().numpy(), kept[f"{name}.weight"]), name
    # llama.cpp turns neighbouring rows of a head, transformers those half a head apart
    turned = kept["blk.0.attn_q.weight"].reshape(2, 8, 2, 32).swapaxes(1, 2).reshape(32, 32)
    assert np.array_equal(inner.layers[0].self_attn.q_proj.weight.detach().numpy(), turned)
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.float32}
    token_log_probs(policy.model, [(5, 6)], [(7, 2)], pad_token_id=0).log_probs.sum().backward()
    assert all(parameter.grad is not None for parameter in policy.model.parameters())


def test_a_gguf_tokenizer_is_kept(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    policy = load_policy(convert_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny"))
    assert policy.end_token_ids == (2,)
    text = "12+3= é\n"
    assert policy.decode(policy.encode_prompt(text)) == text
    assert len(policy.encode_prompt("12")) == 1  # its merge
    assert policy.encode_prompt("<|im_end|>") == (2,)


@pytest.mark.parametrize(
    ("pad_token", "spare_token", "expected"),
    [
        ("<|im_end|>", "<|endoftext|>", "<|endoftext|>"),  # the end token pads, and there is a spare one
        ("<|im_end|>", "<spare>", "<|im_end|>"),
        ("<|im_start|>", "<|endoftext|>", "<|im_start|>"),
    ],
)
def test_padding_is_the_spare_token(tmp_path: Path, pad_token: str, spare_token: str, expected: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", pad_token=pad_token, spare_token=spare_token)
    policy = load_policy(convert_gguf(tmp_path / "tiny.gguf", tmp_path / "tiny"))
    assert policy.tokenizer.convert_ids_to_tokens(policy.pad_token_id) == expected


def test_the_second_time_a_gguf_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_REINFORCE_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    first = load_policy(tmp_path / "tiny.gguf")
    written = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    times = [file.stat().st_mtime_ns for file in written]
    assert same(load_policy(tmp_path / "tiny.gguf"), first)
    assert [file.stat().st_mtime_ns for file in written] == times
    write_gguf(tmp_path / "tiny.gguf", Quantization.F32)  # another file of that name
    assert not same(load_policy(tmp_path / "tiny.gguf"), first)


@pytest.mark.parametrize("size", [0, 3, 20, 400, 0.5, 0.99])
def test_a_cut_gguf_file_leaves_nothing(tmp_path: Path, size: float) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(size if size >= 1 else size * len(whole))])
    _refused_without_a_trace(tmp_path / "cut.gguf", tmp_path / "out")


def test_garbage_named_gguf_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "garbage.gguf").write_bytes(b"no gguf" * 99)
    _refused_without_a_trace(tmp_path / "garbage.gguf", tmp_path / "out")


def test_a_gguf_file_that_lacks_a_tensor_is_not_filled_with_random_numbers(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", left_out="ffn_up")
    _refused_without_a_trace(tmp_path / "tiny.gguf", tmp_path / "out")


def _refused_without_a_trace(file: Path, directory: Path) -> None:
    before = set(file.parent.iterdir())
    with pytest.raises(InputError, match="can't read this GGUF file") as caught:
        convert_gguf(file, directory)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(file.parent.iterdir()) == before
