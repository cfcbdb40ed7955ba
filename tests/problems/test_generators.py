"""Generated arithmetic problems: correct answers, exact counts and disjoint sides."""

import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_reinforce.errors import InputError
from llm_reinforce.problems import OPERATIONS, Problem, find_problems, generate_problems, generators

TERM = re.compile(r"([-+*/]?)(\d+)")


def expression(problem: Problem) -> str:
    return problem.id.partition("-")[2]


def worked_out(text: str) -> Fraction:
    """Evaluate an expression from left to right, independently of the package: 5-2+3 is 6."""
    value = Fraction(0)
    for symbol, digits in TERM.findall(text):
        operand = Fraction(int(digits))
        if symbol == "*":
            value *= operand
        elif symbol == "/":
            value /= operand
        else:
            value += -operand if symbol == "-" else operand
    return value


def unordered(text: str) -> tuple[tuple[str, str], ...]:
    """Return a key that is equal for 47+85 and 85+47, and for 7*8 and 8*7, but not for 7-3 and 3-7."""
    if "/" in text:
        return (("", text),)
    first = "*" if "*" in text else "+"
    return tuple(sorted((symbol or first, digits) for symbol, digits in TERM.findall(text)))


def test_one_digit_addition_has_the_hundred_sums() -> None:
    split = generate_problems(["addition"], [1], num_held_out=0)
    assert {problem.prompt for problem in split.train} == {f"{a}+{b}=" for a in range(10) for b in range(10)}
    assert len(split.train) == 100
    assert split.held_out == ()
    by_id = {problem.id: problem for problem in split.train}
    assert by_id["addition-3+9"] == Problem(prompt="3+9=", answer="12", solution=None, id="addition-3+9")


@pytest.mark.parametrize(
    ("operation", "num_operands", "id_", "answer"),
    [
        ("subtraction", 2, "subtraction-3-7", "-4"),
        ("multiplication", 2, "multiplication-7*8", "56"),
        ("multiplication", 3, "multiplication-2*3*4", "24"),
        ("division", 2, "division-56/7", "8"),
        ("division", 2, "division-0/5", "0"),
        ("addition", 3, "addition-1+2+9", "12"),
        ("chain", 3, "chain-5-9+3", "-1"),
        ("chain", 3, "chain-5+9-3", "11"),
    ],
)
def test_answers_are_correct(operation: str, num_operands: int, id_: str, answer: str) -> None:
    split = generate_problems([operation], [1], num_operands=num_operands, num_held_out=0)
    assert {problem.id: problem.answer for problem in split.train}[id_] == answer


@pytest.mark.parametrize(
    ("operation", "num_operands", "largest", "size"),
    [
        ("addition", 2, 9, 100),
        ("subtraction", 2, 9, 100),
        ("multiplication", 2, 9, 100),
        ("division", 2, 9, 90),  # no divisor 0
        ("addition", 3, 9, 1_000),
        ("chain", 3, 9, 2_000),  # a+b-c and a-b+c
        ("chain", 4, 4, 3_750),  # 8 sequences of operators minus +++ and ---
    ],
)
def test_number_of_problems(operation: str, num_operands: int, largest: int, size: int) -> None:
    split = generate_problems([operation], operands=(0, largest), num_operands=num_operands, num_held_out=0)
    assert len(split.train) == len({problem.prompt for problem in split.train}) == size


def test_operands_have_the_requested_number_of_digits() -> None:
    split = generate_problems(["addition", "subtraction"], [2, 4], num_held_out=50, num_train=400)
    for problem in split.train + split.held_out:
        lengths = {len(number) for number in re.findall(r"\d+", expression(problem))}
        assert lengths in ({2}, {4})


def test_digits_of_a_division_apply_to_divisor_and_quotient() -> None:
    for problem in generate_problems(["division"], [2], num_held_out=0, num_train=500).train:
        assert 10 <= int(problem.answer) <= 99
        assert 10 <= int(problem.id.rpartition("/")[2]) <= 99


def test_form_replaces_placeholders_and_keeps_other_braces() -> None:
    form = r"What is {spaced}? ({expression}) Put it in \boxed{}."
    problem = generate_problems(["division"], [1], form=form, num_held_out=0).train[0]
    text = expression(problem)
    assert problem.prompt == rf"What is {text.replace('/', ' / ')}? ({text}) Put it in \boxed{{}}."


