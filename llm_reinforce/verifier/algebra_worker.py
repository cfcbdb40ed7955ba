"""The process in which math-verify compares: a JSON object a line in, one out. `algebra.py` runs this file.

It may take long, eat memory or die: the parent kills it at its limit, the kernel does so a little later if
the parent is gone, and it ends when its input ends. math-verify's yes is not enough, since it compares floats
to six digits and intervals with sets; so its yes is confirmed here, to sixty digits.
"""

import json
import logging
import signal
import sys
from typing import Any

MEMORY_LIMIT = 2 * 2**30  # bytes of address space
GRACE = 1.0  # seconds after the parent's limit
_DIGITS = 60
_FIRST = ("1+x", r"\frac{x}{2}+\sqrt{3}", "(1,2)", r"\{1,2\}", "x>1", r"\sin x")


def main() -> None:
    """Say {"ready": true}, then answer {"right", "answer", "limit"} with {"equal": bool}, in order."""
    out = sys.stdout
    sys.stdout = sys.stderr  # nothing that a library prints may look like an answer
    _limit_memory()
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def parsed(text: str) -> Any:
        boxed = "\\boxed{" + text + "}"
        found = parse(boxed, extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)
        return found[0] if found else None

    for expression in _FIRST:  # the first ones take long: grammars are read, modules imported
        verify(parsed(expression), parsed("x+2"), timeout_seconds=None)
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        _die_after(request["limit"] + GRACE)
        right, answer = parsed(request["right"]), parsed(request["answer"])
        equal = (
            right is not None
            and answer is not None
            and verify(right, answer, timeout_seconds=None)
            and is_confirmed(right, answer)
        )
        _die_after(0)
        print(json.dumps({"equal": bool(equal)}), file=out, flush=True)


def is_confirmed(right: Any, answer: Any) -> bool:
    """Whether two expressions that math-verify takes for equal are of one kind and equal beyond rounding."""
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
        return True  # unions and relations: math-verify solves them exactly
    return _equal_numbers(right, answer)


def _equal_numbers(right: Any, answer: Any) -> bool:
    """At several points, to sixty digits, relatively; where that gives no number, by simplifying."""
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


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))


def _die_after(seconds: float) -> None:
    """The kernel ends this process then, whatever it is in the midst of; 0: not at all."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
