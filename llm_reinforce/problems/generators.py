"""Seeded arithmetic problems whose training and held-out sets are disjoint by construction.

A *stratum* contains all *expressions* with one operation and one range of operands, such as the additions of
two-digit numbers. Expressions that differ only in the order of their terms, such as `47+85` and `85+47`, have
the same *key* and form a *group*. All expressions of a group are on the same *side*: training or held out.

In a small stratum, all expressions are listed, and random groups are held out. In a large stratum, a hash of
the key determines the side of each expression, and random expressions are drawn until there are enough
training and held-out expressions. The result does not depend on PYTHONHASHSEED or on the iteration order of
sets.
"""

import difflib
import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from llm_reinforce.errors import InputError
from llm_reinforce.problems.problem import Problem
from llm_reinforce.problems.splits import ProblemSplit, default_num_held_out, divide_groups

_SYMBOLS = {"addition": "+", "subtraction": "-", "multiplication": "*", "division": "/"}

OPERATIONS: tuple[str, ...] = (*_SYMBOLS, "chain")
"""Known operations. A chain contains at least one + and one -, and is evaluated from left to right."""

DEFAULT_NUM_TRAIN = 100_000
"""Default number of training problems if it would take too long to list all possible problems."""

MAX_DIGITS = 50
MAX_OPERANDS = 8
_MAX_LISTED = 200_000  # the expressions of a larger stratum are not listed but drawn at random
MAX_FAILED_DRAWS = 20 * _MAX_LISTED  # maximum number of consecutive draws without a new expression
_SIDES = 10  # in a large stratum, the hash assigns one key in ten to the held-out side


@dataclass(frozen=True, slots=True)
class _Expression:
    operands: tuple[int, ...]
    symbols: tuple[str, ...]  # operators between the operands

    def text(self, gap: str = "") -> str:
        pairs = zip(self.symbols, self.operands[1:], strict=True)
        return str(self.operands[0]) + "".join(f"{gap}{symbol}{gap}{operand}" for symbol, operand in pairs)

    def value(self) -> int:
        value = self.operands[0]
        for symbol, operand in zip(self.symbols, self.operands[1:], strict=True):
            if symbol == "+":
                value += operand
            elif symbol == "-":
                value -= operand
            elif symbol == "*":
                value *= operand
            else:
                value //= operand  # the division is exact, because the dividend is quotient times divisor
        return value

    def key(self) -> str:
        """Return the key, which is the same for expressions that differ only in the order of their terms.

        The key of 85+47 and 47+85 is '+47 +85'. The key of 5-2+3 and 3+5-2 is '+3 +5 -2'. The keys of 7-3 and
        3-7 are different.
        """
        if "/" in self.symbols:
            return self.text()
        first = "*" if "*" in self.symbols else "+"
        terms = zip((first, *self.symbols), self.operands, strict=True)
        return " ".join(f"{symbol}{operand}" for symbol, operand in sorted(terms))