@settings(deadline=None, max_examples=8)
@given(
    operations=st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=5, unique=True),
    digits=st.lists(st.sampled_from([1, 2, 5, 12]), min_size=1, max_size=3, unique=True),
    num_held_out=st.integers(0, 45),
    seed=st.integers(0, 2**64),
)
def test_sides_are_disjoint_up_to_order_and_have_exact_sizes(
    operations: list[str], digits: list[int], num_held_out: int, seed: int
) -> None:
    num_operands = 3 if "chain" in operations else 2
    split = generate_problems(
        operations, digits, num_operands=num_operands, num_held_out=num_held_out, num_train=40, seed=seed
    )
    assert (len(split.train), len(split.held_out)) == (40, num_held_out)
    problems = split.train + split.held_out
    assert (
        len({problem.id for problem in problems})
        == len({problem.prompt for problem in problems})
        == len(problems)
    )
    train = {unordered(expression(problem)) for problem in split.train}
    assert train.isdisjoint(unordered(expression(problem)) for problem in split.held_out)
    assert all(worked_out(expression(problem)) == int(problem.answer) for problem in problems)


@pytest.mark.parametrize("operation", ["addition", "multiplication", "chain"])
def test_hashed_sides_are_disjoint_where_random_draws_would_overlap(operation: str) -> None:
    # at least a million expressions, too many to list, in so few groups that random draws would overlap
    split = generate_problems([operation], [1], num_operands=6, num_held_out=500, num_train=2_000)
    train = {unordered(expression(problem)) for problem in split.train}
    assert train.isdisjoint(unordered(expression(problem)) for problem in split.held_out)


@pytest.mark.parametrize("digits", [[2], [5], [1, 4]])
def test_num_train_does_not_change_the_held_out_problems(digits: list[int]) -> None:
    few, many = (
        generate_problems(["addition"], digits, num_held_out=60, num_train=number, seed=7)
        for number in (10, 90)
    )
    assert few.held_out == many.held_out
    assert few.train != many.train


def test_problems_depend_on_the_seed() -> None:
    first, again, other = (
        generate_problems(["addition"], [3], num_held_out=20, num_train=20, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.held_out != other.held_out
    assert first.train != other.train


def test_problems_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "from llm_reinforce.problems import generate_problems as g\n"
        "for digits in ([2], [6]):\n"
        "    print(g(['addition', 'division'], digits, num_held_out=20, num_train=20))"
    )
    root = str(Path(__file__).parents[2])
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": root},
            check=True,
            capture_output=True,
        ).stdout
        for hash_seed in ("0", "1")
    }
    assert len(outputs) == 1


def test_held_out_problems_are_divided_equally_up_to_capacity() -> None:
    # one-digit addition has 100 problems, so at most 50; two-digit addition takes the rest
    held_out = generate_problems(["addition"], [1, 2], num_held_out=300).held_out
    num_small = sum(len(problem.prompt) == len("3+9=") for problem in held_out)
    assert (num_small, len(held_out) - num_small) == (50, 250)


def test_all_other_groups_are_training_problems() -> None:
    split = generate_problems(["subtraction"], [2], num_held_out=1_000)
    assert len(split.train) == 8_100 - 1_000  # every group has one expression, so none is cut


def test_at_most_half_can_be_held_out() -> None:
    assert len(generate_problems(["addition"], [1], num_held_out=50).held_out) == 50
    with pytest.raises(InputError, match="num_held_out is 51, but of the 100 possible problems at most 50"):
        generate_problems(["addition"], [1], num_held_out=51)


def test_operands_are_in_their_ranges() -> None:
    split = generate_problems(["addition"], operands=(0, 19), held_out_operands=(0, 9), num_held_out=20)
    held_out = {tuple(map(int, expression(problem).split("+"))) for problem in split.held_out}
    train = {tuple(map(int, expression(problem).split("+"))) for problem in split.train}
    assert len(held_out) == 20
    assert all(max(pair) <= 9 for pair in held_out)
    mirrored = held_out | {(b, a) for a, b in held_out}
    assert not mirrored & train
    # all others are training problems, except possibly one: the surplus member of the last held-out group
    assert len({(a, b) for a in range(20) for b in range(20)} - mirrored - train) <= 1
    with pytest.raises(InputError, match="of the 400 possible problems at most 50"):
        generate_problems(["addition"], operands=(0, 19), held_out_operands=(0, 9), num_held_out=51)


def test_held_out_problems_of_a_small_range_are_limited_by_the_hash() -> None:
    refused = 0
    for seed in range(20):  # a twentieth of 25 problems is 1, but the hash may hold out none
        settings = {"operands": (0, 999), "held_out_operands": (0, 4), "num_train": 5, "seed": seed}
        try:
            assert len(generate_problems(["addition"], num_held_out=1, **settings).held_out) == 1
        except InputError as error:
            assert "at most 0 can be held out" in str(error)
            refused += 1
    assert 0 < refused < 10


