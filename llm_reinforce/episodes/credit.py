"""Credit assignment: convert step rewards from spans of characters to rewards of actions."""

from collections.abc import Callable, Sequence
from functools import cache

from llm_reinforce.policy import TokenIds
from llm_reinforce.rewards import StepRewards

Decode = Callable[[Sequence[int]], str]


def step_rewards_by_token(
    steps: Sequence[StepRewards], text: str, token_ids: TokenIds, decode: Decode
) -> tuple[float, ...]:
    """Return the reward r_{t+1} of each action a_t: the sum of the step rewards that the action receives.

    Args:
        steps: one entry per reward function that returned step rewards.
        text: the completion, `decode(token_ids)`. Spans are given in characters of this text.
        token_ids: tokens of the completion.
        decode: function from tokens to text.

    Returns:
        one number per token, or an empty tuple if there are no step rewards.
    """
    if not steps or not token_ids:
        return ()
    # keep decoded prefixes, because the bisections for different spans begin with the same prefixes
    decode = cache(decode)
    rewards = [0.0] * len(token_ids)
    for step in steps:
        for t, value in enumerate(step.by_token or ()):
            rewards[t] += value
        for _, end, value in step.spans:
            rewards[completing_token(end, text, token_ids, decode)] += value
    return tuple(rewards)


def completing_token(end: int, text: str, token_ids: TokenIds, decode: Decode) -> int:
    """Return the index t of the token that completes the first `end` characters of the text.

    The text of tokens 0 to t starts with these characters, and the text of tokens 0 to t-1 does not. The
    index is found by bisection over decoded prefixes. This works with every tokenizer. A token may contain
    several characters or only some bytes of a character, and the next token may change the decoded text of
    earlier tokens (a space or an incomplete character, for example). If `end` is greater than the length of
    the text, the result is the index of the last token, which is the end token in a terminated episode.

    Args:
        end: number of characters.
        text: the completion, `decode(token_ids)`.
        token_ids: tokens of the completion, at least one.
        decode: function from tokens to text.
    """
    if end > len(text):
        return len(token_ids) - 1
    low, high = 0, len(token_ids) - 1
    while low < high:
        middle = (low + high) // 2
        if decode(token_ids[: middle + 1])[:end] == text[:end]:
            high = middle
        else:
            low = middle + 1
    return low
