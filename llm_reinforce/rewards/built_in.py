"""The built-in reward functions: correctness, answer format, conciseness and readability.

Each public function is a factory: it takes the `arguments` of a recipe and returns a reward function.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm_reinforce.errors import InputError
from llm_reinforce.problems import Problem, judge
from llm_reinforce.rewards.calls import RewardFunction
from llm_reinforce.rewards.intermediate_steps import intermediate_steps
from llm_reinforce.verifier import Verdict

# braces nested up to three levels deep; \boxed{\frac{3}{4}} has two levels
_BRACES = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*+\})*+\})++\}"
ANSWER_FORMS = {
    "hashes": r"(?<!#)####[ \t]*+\S[^\n]*+\s*+\Z",
    "boxed": rf"\\boxed{_BRACES}[\s$.]*+\Z",
    "tag": r"<answer>[^<>]++</answer>\s*+\Z",
    "phrase": r"(?i:\banswer is\b)[ \t:]*+\S[^\n]*+\s*+\Z",
}


def correct_answer() -> RewardFunction:
    """Return the reward function that is 1 for a correct final answer and 0 for a wrong one.

    This is the reward of the article "The Beauty of Reinforcement Learning (1)".
    """

    def reward(completion: str, problem: Problem, verdict: Verdict | None = None) -> float:
        verdict = verdict or judge(completion, problem)
        return 1.0 if verdict.correct else 0.0

    return reward


def answer_format(pattern: str | None = None, form: str | None = None) -> RewardFunction:
    r"""Return a reward function that is 1 for a completion in the required format and 0 otherwise.

    The correctness of the answer is not considered.

    Args:
        pattern: regular expression that must match somewhere in the completion.
        form: required ending of the completion, given instead of `pattern`: `hashes` (#### 42),
            `boxed` (\boxed{42}), `tag` (<answer>42</answer>) or `phrase` (The answer is 42.). If
            neither is given, the form is `hashes`.

    Raises:
        InputError: if the pattern is not a regular expression, if the form is unknown, or if both a pattern
            and a form are given.
    """
    if pattern is not None and form is not None:
        raise InputError("answer_format: pattern and form are both given; remove one of the two")
    if form is not None and form not in ANSWER_FORMS:
        raise InputError(f"answer_format: unknown form {form!r}; choose one of {', '.join(ANSWER_FORMS)}")
    try:
        compiled = re.compile(pattern if pattern is not None else ANSWER_FORMS[form or "hashes"])
    except re.error as error:
        raise InputError(
            f"answer_format: the pattern {pattern!r} is not a valid regular expression: {error}"
        ) from error

    def reward(completion: str, problem: Problem) -> float:
        return 1.0 if compiled.search(completion) else 0.0

    return reward


def conciseness(max_tokens: int = 64) -> RewardFunction:
    """Return a reward function that favors short completions with a correct answer.

    The reward of a correct completion is max(0, 1 - num_tokens / max_tokens), where num_tokens includes the
    end token. The reward of a wrong completion is 0.

    Args:
        max_tokens: number of tokens at which the reward reaches 0.

    Raises:
        InputError: if `max_tokens` is less than 1.
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
    """Return a reward function that favors short sentences and little repetition.

    The reward is between 0 and 1:

        (fraction of sentences with at most max_words words) x (fraction of word trigrams that are distinct)

    It depends only on the form of a text, not on its meaning. A text without words has a reward of 0. A
    sentence ends at `.`, `!`, `?` or the end of a line.

    Args:
        max_words: maximum number of words of a sentence that is considered short.

    Raises:
        InputError: if `max_words` is less than 1.
    """
    if max_words < 1:
        raise InputError(f"readability: max_words must be at least 1, not {max_words}")

    def reward(completion: str, problem: Problem) -> float:
        sentences = [sentence.split() for sentence in re.split(r"[.!?](?=\s)|\n", completion)]
        lengths = [len(words) for words in sentences if words]
        if not lengths:
            return 0.0
        words = completion.casefold().split()
        trigrams = [tuple(words[start : start + 3]) for start in range(len(words) - 2)]
        fraction_distinct = len(set(trigrams)) / len(trigrams) if trigrams else 1.0
        return fraction_distinct * sum(length <= max_words for length in lengths) / len(lengths)

    return reward


BUILT_IN: Mapping[str, Callable[..., RewardFunction | Callable[..., Any]]] = {
    "correct_answer": correct_answer,
    "answer_format": answer_format,
    "conciseness": conciseness,
    "readability": readability,
    "intermediate_steps": intermediate_steps,
}
