"""What a reward function is asked, and what it may answer."""

import asyncio
import inspect
import os
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from numbers import Real
from operator import index as as_index
from pathlib import Path
from threading import Thread, current_thread
from typing import Any

from llm_reinforce.errors import LeaveAtOnce, without_secrets
from llm_reinforce.problems import Problem, judge
from llm_reinforce.verifier import Verdict

MAX_FLOAT32 = (2 - 2**-23) * 2.0**127  # rewards become float32 tensors; what is above would be infinite
OUR_FILES = tuple(str(Path(__file__).with_name(name)) for name in ("calls.py", "trl_signature.py"))
MAX_TRACEBACK = 4_000  # characters of a traceback that are kept: its end, where the fault is


@dataclass(frozen=True, slots=True)
class StepRewards:
    """Rewards for the intermediate states of an episode: what each of its steps was worth.

        StepRewards([(0, 6, 1.0), (8, 14, -0.5)])    # spans of the completion, in characters
        StepRewards(by_token=[0.0, 0.0, 1.0])        # one value a token, the end token included

    The value of a span (start, end) is the reward of the action that completes it: of the first token with
    which the text up to `end` stands. The place after the last character is the end token's, so that
    `end` may be `len(completion) + 1`; of a truncated episode that is the last token.

    A step's value may depend on the text up to its `end`, and on nothing behind it. Reward-to-go credits an
    action with what follows it; a value that looks ahead would be earned by later actions and be credited to
    none of them: the gradient is biased then.
    """

    spans: Sequence[tuple[int, int, float]] = ()
    by_token: Sequence[float] | None = None


Value = float | StepRewards | None
RewardFunction = Callable[[str, Problem], Value]


@dataclass(frozen=True, slots=True)
class JudgedCompletion:
    """One completion that reward functions are called with.

    Attributes:
        token_ids: the completion's tokens, a final end token included.
        verdict: the verifier's, computed once per episode.
    """

    problem: Problem
    completion: str
    token_ids: tuple[int, ...] = ()
    verdict: Verdict | None = None


EXTRA_PARAMETERS: Mapping[str, Callable[[JudgedCompletion], object]] = {
    "completion_ids": lambda one: list(one.token_ids),
    "verdict": lambda one: one.verdict or judge(one.completion, one.problem),
}
"""Parameters that `f(completion, problem)` may have besides these two, and their values."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the run is, as functions with TRL's signature may ask their `trainer_state`.

    Attributes:
        seed: of this update's and process's own: what a worker's random numbers are drawn by.
    """

    global_step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RewardResult:
    """What a function said of one completion: a value, None (not applicable), or how it failed."""

    value: Value = None
    failure: str | None = None
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class RewardResults:
    """What a function said of a batch.

    Attributes:
        outcomes: one a completion.
        metrics: numbers that it logged for the whole batch.
        extras: what it logged for each completion, by name.
    """

    outcomes: Sequence[RewardResult]
    metrics: Mapping[str, float] = field(default_factory=dict)
    extras: Mapping[str, Sequence[object]] = field(default_factory=dict)


def call_on_each(function: Callable[..., Any], asked: Sequence[JudgedCompletion]) -> RewardResults:
    """Ask `f(completion, problem)` of each completion; coroutines are awaited together.

    A function with a parameter `completion_ids` also gets the completion's tokens, one with a parameter
    `verdict` the verifier's verdict.
    """
    taken = [name for name in EXTRA_PARAMETERS if name in parameters_of(function)]
    answers: list[object] = []
    for one in asked:
        more = {name: EXTRA_PARAMETERS[name](one) for name in taken}
        answers.append(guarded(function, one.completion, one.problem, **more))
    waiting = [index for index, answer in enumerate(answers) if inspect.iscoroutine(answer)]
    results = await_all([answers[index] for index in waiting])  # type: ignore[misc]
    for index, result in zip(waiting, results, strict=True):
        answers[index] = result
    return RewardResults([outcome(answer, one) for answer, one in zip(answers, asked, strict=True)])


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters by name; none where the function, written in C say, doesn't tell."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def guarded(function: Callable[..., object], /, *arguments: object, **named: object) -> object:
    """What the function returns, or the exception that it raises, `sys.exit()` included.

    A user's function may raise anything. Where it forks, the child ends with the call: two runs must not go
    on from here.
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


def await_all(coroutines: Sequence[Coroutine[Any, Any, object]]) -> list[object]:
    """What the coroutines return, or raise, run together in the process's event loop for rewards."""
    if not coroutines:
        return []

    process = os.getpid()

    async def guarded_one(coroutine: Coroutine[Any, Any, object]) -> object:
        try:
            return await coroutine
        except LeaveAtOnce:
            raise
        except BaseException as error:
            return error
        finally:
            if os.getpid() != process:  # as in `guarded`
                os._exit(0)

    async def together() -> list[object]:
        return list(await asyncio.gather(*map(guarded_one, coroutines)))

    loop, own_thread = _event_loop(process)
    if current_thread() is own_thread:  # an asynchronous function has asked another, and waits
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, together()).result()
    results = asyncio.run_coroutine_threadsafe(together(), loop)
    try:
        return results.result()
    except BaseException:  # the caller is interrupted
        results.cancel()
        raise


