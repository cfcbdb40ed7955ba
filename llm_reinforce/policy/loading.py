"""From a name, a path or a configuration to a LanguagePolicy."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llm_reinforce.config import AdapterConfig, PolicyConfig, RandomInitConfig
from llm_reinforce.errors import InputError
from llm_reinforce.hub import hub_answers
from llm_reinforce.policy.cache_folder import cache_directory
from llm_reinforce.policy.character_tokenizer import character_tokenizer
from llm_reinforce.policy.fetched_models import FETCHABLE, fetched_directory
from llm_reinforce.policy.language_policy import LanguagePolicy
from llm_reinforce.policy.log_probs import keeps_keys_and_values


def load_policy(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    lora: AdapterConfig | None = None,
    use_chat_template: bool = True,
    system_prompt: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> LanguagePolicy:
    """Load any causal language model of transformers as a policy.

    Args:
        name_or_path: a hub id; a model's, an adapter's or a run's directory; a `.gguf` file (dequantised,
            then kept as safetensors in the cache directory); or a name that `llm-reinforce fetch` knows.
        dtype: float32, bfloat16 or float16.
        lora: train an adapter of this shape instead of all weights.
        use_chat_template: put prompts into the tokenizer's chat template, where it has one.
        system_prompt: the system turn of that template; None leaves the template's own.
        seed: for the adapter's random initialisation.

    Raises:
        InputError: nothing is there, or what is there is no causal language model, or one that remembers
            otherwise than by keys and values; or `system_prompt` has no chat template to go into.
    """
    location = resolve_location(str(name_or_path))
    arguments: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            location, trust_remote_code=trust_remote_code, **arguments, **_reach(location)
        )
        model = _load_model(location, getattr(torch, dtype), trust_remote_code, arguments)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(_cannot_load(str(name_or_path), error)) from error
    _check_memory(model)
    if lora is not None:
        model = _with_adapter(model, lora, seed)
    return _as_policy(model.to(device), tokenizer, use_chat_template, system_prompt)


def random_policy(
    shape: RandomInitConfig, *, seed: int = 0, dtype: str = "float32", device: torch.device | str = "cpu"
) -> LanguagePolicy:
    """The article's STEP 0: a small Llama with random θ, and a tokenizer of single characters."""
    tokenizer = character_tokenizer(shape.alphabet)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=shape.max_length,
        initializer_range=shape.hidden_size**-0.5,  # 0.02 is meant for widths of thousands
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,  # given to the embedding it would cut the end token's gradient off
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return _as_policy(model.to(device, getattr(torch, dtype)), tokenizer, False, None)


