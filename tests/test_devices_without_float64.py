"""Training, sampling and evaluation on a device that has no float64, such as Apple's GPUs.

A mode of torch takes the place of the device: every operation that reads or returns float64 fails.
"""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm_reinforce import ReinforceTrainer, evaluate
from llm_reinforce.config import RandomInitConfig
from llm_reinforce.evaluation.journal import fingerprint
from llm_reinforce.policy import LanguagePolicy, random_policy, sample_completions, widest_float
from llm_reinforce.problems import Problem

PROBLEMS = [Problem(f"{digit}=", str(digit), id=str(digit)) for digit in range(4)]


class WithoutFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if value is torch.float64 or (isinstance(value, torch.Tensor) and value.dtype == torch.float64):
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return result


def policy(vocabulary: str = "0123=") -> LanguagePolicy:
    shape = RandomInitConfig(
        alphabet=vocabulary, num_layers=1, num_heads=2, hidden_size=16, intermediate_size=32, max_length=8
    )
    return random_policy(shape)


def test_widest_float() -> None:
    assert widest_float("cpu") == torch.float64
    with WithoutFloat64():
        assert widest_float(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(
    "settings",
    [
        *({"baseline": baseline} for baseline in ("leave_one_out", "value", "greedy", "optimal")),
        {"updates_per_batch": 2, "importance": {"level": "per_decision"}},
        {"updates_per_batch": 2, "variant": "grpo"},
    ],
    ids=str,
)
def test_training(settings: dict[str, Any]) -> None:
    with WithoutFloat64():
        trainer = ReinforceTrainer(
            policy(),
            PROBLEMS,
            lambda completion, problem: float(len(completion)),
            num_updates=2 * settings.get("updates_per_batch", 1),
            **settings,
            problems_per_update=2,
            episodes_per_problem=2,
            max_new_tokens=4,
            num_held_out=1,
            progress=False,
        )
        result = trainer.train()
    assert [row["grad_norm"] > 0 for row in result.history] == [True, True]
    assert result.history[0]["sampling/sampling_logp_difference/max"] < 1e-5


@pytest.mark.parametrize("vocabulary", ["0123=", "".join(map(chr, range(0x4E00, 0x4E00 + 1500)))])
def test_samples_have_the_right_frequencies(vocabulary: str) -> None:
    """Vocabularies above 1,024 tokens are searched in two steps."""
    one = policy(vocabulary)
    prompt = one.encode_prompts([vocabulary[0]])
    generator = torch.Generator().manual_seed(0)
    with WithoutFloat64():
        sampled = sample_completions(one, prompt, num_completions=2000, max_new_tokens=1, generator=generator)
    of_cpu = sample_completions(
        one, prompt, num_completions=2000, max_new_tokens=1, generator=generator.manual_seed(1)
    )
    # the mean of log π estimates the negative entropy, with a standard error below 0.03
    means = [sum(each.log_probs[0] for each in part) / 2000 for part in (sampled, of_cpu)]
    assert means[0] == pytest.approx(-of_cpu[0].entropies[0], abs=0.1)
    assert means[0] == pytest.approx(means[1], abs=0.1)


@pytest.mark.parametrize("decoding", ["greedy", "sampled"])
def test_evaluation(decoding: Any) -> None:
    with WithoutFloat64():
        found = evaluate(policy(), PROBLEMS, decoding=decoding, max_new_tokens=4)
        fingerprint(policy())
    assert len(found.answers) == 4
