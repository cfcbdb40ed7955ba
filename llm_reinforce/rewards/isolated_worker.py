"""A worker process that loads one reward function and calls it on completions that it receives.

    python -m llm_reinforce.rewards.isolated_worker

The process that runs `isolation.py` starts the workers and sends completions to them.
"""

import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

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
from llm_reinforce.rewards.signatures import requirements_of
from llm_reinforce.rewards.trl_signature import call_on_batch, has_trl_signature
from llm_reinforce.verifier import Verdict
from llm_reinforce.workers import serve


def prepare(settings: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[Any], object]]:
    """Load the reward function.

    Returns:
        the worker's greeting (its first message), which contains the requirements of the function; and a
        function that computes the rewards of the completions in a request.
    """
    function = load_function(settings["function"], settings["arguments"])

    def answer(question: Mapping[str, Any]) -> dict[str, object]:
        _seed(question["seed"])
        return _answer(function, question)

    return {"requirements": asdict(requirements_of(function))}, answer


def _seed(seed: int) -> None:
    """Seed the random generators of Python, and those of NumPy and torch if these have been imported."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _answer(function: Callable[..., Any], question: Mapping[str, Any]) -> dict[str, object]:
    asked = [
        JudgedCompletion(
            Problem(**{**each["problem"], "messages": tuple(each["problem"]["messages"])}),
            each["completion"],
            tuple(each["token_ids"]),
            Verdict(**each["verdict"]) if each["verdict"] else None,
        )
        for each in question["asked"]
    ]
    progress = Progress(**question["progress"])
    answers = (
        call_on_batch(function, asked, conversational=question["conversational"], progress=progress)
        if has_trl_signature(function)
        else call_on_each(function, asked, progress)
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


if __name__ == "__main__":
    serve(prepare)
