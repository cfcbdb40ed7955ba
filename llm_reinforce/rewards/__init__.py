"""Rewards: the built-in functions, and the users' own."""

from llm_reinforce.rewards.built_in import (
    BUILT_IN,
    answer_format,
    conciseness,
    correct_answer,
    readability,
)
from llm_reinforce.rewards.calls import Asked, Progress, RewardFunction, StepRewards
from llm_reinforce.rewards.combination import Scored, Scores, WeightedReward, failures_in_a_line, score
from llm_reinforce.rewards.intermediate_steps import intermediate_steps
from llm_reinforce.rewards.isolation import Isolation
from llm_reinforce.rewards.plug_in import load_reward

__all__ = [
    "BUILT_IN",
    "Asked",
    "Isolation",
    "Progress",
    "RewardFunction",
    "Scored",
    "Scores",
    "StepRewards",
    "WeightedReward",
    "answer_format",
    "conciseness",
    "correct_answer",
    "failures_in_a_line",
    "intermediate_steps",
    "load_reward",
    "readability",
    "score",
]
