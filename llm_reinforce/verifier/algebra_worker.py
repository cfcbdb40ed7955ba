"""Worker process that compares answers with math-verify. The process is started and called by `algebra.py`.

    python -m llm_reinforce.verifier.algebra_worker

math-verify compares floats to six digits, and accepts an interval as equal to a set. If math-verify says that
two answers are equal, this module therefore also checks that the two answers are of the same kind, and that
their values agree to 45 digits.
"""

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from llm_reinforce.workers import serve

_DIGITS = 60
_FIRST = ("1+x", r"\frac{x}{2}+\sqrt{3}", "(1,2)", r"\{1,2\}", "x>1", r"\sin x")


def prepare(settings: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[Any], object]]:
    """Import math-verify, and return an empty greeting and the function that compares two answers.

    That function takes the mapping {"right": reference answer, "answer": answer} and returns {"equal": bool}.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # discard the warnings that libraries print
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def parsed(text: str) -> Any:
        boxed = "\\boxed{" + text + "}"
        found = parse(boxed, extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)
        return found[0] if found else None

    def answer(question: Mapping[str, str]) -> dict[str, bool]:
        right, given = parsed(question["right"]), parsed(question["answer"])
        equal = (
            right is not None
            and given is not None
            and verify(right, given, timeout_seconds=None)
            and is_confirmed(right, given)
        )
        return {"equal": bool(equal)}

    # the first comparisons are slow, because they load grammars and import modules
    for expression in _FIRST:
        verify(parsed(expression), parsed("x+2"), timeout_seconds=None)
    return {}, answer


def is_confirmed(right: Any, answer: Any) -> bool:
    """Return True if two expressions that are equal according to math-verify have the same kind and value.

    Kinds are, for example, a number, a matrix, a set, a tuple or an interval.
    """
    from sympy import Equality, FiniteSet, Interval, MatrixBase, Tuple
    from sympy.core.relational import Relational
    from sympy.sets.sets import Set

    if isinstance(answer, Equality) and not isinstance(right, Relational):
        answer = answer.rhs
    if isinstance(right, MatrixBase) or isinstance(answer, MatrixBase):
        same = (
            isinstance(right, MatrixBase) and isinstance(answer, MatrixBase) and right.shape == answer.shape
        )
        return same and all(map(is_confirmed, right.flat(), answer.flat()))
    if isinstance(right, FiniteSet) or isinstance(answer, FiniteSet):
        if not (isinstance(right, FiniteSet) and isinstance(answer, FiniteSet)) or len(right) != len(answer):
            return False
        return all(any(is_confirmed(mine, theirs) for theirs in answer) for mine in right)
    if isinstance(right, Tuple) or isinstance(answer, Tuple):
        same = isinstance(right, Tuple) and isinstance(answer, Tuple) and len(right) == len(answer)
        return same and all(map(is_confirmed, right, answer))
    if isinstance(right, Interval) and isinstance(answer, Interval):
        return (
            right.left_open == answer.left_open
            and right.right_open == answer.right_open
            and is_confirmed(right.start, answer.start)
            and is_confirmed(right.end, answer.end)
        )
    if isinstance(right, Set | Relational) or isinstance(answer, Set | Relational):
        return True  # unions and relations, which math-verify compares exactly
    return _equal_numbers(right, answer)


def _equal_numbers(right: Any, answer: Any) -> bool:
    """Return True if two expressions are equal at several values of their variables, to 45 digits.

    The values are computed with 60 digits. If the two expressions are not finite at any of these values, the
    difference of the expressions is simplified, and the expressions are equal if the simplified difference is
    0.
    """
    from sympy import Float, Rational, simplify

    if right == answer:
        return True
    right, answer = (
        side.xreplace({number: Rational(str(number)) for number in side.atoms(Float)})
        for side in (right, answer)
    )
    symbols = sorted(right.free_symbols | answer.free_symbols, key=str)
    num_compared = 0
    for point in range(4 if symbols else 1):
        values = {symbol: Rational(2 * point + 3, 7 + 4 * index) for index, symbol in enumerate(symbols)}
        mine, theirs = (side.subs(values).evalf(_DIGITS, maxn=10_000) for side in (right, answer))
        if not (mine.is_number and theirs.is_number and mine.is_finite and theirs.is_finite):
            continue
        size = max(abs(mine), abs(theirs))
        if abs(mine - theirs) > size * Rational(1, 10 ** (_DIGITS - 15)):
            return False
        num_compared += 1
    return bool(num_compared) or simplify(right - answer) == 0


if __name__ == "__main__":
    serve(prepare)
