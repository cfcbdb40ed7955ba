"""Call reward functions on completions and check the values that they return."""

import inspect
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Real
from operator import index as as_index
from pathlib import Path
from typing import Any

from llm_reinforce.errors import LeaveAtOnce, without_secrets
from llm_reinforce.problems import Problem, judge
from llm_reinforce.rewards.signatures import NEED_ANSWERS, PER_COMPLETION, read_signature
from llm_reinforce.verifier import Verdict

MAX_FLOAT32 = (2 - 2**-23) * 2.0**127  # rewards become float32 tensors; larger values would be infinite
OUR_FILES = tuple(
    str(Path(__file__).with_name(name))
    for name in ("calls.py", "coroutines.py", "trl_signature.py", "signatures.py")
)
MAX_TRACEBACK = 4_000  # maximum number of characters; a traceback is cut at its beginning


@dataclass(frozen=True, slots=True)
class StepRewards:
    """Rewards for the intermediate states of an episode.

        StepRewards([(0, 6, 1.0), (8, 14, -0.5)])    # spans of the completion, in characters
        StepRewards(by_token=[0.0, 0.0, 1.0])        # one value per token, including the end token

    The value of a span `(start, end, value)` is the reward of the action that completes the span: the first
    token after which the decoded text contains the first `end` characters of the completion. An `end` of
    `len(completion) + 1` refers to the end token or, in a truncated episode, to the last token.

    The value of a span must depend only on the text up to `end`. Reward-to-go credits an action only with
    rewards that follow the action. If a value depends on text after `end`, the actions that wrote this text
    are not credited with the value, and the gradient is biased.

    Attributes:
        spans: `(start, end, value)` for each step, where `start` and `end` count characters of the
            completion.
        by_token: one value per token, given instead of `spans`.
    """

    spans: Sequence[tuple[int, int, float]] = ()
    by_token: Sequence[float] | None = None


Value = float | StepRewards | None
RewardFunction = Callable[[str, Problem], Value]


