"""Generate problems from a short text that is given instead of the name of a data set.

Examples of such texts are:

    generate:operations=addition+subtraction,digits=2+3,num=500,seed=0
    reasoning_gym:leg_counting,num=100,seed=42
"""

import re
from collections.abc import Mapping
from typing import Any

from llm_reinforce.errors import InputError
from llm_reinforce.problems.data_files import Row
from llm_reinforce.problems.generators import generate_problems, max_num_held_out, nearest_name
from llm_reinforce.problems.problem import Problem
from llm_reinforce.problems.sources import problems_of_rows

GENERATE, REASONING_GYM = "generate", "reasoning_gym"
NUM_PROBLEMS = 500


def generated_problems(settings: str) -> tuple[Problem, ...]:
    """Return arithmetic problems specified by a text.

    The result equals the held-out problems of a recipe with the same settings, seed and number of held-out
    problems.

    >>> generated_problems("digits=1,num=2")[0].prompt
    '1+3='

    Args:
        settings: comma-separated `key=value` pairs. The keys are `num`, the number of problems, and these
            arguments of `generate_problems`: `operations`, `digits`, `operands`, `held_out_operands`,
            `num_operands`, `form` and `seed`. Several operations or digits are joined with +. Operands are
            given as a range such as 0-19. A form cannot contain a comma.

    Raises:
        InputError: if a key is unknown, a value is not a number, or the settings are invalid for
            `generate_problems`.
    """
    where = f"{GENERATE}:{settings}"
    known = ("operations", "digits", "operands", "held_out_operands", "num_operands", "form", "num", "seed")
    given = _settings(where, settings, known)
    digits = given.get("digits", "" if "operands" in given else "2")
    operations = given.get("operations", "addition").split("+")
    operands: dict[str, Any] = {
        "digits": tuple(_number(where, "digits", part) for part in digits.split("+") if digits),
        "operands": _range(where, "operands", given),
        "held_out_operands": _range(where, "held_out_operands", given),
        "num_operands": _number(where, "num_operands", given.get("num_operands", "2")),
    }
    seed = _number(where, "seed", given.get("seed", "0"))
    num = _number(where, "num", given["num"]) if "num" in given else None
    if num is not None and num < 1:
        raise InputError(f"{where}: num must be at least 1")
    try:
        most = max_num_held_out(operations, **operands)
        if num is not None and num > most:
            raise InputError(
                f"num is {num:,}, but at most {most:,} held-out problems can be generated with these "
                "settings; reduce num, or add operations, digits or operands"
            )
        return generate_problems(
            operations,
            **operands,
            form=given.get("form", "{expression}="),
            num_held_out=min(NUM_PROBLEMS, most) if num is None else num,
            num_train=1,
            seed=seed,
        ).held_out
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def reasoning_gym_problems(settings: str) -> tuple[Problem, ...]:
    """Return problems of a task of reasoning_gym. Answers that are not numbers are compared as text.

    Args:
        settings: name of the task, optionally followed by the number of problems and the seed, as in
            `leg_counting,num=100,seed=42`.

    Raises:
        InputError: if reasoning_gym is not installed or has no such task, or if the settings are invalid.
    """
    try:
        import reasoning_gym  # type: ignore[import-not-found,import-untyped,unused-ignore]
        from reasoning_gym.factory import DATASETS  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise InputError(
            "reasoning_gym is not installed; run `pip install 'llm-reinforce[reasoning-gym]'`"
        ) from error
    task, _, rest = settings.partition(",")
    where = f"{REASONING_GYM}:{settings}"
    if task not in DATASETS:
        raise InputError(f"{where}: no task {task!r}{nearest_name(task, DATASETS)}")
    given = _settings(where, rest, ("num", "seed"))
    num = _number(where, "num", given.get("num", str(NUM_PROBLEMS)))
    seed = _number(where, "seed", given.get("seed", "0"))
    if num < 1:
        raise InputError(f"{where}: num must be at least 1")
    entries = reasoning_gym.create_dataset(task, size=num, seed=seed)
    rows = (
        Row(
            f"{where}, problem {number}",
            f"{task}-{number}",
            {"prompt": entry["question"], "answer": entry["answer"]},
        )
        for number, entry in enumerate(entries, 1)
    )
    return problems_of_rows(where, rows)


def _settings(where: str, text: str, known: tuple[str, ...]) -> Mapping[str, str]:
    """Parse text such as `digits=2+3,seed=1` into a mapping.

    Raises:
        InputError: if a key is unknown, is given twice, or has no value.
    """
    given: dict[str, str] = {}
    for part in text.split(",") if text else []:
        key, equals, value = part.partition("=")
        key = key.strip()
        if key not in known:
            raise InputError(
                f"{where}: unknown setting {key!r}{nearest_name(key, known)}; known settings: "
                f"{', '.join(known)}"
            )
        if not equals or not value or key in given:
            raise InputError(f"{where}: {key} should be given once, as {key}=VALUE")
        given[key] = value
    return given


def _range(where: str, key: str, given: Mapping[str, str]) -> tuple[int, int] | None:
    if key not in given:
        return None
    found = re.fullmatch(r"([0-9]+)-([0-9]+)", given[key])
    if found is None:
        raise InputError(
            f"{where}: {key} should be a range of whole numbers such as 0-19, not {given[key]!r}"
        )
    return int(found[1]), int(found[2])


def _number(where: str, key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{where}: {key} should be a whole number, not {text!r}") from None
