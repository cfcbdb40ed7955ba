"""Describe a policy and check that prompts fit into its context."""

from collections.abc import Sequence

import torch

from llm_reinforce.errors import InputError
from llm_reinforce.policy.language_policy import LanguagePolicy
from llm_reinforce.problems import Problem

NUM_MEASURED = 200  # number of prompts whose tokens are counted; they are those with the most characters


def describe_policy(policy: LanguagePolicy) -> str:
    """Return one line with the architecture, the numbers of parameters, and the end tokens."""
    parameters = list(policy.model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    share = "all trained" if trained == total else f"{trained:,} of them trained"
    kind = getattr(getattr(policy.model, "config", None), "model_type", type(policy.model).__name__)
    ends = " or ".join(map(str, policy.tokenizer.convert_ids_to_tokens(list(policy.end_token_ids))))
    return f"{kind}, {total:,} parameters, {share}; a completion ends with {ends}"


def num_unknown_prompts(policy: LanguagePolicy, problems: Sequence[Problem]) -> int:
    """Return the number of prompts in which the tokenizer replaces a character by its unknown token."""
    unknown = policy.tokenizer.unk_token_id
    if unknown is None or unknown in policy.end_token_ids:
        return 0
    encoded = policy.encode_prompts([problem.prompt for problem in problems])
    return sum(unknown in prompt for prompt in encoded)


def check_prompts_fit(policy: LanguagePolicy, problems: Sequence[Problem], max_new_tokens: int) -> None:
    """Check that the longest prompts and their completions fit into the context of the model.

    Args:
        policy: the policy.
        problems: problems whose prompts are checked.
        max_new_tokens: maximum number of tokens of a completion.

    Raises:
        InputError: if a prompt and its completion do not fit, or a prompt cannot be encoded.
    """
    limit = getattr(getattr(policy.model, "config", None), "max_position_embeddings", None)
    longest = sorted(problems, key=lambda problem: -len(problem.prompt))[:NUM_MEASURED]
    encoded = policy.encode_prompts([problem.prompt for problem in longest])
    measured = [(len(prompt), problem) for prompt, problem in zip(encoded, longest, strict=True)]
    if not measured or not isinstance(limit, int):
        return
    length, problem = max(measured, key=lambda pair: pair[0])
    if length + max_new_tokens > limit:
        raise InputError(
            f"problem {problem.id or problem.prompt[:40]!r}: its prompt has {length:,} tokens; together with "
            f"max_new_tokens: {max_new_tokens:,} this exceeds the context of the policy, {limit:,} tokens; "
            "lower max_new_tokens or remove the problem"
        )


def best_device() -> str:
    """Return the name of the accelerator if one is available, and `cpu` otherwise."""
    accelerator = torch.accelerator.current_accelerator()
    return str(accelerator) if accelerator is not None and torch.accelerator.is_available() else "cpu"
