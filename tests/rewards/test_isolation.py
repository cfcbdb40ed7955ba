"""Tests of reward functions in worker processes: a function that fails or hangs does not stop the run."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import is_gone, is_running

from llm_reinforce.errors import InputError
from llm_reinforce.problems import Problem
from llm_reinforce.rewards import (
    CombinedReward,
    Isolation,
    JudgedCompletion,
    Progress,
    StepRewards,
    WeightedReward,
    combine_rewards,
    load_reward,
)
from llm_reinforce.rewards.isolation import IsolatedFunction

FILE = """\
import asyncio, ctypes, math, os, re, signal, subprocess, sys, time
from llm_reinforce.rewards import StepRewards

def evaluate(completion, problem):
    '''Evaluate the completion as a Python expression.'''
    return eval(completion)

def loops():
    while True:
        pass

def raises():
    raise RuntimeError("not today")

def deeper():
    return deeper()

def forks():
    return 7.0 if os.fork() == 0 else 1.0

def starts_a_child():
    return float(subprocess.Popen(["sleep", "60"]).pid)

def prints():
    print("1.0")
    print("2.0", file=sys.stderr)
    os.write(1, b"3.0\\n")
    subprocess.run(["echo", "4.0"])
    return 1.0

def closes_its_pipes():
    os.closerange(3, 100)
    time.sleep(60)

def writes_to_its_pipes():
    for pipe in range(3, 10):
        try:
            os.write(pipe, b"nonsense\\n")
        except OSError:
            pass
    return 1.0

def reads_its_input():
    return float(len(sys.stdin.read()))

def pid(completion, problem):
    return float(os.getpid())

def lengths(completion, problem, factor=1.0, completion_ids=()):
    assert problem.columns == {"level": 3} and problem.solution == "so" and problem.id == "p"
    return factor * len(completion_ids) + len(problem.prompt + problem.answer)

def steps(completion, problem):
    return StepRewards([(0, len(completion), 0.5)])

def by_token(completion, problem, completion_ids):
    return StepRewards(by_token=[0.25 for _ in completion_ids])

async def later(completion, problem):
    await asyncio.sleep(0.001)
    return 3.0

def trl(prompts, completions, completion_ids, level, trainer_state, log_extra, log_metric, **columns):
    assert len(completions) > 1 and level == [3] * len(completions)
    log_metric("step", trainer_state.global_step)
    log_extra("text", list(completions))
    return [None if completion == "none" else 1.0 for completion in completions]

def trl_hangs(completions, **columns):
    time.sleep(60)
