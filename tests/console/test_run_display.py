"""Displays of a run: numbers, escaped text, and how often they print."""

import io
import re
import threading
import time

import pytest
from rich.console import Console

from llm_reinforce.console.live_view import LiveDisplay, curve, display_for, evenly_spaced
from llm_reinforce.console.run_display import Display, PlainDisplay, Silent
from llm_reinforce.console.text import duration, shown_accuracy, visible
from llm_reinforce.episodes import Episode
from llm_reinforce.evaluation import Answer, Evaluation, Measure
from llm_reinforce.policy import Completion
from llm_reinforce.problems import Problem
from llm_reinforce.verifier import verify

METRICS = {
    "reward": 0.25,
    "entropy": 0.5,
    "grad_norm": 1.234,
    "completions/mean_length": 3.0,
    "completions/clipped_ratio": 0.1,
    "step_time": 0.5,
}


def episode(
    prompt: str = "1+1=", completion: str = "2", answer: str = "2", reward: float | None = 1.0
) -> Episode:
    sampled = Completion((1,), (-0.1,), (0.5,), completion, True)
    problem = Problem(prompt, answer)
    return Episode(problem, 0, (1,), sampled, verify(completion, answer), {"r": reward}, reward)


def evaluation(correct: int, decoding: str = "greedy") -> Evaluation:
    problems = [Problem(str(number), "2") for number in range(10)]
    verdicts = [verify("2" if number < correct else "3", "2") for number in range(10)]
    answers = [(Answer("", 2, True, verdict, False, False),) for verdict in verdicts]
    measures = {"accuracy": Measure(correct / 10, (0.1, 0.9), 0.1)}
    return Evaluation(decoding, problems, answers, measures)  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace `time.monotonic`. The only item of the returned list is the time that it returns."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def terminal(width: int = 80, height: int = 24) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, _environ={"TERM": "xterm"}
    )


def written(console: Console) -> str:
    """Return the output of a console without escape sequences."""
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def current_view(display: LiveDisplay) -> str:
    """Return the current live view as text, for a console of the display's size."""
    console = terminal(display.console.width, display.console.height)
    console.print(display.render())
    return written(console)


def test_control_characters_are_escaped() -> None:
    assert visible("a\nb\x1b[31m\u202e\x07é漢") == "a\\nb\\x1b[31m\\u202e\\x07é漢"
    assert visible("0123456789", 5) == "01…89"
    assert visible("01234", 5) == "01234"


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01")])
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_accuracies_are_shown_with_their_interval() -> None:
    assert shown_accuracy(0.715, (0.649, 0.773)) == "71.5% [64.9, 77.3]"


@pytest.mark.parametrize(
    ("values", "shown"),
    [([0.0, 0.1, 0.5, 1.0], "▁▂▅█"), ([0.5], "▁"), ([0.5] * 9, "▁▁▁▁"), ([0, 0, 0, 0, 1, 1, 1, 1], "▁▁██")],
)
def test_curves_are_scaled_to_their_range(values: list[float], shown: str) -> None:
    assert curve(values, 4) == shown


def test_samples_are_chosen_by_position() -> None:
    episodes = [episode(prompt=str(index)) for index in range(8)]
    assert [sample.problem.prompt for sample in evenly_spaced(episodes, 4)] == ["0", "2", "4", "6"]
    assert len(evenly_spaced(episodes[:2], 4)) == 2
    assert evenly_spaced([], 4) == []


def test_the_display_depends_on_the_console() -> None:
    assert isinstance(display_for(terminal()), LiveDisplay)
    assert isinstance(display_for(Console(file=io.StringIO())), PlainDisplay)
    everyone: list[Display] = [Silent(), display_for(terminal()), display_for(Console(file=io.StringIO()))]
    for display in everyone:
        display.evaluating(1, 2)


def test_plain_lines_are_printed_every_few_percent(clock: list[float]) -> None:
    console = Console(file=io.StringIO())
    with PlainDisplay(console) as display:
        for number in range(1, 1001):
            clock[0] += 0.5
            display.update(number, 1000, METRICS, [episode()] * 8)
    lines = written(console).splitlines()
    assert len(lines) == 21  # the first, and one every 5%
    assert lines[0] == (
        "update 1/1000 · reward 0.250 · entropy 0.500 · grad norm 1.23 · length 3.0 · truncated 10% · "
        "episodes/s 16 · 0:08:20 left"
    )
    assert lines[10].startswith("update 501/1000")
    assert lines[10].endswith("0:04:10 left")
    assert lines[-1].startswith("update 1000/1000")
    assert "left" not in lines[-1]


