"""Seeded arithmetic problems whose train and held-out sets are disjoint by construction.

A *stratum* is one operation on one range of operands, those of a digit count say. Its *expressions*
(`47+85`) fall into *groups* of those that are the same sum in another order (`85+47`), named by a
canonical *key*; a group lies wholly on one side. Small strata are listed in full and divided; in large
ones a stable hash of the key decides the side, and expressions are drawn until there are enough. Nothing
here depends on PYTHONHASHSEED or on the order of a set.
"""

import difflib
import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from llm_reinforce.errors import InputError
from llm_reinforce.problems.problem import Problem
from llm_reinforce.problems.splits import ProblemSplit, divide_groups

_SYMBOLS = {"addition": "+", "subtraction": "-", "multiplication": "*", "division": "/"}

OPERATIONS: tuple[str, ...] = (*_SYMBOLS, "chain")
"""The operations there are; a chain mixes + and -, evaluated left to right, and has both."""

DEFAULT_NUM_TRAIN = 100_000
"""How many training problems are drawn where they are too many to list and no number was given."""

MAX_DIGITS = 50
MAX_OPERANDS = 8
_MAX_LISTED = 200_000  # a stratum with more expressions than this is sampled
_MAX_IN_VAIN = 20 * _MAX_LISTED  # draws in a row that find nothing new
_SIDES = 10  # of a sampled stratum, one key in ten is on the held-out side


@dataclass(frozen=True, slots=True)
class _Expression:
    operands: tuple[int, ...]
    symbols: tuple[str, ...]  # between the operands: one fewer than these

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
                value //= operand  # exact: a dividend is built as quotient times divisor
        return value

    def key(self) -> str:
        """The same for expressions that only reorder what may be reordered.

        85+47 and 47+85 share '+47 +85'; 5-2+3 and 3+5-2 share '+3 +5 -2'; 7-3 and 3-7 differ.
        """
        if "/" in self.symbols:
            return self.text()
        first = "*" if "*" in self.symbols else "+"
        terms = zip((first, *self.symbols), self.operands, strict=True)
        return " ".join(f"{symbol}{operand}" for symbol, operand in sorted(terms))


