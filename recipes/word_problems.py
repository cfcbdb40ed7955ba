"""Write the problems of the recipe smollm2_word_problems to files: `python word_problems.py word_problems`.

The folder gets train.jsonl, dev.jsonl, svamp_test.jsonl, multiarith_test.jsonl, and demonstrations.jsonl with
the worked solutions of training problems. SVAMP, MultiArith and GSM8K are read from the hub or, with the
options `--svamp SVAMP.json --multiarith MultiArith.json --gsm8k train.jsonl`, from their published files:

- https://raw.githubusercontent.com/arkilpatel/SVAMP/main/SVAMP.json
- https://raw.githubusercontent.com/kojima-takeshi188/zero_shot_cot/main/dataset/MultiArith/MultiArith.json
- https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/train.jsonl

The published files of SVAMP and MultiArith have no splits, so 300 problems of SVAMP and 180 problems of
MultiArith are drawn with a fixed seed as test problems. On the hub, both have a test split, and MultiArith
has no equations, so its problems have no worked solutions. A training problem is left out if it is equal to a
problem of dev.jsonl or of a test file, or differs from such a problem only in its numbers.
"""

import argparse
import ast
import json
import operator
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from llm_reinforce.errors import InputError
from llm_reinforce.problems import Problem, find_overlap, find_problems, split_problems, write_problems

NUM_TEST = {"svamp": 300, "multiarith": 180}
NUM_DEV = {"svamp": 100, "multiarith": 60}  # training problems that are used to choose settings
# maximum numbers of an easy problem of GSM8K: steps, characters of a number, and words
MAX_STEPS, MAX_CHARACTERS, MAX_WORDS = 1, 4, 60
OPERATORS: dict[type[ast.operator], tuple[str, Callable[..., Fraction]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}


def worked_solution(expressions: Iterable[str], answer: str) -> str | None:
    """Return the steps of arithmetic expressions, one per line, and the answer.

    Nothing is executed: expressions are parsed, and computed with fractions. The result is None if an
    expression has parts other than numbers, + - * / and parentheses, if a value has no finite decimal form,
    or if the value of the last expression is not the answer.

    >>> worked_solution(["((32.0+42.0)-35.0)"], "39")
    '32 + 42 = 74\\n74 - 35 = 39\\n#### 39'
    """
    lines: list[str] = []
    try:
        values = [_value(ast.parse(each.strip(), mode="eval").body, lines) for each in expressions]
        if not lines or values[-1] != Fraction(answer):
            return None
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return "\n".join([*lines, f"#### {answer}"])


def _value(node: ast.expr, lines: list[str]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if not isinstance(node, ast.BinOp) or type(node.op) not in OPERATORS:
        raise ValueError("not plain arithmetic")
    sign, compute = OPERATORS[type(node.op)]
    left, right = _value(node.left, lines), _value(node.right, lines)
    result = compute(left, right)
    lines.append(f"{_text(left)} {sign} {_text(right)} = {_text(result)}")
    return result


def _text(value: Fraction) -> str:
    text = str(value.numerator) if value.denominator == 1 else str(float(value))
    if Fraction(text) != value:
        raise ValueError("no finite decimal form")
    return text


def solved(name: str, problem: Problem) -> Problem:
    """Return the problem with the id `NAME-ID` and, if its row has equations, with a worked solution."""
    if name == "gsm8k":  # calculations between << and >>
        expressions = re.findall(r"<<([^=<>]*)=[^<>]*>>", problem.solution or "")
    else:
        given = problem.columns.get("Equation") or problem.columns.get("lEquations") or []
        equations = given if isinstance(given, list) else [given]
        expressions = [str(each).removeprefix("X=") for each in equations]
    solution = worked_solution(expressions, problem.answer or "")
    return Problem(problem.prompt, problem.answer, solution, id=f"{name}-{problem.id}")


def is_easy(problem: Problem) -> bool:
    """Return True if a problem and the numbers are short, and the solution has at most `MAX_STEPS` steps."""
    solution = problem.solution or ""
    is_short = len(problem.prompt.split()) <= MAX_WORDS and not re.search(
        rf"[0-9.]{{{MAX_CHARACTERS + 1}}}", solution
    )
    return 1 <= solution.count("=") <= MAX_STEPS and is_short


def train_and_test(name: str, path: str | None) -> tuple[Sequence[Problem], Sequence[Problem]]:
    """Return the training and test problems of a data set, read from the hub or from a file."""
    if path is None:
        return find_problems(name, split="train"), find_problems(name, split="test")
    parts = split_problems(find_problems(f"{name}={path}"), NUM_TEST[name], seed=0)
    return parts.train, parts.held_out


def write(folder: Path, svamp: str | None, multiarith: str | None, gsm8k: str | None) -> list[str]:
    """Write the files, and return sentences about them.

    Raises:
        InputError: if the folder has files, or if data cannot be read.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: has files, which are not overwritten; give another folder")
    sentences: list[str] = []
    train: list[Problem] = []
    parts: dict[str, list[Problem]] = {"dev": []}
    for name, path in (("svamp", svamp), ("multiarith", multiarith)):
        learned, test = ([solved(name, each) for each in part] for part in train_and_test(name, path))
        split = split_problems(learned, NUM_DEV[name], seed=0)
        train += split.train
        parts["dev"] += split.held_out
        parts[f"{name}_test"] = test
    published = find_problems(f"gsm8k={gsm8k}" if gsm8k else "gsm8k", split="train")
    train += filter(is_easy, (solved("gsm8k", each) for each in published))
    for title, evaluated in parts.items():
        # `find_overlap` reports at most one pair for each problem of its second argument, so the training
        # problems are the second argument
        overlap = find_overlap(evaluated, train)
        similar = {learned for learned, _ in (*overlap.same, *overlap.masked)}
        train = [problem for problem in train if problem.id not in similar]
        sentences.append(
            f"{title}: {len(overlap.same):,} training problems are equal to one of these problems, and "
            f"{len(overlap.masked):,} differ from one only in their numbers; they are left out"
        )
    for title, problems in {"train": train, **parts}.items():
        write_problems(folder / f"{title}.jsonl", problems)
    rows = [{"prompt": each.prompt, "completion": each.solution} for each in train if each.solution]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "demonstrations.jsonl").write_text(text, encoding="utf-8")
    return [
        *sentences,
        f"{folder}: {len(train):,} training problems, {len(rows):,} of them with a worked solution",
    ]


def main() -> None:
    """Read the arguments of the command line, and write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder to write")
    for name in ("svamp", "multiarith", "gsm8k"):
        parser.add_argument(f"--{name}", metavar="FILE", help=f"published file of {name}; default: the hub")
    options = vars(parser.parse_args())
    try:
        print("\n".join(write(**options)))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
