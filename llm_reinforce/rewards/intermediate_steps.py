"""Step rewards for equations in a completion, given to the actions that complete the equations.

This implements the "rewards to intermediate states for correct reasoning steps" of the article "The Beauty of
Reinforcement Learning (1)".
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

from llm_reinforce.errors import InputError
from llm_reinforce.problems import Problem
from llm_reinforce.rewards.calls import RewardFunction, StepRewards

MAX_DIGITS = 30  # maximum length of a number in characters; equations with longer numbers are ignored
MAX_TOKENS = 60  # maximum number of tokens on one side of an equation; longer equations are ignored

_TOKEN = re.compile(
    r"""
    (?P<blank>  ^[ \t]*+[-+*][ \t]++ | [ \t]++ )                    # the bullet of a list is not a sign
  | (?P<number> [$€£]?[0-9]++(?:,[0-9]++)*+(?:\.[0-9]++)*+ )
  | (?P<equals> = )
  | (?P<stop>   \\[()\[\]] | [^\W\d_]{2,}+ )                        # LaTeX delimiters of a formula; words
  | (?P<part>   [-+*/()^%] | [xX](?![^\W\d_]) | \\[A-Za-z]*+ )      # includes signs that are not supported
  | (?P<other>  . )
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"[$€£]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")
_SIGNS = str.maketrans("×·÷−–\u00a0", "**/-- ")
_OPERATORS = ("+", "-", "*", "/")
# an equation must not directly follow one of these characters, a letter or a digit
_NO_START = frozenset("_.,)]}%^\\'")
# if one of these characters follows a number, as in 12. or 12$, the next character shows whether the number
# continues
_NEEDS_ONE_MORE = frozenset(".,xX\\$€£")


@dataclass(frozen=True, slots=True)
class Equation:
    """An equation in a text.

    Attributes:
        start: index of the first character of the equation.
        end: number of characters of the text after which the equation is known to be complete. In
            "2+3=5 apples", these are the 7 characters "2+3=5 a". If only the end of the text completes the
            equation, `end` is the length of the text plus 1.
        text: the equation without spaces.
        is_correct: True if both sides have the same value.
    """

    start: int
    end: int
    text: str
    is_correct: bool


def intermediate_steps(right: float = 1.0, wrong: float = -1.0, max_steps: int = 8) -> RewardFunction:
    """Return a reward function with a step reward for each equation in a completion, such as `3*4=12`.

        r_{t+1} = `right`, if action a_t completes a correct equation
        r_{t+1} = `wrong`, if action a_t completes a wrong equation

    Numbers are compared as exact fractions, so `10/3=3.33` is wrong. Equations without an operation (`x=12`,
    `12=12`) and expressions other than plain arithmetic are ignored. If an equation is repeated, only its
    first occurrence is rewarded.

    An equation is complete at the first character that cannot continue it, because `3*4=12` may become
    `3*4=120` or `3*4=12+5`. At the end of a completion, the end token completes the equation. The reward of
    an equation therefore depends only on the text up to the action that receives it.

    Warning: a policy may learn to write equations such as `1+1=2` only to collect rewards. Keep `right` small
    compared with the reward of the answer, and read some episodes of the run.

    Args:
        right: reward of a correct equation.
        wrong: reward of a wrong equation.
        max_steps: maximum number of rewarded equations per completion. Further equations are ignored.

    Raises:
        InputError: if `max_steps` is less than 1.
    """
    if max_steps < 1:
        raise InputError(f"intermediate_steps: max_steps must be at least 1, not {max_steps}")

    def reward(completion: str, problem: Problem) -> StepRewards:
        steps: dict[str, Equation] = {}
        for equation in find_equations(completion):
            steps.setdefault(equation.text, equation)
            if len(steps) >= max_steps:
                break
        return StepRewards(
            [
                (equation.start, equation.end, right if equation.is_correct else wrong)
                for equation in steps.values()
            ]
        )

    return reward


@dataclass(slots=True)
class _Side:
    """The numbers, signs and brackets on one side of an equals sign."""

    tokens: list[str] = field(default_factory=list)
    start: int = 0
    depth: int = 0  # number of open brackets
    follows_equals: bool = False

    def add(self, text: str, start: int) -> None:
        if not self.tokens:
            self.start = start
        self.tokens.append(text)
        self.depth += (text == "(") - (text == ")")


