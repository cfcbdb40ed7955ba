"""llm_reinforce: fine-tune a small causal language model by policy gradient, token by token.

    from llm_reinforce import ReinforceTrainer, verify

    def short_and_right(completion, problem):
        return float(verify(completion, problem.answer).correct and len(completion) < 20)

    result = ReinforceTrainer("smollm2-135m", "gsm8k", short_and_right, output_dir="runs/mine").train()

Each name is imported when it is first used, so that code without a model never waits for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_reinforce.analysis import compare
    from llm_reinforce.config import (
        AdapterConfig,
        Config,
        DataConfig,
        EvaluationConfig,
        GenerateConfig,
        PolicyConfig,
        ProblemsConfig,
        RandomInitConfig,
        ReinforceConfig,
        RewardConfig,
        SamplingConfig,
        TrainingConfig,
        ValueConfig,
        WarmStartConfig,
    )
    from llm_reinforce.errors import InputError, RunStoppedError
    from llm_reinforce.evaluation import Comparison, Evaluation, compare_evaluations, evaluate
    from llm_reinforce.policy import LanguagePolicy, load_policy, random_policy
    from llm_reinforce.problems import Problem
    from llm_reinforce.rewards import StepRewards, WeightedReward, combine_rewards
    from llm_reinforce.training import (
        Recipe,
        ReinforceTrainer,
        TrainingResult,
        Update,
        load_recipe,
    )
    from llm_reinforce.verifier import Verdict, verify

    __version__: str

__all__ = [
    "AdapterConfig",
    "Comparison",
    "Config",
    "DataConfig",
    "Evaluation",
    "EvaluationConfig",
    "GenerateConfig",
    "InputError",
    "LanguagePolicy",
    "PolicyConfig",
    "Problem",
    "ProblemsConfig",
    "RandomInitConfig",
    "Recipe",
    "ReinforceConfig",
    "ReinforceTrainer",
    "RewardConfig",
    "RunStoppedError",
    "SamplingConfig",
    "StepRewards",
    "TrainingConfig",
    "TrainingResult",
    "Update",
    "ValueConfig",
    "Verdict",
    "WarmStartConfig",
    "WeightedReward",
    "__version__",
    "combine_rewards",
    "compare",
    "compare_evaluations",
    "evaluate",
    "load_policy",
    "load_recipe",
    "random_policy",
    "verify",
]

_HOMES = {
    "analysis": ["compare"],
    "config": [
        "AdapterConfig",
        "Config",
        "DataConfig",
        "EvaluationConfig",
        "GenerateConfig",
        "PolicyConfig",
        "ProblemsConfig",
        "RandomInitConfig",
        "ReinforceConfig",
        "RewardConfig",
        "SamplingConfig",
        "TrainingConfig",
        "ValueConfig",
        "WarmStartConfig",
    ],
    "errors": ["InputError", "RunStoppedError"],
    "evaluation": ["Comparison", "Evaluation", "compare_evaluations", "evaluate"],
    "policy": ["LanguagePolicy", "load_policy", "random_policy"],
    "problems": ["Problem"],
    "rewards": ["StepRewards", "WeightedReward", "combine_rewards"],
    "training": ["Recipe", "ReinforceTrainer", "TrainingResult", "Update", "load_recipe"],
    "verifier": ["Verdict", "verify"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: object = version("llm-reinforce")
        except PackageNotFoundError:  # run from a checkout that was never installed
            value = "0+uninstalled"
    elif name in _HOME_OF:
        value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next access finds it at once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
