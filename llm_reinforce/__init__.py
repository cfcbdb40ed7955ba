"""llm_reinforce: fine-tune a small causal language model by policy gradient, token by token.

    from llm_reinforce import Problem, TrainingLoop, load_policy, verify

Each name is imported when it is first used, so that what needs no model never waits for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_reinforce.config import Config, load_config
    from llm_reinforce.evaluation import evaluate
    from llm_reinforce.policy import LanguagePolicy, load_policy, random_policy
    from llm_reinforce.problems import Problem
    from llm_reinforce.rewards import StepRewards
    from llm_reinforce.training import TrainingLoop
    from llm_reinforce.verifier import Verdict, verify

    __version__: str

__all__ = [
    "LanguagePolicy",
    "Problem",
    "Config",
    "TrainingLoop",
    "StepRewards",
    "Verdict",
    "__version__",
    "evaluate",
    "load_policy",
    "load_config",
    "random_policy",
    "verify",
]

_HOMES = {
    "LanguagePolicy": "policy",
    "Problem": "problems",
    "Config": "config",
    "TrainingLoop": "training",
    "StepRewards": "rewards",
    "Verdict": "verifier",
    "evaluate": "evaluation",
    "load_policy": "policy",
    "load_config": "config",
    "random_policy": "policy",
    "verify": "verifier",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: object = version("llm-reinforce")
        except PackageNotFoundError:  # run from a checkout that was never installed
            value = "0+uninstalled"
    elif name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
