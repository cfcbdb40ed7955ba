"""Run reward functions in worker processes. A function that hangs or crashes does not stop the run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from llm_reinforce.errors import InputError
from llm_reinforce.rewards.calls import JudgedCompletion, Progress, RewardResult, RewardResults, StepRewards
from llm_reinforce.rewards.signatures import Requirements
from llm_reinforce.seeds import seed_of
from llm_reinforce.workers import START_LIMIT, WorkerError, WorkerPool, WorkerSettingsError


@dataclass(frozen=True, slots=True)
class Isolation:
    """Number and limits of the worker processes of one reward function.

    Attributes:
        num_workers: number of processes that run at the same time.
        time_limit: time that one call may take, in seconds.
        memory_limit: memory that a process may allocate, in MiB. The limit has an effect only on systems
            that enforce it, such as Linux. None for no limit.
    """

    num_workers: int = 2
    time_limit: float = 10.0
    memory_limit: int | None = 4096


class IsolatedFunction:
    """A user's reward function that runs in worker processes.

    Args:
        name: name of the function, as in a recipe. Each worker loads the function by this name.
        arguments: keyword arguments of the function; must be serializable as JSON.
        isolation: number and limits of the worker processes.

    Attributes:
        workers: pool of the worker processes.
        requirements: values without which the function cannot be called.

    Raises:
        InputError: if a worker cannot load the function.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any], isolation: Isolation) -> None:
        self.name = name
        self.time_limit = isolation.time_limit
        self.workers = WorkerPool(
            "llm_reinforce.rewards.isolated_worker",
            {"function": name, "arguments": dict(arguments)},
            num_workers=isolation.num_workers,
            memory_limit=isolation.memory_limit,
            start_limit=START_LIMIT,
        )
        try:
            greeting = self.workers.greeting()
        except WorkerSettingsError as error:
            raise InputError(str(error)) from error
        except WorkerError as error:
            raise InputError(f"reward {name!r}: cannot be loaded in a worker process: {error}") from error
        needs = greeting["requirements"]
        self.requirements = Requirements(bool(needs["is_batched"]), tuple(needs["names"]))

    def close(self) -> None:
        """End the worker processes. The next call of the function starts new processes."""
        self.workers.close()

    def ask(
        self, asked: Sequence[JudgedCompletion], *, conversational: bool, progress: Progress
    ) -> RewardResults:
        """Call the function on each completion, or once on all of them if it has TRL's signature."""
        together = {"conversational": conversational, "progress": asdict(progress)}
        batches = [asked] if self.requirements.is_batched else [[one] for one in asked]
        questions = [
            # the seed makes the result independent of the worker and of its earlier calls
            {
                "asked": [_as_json(one) for one in batch],
                "seed": seed_of("reward", progress.seed, index),
                **together,
            }
            for index, batch in enumerate(batches)
        ]
        answers = self.workers.ask(questions, self.time_limit)
        outcomes: list[RewardResult] = []
        for batch, answer in zip(batches, answers, strict=True):
            if isinstance(answer, WorkerError):
                outcomes += [RewardResult(failure=str(answer)) for _ in batch]
            else:
                outcomes += [_outcome(each) for each in answer["outcomes"]]
        succeeded = [answer for answer in answers if not isinstance(answer, WorkerError)]
        # only functions with TRL's signature log numbers, and they are called once per batch
        return RewardResults(
            outcomes, *((succeeded[0]["metrics"], succeeded[0]["extras"]) if succeeded else ())
        )


def _as_json(asked: JudgedCompletion) -> dict[str, object]:
    values = {each.name: getattr(asked.problem, each.name) for each in fields(asked.problem)}
    return {
        "completion": asked.completion,
        "token_ids": asked.token_ids,
        "verdict": asdict(asked.verdict) if asked.verdict else None,
        "problem": {**values, "columns": dict(asked.problem.columns)},
    }


def _outcome(result: Mapping[str, Any]) -> RewardResult:
    steps = result.get("steps")
    if steps is None:
        return RewardResult(result.get("value"), result.get("failure"), result.get("traceback", ""))
    spans = [(start, end, value) for start, end, value in steps["spans"]]
    return RewardResult(StepRewards(spans, steps["by_token"]))
