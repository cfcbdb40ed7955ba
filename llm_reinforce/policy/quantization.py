"""Models whose linear layers are quantized to 4 bits by bitsandbytes (Dettmers et al. 2023, QLoRA)."""

import importlib.util
import logging
import math
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from llm_reinforce.errors import InputError

# bitsandbytes logs an error if an optional package with faster kernels is missing
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.CRITICAL)


def check_bitsandbytes(key: str) -> None:
    """Check that bitsandbytes is installed.

    Args:
        key: setting that needs bitsandbytes, for the error message.

    Raises:
        InputError: if bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"{key}: needs bitsandbytes, which is not installed; install it with "
            "`pip install 'llm-reinforce[quantization]'`, or remove this setting"
        )


def four_bits(dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that quantize the linear layers to 4 bits.

    The head and the embedding are not quantized.

    Args:
        dtype: data type in which products with the quantized weights are computed.

    Raises:
        InputError: if bitsandbytes is not installed.
    """
    check_bitsandbytes("policy.load_in_4bit")
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": settings, "device_map": {"": "cpu"}}


def keep_differentiable(model: nn.Module) -> None:
    """Prevent bitsandbytes from using products without a gradient.

    On a CPU with bfloat16 instructions, a 4-bit layer in evaluation mode changes the layout of its weights in
    the first forward pass without gradient. It then computes all products in bfloat16 and without a gradient,
    even in later passes that need a gradient.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.state_dict()  # restores the layout
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def num_elements(parameter: nn.Parameter) -> int:
    """Return the number of weights in a parameter. An element of a quantized parameter holds two weights."""
    quantized = getattr(parameter, "quant_state", None)
    return parameter.numel() if quantized is None else math.prod(quantized.shape)