def policy_from_model(
    model: Any,
    tokenizer: Any,
    *,
    use_chat_template: bool = True,
    system_prompt: str | None = None,
    lora: AdapterConfig | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> LanguagePolicy:
    """Return a model and its tokenizer, both of transformers, as a policy. The model is used in place.

    Args:
        model: a causal language model of transformers, or an adapter of peft on one.
        tokenizer: the model's tokenizer, with an end token.
        use_chat_template, system_prompt, lora, seed: as for `load_policy`.

    Raises:
        InputError: either is something else, or the two don't fit together.
    """
    from peft import PeftModel

    if isinstance(model, PreTrainedTokenizerBase) and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError("policy: (tokenizer, model) was given; the order is (model, tokenizer)")
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise InputError(
            f"policy: the model should be a causal language model of transformers, not a "
            f"{type(model).__name__}"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"policy: the tokenizer should be one of transformers, not a {type(tokenizer).__name__}"
        )
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if inner.get_output_embeddings() is None:
        raise InputError(
            f"policy: a {type(inner).__name__} predicts no tokens; load it with AutoModelForCausalLM"
        )
    num_tokens = inner.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_tokens:
        raise InputError(
            f"policy: the tokenizer has {len(tokenizer):,} tokens and the model only {num_tokens:,}; they "
            "don't belong together, or the model needs resize_token_embeddings"
        )
    _check_memory(model)
    if lora is not None:
        settings = lora if isinstance(lora, AdapterConfig) else AdapterConfig(**lora)
        model = _with_adapter(model, settings, seed)
    return _as_policy(model, tokenizer, use_chat_template, system_prompt)


def check_reloads(policy: LanguagePolicy) -> None:
    """Check that a policy that was made in memory can be saved, and loaded again as the same policy.

    Raises:
        InputError: it can't.
    """
    model = policy.model
    if not hasattr(model, "save_pretrained"):
        raise InputError(
            f"policy: a {type(model).__name__} can't be saved in output_dir; use a model of transformers, "
            "or leave output_dir out"
        )
    if hasattr(model, "peft_config"):
        bases = [config.base_model_name_or_path for config in model.peft_config.values()]  # type: ignore[operator,unused-ignore]
        if not all(bases):
            raise InputError(
                "policy: this adapter's model was not loaded from a path, so that it can't be found again; "
                "save the model with save_pretrained and load it from there, or leave output_dir out"
            )
    template = str(policy.tokenizer.chat_template or "") if policy.uses_chat_template else ""
    if (found := _end_tokens(model, policy.tokenizer, template)) != policy.end_token_ids:
        raise InputError(
            f"policy: its end tokens are {list(policy.end_token_ids)}, and after saving and loading they "
            f"would be {list(found)}; set model.generation_config.eos_token_id, or leave output_dir out"
        )


def policy_from_config(
    recipe: PolicyConfig, *, seed: int, device: torch.device | str = "cpu"
) -> LanguagePolicy:
    """Return the policy that the `policy` section of the settings describes."""
    if recipe.random_init is not None:
        return random_policy(recipe.random_init, seed=seed, dtype=recipe.dtype, device=device)
    assert recipe.name_or_path is not None  # the recipe's own check
    return load_policy(
        recipe.name_or_path,
        dtype=recipe.dtype,
        lora=recipe.lora,
        use_chat_template=recipe.use_chat_template,
        system_prompt=recipe.system_prompt,
        revision=recipe.revision,
        trust_remote_code=recipe.trust_remote_code,
        seed=seed,
        device=device,
    )


def resolve_location(name_or_path: str) -> str:
    """Where transformers finds it: a directory on this machine, or the hub id as it was given.

    Raises:
        InputError: the name can be fetched and hasn't been, or the path has no model in it.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path in FETCHABLE and not path.exists():
        return str(fetched_directory(name_or_path))
    if path.suffix == ".gguf":
        return str(convert_gguf(path))
    if path.is_dir():
        policy_directory = path / "policy" if (path / "policy").is_dir() else path
        if not any((policy_directory / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise InputError(f"{path}: no model in this directory (no config.json, no adapter_config.json)")
        return str(policy_directory.absolute())  # an adapter remembers its base by it
    if not path.exists() and (name_or_path.count("/") > 1 or name_or_path.startswith((".", "/", "~"))):
        raise InputError(f"policy {name_or_path}: no such directory or file")
    if path.exists():
        raise InputError(
            f"{path}: a policy is a directory, a .gguf file or a hub id, not a file of this kind"
        )
    return name_or_path


def convert_gguf(path: Path, directory: Path | None = None) -> Path:
    """A GGUF file dequantised to float32 and kept as safetensors; the second time it is just found.

    Args:
        directory: where to keep it; by default a folder of the cache directory that is named after the
            file, its size and its time of change.

    Raises:
        InputError: the file isn't there or isn't a GGUF file that transformers can read.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    stat = path.stat()
    target = directory or cache_directory() / "gguf" / f"{path.stem}-{stat.st_size}-{stat.st_mtime_ns}"
    if (target / "config.json").is_file():
        return target
    folder, name = str(path.parent), path.name
    # a tokenizer that is converted from GGUF warns about itself at length
    logging.getLogger("transformers.modeling_gguf_pytorch_utils").setLevel(logging.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        model = _all_weights(
            folder, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    except Exception as error:  # what reads a broken file trips over whatever it meets there
        raise InputError(f"{path}: transformers can't read this GGUF file: {_first_line(error)}") from error
    partial = target.with_name(target.name + ".partial")
    model.save_pretrained(str(partial))
    _give_own_pad_token(tokenizer, model.get_input_embeddings().num_embeddings)
    tokenizer.save_pretrained(str(partial))
    partial.rename(target)
    return target


def _give_own_pad_token(tokenizer: Any, num_tokens: int) -> None:
    """A GGUF file may name its end token as padding; take the vocabulary's spare token where it has one."""
    # transformers adds that token to a tokenizer without it, past the end of the model's embedding
    spare = tokenizer.get_vocab().get("<|endoftext|>", num_tokens)
    if tokenizer.pad_token_id == tokenizer.eos_token_id and spare < num_tokens:
        tokenizer.pad_token = "<|endoftext|>"


def _load_model(location: str, dtype: torch.dtype, trust_remote_code: bool, arguments: dict[str, Any]) -> Any:
    arguments = {"dtype": dtype, "trust_remote_code": trust_remote_code, "use_safetensors": True, **arguments}
    adapter = Path(location) / "adapter_config.json"
    if not adapter.is_file():
        return _all_weights(location, **arguments)
    from peft import PeftModel

    config = json.loads(adapter.read_text())
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str):
        raise InputError(f"{adapter}: it doesn't say which model it adapts (base_model_name_or_path)")
    if not adapter.with_name("adapter_model.safetensors").is_file():  # peft would take a pickle instead
        raise InputError(f"{location}: no adapter_model.safetensors in it")
    arguments.pop("revision", None)  # the adapter's, not its base's
    return PeftModel.from_pretrained(
        _all_weights(resolve_location(base), **arguments), location, is_trainable=True
    )


def _all_weights(location: str, **arguments: Any) -> Any:
    """from_pretrained, which would fill the place of a missing tensor with random numbers.

    Raises:
        ValueError: a tensor is missing.
    """
    model, loaded = AutoModelForCausalLM.from_pretrained(
        location, output_loading_info=True, **arguments, **_reach(location)
    )
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"it lacks {len(missing)} of the model's tensors, such as {missing[0]}")
    return model


def _reach(location: str) -> dict[str, bool]:
    """A hub that doesn't answer isn't asked for each file, over and over: the cache has it or nobody."""
    return {} if Path(location).is_dir() or hub_answers() else {"local_files_only": True}


def _with_adapter(model: PreTrainedModel, lora: AdapterConfig, seed: int) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        raise InputError("policy.lora: this policy is an adapter already; leave the key out to train it on")
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    alpha = int(lora.alpha) if lora.alpha.is_integer() else lora.alpha  # other readers expect an int
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except (ValueError, re.error) as error:
            raise InputError(f"policy.lora.target_modules: {_first_line(error)}") from error


def _check_memory(model: Any) -> None:
    """The sampler shares out, selects and drops what a model remembers row by row: keys and values."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(inner, "_is_stateful", False) or not keeps_keys_and_values(model):
        raise InputError(
            f"a policy of the type {inner.config.model_type} can't be trained or asked here: it remembers "
            "what it has read by more than keys and values (a recurrent state, say); take another model"
        )


def _as_policy(
    model: Any, tokenizer: Any, use_chat_template: bool, system_prompt: str | None
) -> LanguagePolicy:
    template = getattr(tokenizer, "chat_template", None) if use_chat_template else None
    if system_prompt is not None and not template:
        raise InputError(
            "policy.system_prompt isn't read: this policy has no chat template, or doesn't use it; put the "
            "words into problems.template"
        )
    end_token_ids = _end_tokens(model, tokenizer, str(template or ""))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_token_ids[0]
    model.eval()
    # an embedding that knows a pad token withholds that token's gradient, and it may be the end token
    model.get_input_embeddings().padding_idx = None
    return LanguagePolicy(model, tokenizer, end_token_ids, int(pad), bool(template), system_prompt)


def _end_tokens(model: Any, tokenizer: Any, template: str) -> tuple[int, ...]:
    """All that end an episode, the model's and the tokenizer's; first the one that a completion is given.

    A base model's generation settings may not know the token that ends a turn of the chat template.
    """
    ends = model.generation_config.eos_token_id if model.generation_config else None
    of_model = ends if isinstance(ends, list) else [] if ends is None else [ends]
    of_tokenizer = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ends_turns = bool(of_tokenizer) and tokenizer.eos_token in template
    in_order = [*of_tokenizer, *of_model] if ends_turns else [*of_model, *of_tokenizer]
    if not in_order:
        raise InputError(
            "this policy has no end token, so that no episode could end: set eos_token in its tokenizer"
        )
    return tuple(dict.fromkeys(map(int, in_order)))


def _cannot_load(name: str, error: Exception) -> str:
    known = ", ".join(sorted(FETCHABLE))
    is_here = Path(name).expanduser().exists()
    where = "" if is_here else "there is no such directory or file, and from a hub it "
    return (
        f"policy {name!r}: {where}can't be loaded as a causal language model ({_first_line(error)}). Give "
        f"a directory, a .gguf file, a hub id (with a network or a filled cache), or one of: {known}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
