"""Find and read the files of a model: directories, adapters, hub ids and GGUF files."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from llm_reinforce.errors import InputError
from llm_reinforce.hub import hub_answers
from llm_reinforce.policy.cache_folder import cache_directory
from llm_reinforce.policy.fetched_models import FETCHABLE, fetched_directory

HOW_TO_CONVERT = (
    "the weights are pickles (.bin), which can run code, so they are not read; if you trust them, "
    'convert them to safetensors: python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{0}').save_pretrained('{0}')\""
)


OTHER_WEIGHTS = (".h5", ".msgpack", ".pt", ".pth", ".ckpt")  # weights of TensorFlow, Flax and PyTorch


def resolve_location(name_or_path: str) -> str:
    """Return the location from which transformers loads a model: a local directory, or the unchanged hub id.

    Raises:
        InputError: if the name is a key of `FETCHABLE` but the model has not been fetched, or if the path
            contains no model.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path in FETCHABLE and not path.exists():
        return str(fetched_directory(name_or_path))
    if path.suffix.lower() == ".gguf":
        return str(convert_gguf(path))
    if path.is_dir():
        policy_directory = path / "policy" if (path / "policy").is_dir() else path
        if not any((policy_directory / name).is_file() for name in ("config.json", "adapter_config.json")):
            run = next((folder for folder in path.parents if (folder / "recipe.yaml").is_file()), None)
            hint = (
                f"to use the newest checkpoint of the run, give the directory of the run, {run}"
                if run
                else "give the directory of a model, an adapter or a run"
            )
            raise InputError(
                f"{path}: no model in this directory (no config.json, no adapter_config.json); {hint}"
            )
        # the path is made absolute, because an adapter stores the path of its base model
        return str(policy_directory.absolute())
    is_path = name_or_path.count("/") > 1 or name_or_path.startswith((".", "/", "~"))
    is_path = is_path or any(sign in name_or_path for sign in "\\:")  # as in C:\models
    if is_path and not path.exists():
        raise InputError(
            f"policy {name_or_path}: no such directory or file; give an existing path, a model name or a "
            "hub id"
        )
    if path.exists():
        raise InputError(f"{path}: unsupported type of file; give a directory, a .gguf file or a hub id")
    return name_or_path


