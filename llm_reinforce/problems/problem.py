"""A problem: a prompt, its answer, and the verdict on a completion of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llm_reinforce.verifier import Verdict, verify


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with an answer that can be checked.

    >>> Problem(prompt="47+85=", answer="132", id="addition-47+85").answer
    '132'
    """

    prompt: str
    """The text that the policy continues: its tokens are the initial state s₀."""
    answer: str
    """The final answer as text, without its derivation: "132", "-3", "0.5", "Paris"."""
    solution: str | None = None
    """A worked solution, for step rewards and supervised warm starts."""
    algebra: bool = field(default=False, kw_only=True)
    """The answer is LaTeX or algebra: math-verify judges it where it is no plain number."""
    in_per_cent: bool = field(default=False, kw_only=True)
    """The answer is a number of per cent: `20%` is right where it is 20, as well as `20`."""
    id: str = ""
    """Unique within its data set; the name under which reports show the problem."""
    # A plain dict, since a read-only proxy can't be pickled and problems travel to worker processes.
    columns: Mapping[str, object] = field(default_factory=dict, hash=False)
    """The other columns of its row, handed on to reward functions."""


def judge(completion: str, problem: Problem) -> Verdict:
    """Return the verdict on a completion of a problem: `verify`, with the problem's own options."""
    return verify(
        completion,
        problem.answer,
        algebra=problem.algebra,
        in_per_cent=problem.in_per_cent,
        prompt=problem.prompt,
    )
