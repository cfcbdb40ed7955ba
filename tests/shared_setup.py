"""Shared setup of all tests: checked tensor shapes, one thread, and tiny policies."""

import functools
import gc
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, no_type_check

gc.disable()  # imports create few cycles; enabled in `pytest_collection_finish`

# While a hooked module is imported, jaxtyping looks for the bytecode of all modules under another name. Large
# libraries are imported first, since compiling them took longer than importing them.
import jaxtyping  # noqa: E402
import torch  # noqa: E402
import typer.main  # noqa: E402

# bitsandbytes, which peft imports, compiles functions when it is imported. No test calls them, and the import
# of the compiler takes long.
torch_compile, torch.compile = torch.compile, lambda function, **_: function
import peft  # noqa: E402, F401

torch.compile = torch_compile
import scipy.stats  # noqa: E402, F401
import transformers.models.llama.modeling_llama  # noqa: E402, F401
from jaxtyping import install_import_hook  # noqa: E402

PACKAGE = Path(__file__).parents[1] / "llm_reinforce"


def modules_with_tensors() -> list[str]:
    """Return the names of all modules that import torch or jaxtyping."""
    return [
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for file in sorted(PACKAGE.rglob("*.py"))
        if re.search(r"^\s*(?:import|from) (?:torch|jaxtyping)\b", file.read_text(), re.MULTILINE)
    ]


# Installed before the modules are imported: all their calls check annotated types and tensor shapes, except
# as in `skip_checks_without_tensors`.
install_import_hook(modules_with_tensors(), "shape_checks.checked")

import pytest  # noqa: E402
import shape_checks  # noqa: E402
from hypothesis import settings  # noqa: E402

from llm_reinforce.config import RandomInitConfig  # noqa: E402
from llm_reinforce.policy import LanguagePolicy, random_policy  # noqa: E402

torch.set_num_threads(1)
# Without this cache, `CliRunner.invoke` builds all commands from their signatures in each call. The module
# `typer.testing`, which is imported later, takes the function from here.
typer.main.get_command = functools.cache(typer.main.get_command)
# without deadlines, which depend on how busy the machine is; each run draws other examples
settings.register_profile("untimed", deadline=None, max_examples=30)
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Start garbage collection when all test files have been imported."""
    gc.freeze()
    gc.unfreeze()  # moves all objects to the oldest generation without a collection
    gc.enable()


def pytest_unconfigure() -> None:
    """Collect what the tests left, and skip all else: afterwards, pytest starts ten full collections."""
    gc.collect()
    gc.freeze()


def skip_checks_without_tensors(module: Any) -> None:
    """Turn off the checks of functions whose annotations have no tensor, since mypy checks their types.

    They are called thousands of times per update, and their checks took a third of the time of a run.
    """
    classes = [each for each in vars(module).values() if inspect.isclass(each)]
    for owner in (module, *(each for each in classes if each.__module__ == module.__name__)):
        for found in list(vars(owner).values()):
            function = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
            if getattr(function, "__module__", None) != module.__name__ or inspect.isclass(function):
                continue
            if not hasattr(function, "__wrapped__"):
                continue
            if shape_checks.has_tensors(function):
                shape_checks.functions[function.__module__, function.__qualname__] = function
            else:
                no_type_check(function)


prepared: set[str] = set()  # names of modules
# Test files that run whole commands and recorded runs, as all files directly in tests/ do. The tests of each
# layer check the shapes of the functions that these runs call. Here the checks took 20% to 30% of the time.
WITHOUT_CHECKS = {
    "test_baselines_in_a_run",
    "test_batch_settings",
    "test_budget",
    "test_data_parallel",
    "test_degenerate",
    "test_durable_files",
    "test_kills",
    "test_learning",
    "test_lost_processes",
    "test_not_finite",
    "test_prompts_of_a_run",
    "test_provoked_symptoms",
    "test_report_in_a_browser",
    "test_resumed_runs",
    "test_reward_faults",
    "test_sampled_by_a_server",
    "test_sharded_training",
    "test_trackers",
    "test_without_answers",
}
# Test files whose runs write no report.html, which takes a tenth of the time of a tiny run
WITHOUT_REPORTS = {
    "test_analysis_commands",
    "test_cli",
    "test_compare",
    "test_data_parallel",
    "test_kills",
    "test_lost_processes",
    "test_provoked_symptoms",
    "test_python_api",
    "test_reward_recipes",
    "test_trackers",
}


@pytest.fixture(scope="module", autouse=True)
def _fast_checks_and_runs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Prepare the modules that have been imported, and do not wait until files are on the disk.

    Each run waits some 40 times until a file is on the disk, which matters only if the machine goes down.
    """
    for name in modules_with_tensors():
        if name in sys.modules and name not in prepared:
            skip_checks_without_tensors(sys.modules[name])
            prepared.add(name)
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem in WITHOUT_REPORTS and "llm_reinforce.training.trainer" in sys.modules:
            patch.setattr("llm_reinforce.training.trainer.report", lambda path: path)
        patch.setattr(os, "fsync", lambda descriptor: None)
        runs_commands = request.path.parent == Path(__file__).parent or request.path.stem in WITHOUT_CHECKS
        jaxtyping.config.update("jaxtyping_disable", runs_commands)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _checks_of_each_test() -> None:
    shape_checks.start_counting()


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
