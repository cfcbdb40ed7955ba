"""The class `Problem`, and the verification of a completion."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llm_reinforce.verifier import Verdict, verify


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt with a reference answer, so that completions can be verified.

    >>> Problem(prompt="47+85=", answer="132", id="addition-47+85").answer
    '132'
    """

    prompt: str
    """The text that the policy continues. Its tokens are the initial state s₀."""
    answer: str
    """The reference answer as text, without its derivation, such as "132", "-3", "0.5" or "Paris"."""
    solution: str | None = None
    """A worked solution, used by step rewards and supervised warm starts."""
    algebra: bool = field(default=False, kw_only=True)
    """True if the answer can be LaTeX or algebra. Unless it is a plain number, math-verify compares it."""
    id: str = ""
    """Name of the problem in reports. It is unique within the data set."""
    # a plain dict, because a read-only proxy cannot be pickled and problems are sent to worker processes
    columns: Mapping[str, object] = field(default_factory=dict, hash=False)
    """The other columns of the problem's row, which are passed to reward functions."""


def judge(completion: str, problem: Problem, *, truncated: bool = False) -> Verdict:
    """Compare the final answer of a completion with the reference answer of its problem.

    Args:
        completion: the completion to verify.
        problem: its problem.
        truncated: True if the completion ended at the token budget; see `verify`.
    """
    return verify(
        completion, problem.answer, algebra=problem.algebra, prompt=problem.prompt, truncated=truncated
    )
