"""Describe a policy and check that prompts fit into its context."""

from collections.abc import Sequence

import torch
from torch import nn

from llm_reinforce.errors import InputError
from llm_reinforce.policy.embedding import check_token_ids
from llm_reinforce.policy.language_policy import LanguagePolicy, TokenIds
from llm_reinforce.policy.plain_path import length_with_constant_positions
from llm_reinforce.policy.quantization import num_elements
from llm_reinforce.problems import Problem


def describe_policy(policy: LanguagePolicy) -> str:
    """Return one line with the architecture, the number of parameters, and the end tokens."""
    parameters = list(policy.model.parameters())
    total = sum(map(num_elements, parameters))
    trained = sum(num_elements(parameter) for parameter in parameters if parameter.requires_grad)
    share = "all trained" if trained == total else f"{trained:,} of them trained"
    kind = getattr(getattr(policy.model, "config", None), "model_type", type(policy.model).__name__)
    ends = " or ".join(map(str, policy.tokenizer.convert_ids_to_tokens(list(policy.end_token_ids))))
    bits = ", linear layers in 4 bits" if getattr(policy.model, "is_loaded_in_4bit", False) else ""
    return f"{kind}, {total:,} parameters, {share}{bits}; a completion ends with {ends}"


def num_unknown_prompts(policy: LanguagePolicy, problems: Sequence[Problem]) -> int:
    """Return the number of prompts in which the tokenizer replaces a character by its unknown token."""
    unknown = policy.tokenizer.unk_token_id
    if unknown is None or unknown in policy.end_token_ids:
        return 0
    encoded = policy.encode_prompts([problem.policy_prompt for problem in problems])
    return sum(unknown in prompt for prompt in encoded)


def check_prompts_fit(policy: LanguagePolicy, problems: Sequence[Problem], max_new_tokens: int) -> None:
    """Check that all prompts and their completions fit into the context of the model.

    Args:
        policy: the policy.
        problems: problems whose prompts are checked.
        max_new_tokens: maximum number of tokens of a completion.

    Raises:
        InputError: if a prompt and its completion do not fit, if a prompt cannot be encoded, or if the model
            has no embedding for a token of a prompt.
    """
    encoded = policy.encode_prompts([problem.policy_prompt for problem in problems])
    check_token_ids(policy.model, encoded, policy.tokenizer)
    limit = _context(policy.model)
    if not encoded or limit is None:
        return
    length, row = max((len(prompt), -row) for row, prompt in enumerate(encoded))
    problem = problems[-row]
    if length + max_new_tokens > limit:
        raise InputError(
            f"problem {problem.id or problem.prompt[:40]!r}: its prompt has {length:,} tokens, which "
            f"together with max_new_tokens ({max_new_tokens:,}) exceed the context of the policy ({limit:,} "
            "tokens); lower max_new_tokens or remove the problem"
        )


def check_completions_fit(
    policy: LanguagePolicy, problems: Sequence[Problem], completions: Sequence[TokenIds]
) -> None:
    """Check that each problem's prompt, together with a given completion, fits into the model's context.

    Args:
        policy: the policy.
        problems: the problems.
        completions: one completion per problem, with its end token.

    Raises:
        InputError: if a prompt and its completion do not fit, or if the model has no embedding for a token of
            a completion.
    """
    check_token_ids(policy.model, completions, policy.tokenizer)
    limit = _context(policy.model)
    prompts = policy.encode_prompts([problem.policy_prompt for problem in problems])
    for problem, prompt, completion in zip(problems, prompts, completions, strict=True):
        if limit is not None and len(prompt) + len(completion) > limit:
            raise InputError(
                f"problem {problem.id or problem.prompt[:40]!r}: its prompt has {len(prompt):,} tokens, and "
                f"its solution has {len(completion):,} tokens, which together exceed the context of the "
                f"policy ({limit:,} tokens); shorten the solution or remove the problem"
            )


def _context(model: nn.Module) -> int | None:
    """Return the maximum length of a sequence, in tokens. None: unknown.

    If the rotary frequencies depend on the length of a sequence, the result is the length up to which they
    are constant. In a longer sequence, the frequencies would change during sampling. The cached keys would
    then have other rotary embeddings than the same keys in training.
    """
    config = getattr(model, "config", None)
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_target_positions")]
    limits.append(length_with_constant_positions(model))
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def best_device() -> str:
    """Return the name of the accelerator if one is available, and `cpu` otherwise."""
    accelerator = torch.accelerator.current_accelerator()
    return str(accelerator) if accelerator is not None and torch.accelerator.is_available() else "cpu"
