"""The built-in reward functions: what an episode is worth, next to whether it is right.

Each is made by calling its factory here with a recipe's `arguments`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm_reinforce.errors import InputError
from llm_reinforce.problems import Problem, judge
from llm_reinforce.rewards.calls import RewardFunction
from llm_reinforce.rewards.intermediate_steps import intermediate_steps
from llm_reinforce.verifier import Verdict

_BRACES = (
    r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*+\})*+\})++\}"  # with up to three levels, as \boxed{\frac{3}{4}} has two
)
ANSWER_FORMS = {
    "hashes": r"(?<!#)####[ \t]*+\S[^\n]*+\s*+\Z",
    "boxed": rf"\\boxed{_BRACES}[\s$.]*+\Z",
    "tag": r"<answer>[^<>]++</answer>\s*+\Z",
    "phrase": r"(?i:\banswer is\b)[ \t:]*+\S[^\n]*+\s*+\Z",
}


def correct_answer() -> RewardFunction:
    """The article's reward: 1 for a correct final answer, 0 for a wrong one."""

    def reward(completion: str, problem: Problem, verdict: Verdict | None = None) -> float:
        verdict = verdict or judge(completion, problem)
        return 1.0 if verdict.correct else 0.0

    return reward


def answer_format(pattern: str | None = None, form: str | None = None) -> RewardFunction:
    r"""1 when the completion has the form that is asked for, whether it is right or wrong, else 0.

    Args:
        pattern: a regular expression that is to be found in it.
        form: instead, how it is to end: `hashes` (#### 42), the default; `boxed` (\boxed{42}); `tag`
            (<answer>42</answer>); `phrase` (The answer is 42.)

    Raises:
        InputError: the pattern is no regular expression, there is no such form, or both are given.
    """
    if pattern is not None and form is not None:
        raise InputError("answer_format: pattern and form are given; keep one and drop the other")
    if form is not None and form not in ANSWER_FORMS:
        raise InputError(f"answer_format: no form is called {form!r}; there are {', '.join(ANSWER_FORMS)}")
    try:
        compiled = re.compile(pattern if pattern is not None else ANSWER_FORMS[form or "hashes"])
    except re.error as error:
        raise InputError(f"answer_format: {pattern!r} is no regular expression: {error}") from error

    def reward(completion: str, problem: Problem) -> float:
        return 1.0 if compiled.search(completion) else 0.0

    return reward


def conciseness(max_tokens: int = 64) -> RewardFunction:
    """For a correct completion 1 - tokens/max_tokens, at least 0; for a wrong one 0: short isn't right.

    Raises:
        InputError: `max_tokens` is below 1.
    """
    if max_tokens < 1:
        raise InputError(f"conciseness: max_tokens must be at least 1, not {max_tokens}")

    def reward(
        completion: str, problem: Problem, completion_ids: Sequence[int] = (), verdict: Verdict | None = None
    ) -> float:
        verdict = verdict or judge(completion, problem)
        if not verdict.correct:
            return 0.0
        return max(0.0, 1.0 - len(completion_ids) / max_tokens)

    return reward


def readability(max_words: int = 25) -> RewardFunction:
    """How easily a text reads, by its outward form alone: from 0 to 1; of meaning it knows nothing.

        the share of sentences with at most max_words words x the share of three-word runs that are no repeats

    A text without words has 0. A sentence ends at . ! ? or at the end of a line.

    Raises:
        InputError: `max_words` is below 1.
    """
    if max_words < 1:
        raise InputError(f"readability: max_words must be at least 1, not {max_words}")

    def reward(completion: str, problem: Problem) -> float:
        sentences = [sentence.split() for sentence in re.split(r"[.!?](?=\s)|\n", completion)]
        lengths = [len(words) for words in sentences if words]
        if not lengths:
            return 0.0
        words = completion.casefold().split()
        runs = [tuple(words[start : start + 3]) for start in range(len(words) - 2)]
        share_new = len(set(runs)) / len(runs) if runs else 1.0
        return share_new * sum(length <= max_words for length in lengths) / len(lengths)

    return reward


BUILT_IN: Mapping[str, Callable[..., RewardFunction | Callable[..., Any]]] = {
    "correct_answer": correct_answer,
    "answer_format": answer_format,
    "conciseness": conciseness,
    "readability": readability,
    "intermediate_steps": intermediate_steps,
}
