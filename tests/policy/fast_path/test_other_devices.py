"""Test of the fast path on another device than the CPU, with fake tensors instead of a GPU.

Fake tensors of torch have a shape, a data type and a device, but no numbers. An operation fails if its
tensors are on different devices, or if it has to wait for a number. The test checks neither numbers nor
speed.
"""

from collections import deque

import pytest
import torch
from processes import run_forked
from small_models import COMPLETIONS, PROMPTS, SHAPE, NoSynchronization, policy_of
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import backend_registration
from transformers import LlamaConfig, LlamaForCausalLM

from llm_reinforce.policy import log_probs, sampling, token_log_probs
from llm_reinforce.policy.fast_path import slot_batch


def use_a_gpu_without_numbers() -> None:
    class Backend(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self):
            return [torch.bfloat16]

    backend_registration._setup_privateuseone_for_python_backend("gpu", backend_module=Backend())
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16).eval()
    with FakeTensorMode():
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        moved = torch.empty(tensor.shape, dtype=tensor.dtype, device="gpu")
                        tensors[name] = torch.nn.Parameter(moved) if tensors is module._parameters else moved

        log_probs.fast_model = lambda model: model  # tensors without values cannot be compared
        found = token_log_probs(model, PROMPTS, COMPLETIONS, pad_token_id=12, with_entropies=True)
        assert found.log_probs.device.type == "gpu"
        assert found.log_probs.dtype == torch.float32
        (found.log_probs + found.entropies).sum().backward()
        assert all(parameter.grad.device.type == "gpu" for parameter in model.parameters())

        batch = slot_batch.SlotBatch(model, 12, 20, has_fixed_shapes=True)
        generation = sampling.Generation(policy_of(model), batch, 12, 20)
        generation.start(deque(range(6)), PROMPTS, 2, lambda prompt: torch.rand(2, 20, dtype=torch.float64))
        with NoSynchronization():
            for _ in range(7):
                generation.step(0.7)
                assert list(generation.pop_ended()) == []
                generation.advance(may_shrink=True)
        assert generation.logits.device.type == "gpu"
        assert generation.logits.dtype == torch.bfloat16
        generation.step(0.7)
        try:
            list(generation.pop_ended())
        except DataDependentOutputException:
            print("checked after 8 tokens")


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this version of torch has no Python backends",
)
def test_tensors_stay_on_a_gpu_and_ended_completions_are_checked_every_8_tokens() -> None:
    # in a process of its own, since a backend cannot be removed
    done = run_forked(use_a_gpu_without_numbers, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["checked after 8 tokens"]
