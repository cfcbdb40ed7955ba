"""Rewards for correct intermediate steps: every equation of a solution, checked exactly as it is completed.

The article's "rewards to intermediate states for correct reasoning steps".
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

from llm_reinforce.errors import InputError
from llm_reinforce.problems import Problem
from llm_reinforce.rewards.calls import RewardFunction, StepRewards

MAX_DIGITS = 30  # of a number: above, an equation is left alone
MAX_TOKENS = 60  # numbers, signs and brackets on one side of an equation

_TOKEN = re.compile(
    r"""
    (?P<blank>  ^[ \t]*+[-+*][ \t]++ | [ \t]++ )                    # a list's bullet is no sign
  | (?P<number> [$€£]?[0-9]++(?:,[0-9]++)*+(?:\.[0-9]++)*+ )
  | (?P<equals> = )
  | (?P<stop>   \\[()\[\]] | [^\W\d_]{2,}+ )                        # LaTeX's brackets around a formula; words
  | (?P<part>   [-+*/()^%] | [xX](?![^\W\d_]) | \\[A-Za-z]*+ )      # what isn't understood here included
  | (?P<other>  . )
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"[$€£]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")
_SIGNS = str.maketrans("×·÷−–\u00a0", "**/-- ")
_OPERATORS = ("+", "-", "*", "/")
_NO_START = frozenset(
    "_.,)]}%^\\'"
)  # what a first number may not touch on its left, letters and digits beside
_NEEDS_ONE_MORE = frozenset(".,xX\\$€£")  # whether 12. or 12$ goes on tells the next character


@dataclass(frozen=True, slots=True)
class Equation:
    """Two sides that a text calls equal.

    Attributes:
        start, end: its place in the text, `end` behind the first character that it can't go on with.
        is_right: the sides are the same number.
    """

    start: int
    end: int
    text: str
    is_right: bool


def intermediate_steps(right: float = 1.0, wrong: float = -1.0, max_steps: int = 8) -> RewardFunction:
    """A step reward for each equation that a completion works out, such as `3*4=12`.

        r_{t+1} = right or wrong, for the action a_t that completes an equation

    Numbers are compared as fractions, so that 10/3=3.33 is wrong. What states no operation (`x=12`, `12=12`)
    is no step, what isn't plain arithmetic is left alone, and a step that comes again counts once. An
    equation is complete with the first character that it can't go on with, since `3*4=12` may become
    `3*4=120` or `3*4=12+5`; at the very end that is the end token. So a step's reward depends on the text up
    to there, and on nothing behind it.

    Beware: a policy may learn to write `1+1=2` for its own sake; keep `right` small beside the reward of the
    answer, and read the episodes.

    Args:
        right, wrong: the reward of an equation that holds, or doesn't.
        max_steps: the first so many equations count.

    Raises:
        InputError: `max_steps` is below 1.
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
                (equation.start, equation.end, right if equation.is_right else wrong)
                for equation in steps.values()
            ]
        )

    return reward


@dataclass(slots=True)
class _Side:
    """The numbers, signs and brackets that stand together on one side of an equals sign."""

    tokens: list[str] = field(default_factory=list)
    start: int = 0
    depth: int = 0  # of open brackets
    follows_equals: bool = False

    def add(self, text: str, start: int) -> None:
        if not self.tokens:
            self.start = start
        self.tokens.append(text)
        self.depth += (text == "(") - (text == ")")


def find_equations(text: str) -> Iterator[Equation]:
    """The equations of a text that state an operation, in their order; `a=b=c` states a=b and b=c."""
    plain = text.translate(_SIGNS)
    left: _Side | None = None  # of the equals sign that came last
    side = _Side()
    for found in _TOKEN.finditer(plain):
        kind, token = found.lastgroup, found[0]
        if kind == "blank":
            continue
        is_closing = token == ")" and side.depth == 0  # a bracket that was opened outside: (so 3*4=12)
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
    """The equation of two sides, if both are numbers and one states an operation."""
    is_opened_outside = set(left.tokens[: left.depth]) == {"("}  # (3*4=12)
    sides = [left.tokens[left.depth :] if is_opened_outside else left.tokens, right.tokens]
    if right.tokens[-1:] == ["("]:  # 3*4=12 (the total)
        sides[1] = right.tokens[:-1]
    if not any(map(_states_an_operation, sides)) or not (left.follows_equals or _may_start(left, text)):
        return
    values = [_value(side) for side in sides]
    if None not in values:
        shown = "=".join("".join(side) for side in sides)
        yield Equation(left.start, end, shown, is_right=values[0] == values[1])


def _may_start(side: _Side, text: str) -> bool:
    """Whether nothing before the side belongs to it, as in 2.3*4 or f3*4."""
    before = text[side.start - 1 : side.start]
    return not before.isalnum() and before not in _NO_START


def _states_an_operation(tokens: Sequence[str]) -> bool:
    return any(
        token in _OPERATORS or token in "xX"
        for before, token in pairwise(tokens)
        if before not in _OPERATORS and before != "("
    )


def _value(tokens: Sequence[str]) -> Fraction | None:
    """The number that an expression of + - * / and brackets makes, or None where it makes none."""
    if len(tokens) > MAX_TOKENS or max(map(len, tokens), default=0) > MAX_DIGITS:
        return None
    try:
        return _Parser(tokens).whole()
    except (ValueError, ZeroDivisionError):
        return None


class _Parser:
    """Recursive descent over at most MAX_TOKENS tokens; nothing is ever evaluated as code."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = [*tokens, ""]
        self.next = 0

    def whole(self) -> Fraction:
        value = self.sum()
        if self.tokens[self.next]:
            raise ValueError("something follows the expression")
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
                raise ValueError("an open bracket")
            self.next += 1
            return value
        if not _NUMBER.fullmatch(token):
            raise ValueError(f"{token!r} is no number")
        return Fraction(token.replace(",", "").lstrip("$€£"))