def test_sampling_stops_if_a_side_has_too_few_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generators, "MAX_FAILED_DRAWS", 1_000)
    stratum = generators._Stratum("addition", range(1_000), range(5), "0 to 999", 2, 0)
    with pytest.raises(InputError, match="of 26 held-out problems of addition with operands 0 to 999"):
        stratum.sample(26, held_out=True)


def test_digits_equal_the_range_of_operands() -> None:
    for operation, digits, operands in (("division", 2, (10, 99)), ("addition", 1, (0, 9))):
        by_digits = generate_problems([operation], [digits], num_held_out=0)
        by_range = generate_problems([operation], operands=operands, num_held_out=0)
        assert set(by_digits.train) == set(by_range.train)


def test_large_range_is_sampled_and_divided_by_hash() -> None:
    split = generate_problems(
        ["addition", "division"],
        operands=(0, 5_000),
        held_out_operands=(100, 299),
        num_held_out=100,
        num_train=4_000,
    )
    keys = {unordered(expression(problem)) for problem in split.held_out}
    assert not keys & {unordered(expression(problem)) for problem in split.train}
    for problem in split.held_out:
        left, symbol, right = TERM.findall(expression(problem))[0][1], *TERM.findall(expression(problem))[1]
        values = (int(left) // int(right) if symbol == "/" else int(left), int(right))
        assert all(100 <= value <= 299 for value in values)
    inside = [problem for problem in split.train if "+" in problem.prompt]
    assert any(all(100 <= int(text) <= 299 for text in expression(p).split("+")) for p in inside)


def test_too_many_training_problems_are_rejected() -> None:
    with pytest.raises(InputError, match=r"num_train is 101, .* at most 100 are available"):
        generate_problems(["addition"], [1], num_held_out=0, num_train=101)


def test_default_number_of_training_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    assert generators.DEFAULT_NUM_TRAIN == 100_000
    monkeypatch.setattr(generators, "DEFAULT_NUM_TRAIN", 1_000)
    assert len(generate_problems(["addition"], [9], num_held_out=1).train) == 1_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operations": ["adition"]}, r"unknown operation 'adition' \(did you mean 'addition'\?\)"),
        ({"operations": ["qqq"]}, "unknown operation 'qqq'; known operations: addition, subtraction"),
        ({"operations": []}, "operations is empty"),
        ({"digits": []}, "digits is empty"),
        ({"digits": [1, 1]}, r"digits contains a value twice: \[1, 1\]"),
        ({"digits": [0]}, r"digits must be between 1 and 50, not 0"),
        ({"num_operands": 1}, r"num_operands must be between 2 and 8, not 1"),
        ({"operations": ["chain"]}, "num_operands must be at least 3 for a chain"),
        ({"form": "{expr}="}, r"form '\{expr\}=' has no placeholder .* \{expression\} or \{spaced\}"),
        ({"num_held_out": -1}, "num_held_out must be at least 0, not -1"),
        ({"num_train": 0}, "num_train must be at least 1, not 0"),
        ({"operands": (0, 9)}, "digits and operands are both given"),
        ({"held_out_operands": (0, 9)}, "held_out_operands is used only with operands"),
        ({"digits": (), "operands": (9, 0)}, r"0 <= smallest <= largest < .*, not \(9, 0\)"),
        ({"digits": (), "operands": (-1, 3)}, r"0 <= smallest <= largest < .*, not \(-1, 3\)"),
        (
            {"digits": (), "operands": (1, 9), "held_out_operands": (0, 5)},
            r"held_out_operands \(0 to 5\) must be within operands \(1 to 9\)",
        ),
    ],
)
def test_invalid_settings_are_rejected(arguments: dict[str, object], message: str) -> None:
    usual: dict[str, object] = {"operations": ["addition"], "digits": [1], "num_held_out": 0}
    with pytest.raises(InputError, match=message):
        generate_problems(**(usual | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize(("digits", "num_held_out", "num_train"), [(1, 20, 80), (2, 200, 7_900)])
def test_default_number_of_held_out_problems(digits: int, num_held_out: int, num_train: int) -> None:
    split = generate_problems(["addition"], [digits])
    assert len(split.held_out) == num_held_out
    assert abs(len(split.train) - num_train) <= 1  # 12+34 and 34+12 are on the same side


def test_small_generated_data_set_has_as_many_problems_as_can_be_held_out() -> None:
    assert len(find_problems("generate:digits=1")) == 50
    assert len(find_problems("generate:digits=2")) == 500
