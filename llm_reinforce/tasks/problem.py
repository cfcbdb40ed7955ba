"""What is asked, and what is right."""

from collections.abc import Mapping
from dataclasses import dataclass, field


def split_at_mark(solution: str) -> tuple[str, str | None]:
    """The steps of a worked solution, and its answer where `####` marks one, as in GSM8K: without commas."""
    steps, mark, answer = solution.rpartition("####")
    return (steps.rstrip(), answer.replace(",", "").strip()) if mark else (solution, None)


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
    """The answer is LaTeX or algebra: `judge` asks math-verify where it is no plain number."""
    in_per_cent: bool = field(default=False, kw_only=True)
    """The answer is a number of per cent: `20%` is right where it is 20, as well as `20`."""
    id: str = ""
    """Unique within its data set; the name under which reports show the problem."""
    # A plain dict, since a read-only proxy can't be pickled and problems travel to worker processes.
    columns: Mapping[str, object] = field(default_factory=dict, hash=False)
    """The other columns of its row, handed on to reward functions."""