@dataclass(frozen=True, slots=True)
class JudgedCompletion:
    """A completion of a problem, as given to reward functions.

    Attributes:
        problem: the problem.
        completion: text of the completion.
        token_ids: tokens of the completion, including a final end token.
        verdict: verdict of the verifier, computed once per episode.
    """

    problem: Problem
    completion: str
    token_ids: tuple[int, ...] = ()
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of the run, passed to reward functions as `trainer_state`.

    Attributes:
        global_step: number of updates completed.
        max_steps: number of updates of the whole run.
        epoch: number of passes over the problems so far; may be fractional.
        seed: seed for the random generators of worker processes. Each update has a different seed and, if the
            run consists of several processes, each process has a different seed.
    """

    global_step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RewardResult:
    """Result of a reward function for one completion: a value, None (not applicable), or a failure."""

    value: Value = None
    failure: str | None = None
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class RewardResults:
    """Results of a reward function for a batch of completions.

    Attributes:
        outcomes: one result per completion.
        metrics: numbers that the function logged for the whole batch, by the name given by the function.
        extras: values that the function logged for each completion, by the name given by the function.
    """

    outcomes: Sequence[RewardResult]
    metrics: Mapping[str, float] = field(default_factory=dict)
    extras: Mapping[str, Sequence[object]] = field(default_factory=dict)


def columns_of(problem: Problem) -> Mapping[str, object]:
    """Return the columns of a problem's row in the data set, and the problem's id if it has one."""
    return {"id": problem.id, **problem.columns} if problem.id else problem.columns


class _Values(Mapping[str, object]):
    """Mapping from names of parameters of a reward function to their values for one completion.

    Values such as the verdict are computed only when they are used.
    """

    def __init__(self, judged: JudgedCompletion, progress: Progress) -> None:
        self._judged, self._progress = judged, progress
        self._columns = columns_of(judged.problem)
        hidden = () if judged.problem.answer is not None else NEED_ANSWERS
        self._own = [name for name in PER_COMPLETION if name not in hidden]

    def __getitem__(self, name: str) -> object:
        one, problem = self._judged, self._judged.problem
        if name not in self._own:
            return self._columns[name]
        if name == "verdict":
            return one.verdict or judge(one.completion, problem)
        if name == "solution":
            return problem.solution or problem.answer
        return {
            "completion": one.completion,
            "prompt": problem.prompt,
            "problem": problem,
            "answer": problem.answer,
            "completion_ids": list(one.token_ids),
            "trainer_state": self._progress,
        }[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._own, *self._columns]))

    def __len__(self) -> int:
        return len({*self._own, *self._columns})


def call_on_each(
    function: Callable[..., Any], judged: Sequence[JudgedCompletion], progress: Progress | None = None
) -> RewardResults:
    """Call a function such as `f(completion, problem)` on each completion.

    Each parameter receives the value that has the parameter's name: a value listed in PER_COMPLETION, or a
    column of the data. A function whose parameters are not known is called with the completion and the
    problem. Coroutines are awaited concurrently.
    """
    signature = read_signature(function)
    values: list[object] = []
    for one in judged:
        arguments: tuple[object, ...] = (one.completion, one.problem)
        named: dict[str, object] = {}
        if signature is not None:
            try:
                arguments, named = signature.arguments(_Values(one, progress or Progress()))
            except TypeError as error:  # there is no value for a parameter
                values.append(error.with_traceback(None))
                continue
        values.append(call_guarded(function, *arguments, **named))
    pending = [index for index, value in enumerate(values) if inspect.isawaitable(value)]
    if pending:
        from llm_reinforce.rewards.coroutines import await_all  # imports asyncio

        awaited = await_all([values[index] for index in pending])  # type: ignore[misc]
        for index, value in zip(pending, awaited, strict=True):
            values[index] = value
    return RewardResults([checked_result(value, one) for value, one in zip(values, judged, strict=True)])


def call_guarded(function: Callable[..., object], /, *arguments: object, **named: object) -> object:
    """Call `function`, and return its result or the exception that it raises.

    The `SystemExit` of `sys.exit()` is returned like any other exception. KeyboardInterrupt and LeaveAtOnce
    are not caught, because they interrupt the run. If the function forks, the child process exits when the
    call ends, so that only the parent process continues the run.
    """
    process = os.getpid()
    try:
        return function(*arguments, **named)
    except (KeyboardInterrupt, LeaveAtOnce):
        raise
    except BaseException as error:
        return error
    finally:
        if os.getpid() != process:
            os._exit(0)


def checked_result(value: object, judged: JudgedCompletion) -> RewardResult:
    """Check the value that a reward function returned and convert it to a result.

    Valid values are a finite number, None, and step rewards that fit the completion. Any other value, or an
    exception, becomes a failure.
    """
    if type(value) is float and abs(value) <= MAX_FLOAT32:  # the most common case; False for NaN
        return RewardResult(value)
    if isinstance(value, BaseException):
        return RewardResult(failure=_error_message(value), traceback=_traceback(value))
    if value is None:
        return RewardResult()
    try:
        return RewardResult(
            _checked_steps(value, judged) if isinstance(value, StepRewards) else number(value)
        )
    except Exception as error:  # any method of a user's object may raise
        return RewardResult(failure=_error_message(error))


def _error_message(error: BaseException) -> str:
    try:
        return without_secrets(f"{type(error).__name__}: {error}")
    except Exception:  # __str__ of a user's exception may raise
        return type(error).__name__


def _traceback(error: BaseException) -> str:
    """Return the traceback of `error` as Python prints it, starting at the user's reward function.

    The result is empty if the error was raised before the reward function was entered.
    """
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in OUR_FILES:
        frames = frames.tb_next
    if frames is None:
        return ""
    text = "".join(traceback.format_exception(error.with_traceback(frames)))
    return without_secrets(text)[-MAX_TRACEBACK:]


def number(value: object) -> float:
    """Convert a real number, a `Decimal`, a NumPy scalar or a 0-dimensional tensor to a float.

    Raises:
        TypeError: if the value is not a real number or is not finite in float32.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    try:
        if isinstance(value, Real | Decimal) and abs(float(value)) <= MAX_FLOAT32:  # False for NaN
            return float(value)
    except (OverflowError, ValueError):  # an int that is larger than any float, or a signaling NaN
        pass
    raise TypeError(
        f"a reward must be None, StepRewards, or a number that is finite in float32, not {short_repr(value)}"
    )


def _checked_steps(steps: StepRewards, judged: JudgedCompletion) -> StepRewards:
    """Check step rewards and return them as plain Python numbers.

    The user may have given the step rewards as iterators. Each iterator is consumed only once.

    Raises:
        TypeError, ValueError: if a value is not a number or the rewards do not fit the completion.
    """
    spans = [_checked_span(span, len(judged.completion) + 1) for span in steps.spans]
    if steps.by_token is None:
        return StepRewards(spans)
    values = [number(value) for value in steps.by_token]
    if spans:
        raise ValueError("StepRewards: spans and by_token are both given; give only one of the two")
    if len(values) != len(judged.token_ids):
        raise ValueError(
            f"StepRewards.by_token has {len(values)} values for {len(judged.token_ids)} tokens; give one "
            "value per token, including the end token"
        )
    return StepRewards(by_token=values)


def _checked_span(span: tuple[int, int, float], limit: int) -> tuple[int, int, float]:
    try:
        start, end, value = as_index(span[0]), as_index(span[1]), span[2:]
    except (TypeError, IndexError):
        raise TypeError(f"StepRewards: a span is (start, end, value), not {short_repr(span)}") from None
    if len(value) != 1:
        raise ValueError(f"StepRewards: a span is (start, end, value), not {short_repr(span)}")
    if not 0 <= start < end <= limit:
        raise ValueError(
            f"StepRewards: the span ({start}, {end}) is empty or not within the completion; start and end "
            f"must be from 0 to {limit}, with start < end"
        )
    return start, end, number(value[0])


def short_repr(value: object) -> str:
    """Return the `repr` of a value, shortened to at most 200 characters."""
    try:
        text = repr(value)
    except Exception:  # __repr__ of a user's object may raise
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else text[:197] + "..."
