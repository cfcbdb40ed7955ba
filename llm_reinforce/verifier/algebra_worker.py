"""Worker process that compares answers with math-verify. The process is started and called by `algebra.py`.

    python -m llm_reinforce.verifier.algebra_worker

math-verify compares floats to six digits, and accepts an interval as equal to a set. If math-verify says that
two answers are equal, this module therefore also checks that the two answers are of the same kind, and that
their values agree to 45 digits.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm_reinforce.workers import serve

_DIGITS = 60
# These replacements are needed because math-verify's parser reads both gammas as Euler's constant, only a
# capital I as the imaginary unit, and sin 60° as the sine of 60 without the degree sign.
_LETTERS = (
    (re.compile(r"\\gamma(?![A-Za-z])"), "g_{98}"),
    (re.compile(r"\\Gamma(?![A-Za-z(])"), "G_{98}"),
    (re.compile(r"(?<![A-Za-z\\])I(?![A-Za-z_])"), "Q_{98}"),
    (re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z_=])"), "I"),
    (re.compile(r"(?<![A-Za-z\\{])d(?![A-Za-z_])"), "d_{98}"),  # not a differential
    (re.compile(r"(\\sqrt\s?\[[^\[\]]{1,8}\])\s?(\w)"), r"\1{\2}"),
    (
        re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc))\s?[({]?\s?([0-9]+)\s?\^\s?\{?\\circ\s?\}?[)}]?"),
        r"\1(\\frac{\2\\pi}{180})",
    ),
)
_FIRST = ("1+x", r"\frac{x}{2}+\sqrt{3}", "(1,2)", r"\{1,2\}", "x>1", r"\sin x")


def prepare(settings: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[Any], object]]:
    """Import math-verify, and return an empty greeting and the function that compares two answers.

    The function takes a mapping {"reference": reference values, "answer": values, "is_equation": bool} and
    returns {"equal": bool}.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # discard the warnings that libraries print
    logging.disable(logging.CRITICAL)

    def answer(question: Mapping[str, Any]) -> dict[str, bool]:
        reference, given = ([parsed(text) for text in question[side]] for side in ("reference", "answer"))
        if None in reference or None in given:
            return {"equal": False}
        compare = are_proportional if question["is_equation"] else are_same
        return {"equal": bool(compare(reference, given))}

    # the first comparisons are slow, because they load grammars and import modules
    for expression in _FIRST:
        are_same([parsed(expression)], [parsed("x+2")])
    return {}, answer


def parsed(text: str) -> Any:
    """Parse an expression. Return None if parsing fails.

    Upper-case and lower-case letters are different variables. Letters are never units.
    """
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from latex2sympy2_extended.math_normalization import NormalizationConfig

    for letter, name in _LETTERS:
        text = letter.sub(name, text)
    try:
        return latex2sympy(
            text,
            is_real=True,
            normalization_config=NormalizationConfig(
                basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
            ),
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except Exception:
        return None


def are_same(reference: list[Any], answer: list[Any]) -> bool:
    """Return True if the reference values and the answer's values are equal, in any order."""
    from math_verify import verify

    unused = list(answer)
    for mine in reference:
        for index, theirs in enumerate(unused):
            if verify(mine, theirs, timeout_seconds=None) and is_confirmed(mine, theirs):
                del unused[index]
                break
        else:
            return False
    return not unused


def are_proportional(reference: list[Any], answer: list[Any]) -> bool:
    """Return True if two equations differ by a constant factor that is not zero.

    Args:
        reference: the two sides of the reference equation.
        answer: the two sides of the other equation.
    """
    mine, theirs = (_exact(sides[0]) - _exact(sides[1]) for sides in (reference, answer))
    symbols = sorted(mine.free_symbols, key=str)
    if not symbols or mine.free_symbols != theirs.free_symbols:
        return False
    ratios = []
    for values in _points(symbols, 6):
        first, second = (side.subs(values).evalf(_DIGITS, maxn=10_000) for side in (mine, theirs))
        if first.is_finite and second.is_finite and first.is_number and second.is_number and second != 0:
            ratios.append(first / second)
    return len(ratios) >= 3 and ratios[0] != 0 and all(_is_close(ratios[0], ratio) for ratio in ratios)


def is_confirmed(reference: Any, answer: Any) -> bool:
    """Return True if two expressions that are equal according to math-verify have the same kind and value.

    Kinds are, for example, a number, a matrix, a set, a tuple or an interval.
    """
    from sympy import Equality, FiniteSet, Interval, MatrixBase, Tuple
    from sympy.core.relational import Relational
    from sympy.sets.sets import Set

    if isinstance(answer, Equality) and not isinstance(reference, Relational):
        answer = answer.rhs
    for kind in (MatrixBase, FiniteSet, Tuple, Interval):
        if isinstance(reference, kind) != isinstance(answer, kind) and kind is not Interval:
            return False
        if not (isinstance(reference, kind) and isinstance(answer, kind)):
            continue
        if kind is FiniteSet:
            return len(reference) == len(answer) and all(
                any(is_confirmed(mine, theirs) for theirs in answer) for mine in reference
            )
        if kind is Interval:
            is_same = (reference.left_open, reference.right_open) == (answer.left_open, answer.right_open)
            parts: list[Any] = [(reference.start, reference.end), (answer.start, answer.end)]
        else:
            is_same = getattr(reference, "shape", len(reference)) == getattr(answer, "shape", len(answer))
            parts = [side.flat() if kind is MatrixBase else side for side in (reference, answer)]
        return is_same and all(map(is_confirmed, *parts))
    if isinstance(reference, Set | Relational) or isinstance(answer, Set | Relational):
        return True  # unions and relations, which math-verify compares exactly
    return _equal_numbers(reference, answer)


def _equal_numbers(reference: Any, answer: Any) -> bool:
    """Return True if two expressions are equal at several values of their variables, to 45 digits.

    The values are computed with 60 digits. If there is no point at which both expressions are finite,
    the expressions are equal if their difference can be simplified to 0.
    """
    from sympy import simplify

    if reference == answer:
        return True
    reference, answer = _exact(reference), _exact(answer)
    symbols = sorted(reference.free_symbols | answer.free_symbols, key=str)
    num_compared = 0
    for values in _points(symbols, 4 if symbols else 1):
        mine, theirs = (side.subs(values).evalf(_DIGITS, maxn=10_000) for side in (reference, answer))
        if not (mine.is_number and theirs.is_number and mine.is_finite and theirs.is_finite):
            continue
        if not _is_close(mine, theirs):
            return False
        num_compared += 1
    return bool(num_compared) or simplify(reference - answer) == 0


def _exact(expression: Any) -> Any:
    """Replace the floats of an expression with fractions."""
    from sympy import Float, Rational

    return expression.xreplace({number: Rational(str(number)) for number in expression.atoms(Float)})


def _points(symbols: list[Any], num_points: int) -> Iterator[dict[Any, Any]]:
    """Yield points, each with a value for every variable, at which two expressions are compared."""
    from sympy import Rational

    for point in range(num_points):
        # The points must not all be on one line through the origin. On such a line, any two homogeneous
        # equations of the same degree are proportional.
        yield {
            symbol: Rational(2 * point + 3 + index * (point + 1) ** 2, 7 + 4 * index)
            for index, symbol in enumerate(symbols)
        }


def _is_close(mine: Any, theirs: Any) -> bool:
    from sympy import Rational

    size = max(abs(mine), abs(theirs))
    return bool(abs(mine - theirs) <= size * Rational(1, 10 ** (_DIGITS - 15)))


if __name__ == "__main__":
    serve(prepare)
