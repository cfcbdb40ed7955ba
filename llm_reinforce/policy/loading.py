"""Load a LanguagePolicy from a name, a path, a configuration or a model in memory."""

import datetime
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llm_reinforce.config import AdapterConfig, PolicyConfig, RandomInitConfig
from llm_reinforce.errors import InputError
from llm_reinforce.policy.character_tokenizer import character_tokenizer
from llm_reinforce.policy.chat_templates import ChatSettings, default_template, end_of_turn, end_of_turn_token
from llm_reinforce.policy.embedding import input_embedding, num_embeddings, valid_pad_token
from llm_reinforce.policy.language_policy import LanguagePolicy, without_progress_bars
from llm_reinforce.policy.model_files import cannot_load, load_model, load_tokenizer, reason, resolve_location
from llm_reinforce.policy.parity_check import check_model
from llm_reinforce.policy.prompt_checks import with_chat_settings
from llm_reinforce.policy.quantization import four_bits, keep_differentiable
from llm_reinforce.policy.stopped_run import load_weights, stopped_run


def load_policy(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    load_in_4bit: bool = False,
    lora: AdapterConfig | None = None,
    use_chat_template: bool = True,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    chat_template_date: datetime.date | str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> LanguagePolicy:
    """Load a causal language model of transformers as a policy.

    Args:
        name_or_path: a hub id, a directory, a `.gguf` file, or the name of a model that was downloaded with
            `llm-reinforce fetch`. The directory may contain a model, an adapter or a run. If the run has
            not saved its policy yet, the policy of its newest intact checkpoint is loaded. A `.gguf` file
            is dequantized and stored as safetensors in the cache directory.
        dtype: data type of the weights: float32, bfloat16 or float16.
        load_in_4bit: quantize the linear layers to 4 bits (NF4), which needs bitsandbytes. Products are
            computed in `dtype`.
        lora: settings of a new LoRA adapter to train. None: train the loaded adapter, or all weights if there
            is no adapter.
        use_chat_template: insert prompts into the chat template of the tokenizer if it has one.
        system_prompt: text of the system message in the chat template. None: the default of the template.
        chat_template_kwargs: further arguments of the chat template, such as `{"enable_thinking": False}`.
        chat_template_date: date that the chat template prints as the current date, such as "2026-11-29".
            None: today's date.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: if True, Python code from the model's repository on the hub may be executed.
        seed: seed of the random initialization of a new adapter.
        device: device of the model.

    Raises:
        InputError: if no model is found, if bitsandbytes is needed but not installed, or if the model is not
            supported. Supported models are causal language models whose cache contains only keys and values.
            Also if the chat template drops or changes the user's message, or if settings of a chat template
            are given for a policy without one.
    """
    if (stopped := stopped_run(Path(name_or_path).expanduser())) is not None:
        config, checkpoint = stopped
        given = {
            "dtype": dtype,
            "load_in_4bit": load_in_4bit,
            "use_chat_template": use_chat_template,
            "system_prompt": system_prompt,
            "chat_template_kwargs": chat_template_kwargs or {},
            "chat_template_date": chat_template_date,
            "trust_remote_code": trust_remote_code,
        }
        settings = config.policy.model_copy(update=given)
        policy = policy_from_config(settings, seed=config.seed, device=device)
        load_weights(checkpoint, policy.model)
        return policy if lora is None else replace(policy, model=_with_adapter(policy.model, lora, seed))
    location = resolve_location(str(name_or_path))
    arguments: dict[str, Any] = {"revision": revision} if revision else {}
    quantization = four_bits(getattr(torch, dtype)) if load_in_4bit else {}
    try:
        with without_progress_bars():
            tokenizer = load_tokenizer(location, trust_remote_code, arguments)
            model = load_model(
                location, getattr(torch, dtype), trust_remote_code, {**arguments, **quantization}
            )
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # broken files may raise any exception
        raise InputError(cannot_load(str(name_or_path), error)) from error
    if lora is not None:
        model = _with_adapter(model, lora, seed)
    keep_differentiable(model)
    check_model(model.to(device))
    chat = ChatSettings(system_prompt, chat_template_kwargs, chat_template_date)
    return _as_policy(model, tokenizer, use_chat_template, chat)


def random_policy(
    shape: RandomInitConfig, *, seed: int = 0, dtype: str = "float32", device: torch.device | str = "cpu"
) -> LanguagePolicy:
    """Return a small Llama with random weights and a tokenizer whose tokens are single characters.

    This is STEP 0 of the article "The Beauty of Reinforcement Learning (1)": θ is initialized at random.

    Args:
        shape: sizes of the model, and the alphabet of the tokenizer.
        seed: seed of the weights.
        dtype: data type of the weights: float32, bfloat16 or float16.
        device: device of the model.
    """
    tokenizer = character_tokenizer(shape.alphabet)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=shape.max_length,
        initializer_range=shape.hidden_size**-0.5,  # the default of 0.02 is for larger models
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,  # an embedding computes no gradient for its pad token, which is the end token here
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    model = model.to(device, getattr(torch, dtype))
    check_model(model)
    return _as_policy(model, tokenizer, False)


def policy_from_model(
    model: Any,
    tokenizer: Any,
    *,
    use_chat_template: bool = True,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    chat_template_date: datetime.date | str | None = None,
    lora: AdapterConfig | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> LanguagePolicy:
    """Return a policy from a model and a tokenizer of transformers. The model is not copied.

    Args:
        model: causal language model of transformers, with or without a peft adapter.
        tokenizer: tokenizer of the model, with an end token.
        use_chat_template: insert prompts into the chat template of the tokenizer if it has one.
        system_prompt: text of the system message in the chat template. None: the default of the template.
        chat_template_kwargs: further arguments of the chat template, such as `{"enable_thinking": False}`.
        chat_template_date: date that the chat template prints as the current date, such as "2026-11-29".
            None: today's date.
        lora: settings of a new LoRA adapter to train. None: no new adapter.
        seed: seed of the random initialization of a new adapter.

    Raises:
        InputError: if the type of the model or of the tokenizer is not supported, or if the tokenizer has
            more tokens than the model.
    """
    from peft import PeftModel

    if isinstance(model, PreTrainedTokenizerBase) and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            "policy: (tokenizer, model) was given, but the order is (model, tokenizer); swap the two"
        )
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise InputError(
            f"policy: the model must be a causal language model of transformers, not a {type(model).__name__}"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"policy: the tokenizer must be a tokenizer of transformers, not a {type(tokenizer).__name__}"
        )
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if inner.get_output_embeddings() is None:
        raise InputError(
            f"policy: a {type(inner).__name__} has no output layer that predicts tokens; load the model with "
            "AutoModelForCausalLM"
        )
    num_tokens, num_known = num_embeddings(inner), len(tokenizer)
    if tokenizer.pad_token_id == num_known - 1 and tokenizer.pad_token_id != tokenizer.eos_token_id:
        num_known -= 1  # an added pad token needs no embedding, because padding is masked
    if num_tokens is not None and num_known > num_tokens:
        raise InputError(
            f"policy: the tokenizer has {len(tokenizer):,} tokens, but the model has only {num_tokens:,}; "
            "use the tokenizer of the model, or call model.resize_token_embeddings"
        )
    if lora is not None:
        settings = lora if isinstance(lora, AdapterConfig) else AdapterConfig(**lora)
        model = _with_adapter(model, settings, seed)
    keep_differentiable(model)
    check_model(model)
    chat = ChatSettings(system_prompt, chat_template_kwargs, chat_template_date)
    return _as_policy(model, tokenizer, use_chat_template, chat)


def check_reloads(policy: LanguagePolicy) -> None:
    """Check that a policy made from objects in memory can be saved and loaded again without a change.

    Raises:
        InputError: if the model cannot be saved, if the base model of an adapter was not loaded from a path,
            or if the end tokens would differ after loading.
    """
    model = policy.model
    if not hasattr(model, "save_pretrained"):
        raise InputError(
            f"policy: a {type(model).__name__} cannot be saved in output_dir; use a model of transformers, "
            "or omit output_dir"
        )
    if hasattr(model, "peft_config"):
        bases = [config.base_model_name_or_path for config in model.peft_config.values()]  # type: ignore[operator,unused-ignore]
        if not all(bases):
            raise InputError(
                "policy: the base model of this adapter was not loaded from a path, so it could not be found "
                "when the run is resumed; save the base model with save_pretrained and load it from that "
                "path, or omit output_dir"
            )
    template = str(policy.tokenizer.chat_template or "") if policy.uses_chat_template else ""
    if (found := _end_tokens(model, policy.tokenizer, template)) != policy.end_token_ids:
        raise InputError(
            f"policy: the end tokens are {list(policy.end_token_ids)}, but after saving and loading they "
            f"would be {list(found)}; set model.generation_config.eos_token_id, or omit output_dir"
        )


def policy_from_config(
    recipe: PolicyConfig, *, seed: int, device: torch.device | str = "cpu"
) -> LanguagePolicy:
    """Return the policy described by the `policy` section of the settings.

    Args:
        recipe: the `policy` section.
        seed: seed for the random initial weights of a model or an adapter.
        device: device of the model.
    """
    if recipe.random_init is not None:
        return random_policy(recipe.random_init, seed=seed, dtype=recipe.dtype, device=device)
    assert recipe.name_or_path is not None  # ensured by PolicyConfig
    return load_policy(
        recipe.name_or_path,
        dtype=recipe.dtype,
        load_in_4bit=recipe.load_in_4bit,
        lora=recipe.lora,
        use_chat_template=recipe.use_chat_template,
        system_prompt=recipe.system_prompt,
        chat_template_kwargs=recipe.chat_template_kwargs,
        chat_template_date=recipe.chat_template_date,
        revision=recipe.revision,
        trust_remote_code=recipe.trust_remote_code,
        seed=seed,
        device=device,
    )


def _with_adapter(model: Any, lora: AdapterConfig, seed: int) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        raise InputError(
            "policy.lora: this policy already has an adapter; remove this setting to continue the training "
            "of the adapter"
        )
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    # libraries that load the adapter expect an int
    alpha = int(lora.alpha) if lora.alpha.is_integer() else lora.alpha
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except (ValueError, re.error) as error:
            raise InputError(f"policy.lora.target_modules: {reason(error)}") from error


def _as_policy(
    model: Any, tokenizer: Any, use_chat_template: bool, chat: ChatSettings | None = None
) -> LanguagePolicy:
    has_template = use_chat_template and bool(getattr(tokenizer, "chat_template", None))
    template = default_template(tokenizer) if has_template else ""
    end_token_ids = _end_tokens(model, tokenizer, template)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_token_ids[0]
    model.eval()
    # an embedding with padding_idx computes no gradient for the pad token, which may be the end token
    input_embedding(model).padding_idx = None
    pad = valid_pad_token(model, int(pad))
    policy = LanguagePolicy(model, tokenizer, end_token_ids, pad, bool(template))
    return with_chat_settings(policy, chat or ChatSettings())


def _end_tokens(model: Any, tokenizer: Any, template: str) -> tuple[int, ...]:
    """Return the distinct end tokens of the model and the tokenizer.

    A model that was created from a configuration has a default end token id, such as 2, which may be a digit
    in the tokenizer. End tokens of the model are therefore omitted if they are ordinary text in the
    tokenizer. All of them are kept if they include the tokenizer's end token, because they were then chosen
    for this tokenizer.

    The first token of the result is the end token that `encode_completion` appends. If the chat template ends
    the messages of the assistant with a special token, this token comes first. (The generation settings of a
    base model often lack this token.) Otherwise, the end tokens of the model come first.
    """
    ends = model.generation_config.eos_token_id if model.generation_config else None
    of_model = [end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int)]
    of_tokenizer = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if of_tokenizer and of_tokenizer[0] not in of_model:
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        ordinary = set(tokenizer.get_vocab().values()) - special
        of_model = [token_id for token_id in of_model if token_id not in ordinary]
    after_reply = end_of_turn(tokenizer) if template else None
    of_template = end_of_turn_token(tokenizer, after_reply) if after_reply else None
    if of_template is None and of_tokenizer and tokenizer.eos_token in template:
        of_template = of_tokenizer[0]
    in_order = [*([] if of_template is None else [of_template]), *of_model, *of_tokenizer]
    size = num_embeddings(model)
    in_order = [token_id for token_id in in_order if size is None or token_id < size]
    if not in_order:
        raise InputError(
            "policy: no end token is defined, so no episode could end; set eos_token in the tokenizer"
        )
    return tuple(dict.fromkeys(map(int, in_order)))
