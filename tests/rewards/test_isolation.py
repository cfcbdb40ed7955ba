"""Functions in worker processes: whatever they do there, the run goes on, within the limit and a second."""

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

def does(completion, problem):
    '''What the completion says.'''
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

def told(completion, problem, factor=1.0, completion_ids=()):
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
LIMITS = Isolation(num_workers=1, time_limit=60.0, memory_limit=512)  # time enough on a busy machine
TIME_LIMIT = 1.0
SHORT = Isolation(num_workers=1, time_limit=TIME_LIMIT, memory_limit=512)
MORE_TIME = 1.0  # beyond the limit, in which a hanging function is to be gone
pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def isolated(file: Path) -> Iterator[IsolatedFunction]:
    function = IsolatedFunction(f"{file}:does", {}, LIMITS)
    yield function
    function.close()


@pytest.fixture(scope="module")
def in_short(file: Path) -> Iterator[IsolatedFunction]:
    """The same with a short time limit."""
    function = IsolatedFunction(f"{file}:does", {}, SHORT)
    yield function
    function.close()


def ask(function: Any, *completions: str, **settings: Any) -> list[CombinedReward]:
    asked = [JudgedCompletion(PROBLEM, completion, (1, 2, 3)) for completion in completions]
    rewards = [WeightedReward("f", function)]
    return list(combine_rewards(asked, rewards, **settings).scored)