def find_equations(text: str) -> Iterator[Equation]:
    """Yield the equations of a text that contain an operation, in order.

    A chain `a=b=c` yields the equations a=b and b=c.
    """
    plain = text.translate(_SIGNS)
    left: _Side | None = None  # left side of the latest equals sign
    side = _Side()
    for found in _TOKEN.finditer(plain):
        kind, token = found.lastgroup, found[0]
        if kind == "blank":
            continue
        is_closing = token == ")" and side.depth == 0  # opened before this side, as in (so 3*4=12)
        if kind in ("number", "part") and not is_closing:
            side.add(token, found.start())
            continue
        end = found.start() + 1 + (token[0] in _NEEDS_ONE_MORE)
        if left is not None:
            yield from _compare(left, side, plain, min(end, len(plain) + 1))
        left = side if kind == "equals" else None
        side = _Side(follows_equals=kind == "equals")
    if left is not None:
        yield from _compare(left, side, plain, len(plain) + 1)


def _compare(left: _Side, right: _Side, text: str, end: int) -> Iterator[Equation]:
    """Yield the equation of two sides if each side has a value and at least one side has an operation."""
    is_opened_outside = set(left.tokens[: left.depth]) == {"("}  # (3*4=12)
    sides = [left.tokens[left.depth :] if is_opened_outside else left.tokens, right.tokens]
    if right.tokens[-1:] == ["("]:  # 3*4=12 (the total)
        sides[1] = right.tokens[:-1]
    if not any(map(_has_operation, sides)) or not (left.follows_equals or _may_start(left, text)):
        return
    values = [_value(side) for side in sides]
    if None not in values:
        without_spaces = "=".join("".join(side) for side in sides)
        yield Equation(left.start, end, without_spaces, is_correct=values[0] == values[1])


def _may_start(side: _Side, text: str) -> bool:
    """Return True if an equation can start with this side.

    The result is False if the character before the side belongs to the same number or word, as in `f3*4`.
    """
    before = text[side.start - 1 : side.start]
    return not before.isalnum() and before not in _NO_START


def _has_operation(tokens: Sequence[str]) -> bool:
    return any(
        token in _OPERATORS or token in "xX"
        for before, token in pairwise(tokens)
        if before not in _OPERATORS and before != "("
    )


def _value(tokens: Sequence[str]) -> Fraction | None:
    """Return the value of an expression of numbers, + - * / and brackets.

    Return None if the expression is invalid or too long, or if it divides by zero.
    """
    if len(tokens) > MAX_TOKENS or max(map(len, tokens), default=0) > MAX_DIGITS:
        return None
    try:
        return _Parser(tokens).whole()
    except (ValueError, ZeroDivisionError):
        return None


class _Parser:
    """Recursive-descent parser of at most MAX_TOKENS tokens. Nothing is evaluated as Python code."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = [*tokens, ""]
        self.next = 0

    def whole(self) -> Fraction:
        value = self.sum()
        if self.tokens[self.next]:
            raise ValueError("unexpected token after the expression")
        return value

    def sum(self) -> Fraction:
        value = self.product()
        while (sign := self.tokens[self.next]) in ("+", "-"):
            self.next += 1
            value = value + self.product() if sign == "+" else value - self.product()
        return value

    def product(self) -> Fraction:
        value = self.factor()
        while (sign := self.tokens[self.next]) in ("*", "x", "X", "/"):
            self.next += 1
            value = value / self.factor() if sign == "/" else value * self.factor()
        return value

    def factor(self) -> Fraction:
        token = self.tokens[self.next]
        self.next += 1
        if token == "-":
            return -self.factor()
        if token == "(":
            value = self.sum()
            if self.tokens[self.next] != ")":
                raise ValueError("missing closing bracket")
            self.next += 1
            return value
        if not _NUMBER.fullmatch(token):
            raise ValueError(f"{token!r} is not a number")
        return Fraction(token.replace(",", "").lstrip("$€£"))
