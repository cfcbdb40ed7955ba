"""Fine-tune a small causal language model by policy gradient, token by token.

The example below is a complete training script. It needs a model, which `llm-reinforce fetch smollm2-135m`
downloads.

    from llm_reinforce import ReinforceTrainer, verify

    def short_and_right(completion, problem):
        return float(verify(completion, problem.answer).correct and len(completion) < 20)

    problems = [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(10) for b in range(10)]
    trainer = ReinforceTrainer(
        "smollm2-135m", problems, short_and_right, output_dir="runs/mine", num_updates=50, max_new_tokens=24
    )
    result = trainer.train()
    print(result.before["greedy"].accuracy, "->", result.after["greedy"].accuracy)

The main arguments:

- The policy is a model name, a path, a hub id, or a `(model, tokenizer)` pair of transformers.
- The problems are a data-set name such as "gsm8k", a file, a hub id, a list of dicts, or a
  `datasets.Dataset`. "generate:digits=2" generates two-digit additions and downloads nothing.
- A reward function is `f(completion: str, problem: Problem) -> float`. It may also return `StepRewards`
  (rewards for single steps or tokens of the completion), or None if it does not apply to the problem.
  `problem` has the attributes `prompt`, `answer`, `solution`, `id` and `columns`. Without a reward function,
  the reward is 1 for a correct final answer and 0 otherwise.
- All other settings are keyword arguments of `ReinforceTrainer`, and all have defaults.

Main entry points:

- `ReinforceTrainer(...).train()` trains, and `for update in trainer.updates()` exposes the training loop.
- `load_recipe("quickstart").train()` trains a recipe, which is a YAML file with all settings of a run.
- `verify(completion, answer)` checks one answer and returns a `Verdict` (`correct`, `extracted`, `reason`).
- `evaluate(policy, problems)` returns the accuracy with its 95% confidence interval, and
  `compare_evaluations(before, after)` returns the difference between two evaluations.
- `compare(recipes, seeds=..., tokens=...)` trains several recipes with equal budgets of sampled tokens.
- `report(output_dir)` writes an HTML page with the curves of a run, and with its episodes token by token.
- `diagnose(output_dir)` returns what is wrong with a run, with evidence and advice.
- `load_policy(name)` loads a model as a `LanguagePolicy`.

User errors raise `InputError`, whose message says what is wrong and what to do.

Each name is imported when it is first used, so that importing `verify` or `Problem` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_reinforce.analysis import compare
    from llm_reinforce.config import (
        AdapterConfig,
        ClipConfig,
        Config,
        DataConfig,
        EvaluationConfig,
        GenerateConfig,
        ImportanceConfig,
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
    from llm_reinforce.reports import Finding, diagnose, live_report, report
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
    "ClipConfig",
    "Comparison",
    "Config",
    "DataConfig",
    "Evaluation",
    "EvaluationConfig",
    "Finding",
    "GenerateConfig",
    "ImportanceConfig",
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
    "diagnose",
    "evaluate",
    "live_report",
    "load_policy",
    "load_recipe",
    "random_policy",
    "report",
    "verify",
]

_HOMES = {
    "analysis": ["compare"],
    "config": [
        "AdapterConfig",
        "ClipConfig",
        "Config",
        "DataConfig",
        "EvaluationConfig",
        "GenerateConfig",
        "ImportanceConfig",
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
    "reports": ["Finding", "diagnose", "live_report", "report"],
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
        except PackageNotFoundError:  # a checkout that is not installed
            value = "0+uninstalled"
    elif name in _HOME_OF:
        value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # cached, so that the next access does not call this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
