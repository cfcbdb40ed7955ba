"""Tests that a sampling step on a GPU can be compiled, and recorded as a CUDA graph. They need no GPU."""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
from small_models import PROMPTS, model_of, policy_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm_reinforce.errors import InputError
from llm_reinforce.policy import Completion, LanguagePolicy, sample_completions, sampling
from llm_reinforce.policy.fast_path import slot_batch, step_graph

NUM_NEW = 9


def started() -> sampling.Generation:
    """Return completions of 6 prompts whose first actions have been drawn, as on a GPU."""
    policy = policy_of(model_of("llama"))
    del policy.model.model.layers[1:]  # compiling one layer is faster
    generation = sampling.Generation(policy, slot_batch.SlotBatch(policy.model, 12, 20), 12, 20)
    generation.shares_rows = False
    numbers = torch.rand((6, 2, 20), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    generation.start(deque(range(6)), PROMPTS, 2, lambda prompt: numbers[prompt])
    generation.draw_actions(0.7)
    return generation


def decode(generation: Any) -> None:
    """Compute the tensors of one decoding step, from the embedding of an action to the next action."""
    actions = generation.actions.new_zeros(generation.num_rows)
    generation.logits = generation.batch.append(
        actions.index_copy_(0, generation.active_rows, generation.actions)
    )
    generation.draw_actions(0.7)


@torch.no_grad()
def test_a_decoding_step_is_compiled_once_for_all_positions_and_without_a_graph_break(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the checks of shapes in the tests cannot be compiled
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr(jaxtyping, "jaxtyped", lambda **arguments: lambda function: function)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(decode, backend=backend, fullgraph=True, dynamic=False)
    one, other = started(), started()
    for _ in range(NUM_NEW):
        decode(one)
        compiled(other)
    assert len(graphs) == 1
    assert one.lengths.tolist() == other.lengths.tolist()
    assert one.token_ids.tolist() == other.token_ids.tolist()
    for name in ("log_probs", "entropies", "squared_logit_gradient_norms"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-10, atol=1e-10)


class RecordedOperations(TorchDispatchMode):
    """Operations that can be repeated on the same memory, as in a CUDA graph.

    A CUDA graph contains the addresses of its tensors and no code of Python. In the same way, the repeated
    operations read the recorded tensors, and their results are copied to the recorded results.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **kwargs or {})
        self.calls.append((func, args, kwargs or {}, results))
        return results

    def repeat(self) -> None:
        for func, args, kwargs, results in self.calls:
            for old, new in zip(tree_leaves(results), tree_leaves(func(*args, **kwargs)), strict=True):
                is_result = isinstance(old, Tensor) and old.numel() > 0
                if is_result and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


def use_recorded_operations(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Let the sampler use recorded operations instead of CUDA graphs, and count their uses."""
    num = Counter[str]()

    def record(function: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Callable[[], None], Tensor]:
        num["recorded"] += 1
        recorded = RecordedOperations()
        with recorded:
            outputs = function(inputs)
        is_computed = [True]  # a CUDA graph is not computed while it is recorded, but the operations here are

        def replay() -> None:
            num["replayed"] += 1
            if not is_computed:
                recorded.repeat()
            is_computed.clear()

        return replay, outputs

    monkeypatch.setattr(step_graph, "record", record)
    monkeypatch.setattr(sampling, "check_cuda_graphs", lambda policy: None)
    monkeypatch.setattr(sampling, "CHECK_EVERY", {"cpu": 8})
    return num


def sampled(policy: LanguagePolicy, *, cuda_graphs: bool) -> list[Completion]:
    return sample_completions(
        policy,
        [*PROMPTS, (9,), (8, 8, 8, 8, 8, 8, 8)],
        num_completions=3,
        max_new_tokens=25,
        temperature=1.2,
        generator=torch.Generator().manual_seed(6),
        batch_size=11,
        cuda_graphs=cuda_graphs,
    )


def test_replayed_steps_give_the_same_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(model_of("qwen3"))
    expected = sampled(policy, cuda_graphs=False)
    num = use_recorded_operations(monkeypatch)
    found = sampled(policy, cuda_graphs=True)
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-10)
        assert one.entropies == pytest.approx(other.entropies, abs=1e-10)
    assert num["recorded"] > 1  # again when the cache or the number of rows has changed
    assert num["replayed"] > 3 * num["recorded"]


def test_the_end_of_completions_is_found_without_waiting_if_there_are_many_end_tokens() -> None:
    # `torch.isin` sorts many test elements and removes duplicates, whose number a GPU would have to report
    policy = policy_of(model_of("llama"))
    policy = LanguagePolicy(policy.model, policy.tokenizer, tuple(range(1, 13)), 12)
    generation = sampling.Generation(policy, slot_batch.SlotBatch(policy.model, 1, 9), 1, 9)
    generation.start(deque([0]), [(1, 2)], 1, None)
    with torch.profiler.profile() as profile:
        generation.step(1.0)
    names = {event.name for event in profile.events()}
    assert "aten::isin" in names
    assert not {name for name in names if "unique" in name}
    assert generation.is_running.tolist() == [generation.actions.item() == 0]


def test_cuda_graphs_without_a_gpu_are_an_error() -> None:
    with pytest.raises(InputError, match=r"^sampling\.cuda_graphs needs a GPU .* device is cpu; remove"):
        sampled(policy_of(model_of("llama")), cuda_graphs=True)