@dataclass(frozen=True, slots=True)
class _Stratum:
    operation: str
    operands: range  # in a division, of divisor and quotient
    held_out_operands: range  # where each lies in it, an expression may be held out
    name: str  # of the range, for the seeds
    num_operands: int  # of additions, multiplications and chains; the others have two
    seed: int

    def divisor_range(self) -> range:
        return range(max(1, self.operands.start), self.operands.stop)

    def symbol_rows(self) -> list[tuple[str, ...]]:
        """Every row of symbols that its expressions may have between their operands."""
        if self.operation == "chain":
            rows = itertools.product("+-", repeat=self.num_operands - 1)
            return [row for row in rows if len(set(row)) == 2]
        reorders = self.operation in ("addition", "multiplication")
        return [(_SYMBOLS[self.operation],) * (self.num_operands - 1 if reorders else 1)]

    def size(self) -> int:
        """How many expressions there are."""
        num_values = _length(self.operands)
        if self.operation == "division":
            return num_values * _length(self.divisor_range())
        rows = self.symbol_rows()
        size: int = len(rows) * num_values ** (len(rows[0]) + 1)
        return size

    def is_listed(self) -> bool:
        return self.size() <= _MAX_LISTED

    def max_held_out(self) -> int:
        """Half of those that may be, or as many as rejection finds quickly on the held-out side."""
        source = self.of_held_out_operands()
        if self.is_listed():
            return source.size() // 2
        wanted = source.size() // (2 * _SIDES)
        # of a few the hash may have put fewer there
        return min(wanted, sum(map(self.is_held_out, source.expressions()))) if source.is_listed() else wanted

    def of_held_out_operands(self) -> "_Stratum":
        return replace(self, operands=self.held_out_operands)

    def may_be_held_out(self, expression: _Expression) -> bool:
        values = expression.operands
        if self.operation == "division":
            values = (values[0] // values[1], values[1])
        return all(value in self.held_out_operands for value in values)

    def expressions(self) -> Iterator[_Expression]:
        """Every expression, in numerical order."""
        if self.operation == "division":
            for quotient, divisor in itertools.product(self.operands, self.divisor_range()):
                yield _Expression((quotient * divisor, divisor), ("/",))
            return
        for symbols in self.symbol_rows():
            for operands in itertools.product(self.operands, repeat=len(symbols) + 1):
                yield _Expression(operands, symbols)

    def draw(self, generator: random.Random) -> _Expression:
        """One expression, all being equally likely."""
        values = self.operands
        if self.operation == "division":
            divisors = self.divisor_range()
            divisor = generator.randrange(divisors.start, divisors.stop)
            return _Expression((generator.randrange(values.start, values.stop) * divisor, divisor), ("/",))
        symbols = generator.choice(self.symbol_rows())
        operands = tuple(generator.randrange(values.start, values.stop) for _ in range(len(symbols) + 1))
        return _Expression(operands, symbols)

    def generator(self, purpose: str) -> random.Random:
        """A generator of its own for each purpose, so that one draw never moves another."""
        return random.Random(f"{self.seed} {self.operation} {self.name} {self.num_operands} {purpose}")

    def is_held_out(self, expression: _Expression) -> bool:
        """The side of an expression where sides are hashed: a matter of the seed and its key alone."""
        if not self.may_be_held_out(expression):
            return False
        name = f"{self.seed} {self.operation} {expression.key()}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") % _SIDES == 0

    def divide(self, num_held_out: int) -> tuple[list[_Expression], list[_Expression]]:
        """All (train, held_out) expressions of a listed stratum."""
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
        """`count` different expressions of one hashed side.

        Raises:
            InputError: there are fewer, as far as can be seen.
        """
        generator = self.generator("held_out" if held_out else "train")
        source = self.of_held_out_operands() if held_out else self
        drawn: dict[_Expression, None] = {}  # a dict, since a set has no order
        num_in_vain = 0
        while len(drawn) < count:
            expression = source.draw(generator)
            if self.is_held_out(expression) == held_out and expression not in drawn:
                drawn[expression], num_in_vain = None, 0
            elif (num_in_vain := num_in_vain + 1) > _MAX_IN_VAIN:
                raise InputError(
                    f"{count:,} problems of {self.operation} on {self.name} are wanted, and no more than "
                    f"{len(drawn):,} were found on their side: ask for fewer, or take another seed"
                )
        return list(drawn)


def generate_problems(
    operations: Sequence[str],
    digits: Sequence[int] = (),
    *,
    operands: tuple[int, int] | None = None,
    held_out_operands: tuple[int, int] | None = None,
    num_operands: int = 2,
    form: str = "{expression}=",
    num_held_out: int,
    num_train: int | None = None,
    seed: int = 0,
) -> ProblemSplit:
    """Arithmetic problems to train on, and others held out.

    >>> split = generate_problems(["addition"], [2], num_held_out=500)
    >>> split.held_out[0].prompt, split.held_out[0].answer
    ('14+36=', '50')

    Args:
        operations: some of OPERATIONS. Division is always exact; a chain needs three operands or more.
        digits: the digit counts to mix. The operands of one problem have the same count d: 0..9 for
            d = 1, 10..99 for d = 2. In a division it bounds the divisor and the quotient.
        operands: instead of `digits`, the smallest and the largest operand.
        held_out_operands: with `operands`, the smallest and the largest of held-out problems: what is
            measured can be a part of what is practised.
        num_operands: the operands of an addition, a multiplication or a chain.
        form: the prompt, with `{expression}` for `47+85` or `{spaced}` for `47 + 85`. Other braces
            stay as they are.
        num_held_out: exactly so many held-out problems, equally many for each operation and digit
            count as far as a small one allows; at most half of it (a twentieth where there are more
            than 200,000 to choose from).
        num_train: so many training problems, shared out in the same way; by default all that are
            left, or 100,000 where they are too many to list.
        seed: the same seed gives the same problems, on every machine; `num_train` does not change
            the held-out ones.

    Returns:
        Both sides in shuffled order. No prompt lies on both, nor does the same sum or product in
        another order. Ids are like `addition-47+85`.

    Raises:
        InputError: an unknown operation, a digit count or number out of range, a form without a
            place for the expression, or more problems than there are.
    """
    _check_settings(operations, num_operands, form, num_held_out, num_train)
    strata = [
        _Stratum(operation, values, held_out_values, name, num_operands, seed)
        for operation in operations
        for name, values, held_out_values in _operand_ranges(digits, operands, held_out_operands)
    ]
    held_out_shares = _share_out(num_held_out, [stratum.max_held_out() for stratum in strata])
    if sum(held_out_shares) < num_held_out:
        raise InputError(
            f"num_held_out is {num_held_out:,}, but of {sum(stratum.size() for stratum in strata):,} "
            f"possible problems at most {sum(held_out_shares):,} can be held out: ask for fewer, "
            "or add operations, digit counts or operands"
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
            f"num_train is {wanted:,}, but beside {num_held_out:,} held-out problems at most "
            f"{sum(capacities):,} can be drawn for training: ask for fewer, or leave num_train out"
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
    # replace, not format: a form may hold braces of its own, such as \boxed{}
    prompt = form.replace("{expression}", expression.text()).replace("{spaced}", expression.text(" "))
    return Problem(prompt=prompt, answer=str(expression.value()), id=f"{operation}-{expression.text()}")


def nearest_name(name: str, known: Iterable[str], count: int = 1) -> str:
    """` (did you mean 'gsm8k'?)`, or nothing where no known name is near."""
    nearest = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, nearest))}?)" if nearest else ""


