"""Shared test setup: checked tensor shapes, one thread, no hub access, and tiny policies."""

import os
from collections.abc import Callable

from jaxtyping import install_import_hook

# Installed before the modules are imported: all their calls check types and tensor shapes. An int is accepted
# as a float.
install_import_hook(
    [
        "llm_reinforce.policy_gradient",
        "llm_reinforce.policy.action_head",
        "llm_reinforce.policy.batches",
        "llm_reinforce.policy.drawing",
        "llm_reinforce.policy.language_policy",
        "llm_reinforce.policy.fast_path.attention",
        "llm_reinforce.policy.fast_path.packed_forward",
        "llm_reinforce.policy.fast_path.packed_log_probs",
        "llm_reinforce.policy.fast_path.packing",
        "llm_reinforce.policy.fast_path.products",
        "llm_reinforce.policy.fast_path.slot_batch",
        "llm_reinforce.policy.sampling",
        "llm_reinforce.policy.log_probs",
        "llm_reinforce.policy.value_head",
        "llm_reinforce.episodes",
        "llm_reinforce.analysis.episode_gradients",
        "llm_reinforce.analysis.estimators",
        "llm_reinforce.analysis.sketch",
        "llm_reinforce.analysis.gradient_statistics",
        "llm_reinforce.analysis.gradient_variance",
        "llm_reinforce.training.gradient_step",
        "llm_reinforce.training.loop",
        "llm_reinforce.training.metrics",
        "llm_reinforce.training.value_baseline",
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from llm_reinforce.config import RandomInitConfig  # noqa: E402
from llm_reinforce.policy import LanguagePolicy, random_policy  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)  # tests must not fail because the machine is busy
settings.load_profile("untimed")


@pytest.fixture
def tiny_policy() -> LanguagePolicy:
    """Return a new Llama with random weights over digits, in float32; its pad token is its end token."""
    shape = RandomInitConfig(
        alphabet="0123456789+=",
        num_layers=2,
        num_heads=2,
        hidden_size=16,
        intermediate_size=32,
        max_length=32,
    )
    return random_policy(shape, seed=1)


@pytest.fixture(scope="session")
def exact_policy() -> Callable[..., LanguagePolicy]:
    """Return a function that builds a tiny Llama in float64: `exact_policy(alphabet="01", seed=3)`.

    Each call builds a new policy; the same arguments give the same weights.
    """

    def make(alphabet: str = "0123456789+=", seed: int = 1) -> LanguagePolicy:
        shape = RandomInitConfig(
            alphabet=alphabet, num_layers=1, num_heads=2, hidden_size=8, intermediate_size=12, max_length=32
        )
        policy = random_policy(shape, seed=seed, dtype="float64")
        # the RMSNorm of transformers rounds to float32; that of torch computes in float64
        for parent in list(policy.model.modules()):
            for name, child in list(parent.named_children()):
                if type(child).__name__ == "LlamaRMSNorm":
                    norm = torch.nn.RMSNorm(child.weight.shape, child.variance_epsilon, dtype=torch.float64)
                    setattr(parent, name, norm)
        return policy

    return make


@pytest.fixture(scope="session")
def tiny_run() -> list[str]:
    """Return overrides that make a recipe such as the quick start finish within seconds."""
    return [
        "policy.random_init.num_layers=1",
        "policy.random_init.num_heads=2",
        "policy.random_init.hidden_size=8",
        "policy.random_init.intermediate_size=8",
        "problems.num_held_out=8",
        "reinforce.problems_per_update=4",
        "training.num_updates=2",
        "training.num_warmup_updates=0",
        "training.warm_start.num_updates=1",
        "training.warm_start.num_warmup_updates=0",
    ]
