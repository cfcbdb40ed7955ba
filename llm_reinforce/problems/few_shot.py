"""Worked examples before a question."""

import random
from collections.abc import Sequence

from llm_reinforce.errors import InputError
from llm_reinforce.problems.overlap import normal_text
from llm_reinforce.problems.problem import Problem
from llm_reinforce.verifier import split_at_mark

GAP = "\n\n"


def examples_before(
    pool: Sequence[Problem], asked: Sequence[Problem], *, num_examples: int, template: str, seed: int = 0
) -> str:
    """The text of some worked examples, to stand before each question; the same for all of them.

    An example is a problem of the pool in the template, then its worked solution with `#### answer`, as
    GSM8K writes it, or its answer alone. None is among the problems asked, whatever their case, white space
    and punctuation.

    Args:
        pool, asked: problems as they are, not yet in a template.
        seed: of the choice.

    Raises:
        InputError: the pool has too few that are not asked.
    """
    seen = {normal_text(problem.prompt) for problem in asked}
    usable = [problem for problem in pool if normal_text(problem.prompt) not in seen]
    if len(usable) < num_examples:
        raise InputError(
            f"few_shot: {num_examples} examples are wanted, and only {len(usable)} of {len(pool):,} problems "
            "to draw them from are not asked themselves"
        )
    chosen = random.Random(f"{seed} examples").sample(usable, num_examples)
    return "".join(_example(problem, template) + GAP for problem in chosen)


def _example(problem: Problem, template: str) -> str:
    question = template.replace("{prompt}", problem.prompt)
    answer = problem.solution or problem.answer
    if problem.solution and split_at_mark(problem.solution)[1] != problem.answer.replace(",", ""):
        answer += f"\n#### {problem.answer}"
    # a question that ends in a word or a colon is set apart from its answer; `12+34=` is not
    gap = " " if question[-1:].isalnum() or question[-1:] in ":.?!" else ""
    return f"{question}{gap}{answer}"
