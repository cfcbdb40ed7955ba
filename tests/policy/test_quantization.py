"""Adapters on a base model in 4 bits, with the real bitsandbytes."""

import importlib.util
from pathlib import Path

import pytest
import torch

from llm_reinforce import Problem, ReinforceTrainer, load_policy
from llm_reinforce.config import AdapterConfig, RandomInitConfig
from llm_reinforce.errors import InputError
from llm_reinforce.evaluation.prompting import load_for_evaluation, run_recipe
from llm_reinforce.policy import (
    LanguagePolicy,
    describe_policy,
    own_log_probs,
    random_policy,
    sample_completions,
    token_log_probs,
)

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed (pip install -e '.[quantization]')",
)
PROBLEMS = [Problem(f"{digit}=", str(digit), id=str(digit)) for digit in range(4)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = RandomInitConfig(
        alphabet="0123=", num_layers=2, num_heads=2, hidden_size=64, intermediate_size=64, max_length=16
    )
    directory = tmp_path_factory.mktemp("base")
    random_policy(shape, seed=1).save(directory)
    return directory


@pytest.fixture(scope="module")
def policy(base: Path) -> LanguagePolicy:
    return load_policy(base, load_in_4bit=True, lora=AdapterConfig(rank=2))


@needs_bitsandbytes
def test_sampled_log_probs_are_those_of_the_gradient_step(policy: LanguagePolicy) -> None:
    prompts = [(1, 2), (3,)]
    completions = sample_completions(policy, prompts, num_completions=2, max_new_tokens=5)
    of_rows = [prompt for prompt in prompts for _ in range(2)]
    tokens = [completion.token_ids for completion in completions]
    for function in (token_log_probs, own_log_probs):
        found = function(policy.model, of_rows, tokens, pad_token_id=policy.pad_token_id).log_probs
        for row, completion in zip(found, completions, strict=True):
            expected = torch.tensor(completion.log_probs, dtype=row.dtype)
            torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-4, atol=1e-4)


@needs_bitsandbytes
def test_every_adapter_has_a_gradient_after_sampling(policy: LanguagePolicy) -> None:
    sample_completions(policy, [(1, 2)], max_new_tokens=2)
    policy.model.zero_grad()
    token_log_probs(policy.model, [(1, 2)], [(3, 4)], pad_token_id=0).log_probs.sum().backward()
    trained = {name: each for name, each in policy.model.named_parameters() if each.requires_grad}
    # the matrices A have no gradient before the first step, because the matrices B are zero
    of_b = [each.grad for name, each in trained.items() if "lora_B" in name]
    assert len(of_b) == len(trained) // 2 == 14
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in of_b)
    layers = [each for each in policy.model.modules() if hasattr(each, "support_avx512bf16_for_cpu")]
    assert len(layers) == 14
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@needs_bitsandbytes
def test_all_weights_are_counted(policy: LanguagePolicy, base: Path) -> None:
    plain = load_policy(base, lora=AdapterConfig(rank=2))
    assert describe_policy(policy).replace(", linear layers in 4 bits", "") == describe_policy(plain)
    assert "linear layers in 4 bits" in describe_policy(policy)


@needs_bitsandbytes
def test_a_run_trains_the_adapter_and_is_evaluated_in_4_bits(base: Path, tmp_path: Path) -> None:
    trainer = ReinforceTrainer(
        str(base),
        PROBLEMS,
        lambda completion, problem: float(len(completion)),
        load_in_4bit=True,
        lora={"rank": 2},
        num_held_out=1,
        num_updates=2,
        problems_per_update=3,
        episodes_per_problem=2,
        max_new_tokens=4,
        learning_rate=1e-2,
        output_dir=tmp_path / "run",
        progress=False,
    )
    before = {name: each.detach().clone() for name, each in trainer.policy.model.named_parameters()}
    result = trainer.train()
    changed = {
        name for name, each in trainer.policy.model.named_parameters() if not torch.equal(each, before[name])
    }
    assert changed
    assert all("lora_" in name for name in changed)
    of_run = load_policy(tmp_path / "run" / "policy", load_in_4bit=True)
    episodes = [(1, 2)], [(3, 4)]
    scores = [
        token_log_probs(each.model, *episodes, pad_token_id=0).log_probs.detach()
        for each in (result.policy, of_run)
    ]
    assert torch.equal(*scores)
    for_evaluation = load_for_evaluation(tmp_path / "run", run_recipe(tmp_path / "run"))
    assert "linear layers in 4 bits" in describe_policy(for_evaluation)


@needs_bitsandbytes
def test_quantized_weights_without_an_adapter_are_not_trained(base: Path) -> None:
    with pytest.raises(InputError, match=r"quantized weights cannot be trained; train an adapter"):
        ReinforceTrainer(str(base), PROBLEMS, load_in_4bit=True, max_new_tokens=4, progress=False)


def test_missing_bitsandbytes_is_reported(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"load_in_4bit: needs bitsandbytes.*'llm-reinforce\[quantization\]'"
    ):
        load_policy(base, load_in_4bit=True)
