"""Built-in reward functions, and loading and calling of reward functions that users write."""

from llm_reinforce.rewards.built_in import (
    BUILT_IN,
    answer_format,
    conciseness,
    correct_answer,
    readability,
)
from llm_reinforce.rewards.calls import JudgedCompletion, Progress, RewardFunction, StepRewards
from llm_reinforce.rewards.combination import (
    CombinedReward,
    CombinedRewards,
    WeightedReward,
    combine_rewards,
    join_failures,
)
from llm_reinforce.rewards.from_python import rewards_from
from llm_reinforce.rewards.intermediate_steps import intermediate_steps
from llm_reinforce.rewards.isolation import Isolation
from llm_reinforce.rewards.plug_in import check_rewards, file_being_loaded, load_reward, reward_from_config

__all__ = [
    "BUILT_IN",
    "CombinedReward",
    "CombinedRewards",
    "Isolation",
    "JudgedCompletion",
    "Progress",
    "RewardFunction",
    "StepRewards",
    "WeightedReward",
    "answer_format",
    "check_rewards",
    "combine_rewards",
    "conciseness",
    "correct_answer",
    "file_being_loaded",
    "intermediate_steps",
    "join_failures",
    "load_reward",
    "readability",
    "reward_from_config",
    "rewards_from",
]