def is_running(pid: int) -> bool:
    """Whether there is such a process, and one that is more than an entry in the table."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_gone(pid: int, within: float) -> bool:
    until = time.monotonic() + within
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_running(pid)


# ------------------------------------------------------------------------------------------- goes well


def test_all_of_a_question_and_of_an_answer_goes_through(file: Path) -> None:
    def loaded(name: str, **arguments: Any) -> WeightedReward:
        return load_reward(f"{file}:{name}", arguments=arguments, isolation=LIMITS)

    rewards = [
        *(loaded("told", factor=2.0), loaded("steps"), loaded("by_token"), loaded("later"), loaded("trl"))
    ]
    asked = [JudgedCompletion(PROBLEM, completion, (4, 5, 6)) for completion in ("ab\udc80\x00\n", "none")]
    scores = combine_rewards(asked, rewards, progress=Progress(global_step=7))
    first, second = scores.scored
    assert first.failure is None
    assert first.parts == {"told": 11.0, "steps": 0.5, "by_token": 0.75, "later": 3.0, "trl": 1.0}
    assert first.steps == (StepRewards([(0, 5, 0.5)]), StepRewards(by_token=[0.25] * 3))
    assert (first.total, second.total) == (15.0, 14.0)
    assert second.parts["trl"] is None
    assert scores.metrics == {"step": 7.0}
    assert [dict(one.extras) for one in scores.scored] == [{"text": "ab\udc80\x00\n"}, {"text": "none"}]
    for reward in rewards:
        reward.function.close()  # type: ignore[union-attr]


def test_a_built_in_one_and_one_of_a_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(file.parent)])
    for name, completion in (("correct_answer", "2"), ("mine:does", "1.0")):
        reward = load_reward(name, isolation=LIMITS)
        assert ask(reward.function, completion)[0].total == 1.0
        reward.function.close()  # type: ignore[union-attr]


def test_workers_answer_side_by_side_and_in_order(file: Path) -> None:
    function = IsolatedFunction(f"{file}:does", {}, Isolation(num_workers=2, time_limit=60.0))
    ask(function, "1", "1")  # started
    started = time.monotonic()
    totals = [one.total for one in ask(function, "time.sleep(1) or 0", "time.sleep(1) or 1", "2", "3")]
    assert totals == [0.0, 1.0, 2.0, 3.0]
    assert time.monotonic() - started < 1.9
    function.close()


def test_a_large_question_and_a_large_answer(isolated: IsolatedFunction) -> None:
    (one,) = ask(isolated, "len('" + "x" * 3_000_000 + "')")
    assert one.total == 3e6
    (one,) = ask(isolated, "StepRewards([(0, 1, 0.0)] * 20000)")
    assert one.total == 0.0


# -------------------------------------------------------------------------------------------- goes wrong


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("raises()", "RuntimeError: not today"),
        ("deeper()", "RecursionError"),
        ("sys.exit(3)", "SystemExit: 3"),
        ("exit()", "SystemExit"),
        ("os._exit(3)", "its worker process ended (exit code 3)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "its worker process ended (SIGKILL)"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "its worker process ended (SIGTERM)"),
        ("os.abort()", "its worker process ended (SIGABRT)"),
        ("ctypes.string_at(0)", "its worker process ended (SIGSEGV)"),
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
        ("writes_to_its_pipes()", "something else was written"),
    ],
)
def test_a_failure_leaves_an_episode_unscored_and_the_next_is_scored(
    isolated: IsolatedFunction, does: str, told: str
) -> None:
    before, failed, after = ask(isolated, "1.0", does, "2.0")
    assert (before.total, failed.total, after.total) == (1.0, None, 2.0)
    assert told in str(failed.failure)
    assert ask(isolated, "None")[0] == CombinedReward({"f": None}, None)  # does not apply: no failure


def test_a_traceback_comes_along(isolated: IsolatedFunction) -> None:
    (failed,) = ask(isolated, "raises()")
    assert failed.traceback.startswith("Traceback")
    assert "in raises" in failed.traceback
    assert "/calls.py" not in failed.traceback


@pytest.mark.parametrize(
    "does",
    [
        "loops()",
        "time.sleep(60)",
        "re.match('(a+)+b', 'a' * 40)",  # C code that no other Python thread interrupts
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)) or loops()",
        "closes_its_pipes()",
    ],
)
@pytest.mark.parametrize("in_a_thread", [False, True])
def test_a_hanging_function_is_stopped(in_short: IsolatedFunction, does: str, in_a_thread: bool) -> None:
    ask(in_short, "1.0")  # started
    (pid,) = in_short.workers.pids
    told: list[CombinedReward] = []
    started = time.monotonic()
    if in_a_thread:
        thread = threading.Thread(target=lambda: told.extend(ask(in_short, does)))
        thread.start()
        thread.join()
    else:
        told += ask(in_short, does)
    took = time.monotonic() - started
    assert told[0].total is None
    assert not is_running(pid)
    if does != "closes_its_pipes()":
        assert told[0].failure == "f: TimeoutError: no answer within 1 seconds"
        assert took >= TIME_LIMIT
    assert took < TIME_LIMIT + MORE_TIME
    assert ask(in_short, "2.0")[0].total == 2.0


def test_while_one_worker_starts_anew_the_other_is_stopped_in_time(file: Path) -> None:
    function = IsolatedFunction(f"{file}:does", {}, Isolation(num_workers=2, time_limit=TIME_LIMIT))
    ask(function, "1", "1")
    pids = function.workers.pids
    started = time.monotonic()
    thread = threading.Thread(target=ask, args=(function, "os._exit(1)", "loops()", "1", "1"))
    thread.start()
    assert is_gone(pids[1], within=TIME_LIMIT + MORE_TIME)
    assert time.monotonic() - started < TIME_LIMIT + MORE_TIME
    thread.join()
    function.close()


def test_a_batch_that_hangs_leaves_all_of_it_unscored(file: Path) -> None:
    function = IsolatedFunction(f"{file}:trl_hangs", {}, SHORT)
    failed = ask(function, "a", "b")
    assert [one.total for one in failed] == [None, None]
    assert "TimeoutError" in str(failed[1].failure)
    function.close()


def test_two_threads_may_ask(isolated: IsolatedFunction) -> None:
    totals: dict[int, float | None] = {}

    def asks(number: int) -> None:
        totals[number] = ask(isolated, str(number))[0].total

    threads = [threading.Thread(target=asks, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals == {number: float(number) for number in range(8)}


def test_an_interrupted_question_is_not_answered_later(isolated: IsolatedFunction) -> None:
    ask(isolated, "1.0")
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    threading.Timer(0.3, lambda: signal.pthread_kill(main_thread, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        ask(isolated, "time.sleep(1) or 5.0")
    assert ask(isolated, "2.0")[0].total == 2.0


# ----------------------------------------------------------------------------- what it leaves behind


def test_what_it_prints_is_no_answer(isolated: IsolatedFunction) -> None:
    assert [one.total for one in ask(isolated, "prints()", "2.0", "reads_its_input()")] == [1.0, 2.0, 0.0]


def test_a_fork_s_child_does_not_answer(isolated: IsolatedFunction) -> None:
    assert [one.total for one in ask(isolated, "forks()", "2.0", "3.0")] == [1.0, 2.0, 3.0]


def test_no_process_is_left_after_close(file: Path) -> None:
    function = IsolatedFunction(f"{file}:does", {}, LIMITS)
    (child,) = ask(function, "starts_a_child()")
    pids = [int(child.total or 0), *function.workers.pids]
    assert all(map(is_running, pids))
    function.close()
    assert all(is_gone(pid, within=1.0) for pid in pids)


def test_no_process_is_left_where_nobody_closes_it(file: Path) -> None:
    function = IsolatedFunction(f"{file}:does", {}, LIMITS)
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
    ("does", "time_limit", "within"),
    [("1.0", 60.0, 2.5), ("loops()", 60.0, 2.5), ("re.match('(a+)+b', 'a' * 40)", 0.5, 4.0)],
)
def test_no_process_is_left_where_the_asking_one_is_killed(
    file: Path, does: str, time_limit: float, within: float
) -> None:
    arguments = [sys.executable, "-c", PARENT, f"{file}:does", does, str(time_limit)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker, child = map(int, parent.stdout.readline().split())
        if does != "1.0":
            time.sleep(0.3)
            parent.send_signal(signal.SIGKILL)
        parent.wait()
    try:
        assert is_gone(worker, within)
        if "re.match" not in does:
            assert is_gone(child, within=0.5)
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


# ----------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("def f(:\n", "f", "SyntaxError"),
        ("1/0\n", "f", "ZeroDivisionError"),
        ("import sys; sys.exit(3)\n", "f", "SystemExit"),
        ("import os; os._exit(3)\n", "f", "failed as it started: its worker process ended (exit code 3)"),
        ("x = bytearray(2 * 1024**3)\n", "f", "MemoryError"),
        ("def f(completion): pass\n", "f", "f(completion, problem"),
        ("def good(completion, problem): pass\n", "godo", "did you mean 'good'"),
    ],
)
def test_what_does_not_load_is_one_input_error(tmp_path: Path, text: str, name: str, told: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_reward(f"{path}:{name}", isolation=LIMITS)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_never_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_reinforce.rewards.isolation.START_LIMIT", 0.5)
    path = tmp_path / "slow.py"
    path.write_text("while True: pass\n")
    with pytest.raises(InputError, match="no answer within 0\\.5 seconds"):
        IsolatedFunction(f"{path}:f", {}, LIMITS)


def test_a_file_of_the_current_directory_hides_no_module_of_python(
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
    assert ask(function, "a")[0].total == 1.0  # found again, from where it was found first
    function.close()
