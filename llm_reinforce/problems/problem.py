"""A problem: a prompt, its answer, and the verdict on a completion of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llm_reinforce.verifier import Verdict, verify


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with an answer that can be checked.

    >>> Problem(prompt="47+85=", answer="132", id="addition-47+85").answer
    '132'
    """

    prompt: str
    """The text that the policy continues. Its tokens are the initial state s₀."""
    answer: str
    """The final answer as text, without its derivation: "132", "-3", "0.5" or "Paris"."""
    solution: str | None = None
    """A worked solution, for step rewards and supervised warm starts."""
    algebra: bool = field(default=False, kw_only=True)
    """True if the answer may be LaTeX or algebra. math-verify compares it unless it is a plain number."""
    in_per_cent: bool = field(default=False, kw_only=True)
    """True if the answer is a number of percent: if it is 20, both `20` and `20%` are correct."""
    id: str = ""
    """Name of the problem in reports, unique within its data set."""
    # a plain dict, because a read-only proxy cannot be pickled and problems are sent to worker processes
    columns: Mapping[str, object] = field(default_factory=dict, hash=False)
    """The other columns of the problem's row, which are passed to reward functions."""


def judge(completion: str, problem: Problem) -> Verdict:
    """Verify a completion with the answer and the options of its problem."""
    return verify(
        completion,
        problem.answer,
        algebra=problem.algebra,
        in_per_cent=problem.in_per_cent,
        prompt=problem.prompt,
    )