_loops: dict[int, tuple[asyncio.AbstractEventLoop, Thread]] = {}


def _event_loop(process: int) -> tuple[asyncio.AbstractEventLoop, Thread]:
    """The event loop of a process, as TRL has one, and the thread that it runs in.

    What a function has bound to it serves the next batch: a semaphore, a lock, a client's open connections.
    The thread is its own, since the caller's (a notebook's, say) may have a loop that runs already. A forked
    child makes its own.
    """
    if process not in _loops:
        loop = asyncio.new_event_loop()
        thread = Thread(target=_run_for_ever, args=[loop], name="asynchronous rewards", daemon=True)
        if _loops.setdefault(process, (loop, thread))[0] is loop:
            thread.start()
        else:  # another thread was faster
            loop.close()
    return _loops[process]


def _run_for_ever(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        with suppress(BaseException):  # a task of a user's function has left by sys.exit(), or stopped it
            loop.run_forever()


def outcome(answer: object, asked: JudgedCompletion) -> RewardResult:
    """The answer checked: a finite number, None, step rewards that fit the completion, or a failure."""
    if type(answer) is float and abs(answer) <= MAX_FLOAT32:  # as nearly all are; False for NaN
        return RewardResult(answer)
    if isinstance(answer, BaseException):
        return RewardResult(failure=_told(answer), traceback=_traceback(answer))
    if answer is None:
        return RewardResult()
    try:
        return RewardResult(
            _checked_steps(answer, asked) if isinstance(answer, StepRewards) else number(answer)
        )
    except Exception as error:  # a user's object may fail at anything that it is asked
        return RewardResult(failure=_told(error))


def _told(error: BaseException) -> str:
    try:
        return without_secrets(f"{type(error).__name__}: {error}")
    except Exception:  # its own __str__ fails
        return type(error).__name__


def _traceback(error: BaseException) -> str:
    """As Python prints it, from the user's own function on; nothing where that was never entered."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in OUR_FILES:
        frames = frames.tb_next
    if frames is None:
        return ""
    text = "".join(traceback.format_exception(error.with_traceback(frames)))
    return without_secrets(text)[-MAX_TRACEBACK:]


def number(value: object) -> float:
    """A real number, NumPy's and a tensor's included, as a float.

    Raises:
        TypeError: it is none, or not finite in float32.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    try:
        if isinstance(value, Real) and abs(float(value)) <= MAX_FLOAT32:  # False for NaN
            return float(value)
    except OverflowError:  # an int beyond all floats
        pass
    raise TypeError(
        f"a reward is a number that is finite in float32, StepRewards, or None, not {shown(value)}"
    )


def _checked_steps(steps: StepRewards, asked: JudgedCompletion) -> StepRewards:
    """The same in plain numbers, where they fit the completion; what is lazy is read once.

    Raises:
        TypeError, ValueError: they don't fit.
    """
    spans = [_checked_span(span, len(asked.completion) + 1) for span in steps.spans]
    if steps.by_token is None:
        return StepRewards(spans)
    values = [number(value) for value in steps.by_token]
    if spans:
        raise ValueError("StepRewards has spans or by_token, not both")
    if len(values) != len(asked.token_ids):
        raise ValueError(f"StepRewards.by_token has {len(values)} values for {len(asked.token_ids)} tokens")
    return StepRewards(by_token=values)


def _checked_span(span: tuple[int, int, float], limit: int) -> tuple[int, int, float]:
    try:
        start, end, value = as_index(span[0]), as_index(span[1]), span[2:]
    except (TypeError, IndexError):
        raise TypeError(f"StepRewards: a span is (start, end, value), not {shown(span)}") from None
    if len(value) != 1:
        raise ValueError(f"StepRewards: a span is (start, end, value), not {shown(span)}")
    if not 0 <= start < end <= limit:
        raise ValueError(f"StepRewards: the span ({start}, {end}) is empty or not within 0 to {limit}")
    return start, end, number(value[0])


def shown(value: object) -> str:
    """What a value looks like, in at most 200 characters."""
    try:
        text = repr(value)
    except Exception:  # a user's object may fail at that as well
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else text[:197] + "..."