def convert_gguf(path: Path, directory: Path | None = None) -> Path:
    """Convert a GGUF file to float32 safetensors and return the directory of the result.

    If the directory of the result already contains a model, nothing is converted.

    Args:
        path: the GGUF file.
        directory: directory of the result. None: a folder in the cache directory whose name is made from the
            name, the size and the modification time of the file.

    Raises:
        InputError: if the file does not exist or transformers cannot read it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of an existing file")
    stat = path.stat()
    target = directory or cache_directory() / "gguf" / f"{path.stem}-{stat.st_size}-{stat.st_mtime_ns}"
    if (target / "config.json").is_file():
        return target
    folder, name = str(path.parent), path.name
    # suppress the long warning about tokenizers that are converted from GGUF
    logging.getLogger("transformers.modeling_gguf_pytorch_utils").setLevel(logging.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        model = _all_weights(
            folder, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    except Exception as error:  # a broken file may raise any exception
        raise InputError(f"{path}: transformers cannot read this GGUF file: {reason(error)}") from error
    partial = target.with_name(target.name + ".partial")
    model.save_pretrained(str(partial))
    _set_spare_pad_token(tokenizer, model.get_input_embeddings().num_embeddings)
    tokenizer.save_pretrained(str(partial))
    partial.rename(target)
    return target


def _set_spare_pad_token(tokenizer: Any, num_tokens: int) -> None:
    """If the pad token of a tokenizer is also its end token, make an unused token the pad token.

    The tokenizers of some GGUF files use one token for both purposes. If no unused token is known, the
    tokenizer is not changed.
    """
    # transformers adds a missing <|endoftext|> to the tokenizer, but the model has no embedding for its id
    spare = tokenizer.get_vocab().get("<|endoftext|>", num_tokens)
    if tokenizer.pad_token_id == tokenizer.eos_token_id and spare < num_tokens:
        tokenizer.pad_token = "<|endoftext|>"


def load_model(location: str, dtype: torch.dtype, trust_remote_code: bool, arguments: dict[str, Any]) -> Any:
    """Load a model, or an adapter with its base model, from a location returned by `resolve_location`."""
    arguments = {"dtype": dtype, "trust_remote_code": trust_remote_code, "use_safetensors": True, **arguments}
    base = base_location(location)
    if base is None:
        return _all_weights(location, **arguments)
    from peft import PeftModel

    # without this file, peft would load a pickle, which can execute code
    if not (Path(location) / "adapter_model.safetensors").is_file():
        raise InputError(
            f"{location}: the file adapter_model.safetensors is missing; save the adapter with "
            "safe_serialization=True"
        )
    arguments.pop("revision", None)  # this is the revision of the adapter, not of the base model
    return PeftModel.from_pretrained(_all_weights(base, **arguments), location, is_trainable=True)


def load_tokenizer(location: str, trust_remote_code: bool, arguments: dict[str, Any]) -> Any:
    """Load the tokenizer of a model or an adapter.

    If an adapter has no tokenizer, the tokenizer of its base model is loaded.
    """
    names = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")
    base = base_location(location)
    if base is not None and not any((Path(location) / name).is_file() for name in names):
        location, arguments = base, {}
    return AutoTokenizer.from_pretrained(
        location, trust_remote_code=trust_remote_code, **arguments, **reach(location)
    )


def base_location(location: str) -> str | None:
    """Return the location of the base model of an adapter, or None if the location contains no adapter.

    A relative path is looked up in the working directory, and then in the directory of the adapter.

    Raises:
        InputError: if the adapter does not name its base model, or if the base model is not found.
    """
    adapter = Path(location) / "adapter_config.json"
    if not adapter.is_file():
        return None
    try:
        config = json.loads(adapter.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{adapter}: this file is not valid JSON: {error}; save the adapter again"
        ) from error
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        raise InputError(
            f"{adapter}: the name of the base model is missing; set base_model_name_or_path in this file"
        )
    beside = Path(location) / base
    found = str(beside.resolve()) if beside.is_dir() and not Path(base).expanduser().exists() else base
    try:
        return resolve_location(found)
    except InputError as error:
        raise InputError(
            f"{adapter}: the base model {base!r} was not found: {error}; correct base_model_name_or_path in "
            f"this file (a relative path is looked up in {Path.cwd()} and in {location})"
        ) from error


def _all_weights(location: str, **arguments: Any) -> Any:
    """Load a model with `from_pretrained` and check that the files contain all tensors of the model.

    By default, transformers initializes missing tensors with random numbers.

    Raises:
        InputError: if the weights are stored as pickles or in another format, but not as safetensors.
        ValueError: if a tensor is missing, or if its shape differs from the shape in the model.
    """
    path = Path(location)
    if any(path.glob("*.bin")) and not any(path.glob("*.safetensors")):
        raise InputError(f"{location}: {HOW_TO_CONVERT.format(location)}")
    others = [file.name for suffix in OTHER_WEIGHTS for file in path.glob(f"*{suffix}")]
    if others and not any(path.glob("*.safetensors")):
        raise InputError(
            f"{location}: the weights are in {others[0]}, but only safetensors are read; load them with the "
            "library that wrote this file, and save the model with save_pretrained of transformers"
        )
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            location,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the message of transformers does not name the tensors
            **arguments,
            **reach(location),
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise type(error)(f"{location}: {reason(error)}") from error
    if mismatched := sorted(loaded["mismatched_keys"]):
        name, of_file, of_config = mismatched[0]
        raise ValueError(
            f"{len(mismatched)} tensors have other shapes than config.json requires, such as {name}, whose "
            f"shape is {tuple(of_file)} and not {tuple(of_config)}"
        )
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"{len(missing)} tensors of the model are missing, such as {missing[0]}")
    return model


def reach(location: str) -> dict[str, bool]:
    """Return arguments of `from_pretrained` that restrict loading to local files if the hub does not answer.

    Without these arguments, transformers would wait for the hub again for every file.
    """
    return {} if Path(location).is_dir() or hub_answers() else {"local_files_only": True}


def cannot_load(name: str, error: Exception) -> str:
    fetchable = ", ".join(sorted(FETCHABLE))
    exists = Path(name).expanduser().exists()
    source = "" if exists else "no such directory or file, and "
    from_hub = "" if exists else " from the hub"
    return (
        f"policy {name!r}: {source}loading a causal language model{from_hub} failed ({reason(error)}); "
        "give a directory, a .gguf file, a hub id (with network access or a filled cache), or one of: "
        f"{fetchable}"
    )


def reason(error: Exception) -> str:
    """Return the first line of an error's message, or the first two lines if the first ends with a colon.

    If the error is of an unusual type, such as a KeyError, the result begins with the name of the type.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if not isinstance(error, OSError | ValueError | RuntimeError | ImportError):
        lines[0] = f"{type(error).__name__}: {lines[0]}"
    # "Error(s) in loading state_dict:" is followed by the errors
    return lines[0] if len(lines) == 1 or not lines[0].endswith(":") else f"{lines[0]} {lines[1]}"