@dataclass(frozen=True, slots=True)
class _Stratum:
    operation: str
    operands: range  # range of the operands; for divisions, range of the divisor and of the quotient
    held_out_operands: range  # an expression can be held out if all its operands are in this range
    name: str  # name of the range of operands, used in seeds and messages
    num_operands: int  # number of operands; subtractions and divisions always have two
    seed: int

    def divisor_range(self) -> range:
        return range(max(1, self.operands.start), self.operands.stop)

    def symbol_rows(self) -> list[tuple[str, ...]]:
        """Return all sequences of operators that expressions of this stratum can have."""
        if self.operation == "chain":
            rows = itertools.product("+-", repeat=self.num_operands - 1)
            return [row for row in rows if len(set(row)) == 2]
        reorders = self.operation in ("addition", "multiplication")
        return [(_SYMBOLS[self.operation],) * (self.num_operands - 1 if reorders else 1)]

    def size(self) -> int:
        """Return the number of expressions in this stratum."""
        num_values = _length(self.operands)
        if self.operation == "division":
            return num_values * _length(self.divisor_range())
        rows = self.symbol_rows()
        size: int = len(rows) * num_values ** (len(rows[0]) + 1)
        return size

    def is_listed(self) -> bool:
        """Return True if the stratum is small enough to list all its expressions."""
        return self.size() <= _MAX_LISTED

    def max_held_out(self) -> int:
        """Return the maximum number of expressions that can be held out.

        In a small stratum, this is half of the expressions whose operands are all in `held_out_operands`.

        In a large stratum, the hash is expected to assign a tenth of these expressions to the held-out side.
        The maximum is half of this tenth. Drawing more of them at random would take too many draws.
        """
        source = self.of_held_out_operands()
        if self.is_listed():
            return source.size() // 2
        wanted = source.size() // (2 * _SIDES)
        # if there are few expressions, the hash may assign fewer of them to the held-out side than wanted
        return min(wanted, sum(map(self.is_held_out, source.expressions()))) if source.is_listed() else wanted

    def of_held_out_operands(self) -> "_Stratum":
        return replace(self, operands=self.held_out_operands)

    def may_be_held_out(self, expression: _Expression) -> bool:
        values = expression.operands
        if self.operation == "division":
            values = (values[0] // values[1], values[1])
        return all(value in self.held_out_operands for value in values)

    def expressions(self) -> Iterator[_Expression]:
        """Yield all expressions of this stratum, always in the same order."""
        if self.operation == "division":
            for quotient, divisor in itertools.product(self.operands, self.divisor_range()):
                yield _Expression((quotient * divisor, divisor), ("/",))
            return
        for symbols in self.symbol_rows():
            for operands in itertools.product(self.operands, repeat=len(symbols) + 1):
                yield _Expression(operands, symbols)

    def draw(self, generator: random.Random) -> _Expression:
        """Return a random expression. All expressions have the same probability."""
        values = self.operands
        if self.operation == "division":
            divisors = self.divisor_range()
            divisor = generator.randrange(divisors.start, divisors.stop)
            return _Expression((generator.randrange(values.start, values.stop) * divisor, divisor), ("/",))
        symbols = generator.choice(self.symbol_rows())
        operands = tuple(generator.randrange(values.start, values.stop) for _ in range(len(symbols) + 1))
        return _Expression(operands, symbols)

    def generator(self, purpose: str) -> random.Random:
        """Return a random generator whose seed depends on the stratum and on a purpose, such as "train"."""
        return random.Random(f"{self.seed} {self.operation} {self.name} {self.num_operands} {purpose}")

    def is_held_out(self, expression: _Expression) -> bool:
        """Return True if the hash of the seed and the key assigns an expression to the held-out side.

        The result is False for every expression that has an operand outside `held_out_operands`.
        """
        if not self.may_be_held_out(expression):
            return False
        name = f"{self.seed} {self.operation} {expression.key()}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") % _SIDES == 0

    def divide(self, num_held_out: int) -> tuple[list[_Expression], list[_Expression]]:
        """Divide the list of all expressions into training and held-out expressions.

        Returns:
            The training expressions, and `num_held_out` held-out expressions.
        """
        groups: dict[str, list[_Expression]] = {}
        others = []
        for expression in self.expressions():
            if self.may_be_held_out(expression):
                groups.setdefault(expression.key(), []).append(expression)
            else:
                others.append(expression)
        train, held_out = divide_groups(groups, num_held_out, self.generator("sides"))
        return train + others, held_out

    def sample(self, count: int, *, held_out: bool) -> list[_Expression]:
        """Draw `count` different training or held-out expressions of a large stratum at random.

        Raises:
            InputError: if too many consecutive draws find no new expression.
        """
        generator = self.generator("held_out" if held_out else "train")
        source = self.of_held_out_operands() if held_out else self
        drawn: dict[_Expression, None] = {}  # a dict instead of a set, because a set has no order
        num_failed = 0
        while len(drawn) < count:
            expression = source.draw(generator)
            if self.is_held_out(expression) == held_out and expression not in drawn:
                drawn[expression], num_failed = None, 0
            elif (num_failed := num_failed + 1) > MAX_FAILED_DRAWS:
                side = "held-out" if held_out else "training"
                raise InputError(
                    f"only {len(drawn):,} of {count:,} {side} problems of {self.operation} with operands "
                    f"{self.name} were found; use a smaller number of problems or another seed"
                )
        return list(drawn)


def max_num_held_out(
    operations: Sequence[str],
    digits: Sequence[int] = (),
    *,
    operands: tuple[int, int] | None = None,
    held_out_operands: tuple[int, int] | None = None,
    num_operands: int = 2,
) -> int:
    """Return the largest `num_held_out` that `generate_problems` accepts with these arguments."""
    _check_settings(operations, num_operands, "{expression}", None, None)
    strata = _strata(operations, digits, operands, held_out_operands, num_operands, seed=0)
    return sum(stratum.max_held_out() for stratum in strata)


def _strata(
    operations: Sequence[str],
    digits: Sequence[int],
    operands: tuple[int, int] | None,
    held_out_operands: tuple[int, int] | None,
    num_operands: int,
    seed: int,
) -> list[_Stratum]:
    return [
        _Stratum(operation, values, held_out_values, name, num_operands, seed)
        for operation in operations
        for name, values, held_out_values in _operand_ranges(digits, operands, held_out_operands)
    ]


