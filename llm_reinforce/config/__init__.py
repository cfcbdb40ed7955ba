"""Classes for the settings of a run, and functions that read and write recipe files.

Each setting is defined in exactly one class.
"""

from llm_reinforce.config.batch_config import (
    CurriculumConfig,
    EntropyTargetConfig,
    KLConfig,
    LengthPenaltyConfig,
    PoolsConfig,
)
from llm_reinforce.config.evaluation_config import NUM_TRAINING_PROBLEMS_EVALUATED, Decoding, EvaluationConfig
from llm_reinforce.config.policy_config import AdapterConfig, PolicyConfig, RandomInitConfig
from llm_reinforce.config.problems_config import (
    DataConfig,
    GenerateConfig,
    ProblemsConfig,
)
from llm_reinforce.config.recipe_file import builtin_recipes, dump_config, load_config
from llm_reinforce.config.reinforce_config import (
    MAX_NEW_TOKENS,
    ClipConfig,
    ImportanceConfig,
    ReinforceConfig,
    SamplingConfig,
    ValueConfig,
)
from llm_reinforce.config.reward_config import BUILT_IN_REWARD_ARGUMENTS, IsolationConfig, RewardConfig
from llm_reinforce.config.run_config import Config
from llm_reinforce.config.section import MAX_SEED
from llm_reinforce.config.server_config import ServerConfig
from llm_reinforce.config.training_config import (
    ADAPTER_LEARNING_RATE,
    LEARNING_RATE,
    RANDOM_INIT_LEARNING_RATE,
    TrainingConfig,
    WarmStartConfig,
)
from llm_reinforce.config.variants import VARIANTS

__all__ = [
    "ADAPTER_LEARNING_RATE",
    "BUILT_IN_REWARD_ARGUMENTS",
    "LEARNING_RATE",
    "MAX_NEW_TOKENS",
    "MAX_SEED",
    "NUM_TRAINING_PROBLEMS_EVALUATED",
    "RANDOM_INIT_LEARNING_RATE",
    "VARIANTS",
    "AdapterConfig",
    "ClipConfig",
    "Config",
    "CurriculumConfig",
    "DataConfig",
    "Decoding",
    "EntropyTargetConfig",
    "EvaluationConfig",
    "GenerateConfig",
    "ImportanceConfig",
    "IsolationConfig",
    "KLConfig",
    "LengthPenaltyConfig",
    "PolicyConfig",
    "PoolsConfig",
    "ProblemsConfig",
    "RandomInitConfig",
    "ReinforceConfig",
    "RewardConfig",
    "SamplingConfig",
    "ServerConfig",
    "TrainingConfig",
    "ValueConfig",
    "WarmStartConfig",
    "builtin_recipes",
    "dump_config",
    "load_config",
]
