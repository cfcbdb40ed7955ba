"""Displays of a run: numbers, escaped text, and how often they print."""

import io
import re
import threading
import time

import pytest
from rich.console import Console

from llm_reinforce.console.live_view import (
    LiveDisplay,
    bar_chart,
    curve,
    display_for,
    evenly_spaced,
    reward_chart,
)
from llm_reinforce.console.run_display import Display, PlainDisplay, Silent
from llm_reinforce.console.text import duration, fitted, shown_accuracy, visible
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
    display = LiveDisplay(terminal(), "quickstart · [red]policy[/red]")
    display.evaluation(0, "held_out", evaluation(2))
    for number in (1, 2):
        clock[0] += 5
        samples = [episode("[bold]1+1=", "2\n[/oops]\x1b[2J"), episode(completion="3", reward=None)]
        display.update(number, 10, {**METRICS, "reward": number / 2, "num_unscored": 1.0}, samples)
    display.evaluation(2, "held_out", evaluation(5))
    display.evaluating(3, 20)
    shown = current_view(display)
    assert "quickstart · [red]policy[/red]" in shown
    assert "evaluating: 3 of 20 problems" in shown
    assert "REINFORCE" in shown
    assert "2/10" in shown
    assert "left" in shown
    assert "reward, last 2" in shown
    assert "0.750" in shown
    assert "reward, updates 1 to 2" in shown
    assert "unscored" in shown
    assert "20.0% → 50.0% [10.0, 90.0]  at update 2" in shown
    assert "✓  [bold]1+1=" in shown
    assert "2\\n[/oops]\\x1b[2J" in shown
    assert re.search(r"✗  1\+1= +3 +2 +none", shown)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 12), (30, 10), (110, 35)])
def test_the_live_view_fits_the_terminal(width: int, height: int) -> None:
    display = LiveDisplay(terminal(width, height), "t" * 200)
    display.update(1, 10, METRICS, [episode("p" * 500, "漢" * 500)] * 8)
    for decoding in ("greedy", "sampled"):
        display.evaluation(1, "held_out", evaluation(5, decoding))
    lines = current_view(display).splitlines()
    assert len(lines) <= height
    assert ("✗" in "".join(lines)) == (height > 12)


def test_a_resumed_run_is_compared_with_its_first_evaluation() -> None:
    display = LiveDisplay(terminal(120, 14), "")
    rows = [
        {"update": 10 * number, "decoding": "greedy", "accuracy": 0.1 * (1 + number)} for number in (0, 1)
    ]
    evaluations = [{**row, "interval": [0.0, 1.0], "data": "held_out"} for row in rows]
    display.restored([{"update": number, "reward": number / 100} for number in range(1, 11)], evaluations)
    shown = current_view(display)
    assert "reward 0.010 to 0.100, updates 1 to 10  ▁▂▃▃▄▅▆▆▇█" in shown
    assert "10.0% → 20.0% [0.0, 100.0]" in shown
    display.evaluation(20, "held_out", evaluation(5))
    assert re.search(r"10.0% → 50.0% .* at update 20  ▁▃█", current_view(display))


def test_long_updates_show_their_progress(clock: list[float]) -> None:
    live, plain = LiveDisplay(terminal(), ""), PlainDisplay(Console(file=io.StringIO()))
    for display in (live, plain):
        display.working("update 1: 3 of 8 episodes sampled")
    for seconds, is_shown in ((4.9, False), (0.1, True)):
        clock[0] += seconds
        plain.show_long_work()
        sentence = "update 1: 3 of 8 episodes sampled · 0:00:05"
        assert (sentence in current_view(live)) == (sentence in written(plain.console)) == is_shown
    clock[0] += 29
    plain.show_long_work()  # not repeated before 30 s
    assert len(written(plain.console).splitlines()) == 1
    for display in (live, plain):
        display.update(1, 10, METRICS, [episode()])
    plain.show_long_work()
    assert len(written(plain.console).splitlines()) == 2
    assert "3 of 8" not in current_view(live)


@pytest.mark.parametrize(("width", "height"), [(60, 24), (80, 24), (100, 30), (160, 50)])
def test_the_live_view_uses_the_terminal(width: int, height: int) -> None:
    display = LiveDisplay(terminal(width, height), "title")
    for decoding in ("greedy", "sampled"):
        display.evaluation(0, "held_out", evaluation(5, decoding))
    long = [episode("p" * 300, "so " + "x" * 300 + "= 3", answer="1,234") for _ in range(64)]
    for number in range(1, 200):
        display.update(number, 300, {**METRICS, "num_unscored": 1, "reward": number / 200}, long)
    display.stopping("stopping after this update; press Ctrl-C again to quit now")
    lines = current_view(display).splitlines()
    assert height - 3 <= len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for words in (
        "title",
        "press Ctrl-C again to quit now",
        "grad norm",
        "unscored",
        "episodes/s",
        "199/300",
    ):
        assert words in text
    assert "50.0% [10.0, 90.0]" in text
    assert "updates 1 to 199" in text
    samples = [line for line in lines if line.startswith("✗")]
    assert len(samples) >= 4
    for line in samples:
        assert line.count("…") == 2  # one in the prompt, and one in the completion
        assert re.search(r"= 3 +1,234 +1\.00", line)  # the answer of the completion and the right answer


def test_texts_are_cut_to_columns_once() -> None:
    assert fitted("0123456789", 5) == "01…89"
    assert fitted("01234", 5) == "01234"
    assert fitted("漢字漢字漢字", 5) == "漢…字"
    assert fitted("a\n" * 1000, 7) == "a\\n…a\\n"
    assert fitted("abc", 1) == "…"


def test_a_chart_shows_its_range() -> None:
    rewards = [(number, number / 100) for number in range(1, 101)]
    console = terminal(60)
    console.print(reward_chart(rewards, 60, 2))
    title, top, bottom = written(console).splitlines()
    assert title == "reward, updates 1 to 100, 2 per bar"
    assert top.startswith("0.995 ")
    assert bottom.startswith("0.015 ▁")
    assert bar_chart([0.0, 0.5, 1.0], 2) == [" ▁█", "▁██"]


def test_a_narrower_terminal_keeps_no_old_lines() -> None:
    console = terminal(80)
    with LiveDisplay(console, "title"):
        assert isinstance(console.file, io.StringIO)
        console.file.seek(0)
        console.file.truncate()
        console.width = 40
        console.print("message")
        up = console.file.getvalue().partition("message")[0].count("\x1b[1A")
    # the progress bar, which had 80 columns, occupies two lines of the terminal
    assert up == 5 - 1 + 1 - 1


def test_the_live_view_is_refreshed_by_a_thread() -> None:
    console = terminal()
    with LiveDisplay(console, "title") as display:
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
