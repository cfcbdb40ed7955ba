"""A worker process: loads one reward function and answers questions about it, one JSON line each.

    python -m llm_reinforce.rewards.isolated_worker

The first line names the function. What the function prints goes to the error stream, so that it can't be
taken for an answer.
"""

import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, BinaryIO

from llm_reinforce.problems import Problem
from llm_reinforce.rewards.calls import (
    JudgedCompletion,
    Progress,
    RewardResult,
    RewardResults,
    StepRewards,
    call_on_each,
)
from llm_reinforce.rewards.plug_in import load_function
from llm_reinforce.rewards.trl_signature import call_on_batch, has_trl_signature
from llm_reinforce.verifier import Verdict

GRACE = 2.0  # seconds beyond the time limit, which the asking process keeps as a rule


def main() -> None:
    """Answer until the questions end, or the process that asks them is gone."""
    questions, answers = _own_pipes()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    settings = json.loads(questions.readline())
    try:
        _limit_memory(settings["memory_limit"])
        function = load_function(settings["function"], settings["arguments"])
    except Exception as error:
        _write(answers, {"fault": str(error)})
        return
    _write(answers, {"has_trl_signature": has_trl_signature(function)})
    nowhere = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    for line in questions:
        # kills this process even where C code keeps all Python threads waiting and the asking one is gone
        faulthandler.dump_traceback_later(settings["time_limit"] + GRACE, exit=True, file=nowhere)
        question = json.loads(line)
        _seed(question["seed"])
        _write(answers, _answer(function, question))
        faulthandler.cancel_dump_traceback_later()
    _end_all()


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to the asking process; the function's own input is empty, its output the error stream."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdin = open(os.devnull)  # noqa: SIM115 - for as long as the process lives
    return questions, answers


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    _end_all()


def _end_all() -> None:
    """End this process and whatever the function has started."""
    os.killpg(0, signal.SIGKILL)


def _limit_memory(mebibytes: int | None) -> None:
    if mebibytes is None:
        return
    with suppress(ImportError, ValueError, OSError):  # where the system knows no such limit
        import resource

        # what a process has of its own: libraries that it maps, a large one of CUDA say, don't count
        resource.setrlimit(resource.RLIMIT_DATA, (mebibytes * 2**20, mebibytes * 2**20))


def _seed(seed: int) -> None:
    """Seed the generators that a function may draw from: Python's, and those of what its file imports."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _answer(function: Callable[..., Any], question: Mapping[str, Any]) -> dict[str, object]:
    asked = [
        JudgedCompletion(
            Problem(**each["problem"]),
            each["completion"],
            tuple(each["token_ids"]),
            Verdict(**each["verdict"]) if each["verdict"] else None,
        )
        for each in question["asked"]
    ]
    answers = (
        call_on_batch(
            function,
            asked,
            conversational=question["conversational"],
            progress=Progress(**question["progress"]),
        )
        if has_trl_signature(function)
        else call_on_each(function, asked)
    )
    return _as_json(answers)


def _as_json(answers: RewardResults) -> dict[str, object]:
    return {
        "outcomes": [_outcome(outcome) for outcome in answers.outcomes],
        "metrics": answers.metrics,
        "extras": answers.extras,
    }


def _outcome(outcome: RewardResult) -> dict[str, object]:
    return {"steps": asdict(outcome.value)} if isinstance(outcome.value, StepRewards) else asdict(outcome)


def _write(answers: BinaryIO, message: object) -> None:
    answers.write(json.dumps(message, default=str).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