"""
PROBLEM = Problem(prompt="1+1=", answer="2", solution="so", id="p", algebra=True, columns={"level": 3})
LIMITS = Isolation(num_workers=1, time_limit=60.0, memory_limit=512)  # long enough on a busy machine
TIME_LIMIT = 0.5
SHORT = Isolation(num_workers=1, time_limit=TIME_LIMIT, memory_limit=512)
MORE_TIME = 1.0  # seconds after the time limit within which a hanging function must be stopped
pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def isolated(file: Path) -> Iterator[IsolatedFunction]:
    function = IsolatedFunction(f"{file}:evaluate", {}, LIMITS)
    yield function
    function.close()


@pytest.fixture(scope="module")
def short_limit(file: Path) -> Iterator[IsolatedFunction]:
    """Function like `isolated`, but with a short time limit."""
    function = IsolatedFunction(f"{file}:evaluate", {}, SHORT)
    yield function
    function.close()


def ask(function: Any, *completions: str, **settings: Any) -> list[CombinedReward]:
    asked = [JudgedCompletion(PROBLEM, completion, (1, 2, 3)) for completion in completions]
    rewards = [WeightedReward("f", function)]
    return list(combine_rewards(asked, rewards, **settings).scored)


# --------------------------------------------------------------------------------------------- results


def test_all_arguments_and_results_are_passed_between_the_processes(file: Path) -> None:
    def loaded(name: str, **arguments: Any) -> WeightedReward:
        return load_reward(f"{file}:{name}", arguments=arguments, isolation=LIMITS)

    rewards = [
        *(loaded("lengths", factor=2.0), loaded("steps"), loaded("by_token"), loaded("later"), loaded("trl"))
    ]
    asked = [JudgedCompletion(PROBLEM, completion, (4, 5, 6)) for completion in ("ab\udc80\x00\n", "none")]
    scores = combine_rewards(asked, rewards, progress=Progress(global_step=7))
    first, second = scores.scored
    assert first.failure is None
    assert first.parts == {"lengths": 11.0, "steps": 0.5, "by_token": 0.75, "later": 3.0, "trl": 1.0}
    assert first.steps == (StepRewards([(0, 5, 0.5)]), StepRewards(by_token=[0.25] * 3))
    assert (first.total, second.total) == (15.0, 14.0)
    assert second.parts["trl"] is None
    assert scores.metrics == {"step": 7.0}
    assert [dict(one.extras) for one in scores.scored] == [{"text": "ab\udc80\x00\n"}, {"text": "none"}]
    for reward in rewards:
        reward.function.close()  # type: ignore[union-attr]


def test_built_in_functions_and_functions_of_a_module_can_be_isolated(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(file.parent)])
    for name, completion in (("correct_answer", "2"), ("mine:evaluate", "1.0")):
        reward = load_reward(name, isolation=LIMITS)
        assert ask(reward.function, completion)[0].total == 1.0
        reward.function.close()  # type: ignore[union-attr]


def test_workers_run_concurrently_and_results_are_in_order(file: Path) -> None:
    function = IsolatedFunction(f"{file}:evaluate", {}, Isolation(num_workers=2, time_limit=60.0))
    ask(function, "1", "1")  # start the workers
    started = time.monotonic()
    totals = [one.total for one in ask(function, "time.sleep(0.7) or 0", "time.sleep(0.7) or 1", "2", "3")]
    assert totals == [0.0, 1.0, 2.0, 3.0]
    assert time.monotonic() - started < 1.35
    function.close()


def test_large_completions_and_results_are_supported(isolated: IsolatedFunction) -> None:
    (one,) = ask(isolated, "len('" + "x" * 3_000_000 + "')")
    assert one.total == 3e6
    (one,) = ask(isolated, "StepRewards([(0, 1, 0.0)] * 20000)")
    assert one.total == 0.0


# ---------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("raises()", "RuntimeError: not today"),
        ("deeper()", "RecursionError"),
        ("sys.exit(3)", "SystemExit: 3"),
        ("exit()", "SystemExit"),
        ("os._exit(3)", "the worker process ended (exit code 3)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the worker process ended (SIGKILL)"),
        ("ctypes.string_at(0)", "the worker process ended (SIGSEGV)"),
        ("math.nan", "TypeError"),
        ("math.inf", "TypeError"),
        ("-math.inf", "TypeError"),
        ("10**400", "TypeError"),
        ("'1.0'", "TypeError"),
        ("[1.0]", "TypeError"),
        ("StepRewards([(0, 1000, 1.0)])", "ValueError"),
        ("StepRewards(by_token=[1.0])", "1 values for 3 tokens"),
        ("bytearray(2 * 1024**3)", "MemoryError"),
        ("float(len([0] * 10**9))", "MemoryError"),
        ("1 +", "SyntaxError"),
        ("os.closerange(3, 100) or 1.0", "worker process"),
        ("writes_to_its_pipes()", "something other than the answer was written"),
    ],
)
def test_failure_makes_one_episode_unscored_but_not_the_next(
    isolated: IsolatedFunction, expression: str, message: str
) -> None:
    before, failed, after = ask(isolated, "1.0", expression, "2.0")
    assert (before.total, failed.total, after.total) == (1.0, None, 2.0)
    assert message in str(failed.failure)
    assert ask(isolated, "None")[0] == CombinedReward({"f": None}, None)  # not applicable is not a failure


def test_worker_starts_without_slow_imports(isolated: IsolatedFunction) -> None:
    slow = ("torch", "pydantic", "yaml", "llm_reinforce.config", "llm_reinforce.rewards.coroutines")
    (one,) = ask(isolated, f"sum(name in sys.modules for name in {slow})")
    assert one.total == 0


def test_traceback_of_the_worker_is_returned(isolated: IsolatedFunction) -> None:
    (failed,) = ask(isolated, "raises()")
    assert failed.traceback.startswith("Traceback")
    assert "in raises" in failed.traceback
    assert "/calls.py" not in failed.traceback


@pytest.mark.parametrize(
    ("expression", "in_a_thread"),
    [
        ("re.match('(a+)+b', 'a' * 40)", False),  # C code that no other Python thread interrupts
        ("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)) or loops()", True),
        ("closes_its_pipes()", False),
    ],
)
def test_hanging_function_is_stopped(
    short_limit: IsolatedFunction, expression: str, in_a_thread: bool
) -> None:
    ask(short_limit, "1.0")  # start the workers
    (pid,) = short_limit.workers.pids
    results: list[CombinedReward] = []
    started = time.monotonic()
    if in_a_thread:
        thread = threading.Thread(target=lambda: results.extend(ask(short_limit, expression)))
        thread.start()
        thread.join()
    else:
        results += ask(short_limit, expression)
    took = time.monotonic() - started
    assert results[0].total is None
    assert not is_running(pid)
    if expression != "closes_its_pipes()":
        assert results[0].failure == "f: TimeoutError: no answer within 0.5 seconds"
        assert took >= TIME_LIMIT
    assert took < TIME_LIMIT + MORE_TIME
    assert ask(short_limit, "2.0")[0].total == 2.0


def test_worker_is_stopped_in_time_while_another_one_restarts(file: Path) -> None:
    function = IsolatedFunction(f"{file}:evaluate", {}, Isolation(num_workers=2, time_limit=TIME_LIMIT))
    ask(function, "1", "1")
    pids = function.workers.pids
    started = time.monotonic()
    thread = threading.Thread(target=ask, args=(function, "os._exit(1)", "loops()", "1", "1"))
    thread.start()
    assert is_gone(pids[1], within=TIME_LIMIT + MORE_TIME)
    assert time.monotonic() - started < TIME_LIMIT + MORE_TIME
    thread.join()
    function.close()


def test_all_episodes_of_a_hanging_batch_are_unscored(file: Path) -> None:
    function = IsolatedFunction(f"{file}:trl_hangs", {}, SHORT)
    failed = ask(function, "a", "b")
    assert [one.total for one in failed] == [None, None]
    assert "TimeoutError" in str(failed[1].failure)
    function.close()


def test_several_threads_can_call_the_function(isolated: IsolatedFunction) -> None:
    totals: dict[int, float | None] = {}

    def call(number: int) -> None:
        totals[number] = ask(isolated, str(number))[0].total

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals == {number: float(number) for number in range(8)}


def test_result_of_an_interrupted_call_is_not_returned_later(isolated: IsolatedFunction) -> None:
    ask(isolated, "1.0")
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    threading.Timer(0.3, lambda: signal.pthread_kill(main_thread, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        ask(isolated, "time.sleep(1) or 5.0")
    assert ask(isolated, "2.0")[0].total == 2.0


# ----------------------------------------------------------------------------------------- processes


def test_output_of_the_function_is_not_taken_for_a_result(isolated: IsolatedFunction) -> None:
    assert [one.total for one in ask(isolated, "prints()", "2.0", "reads_its_input()")] == [1.0, 2.0, 0.0]


def test_forked_child_process_returns_no_result(isolated: IsolatedFunction) -> None:
    assert [one.total for one in ask(isolated, "forks()", "2.0", "3.0")] == [1.0, 2.0, 3.0]


def test_no_process_is_left_after_close(file: Path) -> None:
    function = IsolatedFunction(f"{file}:evaluate", {}, LIMITS)
    (child,) = ask(function, "starts_a_child()")
    pids = [int(child.total or 0), *function.workers.pids]
    assert all(map(is_running, pids))
    function.close()
    assert all(is_gone(pid, within=1.0) for pid in pids)


def test_no_process_is_left_after_garbage_collection(file: Path) -> None:
    function = IsolatedFunction(f"{file}:evaluate", {}, LIMITS)
    (pid,) = function.workers.pids
    del function
    assert is_gone(pid, within=1.0)


PARENT = """\
import sys, time
from llm_reinforce.rewards import JudgedCompletion, Isolation
from llm_reinforce.rewards.calls import Progress
from llm_reinforce.rewards.isolation import IsolatedFunction
from llm_reinforce.problems import Problem

