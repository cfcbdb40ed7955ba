"""Worked examples that are placed before the prompt of a problem (few-shot prompts)."""

import random
from collections.abc import Sequence

from llm_reinforce.errors import InputError
from llm_reinforce.problems.overlap import normal_text
from llm_reinforce.problems.problem import Problem
from llm_reinforce.verifier import split_at_mark

GAP = "\n\n"


def examples_before(
    pool: Sequence[Problem], evaluated: Sequence[Problem], *, num_examples: int, template: str, seed: int = 0
) -> str:
    """Return the text of worked examples, to be placed before the prompt of every evaluated problem.

    An example is the prompt of a problem of the pool, inserted into the template and followed by the worked
    solution and `#### answer`, as in GSM8K. If the problem has no worked solution, the prompt is followed by
    the answer alone. A problem of the pool is not used if its prompt equals the prompt of an evaluated
    problem, ignoring case, white space and punctuation.

    Args:
        pool: problems to choose examples from, without a template.
        evaluated: problems that are evaluated, without a template.
        num_examples: number of examples.
        template: text in which `{prompt}` is replaced by the prompt.
        seed: seed of the random choice.

    Raises:
        InputError: if fewer than `num_examples` problems of the pool have an answer and are not evaluated.
    """
    seen = {normal_text(problem.prompt) for problem in evaluated}
    usable = [
        problem for problem in pool if problem.answer is not None and normal_text(problem.prompt) not in seen
    ]
    if len(usable) < num_examples:
        raise InputError(
            f"few_shot: {num_examples} examples are needed, but only {len(usable)} of {len(pool):,} "
            "available problems have an answer and are not evaluated themselves; use fewer examples"
        )
    chosen = random.Random(f"{seed} examples").sample(usable, num_examples)
    return "".join(_example(problem, template) + GAP for problem in chosen)


def _example(problem: Problem, template: str) -> str:
    question = template.replace("{prompt}", problem.prompt)
    answer = problem.solution or problem.answer or ""
    if problem.solution and split_at_mark(problem.solution)[1] != (problem.answer or "").replace(",", ""):
        answer += f"\n#### {problem.answer}"
    # a question that ends in a word or a colon needs a space before the answer; `12+34=` needs none
    gap = " " if question[-1:].isalnum() or question[-1:] in ":.?!" else ""
    return f"{question}{gap}{answer}"