def generate_problems(
    operations: Sequence[str],
    digits: Sequence[int] = (),
    *,
    operands: tuple[int, int] | None = None,
    held_out_operands: tuple[int, int] | None = None,
    num_operands: int = 2,
    form: str = "{expression}=",
    num_held_out: int | None = None,
    num_train: int | None = None,
    seed: int = 0,
) -> ProblemSplit:
    """Generate arithmetic problems, and divide them into training problems and held-out problems.

    >>> split = generate_problems(["addition"], [2], num_held_out=500)
    >>> split.held_out[0].prompt, split.held_out[0].answer
    ('14+36=', '50')

    Args:
        operations: names from OPERATIONS. Divisions are always exact. A chain needs at least three operands.
        digits: numbers of digits of the operands. All operands of a problem have the same number of digits.
            One-digit operands are 0 to 9, and two-digit operands are 10 to 99. In a division, the divisor and
            the quotient have this number of digits.
        operands: smallest and largest operand, as an alternative to `digits`.
        held_out_operands: smallest and largest operand of held-out problems, within `operands`.
        num_operands: number of operands in an addition, a multiplication or a chain. Subtractions and
            divisions always have two operands.
        form: text of a prompt. `{expression}` is replaced by `47+85` and `{spaced}` by `47 + 85`. Other
            braces are kept.
        num_held_out: number of held-out problems. They are divided equally among the combinations of an
            operation and a number of digits. A combination with too few expressions gets fewer held-out
            problems. At most half of the expressions of a combination can be held out, or a twentieth if the
            combination has more than 200,000 expressions. None: 200 problems, or a fifth of all problems if a
            fifth is fewer.
        num_train: number of training problems, divided among the combinations like the held-out problems.
            None: all remaining problems, or 100,000 if it would take too long to list all possible problems.
        seed: seed of the problems. Equal seeds give equal problems on every machine. The held-out problems do
            not depend on `num_train`.

    Returns:
        Training and held-out problems, each in random order. No training problem has the same expression as a
        held-out problem, not even with its terms in another order. Ids look like `addition-47+85`.

    Raises:
        InputError: if an operation is unknown, a number is out of range, the form has no placeholder for the
            expression, or more problems are requested than exist.
    """
    _check_settings(operations, num_operands, form, num_held_out, num_train)
    strata = _strata(operations, digits, operands, held_out_operands, num_operands, seed)
    num_possible = sum(stratum.size() for stratum in strata)
    most_held_out = [stratum.max_held_out() for stratum in strata]
    if num_held_out is None:
        num_held_out = min(default_num_held_out(num_possible), sum(most_held_out))
    held_out_shares = _share_out(num_held_out, most_held_out)
    if sum(held_out_shares) < num_held_out:
        raise InputError(
            f"num_held_out is {num_held_out:,}, but of the {num_possible:,} possible problems at most "
            f"{sum(held_out_shares):,} can be held out; reduce num_held_out, or add operations, digits or "
            "operands"
        )

    listed = {
        index: stratum.divide(share)
        for index, (stratum, share) in enumerate(zip(strata, held_out_shares, strict=True))
        if stratum.is_listed()
    }
    capacities = [
        len(listed[index][0]) if index in listed else stratum.size() // 2
        for index, stratum in enumerate(strata)
    ]
    if num_train is None:
        wanted = sum(capacities) if len(listed) == len(strata) else min(DEFAULT_NUM_TRAIN, sum(capacities))
    else:
        wanted = num_train
    train_shares = _share_out(wanted, capacities)
    if sum(train_shares) < wanted:
        raise InputError(
            f"num_train is {wanted:,}, but if {num_held_out:,} problems are held out, at most "
            f"{sum(capacities):,} are available for training; reduce num_train, or leave it unset"
        )

    train: list[Problem] = []
    held_out: list[Problem] = []
    for index, stratum in enumerate(strata):
        if index in listed:
            pool, held_out_part = listed[index]
            train_part = stratum.generator("train").sample(pool, train_shares[index])
        else:
            train_part = stratum.sample(train_shares[index], held_out=False)
            held_out_part = stratum.sample(held_out_shares[index], held_out=True)
        train += [_problem(stratum.operation, expression, form) for expression in train_part]
        held_out += [_problem(stratum.operation, expression, form) for expression in held_out_part]
    random.Random(f"{seed} order of train").shuffle(train)
    random.Random(f"{seed} order of held_out").shuffle(held_out)
    return ProblemSplit(train=tuple(train), held_out=tuple(held_out))