def test_plain_lines_of_a_fast_or_a_slow_run(clock: list[float]) -> None:
    console = Console(file=io.StringIO())
    display = PlainDisplay(console)
    for number in range(1, 101):
        clock[0] += 0.01
        display.update(number, 100, METRICS, [episode()])
    # all updates take less than two seconds, so only the first and the last one are shown
    assert len(written(console).splitlines()) == 2
    display = PlainDisplay(console := Console(file=io.StringIO()))
    for number in range(1, 11):
        clock[0] += 31
        display.update(number, 10_000, METRICS, [episode()])
    assert len(written(console).splitlines()) == 5  # a line at least about every minute


def test_the_remaining_time_of_a_resumed_run(clock: list[float]) -> None:
    display = PlainDisplay(console := Console(file=io.StringIO()))
    clock[0] += 1
    display.update(91, 100, {**METRICS, "step_time": 1.0}, [episode()])
    assert written(console).endswith("0:00:09 left\n")


def test_plain_lines_of_evaluations_and_the_warm_start(clock: list[float]) -> None:
    display = PlainDisplay(console := Console(file=io.StringIO()))
    display.say("a\x1bb")
    display.warm_start(1, 50, 1.5)
    display.evaluation(25, "held_out", evaluation(7))
    assert written(console).splitlines() == [
        "a\\x1bb",
        "warm start 1/50 · loss 1.500",
        "update 25: held-out accuracy, greedy: 70.0% [10.0, 90.0], 7 of 10",
    ]


def test_the_live_view_shows_the_metrics_and_escapes_samples(clock: list[float]) -> None:
    display = LiveDisplay(terminal(), "quickstart · [red]policy[/red]", {})
    display.evaluation(0, "held_out", evaluation(2))
    for number in (1, 2):
        clock[0] += 5
        samples = [episode("[bold]1+1=", "2\n[/oops]\x1b[2J"), episode(completion="3", reward=None)]
        display.update(number, 10, {**METRICS, "reward": number / 2, "num_unscored": 1.0}, samples)
    display.evaluation(2, "held_out", evaluation(5))
    display.evaluating(3, 20)
    shown = current_view(display)
    assert "quickstart · [red]policy[/red]" in shown
    assert "evaluating problems 3/20" in shown
    assert "REINFORCE" in shown
    assert "2/10" in shown
    assert "left" in shown
    assert "0.750 ▁█" in shown
    assert "unscored" in shown
    assert "20.0% → 50.0% [10.0, 90.0]  at update 2" in shown
    assert "✓  [bold]1+1=" in shown
    assert "2\\n[/oops]\\x1b[2J" in shown
    assert re.search(r"✗  1\+1= +3 +none", shown)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 12), (30, 10), (110, 35)])
def test_the_live_view_fits_the_terminal(width: int, height: int) -> None:
    display = LiveDisplay(terminal(width, height), "t" * 200, {})
    display.update(1, 10, METRICS, [episode("p" * 500, "漢" * 500)] * 8)
    for decoding in ("greedy", "sampled"):
        display.evaluation(1, "held_out", evaluation(5, decoding))
    lines = current_view(display).splitlines()
    assert len(lines) <= height
    assert ("✗" in "".join(lines)) == (height > 12)


def test_a_resumed_run_is_compared_with_its_first_evaluation() -> None:
    display = LiveDisplay(terminal(), "", {"greedy": (0, 0.1)})
    display.evaluation(50, "held_out", evaluation(5))
    assert "10.0% → 50.0%" in current_view(display)


def test_the_live_view_is_refreshed_by_a_thread() -> None:
    console = terminal()
    with LiveDisplay(console, "title", {}) as display:
        display.say("said [once]")
        for number in range(1, 201):
            display.update(number, 200, METRICS, [episode()])
        time.sleep(0.3)
        assert threading.active_count() > 1
        display.stopping("stopping after this update")
        assert "stopping after this update" in current_view(display)
        display.evaluation(200, "held_out", evaluation(9))
    shown = written(console)
    assert shown.count("said [once]") == 1
    assert shown.count("200/200") <= 4  # fewer refreshes than updates
    # after the run, the command prints the accuracies in a table
    assert "held-out accuracy" not in shown.rpartition("title")[2]
