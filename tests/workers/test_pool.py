"""Worker processes: the order of the answers, the limits on time and memory, and the end of all processes."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import is_gone, is_running

from llm_reinforce.workers import WorkerError, WorkerPool, WorkerSettingsError, WorkerTimeoutError

MODULE = """\
import json, os, signal, sys, time
from llm_reinforce.workers import serve

def forge():
    # writes the answer to another question to all pipes, as faulty code in a worker might do
    for pipe in range(3, 10):
        try:
            os.write(pipe, json.dumps({"number": 0, "answer": {"value": "forged"}}).encode() + b"\\n")
        except OSError:
            pass

def prepare(settings):
    if settings.get("refuse"):
        raise ValueError("the settings are refused")
    if settings.get("hang"):
        time.sleep(60)
    return {"name": settings.get("name")}, lambda question: {"value": eval(question)}

if __name__ == "__main__":
    serve(prepare)
"""


@pytest.fixture(scope="module", autouse=True)
def _module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "evaluating_worker.py").write_text(MODULE)
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def pool(_module: None) -> Iterator[WorkerPool]:
    pool = WorkerPool("evaluating_worker", {"name": "one"}, memory_limit=512)
    yield pool
    pool.close()


def values(pool: WorkerPool, *questions: str, time_limit: float = 60.0) -> list[object]:
    return [
        answer if isinstance(answer, WorkerError) else answer["value"]
        for answer in pool.ask(questions, time_limit)
    ]


def test_greeting_and_answers_in_the_order_of_the_questions(pool: WorkerPool) -> None:
    assert pool.greeting() == {"name": "one"}
    assert pool.greeting() == {"name": "one"}  # the process runs already
    assert values(pool, "1", "'two'", "[3]") == [1, "two", [3]]
    assert values(pool) == []


def test_workers_answer_in_parallel() -> None:
    pool = WorkerPool("evaluating_worker", {}, num_workers=2)
    values(pool, "1", "1")
    assert len(set(pool.pids)) == 2
    start = time.monotonic()
    assert values(pool, "time.sleep(0.7)", "time.sleep(0.7)", "3") == [None, None, 3]
    assert time.monotonic() - start < 1.35
    pool.close()
    assert pool.pids == ()


def test_worker_that_does_not_answer_is_killed_and_replaced(pool: WorkerPool) -> None:
    values(pool, "1")
    (before,) = pool.pids
    os.kill(before, signal.SIGSTOP)  # a stopped process cannot answer
    (failed,) = values(pool, "2", time_limit=0.3)
    assert isinstance(failed, WorkerTimeoutError)
    assert str(failed) == "TimeoutError: no answer within 0.3 seconds"
    assert not is_running(before)
    assert values(pool, "3") == [3]


CHILD = "__import__('subprocess').Popen(['sleep', '60'], start_new_session={}).pid"


@pytest.mark.parametrize("has_groups", [True, False])
@pytest.mark.parametrize("has_own_session", [True, False])
def test_children_are_killed_on_every_system(
    has_groups: bool, has_own_session: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_groups:  # as on Windows
        monkeypatch.delattr(os, "killpg")
    pool = WorkerPool("evaluating_worker", {})
    (child,) = values(pool, CHILD.format(has_own_session))
    assert isinstance(child, int)
    pids = (child, *pool.pids)
    assert all(map(is_running, pids))
    pool.close()
    assert all(is_gone(pid, within=5.0) for pid in pids)


def test_time_limit_does_not_include_the_start_of_the_process() -> None:
    pool = WorkerPool("evaluating_worker", {})
    assert values(pool, "1", time_limit=0.5) == [1]  # starting takes longer than this
    pool.close()


def test_worker_that_ended_between_two_questions_is_replaced(pool: WorkerPool) -> None:
    values(pool, "1")
    (pid,) = pool.pids
    os.kill(pid, signal.SIGKILL)
    while pool.pids:
        time.sleep(0.01)
    assert values(pool, "2") == [2]


def test_forged_answer_is_an_error(pool: WorkerPool) -> None:
    failed, after = values(pool, "forge()", "4")
    assert "something other than the answer was written" in str(failed)
    assert after == 4


def test_memory_is_limited(pool: WorkerPool) -> None:
    failed, after = values(pool, "len(bytearray(2**30))", "4")
    assert isinstance(failed, WorkerError)
    assert after == 4


def test_rejected_settings_raise_a_settings_error() -> None:
    pool = WorkerPool("evaluating_worker", {"refuse": True})
    with pytest.raises(WorkerSettingsError, match="the settings are refused"):
        pool.greeting()
    (failed,) = pool.ask(["1"], 60.0)
    assert isinstance(failed, WorkerSettingsError)


def test_start_that_takes_too_long_or_fails_raises_an_error() -> None:
    with pytest.raises(WorkerError, match="no answer within 0\\.5 seconds") as caught:
        WorkerPool("evaluating_worker", {"hang": True}, start_limit=0.5).greeting()
    assert not isinstance(caught.value, WorkerTimeoutError)
    with pytest.raises(WorkerError, match=r"the worker process ended \(exit code 1\)"):
        WorkerPool("no_such_module", {}).greeting()


def test_answer_to_an_interrupted_question_is_dropped(pool: WorkerPool) -> None:
    values(pool, "1")
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    threading.Timer(0.3, lambda: signal.pthread_kill(main_thread, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        values(pool, "time.sleep(1) or 'late'")
    assert values(pool, "2") == [2]


def test_a_question_that_json_cannot_hold_is_an_error(pool: WorkerPool) -> None:
    start = time.monotonic()
    (failed,) = pool.ask([{(1, 2): "a key that is no text"}], 60.0)
    assert "TypeError" in str(failed)
    assert time.monotonic() - start < 30.0
    assert values(pool, "2") == [2]


def test_a_working_directory_that_was_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    pool = WorkerPool("evaluating_worker", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").rmdir()
    assert values(pool, "2") == [2]
    pool.close()


def test_a_process_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = WorkerPool("evaluating_worker", {})
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    (failed,) = pool.ask(["1"], 60.0)
    assert "cannot be started" in str(failed)


def test_close_ends_a_question_of_another_thread() -> None:
    pool = WorkerPool("evaluating_worker", {})
    values(pool, "1")
    threading.Timer(0.3, pool.close).start()
    (failed,) = values(pool, "time.sleep(50)", time_limit=60.0)
    assert "close()" in str(failed)


def test_no_process_is_left_when_the_pool_is_collected() -> None:
    gc.freeze()  # a collection of all imported objects takes a second
    pool = WorkerPool("evaluating_worker", {})
    values(pool, "1")
    (pid,) = pool.pids
    del pool
    gc.collect()
    gc.unfreeze()
    assert is_gone(pid, within=1.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_child_starts_new_processes_and_all_processes_end_with_their_parents() -> None:
    code = """
import os, sys
from llm_reinforce.workers import WorkerPool
pool = WorkerPool("evaluating_worker", {})
ask = lambda question: pool.ask([question], 60.0)[0]["value"]
assert ask("1") == 1
mine = pool.pids
child = os.fork()
if child == 0:
    print(ask("2"), *pool.pids, pool.pids != mine, flush=True)
    os._exit(0)
os.waitpid(child, 0)
assert ask("3") == 3 and pool.pids == mine
print(3, *mine, True, flush=True)
os._exit(0)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [(row[0], row[2]) for row in rows] == [("2", "True"), ("3", "True")], done.stderr
    assert all(is_gone(int(row[1]), within=20.0) for row in rows)