function = IsolatedFunction(sys.argv[1], {}, Isolation(num_workers=1, time_limit=float(sys.argv[3])))
def ask(completion):
    asked = [JudgedCompletion(Problem("", ""), completion)]
    return function.ask(asked, conversational=False, progress=Progress()).outcomes[0].value
print(*function.workers.pids, int(ask("starts_a_child()")), flush=True)
ask(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("expression", "time_limit", "within"),
    [("1.0", 60.0, 2.5), ("loops()", 60.0, 2.5), ("re.match('(a+)+b', 'a' * 40)", 0.5, 4.0)],
)
def test_no_process_is_left_if_the_calling_process_ends_or_is_killed(
    file: Path, expression: str, time_limit: float, within: float
) -> None:
    arguments = [sys.executable, "-c", PARENT, f"{file}:evaluate", expression, str(time_limit)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker, child = map(int, parent.stdout.readline().split())
        if expression != "1.0":
            time.sleep(0.3)
            parent.send_signal(signal.SIGKILL)
        parent.wait()
    try:
        assert is_gone(worker, within)
        if "re.match" not in expression:
            assert is_gone(child, within=0.5)
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


# ----------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("def f(:\n", "f", "SyntaxError"),
        ("import sys; sys.exit(3)\n", "f", "SystemExit"),
        (
            "import os; os._exit(3)\n",
            "f",
            "cannot be loaded in a worker process: the worker process ended (exit code 3)",
        ),
        ("x = bytearray(2 * 1024**3)\n", "f", "MemoryError"),
        ("def f(text): pass\n", "f", "f(completion, problem"),
        ("def good(completion, problem): pass\n", "godo", "did you mean 'good'"),
    ],
)
def test_function_that_cannot_be_loaded_is_an_input_error(
    tmp_path: Path, text: str, name: str, message: str
) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_reward(f"{path}:{name}", isolation=LIMITS)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_loading_a_file_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_reinforce.rewards.isolation.START_LIMIT", 0.5)
    path = tmp_path / "slow.py"
    path.write_text("while True: pass\n")
    with pytest.raises(InputError, match="no answer within 0\\.5 seconds"):
        IsolatedFunction(f"{path}:f", {}, LIMITS)


def test_file_in_the_current_directory_does_not_replace_a_module_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("json.py").write_text("1/0\n")
    Path("mine.py").write_text("def f(completion, problem):\n    return 1.0\n")
    function = IsolatedFunction("mine.py:f", {}, LIMITS)
    monkeypatch.chdir("/")
    assert ask(function, "a")[0].total == 1.0
    (pid,) = function.workers.pids
    os.kill(pid, signal.SIGKILL)
    while function.workers.pids:
        time.sleep(0.01)
    assert (
        ask(function, "a")[0].total == 1.0
    )  # a new worker finds the file, although the current directory has changed
    function.close()
