"""The class `Problem`, and the verification of a completion."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from llm_reinforce.verifier import Verdict, verify
from llm_reinforce.verifier.algebra import NUM_WORKERS

Message = Mapping[str, Any]
"""Message of a chat, with `role` and `content`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt with a reference answer, so that completions can be verified.

    >>> Problem(prompt="47+85=", answer="132", id="addition-47+85").answer
    '132'
    """

    prompt: str
    """The text that the policy continues. Its tokens are the initial state s₀.

    If the prompt is a chat (`messages`), this is the text of its messages without system messages.
    """
    answer: str | None = None
    """The reference answer as text, without its derivation, such as "132", "-3", "0.5" or "Paris".

    None if the problem has no reference answer. Completions are then not verified.
    """
    solution: str | None = None
    """A worked solution, used by step rewards and supervised warm starts."""
    algebra: bool = field(default=False, kw_only=True)
    """True if the answer can be LaTeX or algebra. Answers that are not plain numbers are then compared by
    math-verify."""
    messages: tuple[Message, ...] = field(default=(), kw_only=True, hash=False)
    """Messages of the prompt if it is a chat; the last one is from a user. Empty if the prompt is text."""
    id: str = ""
    """Name of the problem in reports. It is unique within the data set."""
    # a plain dict, because a read-only proxy cannot be pickled and problems are sent to worker processes
    columns: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Columns of the problem's row that are not stored in other attributes. Reward functions can use them."""

    @property
    def policy_prompt(self) -> "str | tuple[Message, ...]":
        """The prompt as the policy receives it: the messages of a chat, or a text."""
        return self.messages or self.prompt

    def in_template(self, template: str, before: str = "") -> "Problem":
        """Return a copy of the problem whose prompt is inserted into a template.

        If the prompt is a chat, the template is applied to the last message.

        Args:
            template: text in which `{prompt}` is replaced by the original prompt.
            before: text that is placed before the template, such as worked examples.
        """
        return self._changed(lambda text: before + template.replace("{prompt}", text))

    def without_template(self, template: str) -> "Problem":
        """Return a copy of the problem without the text of a template; the opposite of `in_template`.

        A prompt that is not in the template is unchanged.

        >>> Problem("Add: 1+2=").without_template("Add: {prompt}").prompt
        '1+2='
        """
        start, end, *others = map(re.escape, template.split("{prompt}"))
        pattern = re.compile(start + "(.*)" + r"\1".join([end, *others]), re.DOTALL)
        return self._changed(lambda text: found[1] if (found := pattern.fullmatch(text)) else text)

    def _changed(self, change: Callable[[str], str]) -> "Problem":
        """Return a copy of the problem with a changed prompt or, if it is a chat, a changed last message."""
        if not self.messages:
            return replace(self, prompt=change(self.prompt))
        *others, last = self.messages
        messages = (*others, {**last, "content": change(last["content"])})
        return replace(self, messages=messages, prompt=chat_text(messages))


def chat_text(messages: Sequence[Message]) -> str:
    """Return the texts of messages, without system messages."""
    return "\n\n".join(each["content"] for each in messages if each["role"] not in ("system", "developer"))


def judge(completion: str, problem: Problem, *, truncated: bool = False) -> Verdict:
    """Compare the final answer of a completion with the reference answer of its problem.

    Args:
        completion: the completion to verify.
        problem: the problem that the completion answers.
        truncated: True if the completion ended because it reached the maximum length; see `verify`.

    Raises:
        ValueError: if the problem has no reference answer.
    """
    if problem.answer is None:
        raise ValueError(
            f"problem {problem.id!r} has no reference answer, so completions cannot be verified; give the "
            "problem an answer"
        )
    return verify(
        completion, problem.answer, algebra=problem.algebra, prompt=problem.prompt, truncated=truncated
    )


def have_answers(problems: Iterable[Problem]) -> bool:
    """Return True if all problems have reference answers, so that accuracy can be measured on them."""
    return all(problem.answer is not None for problem in problems)


def judge_all(items: Sequence[tuple[str, Problem, bool]]) -> list[Verdict | None]:
    """Compare the final answers of several completions with the reference answers of their problems.

    If any answer can be algebra, the comparisons run in parallel, because each can take up to two seconds.

    Args:
        items: for each completion, the tuple (completion, problem, truncated); see `judge`.

    Returns:
        one verdict per completion; None if the problem has no reference answer.
    """

    def verdict(item: tuple[str, Problem, bool]) -> Verdict | None:
        completion, problem, truncated = item
        return None if problem.answer is None else judge(completion, problem, truncated=truncated)

    if not any(problem.algebra for _, problem, _ in items):
        return list(map(verdict, items))
    with ThreadPoolExecutor(NUM_WORKERS) as threads:
        return list(threads.map(verdict, items))
