"""The policy π(a|s; θ): loading, sampling, and log-probabilities of actions."""

from llm_reinforce.policy.action_head import ActionLogProbs
from llm_reinforce.policy.cache_folder import cache_directory
from llm_reinforce.policy.character_tokenizer import character_tokenizer
from llm_reinforce.policy.chat_templates import ChatSettings
from llm_reinforce.policy.description import (
    best_device,
    check_completions_fit,
    check_prompts_fit,
    describe_policy,
    num_unknown_prompts,
)
from llm_reinforce.policy.drawing import widest_float
from llm_reinforce.policy.fast_path.activations import Activations
from llm_reinforce.policy.fetched_models import FETCHABLE, fetch
from llm_reinforce.policy.language_policy import LanguagePolicy, TokenIds, without_progress_bars
from llm_reinforce.policy.loading import (
    check_reloads,
    load_policy,
    policy_from_config,
    policy_from_model,
    random_policy,
)
from llm_reinforce.policy.log_probs import action_features, own_log_probs, rows_of_passes, token_log_probs
from llm_reinforce.policy.memory import MemoryPerToken, memory_per_token
from llm_reinforce.policy.model_files import convert_gguf
from llm_reinforce.policy.plain_path import checkpointable_layers
from llm_reinforce.policy.prompt_checks import check_prompts, first_prompt, with_chat_settings
from llm_reinforce.policy.quantization import check_bitsandbytes
from llm_reinforce.policy.sampling import (
    Completion,
    OnStep,
    check_cuda_graphs,
    random_numbers,
    sample_completions,
    stream_completions,
)
from llm_reinforce.policy.sharded_model import (
    GatheredState,
    ShardedModel,
    is_sharded,
    local_tensor,
    split_like,
    whole_tensor,
)
from llm_reinforce.policy.stopped_run import load_weights, trainable_parameters
from llm_reinforce.policy.value_head import ValueHead, explained_variance, fit_values, predict_values

__all__ = [
    "FETCHABLE",
    "ActionLogProbs",
    "Activations",
    "ChatSettings",
    "Completion",
    "GatheredState",
    "LanguagePolicy",
    "MemoryPerToken",
    "OnStep",
    "ShardedModel",
    "TokenIds",
    "ValueHead",
    "action_features",
    "best_device",
    "cache_directory",
    "character_tokenizer",
    "check_bitsandbytes",
    "check_completions_fit",
    "check_cuda_graphs",
    "check_prompts",
    "check_prompts_fit",
    "check_reloads",
    "checkpointable_layers",
    "convert_gguf",
    "describe_policy",
    "explained_variance",
    "fetch",
    "first_prompt",
    "fit_values",
    "is_sharded",
    "load_policy",
    "load_weights",
    "local_tensor",
    "memory_per_token",
    "num_unknown_prompts",
    "own_log_probs",
    "policy_from_config",
    "policy_from_model",
    "predict_values",
    "random_numbers",
    "random_policy",
    "rows_of_passes",
    "sample_completions",
    "split_like",
    "stream_completions",
    "token_log_probs",
    "trainable_parameters",
    "whole_tensor",
    "widest_float",
    "with_chat_settings",
    "without_progress_bars",
]