def _length(values: range) -> int:
    return values.stop - values.start  # len() refuses ranges beyond a machine word


def _share_out(total: int, capacities: Sequence[int]) -> list[int]:
    """Divide `total` equally, no share above its capacity: 10 over [2, 9, 9] gives [2, 4, 4].

    A remainder goes to the first ones. The shares sum to less than `total` where the capacities do.
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
    """Ranges of operands by name, each with the range of those that may be held out."""
    if operands is None:
        if not digits:
            raise InputError("digits is empty: name at least one")
        if len(set(digits)) < len(digits):
            raise InputError(f"digits names one twice: {list(digits)}")
        if held_out_operands is not None:
            raise InputError("held_out_operands is read only with operands")
        for count in digits:
            if not 1 <= count <= MAX_DIGITS:
                raise InputError(f"digits must lie in 1..{MAX_DIGITS}, not {count}")
        ranges = [range(0 if count == 1 else 10 ** (count - 1), 10**count) for count in digits]
        return [(str(count), values, values) for count, values in zip(digits, ranges, strict=True)]
    if digits:
        raise InputError("digits and operands are both given: keep one")
    (low, high), (held_low, held_high) = operands, held_out_operands or operands
    if not 0 <= low <= high < 10**MAX_DIGITS:
        raise InputError(f"operands are the smallest and the largest, 0 or more, not {low} and {high}")
    if not low <= held_low <= held_high <= high:
        raise InputError(
            f"held_out_operands, {held_low} to {held_high}, must lie within operands, {low} to {high}"
        )
    return [(f"{low} to {high}", range(low, high + 1), range(held_low, held_high + 1))]


def _check_settings(
    operations: Sequence[str],
    num_operands: int,
    form: str,
    num_held_out: int,
    num_train: int | None,
) -> None:
    if not operations:
        raise InputError("operations is empty: name at least one")
    if len(set(operations)) < len(operations):
        raise InputError(f"operations names one twice: {list(operations)}")
    for operation in operations:
        if operation not in OPERATIONS:
            hint = nearest_name(operation, OPERATIONS)
            raise InputError(f"unknown operation {operation!r}{hint}: there are {', '.join(OPERATIONS)}")
    if not 2 <= num_operands <= MAX_OPERANDS:
        raise InputError(f"num_operands must lie in 2..{MAX_OPERANDS}, not {num_operands}")
    if "chain" in operations and num_operands < 3:
        raise InputError(f"a chain mixes + and -, so num_operands must be 3 or more, not {num_operands}")
    if "{expression}" not in form and "{spaced}" not in form:
        raise InputError(
            f"form {form!r} has no place for the expression: put {{expression}} or {{spaced}} in it"
        )
    if num_held_out < 0:
        raise InputError(f"num_held_out must not be negative, as {num_held_out} is")
    if num_train is not None and num_train < 1:
        raise InputError(f"num_train must be 1 or more, not {num_train}; leave it out for all problems")