def _problem(operation: str, expression: _Expression, form: str) -> Problem:
    # replace instead of format, because a form may contain other braces, such as \boxed{}
    prompt = form.replace("{expression}", expression.text()).replace("{spaced}", expression.text(" "))
    return Problem(prompt=prompt, answer=str(expression.value()), id=f"{operation}-{expression.text()}")


def nearest_name(name: str, known: Iterable[str], count: int = 1) -> str:
    """Return a hint with the known names that are most similar to `name`, such as ` (did you mean 'gsm8k'?)`.

    The hint is empty if no known name is similar.
    """
    nearest = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, nearest))}?)" if nearest else ""


def _length(values: range) -> int:
    return values.stop - values.start  # len() fails for ranges longer than sys.maxsize


def _share_out(total: int, capacities: Sequence[int]) -> list[int]:
    """Divide `total` into equal shares, where no share exceeds its capacity.

    For example, 10 divided over the capacities [2, 9, 9] gives [2, 4, 4]. A remainder goes to the first
    shares. If the capacities sum to less than `total`, every share equals its capacity.
    """
    shares = [0] * len(capacities)
    left = min(total, sum(capacities))
    while left:
        below = [index for index, capacity in enumerate(capacities) if shares[index] < capacity]
        each = max(1, left // len(below))
        for index in below:
            given = min(each, capacities[index] - shares[index], left)
            shares[index] += given
            left -= given
    return shares


def _operand_ranges(
    digits: Sequence[int], operands: tuple[int, int] | None, held_out_operands: tuple[int, int] | None
) -> list[tuple[str, range, range]]:
    """Return the tuple (name, operands, operands of held-out problems) for each range of operands."""
    if operands is None:
        if not digits:
            raise InputError("digits is empty; give at least one number of digits")
        if len(set(digits)) < len(digits):
            raise InputError(f"digits contains a value twice: {list(digits)}; list each value once")
        if held_out_operands is not None:
            raise InputError(
                "held_out_operands is used only with operands; set operands, or remove held_out_operands"
            )
        for count in digits:
            if not 1 <= count <= MAX_DIGITS:
                raise InputError(f"digits must be between 1 and {MAX_DIGITS}, not {count}")
        ranges = [range(0 if count == 1 else 10 ** (count - 1), 10**count) for count in digits]
        return [(str(count), values, values) for count, values in zip(digits, ranges, strict=True)]
    if digits:
        raise InputError("digits and operands are both given; remove one of the two")
    (low, high), (held_low, held_high) = operands, held_out_operands or operands
    if not 0 <= low <= high < 10**MAX_DIGITS:
        raise InputError(
            f"operands must be (smallest, largest) with 0 <= smallest <= largest < 10^{MAX_DIGITS}, "
            f"not ({low}, {high})"
        )
    if not low <= held_low <= held_high <= high:
        raise InputError(
            f"held_out_operands ({held_low} to {held_high}) must be within operands ({low} to {high})"
        )
    return [(f"{low} to {high}", range(low, high + 1), range(held_low, held_high + 1))]


def _check_settings(
    operations: Sequence[str],
    num_operands: int,
    form: str,
    num_held_out: int | None,
    num_train: int | None,
) -> None:
    if not operations:
        raise InputError("operations is empty; give at least one operation")
    if len(set(operations)) < len(operations):
        raise InputError(f"operations contains a value twice: {list(operations)}; list each value once")
    for operation in operations:
        if operation not in OPERATIONS:
            hint = nearest_name(operation, OPERATIONS)
            raise InputError(
                f"unknown operation {operation!r}{hint}; known operations: {', '.join(OPERATIONS)}"
            )
    if not 2 <= num_operands <= MAX_OPERANDS:
        raise InputError(f"num_operands must be between 2 and {MAX_OPERANDS}, not {num_operands}")
    if "chain" in operations and num_operands < 3:
        raise InputError(
            f"num_operands must be at least 3 for a chain, which mixes + and -, not {num_operands}"
        )
    if "{expression}" not in form and "{spaced}" not in form:
        raise InputError(
            f"form {form!r} has no placeholder for the expression; add {{expression}} or {{spaced}}"
        )
    if num_held_out is not None and num_held_out < 0:
        raise InputError(f"num_held_out must be at least 0, not {num_held_out}")
    if num_train is not None and num_train < 1:
        raise InputError(
            f"num_train must be at least 1, not {num_train}; to use all problems, leave num_train unset"
        )
