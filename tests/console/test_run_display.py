"""Displays of a run: numbers, escaped text, and how often they print."""

import io
import logging
import re
import sys
import threading
import time
import types
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from llm_reinforce.console.live_view import LiveDisplay, NotebookDisplay, display_for
from llm_reinforce.console.messages import note
from llm_reinforce.console.run_display import Display, PlainDisplay, Silent
from llm_reinforce.console.run_tables import episode_lines
from llm_reinforce.console.run_view import Accuracy, RunView, band_chart, curve, sample_lines
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
HOSTILE = "\x1b[2J\x1b[31m\u202e\r\n[bold]漢字\u200b</pre><script>" + "x" * 100_000


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _person(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the environment variables that make a display print plain lines."""
    for name in ("CI", "JPY_PARENT_PID", "TTY_INTERACTIVE", "TTY_COMPATIBLE", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


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
        file=Terminal(), force_terminal=True, width=width, height=height, _environ={"TERM": "xterm"}
    )


def written(console: Console) -> str:
    """Return the output of a console without escape sequences."""
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def current_view(display: LiveDisplay) -> str:
    """Return the current live view as text, for a console of the display's size."""
    console = display.console
    return "\n".join(line.plain for line in display.lines(console.width, console.height))


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
    episodes = [episode(prompt=f"{index}=") for index in range(8)]
    shown = [line.plain.split()[1] for line in sample_lines(episodes, 80, 5)[1:]]
    assert shown == ["0=", "2=", "4=", "6="]
    assert len(sample_lines(episodes[:2], 80, 5)) == 3


def test_the_display_depends_on_the_console(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(display_for(terminal()), LiveDisplay)
    pipe = Console(file=io.StringIO())
    dumb = Console(file=Terminal(), _environ={"TERM": "dumb"})
    colored = Console(file=io.StringIO(), _environ={"FORCE_COLOR": "1"})
    assert colored.is_terminal
    for console in (pipe, dumb, colored):
        assert isinstance(display_for(console), PlainDisplay)
    for name in ("CI", "JPY_PARENT_PID"):
        with monkeypatch.context() as patched:
            patched.setenv(name, "1")
            assert isinstance(display_for(terminal()), PlainDisplay)
            patched.setenv("TTY_INTERACTIVE", "1")
            assert isinstance(display_for(terminal()), LiveDisplay)
    assert isinstance(display_for(Console(force_jupyter=True)), NotebookDisplay)
    everyone: list[Display] = [Silent(), display_for(terminal()), display_for(pipe), NotebookDisplay("")]
    for display in everyone:
        display.evaluating(1, 2)


def test_plain_lines_are_printed_every_few_percent(clock: list[float]) -> None:
    console = Console(file=io.StringIO())
    with PlainDisplay(console) as display:
        for number in range(1, 1001):
            clock[0] += 0.5
            display.update(number, 1000, {**METRICS, "num_tokens": 3072 * number}, [episode()] * 8)
    lines = written(console).splitlines()
    assert len(lines) == 21  # the first, and one every 5%
    assert lines[0] == (
        "update 1/1000 · reward 0.250 · entropy 0.500 · grad norm 1.23 · length 3.0 · truncated 10% · "
        "episodes/s 16 · tokens 3,072 · 0:08:20 left"
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
        display.update(
            number,
            10,
            {**METRICS, "reward": number / 2, "num_unscored": 1.0, "refill/num_tokens": 1200},
            samples,
        )
    display.evaluation(2, "held_out", evaluation(5))
    display.evaluating(3, 20)
    shown = current_view(display)
    assert "quickstart · [red]policy[/red]" in shown
    assert "evaluating: 3 of 20 problems" in shown
    assert "REINFORCE ━" in shown
    assert "2/10" in shown
    assert "left" in shown
    assert re.search(r"reward +1\.000 ▁█", shown)
    assert "unscored" in shown
    assert "refill tokens" in shown
    assert "20.0% → 50.0% [10.0, 90.0]  at update 2" in shown
    assert "✓  [bold]1+1=" in shown
    assert "2\\n[/oops]\\x1b[2J" in shown
    assert re.search(r"✗  1\+1= +3 +none +2$", shown, re.MULTILINE)


SIZES = [(40, 24), (60, 12), (60, 24), (80, 24), (100, 30), (160, 50), (20, 6)]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_view_fits_the_terminal(width: int, height: int, encoding: str) -> None:
    view = RunView("t" * 200, num_tokens=10_000_000_000)
    for decoding in ("greedy", "sampled"):
        for number in range(4):
            view.evaluation(50 * number, "training", evaluation(number, decoding))
    samples = [episode(HOSTILE, HOSTILE, answer="1,234")] * 64
    for number in range(1, 200):
        metrics = {**METRICS, "num_unscored": 1, "reward": number / 200, "num_tokens": 1_000_000 * number}
        view.update(number, 300, metrics, samples)
    view.evaluating(3, 500)
    view.stopping("stopping after this update; press Ctrl-C again to quit now")
    console = terminal(width, height)
    for line in view.lines(width, height, encoding):
        console.print(line)
    lines = written(console).splitlines()
    assert len(lines) < height
    assert all(cell_len(line) <= width for line in lines)
    text = "\n".join(lines)
    text.encode(encoding)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e\u200b]", text)
    if height >= 24 and width >= 40:
        for words in ("199/300", "199,000,000 tokens", "left", "grad norm", "unscored", "30.0% [10.0, 90.0]"):
            assert words in text
        band = "[\u2801-⣿]" if encoding == "utf-8" else "[:o]"
        assert re.search(rf"^ *\d+% +{band}+", text, re.MULTILINE)
        assert ("✗ wrong" if encoding == "utf-8" else "x wrong") in text
        assert ("correct answer 1,234" in text) == (width > 40)


def test_tokens_that_are_left(clock: list[float]) -> None:
    for budget, left in (
        (None, ", about 9,000 left"),
        (8_000, ", 7,000 left"),
        (99_999, ", about 9,000 left"),
    ):
        view = RunView(num_tokens=budget)
        view.update(10, 100, {**METRICS, "num_tokens": 1_000}, [])
        assert f"1,000 tokens{left}" in view.lines(80, 24)[2].plain
    view.update(100, 100, {**METRICS, "num_tokens": 10_000}, [])
    assert view.lines(80, 24)[2].plain.endswith("10,000 tokens")


def test_shown_reward_includes_step_rewards() -> None:
    stepped = replace(episode(reward=1.0), step_rewards=(0.5, 0.0))
    assert sample_lines([stepped], 60, 10)[1].plain.endswith("1.50")
    assert "reward 1.5 (r 1.0)" in [*episode_lines(stepped)][-1].plain


def test_a_long_episode_is_folded() -> None:
    long = [episode("How many? " * 30, "So " + "x" * 3000 + " the answer is 71", answer="72", reward=0.0)] * 4
    lines = [line.plain for line in sample_lines(long, 60, 10)]
    assert lines[0] == "✗ wrong (different) · reward 0.00 · answer 71"
    assert lines[1] == "correct answer 72"
    assert "".join(lines[2:4]).startswith("How many? How many?")
    assert lines[4].startswith("So xxx")
    assert lines[-1].endswith("the answer is 71")
    assert len(lines) <= 10
    [*_, last] = sample_lines([episode("p" * 60, "❤\ufe0f漢" * 500 + "the end")], 60, 6)
    assert last.plain.endswith("the end")


def test_a_resumed_run_is_compared_with_its_first_evaluation() -> None:
    display = LiveDisplay(terminal(100, 24), "")
    rows = [
        {"update": 10 * number, "decoding": "greedy", "accuracy": 0.1 * (1 + number)} for number in (0, 1)
    ]
    evaluations = [{**row, "interval": [0.0, 1.0], "data": "held_out"} for row in rows]
    display.restored([{"update": number, "reward": number / 100} for number in range(1, 11)], evaluations)
    assert "10.0% → 20.0% [0.0, 100.0]" in current_view(display)
    display.update(11, 20, {**METRICS, "reward": 0.11}, [])
    assert re.search(r"reward +0.110 ▁▂▂▃▄▄▅▆▇▇█", current_view(display))
    display.evaluation(20, "held_out", evaluation(5))
    assert re.search(r"10.0% → 50.0% .* at update 20", current_view(display))


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


def test_texts_are_cut_to_columns_once() -> None:
    assert fitted("0123456789", 5) == "01…89"
    assert fitted("01234", 5) == "01234"
    assert fitted("漢字漢字漢字", 5) == "漢…字"
    assert fitted("a\n" * 1000, 7) == "a\\n…a\\n"
    assert fitted("abc", 1) == "…"
    hearts = fitted("❤\ufe0f" * 100, 20)
    assert 15 <= cell_len(hearts) <= 20


def test_a_chart_shows_the_band() -> None:
    made = [Accuracy(0, 0.0, (0.0, 0.25)), Accuracy(10, 0.75, (0.5, 1.0))]
    shown = [line.plain.rstrip() for line in band_chart(made, 16, 4, is_ascii=True)]
    assert shown == [
        "100%         :::",
        "         :::oooo",
        "     :::oooo:::",
        "  0% ooo:",
    ]
    dots = [line.plain for line in band_chart(made, 16, 4)]
    assert [len(line.rstrip()) for line in dots] == [16, 16, 16, 10]


def test_a_narrower_terminal_keeps_no_old_lines() -> None:
    console = terminal(80)
    with LiveDisplay(console, "t" * 80):
        assert isinstance(console.file, io.StringIO)
        console.file.seek(0)
        console.file.truncate()
        console.width = 40
        console.print("message")
        up = console.file.getvalue().partition("message")[0].count("\x1b[1A")
    # the title, which had 80 columns, occupies two lines of the terminal
    assert up == 4 - 1 + 1


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
    assert isinstance(console.file, io.StringIO)
    raw = console.file.getvalue()
    assert "\x1b[2J" not in raw  # the terminal is never cleared
    assert raw.count("\x1b[?2026h") == raw.count("\x1b[?2026l") > 0  # each frame appears at once
    assert raw.count("\x1b[?7l") == raw.count("\x1b[?7h") > 0
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")  # the cursor is visible again
    shown = written(console)
    assert shown.count("said [once]") == 1
    assert shown.count("200/200") <= 5  # fewer refreshes than updates
    assert "90.0% [10.0, 90.0]" in shown.rpartition("title")[2]


@pytest.mark.parametrize("is_shared", [True, False])
def test_messages_appear_above_the_live_view(monkeypatch: pytest.MonkeyPatch, *, is_shared: bool) -> None:
    console, stderr = terminal(), Terminal() if is_shared else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    logger, handler = logging.getLogger("someone"), logging.StreamHandler()
    logger.addHandler(handler)
    try:
        with LiveDisplay(console, "title"):
            note("a note")
            logger.warning("a log line")
            print("a line", file=sys.stderr)
        assert handler.stream is stderr
    finally:
        logger.removeHandler(handler)
    for message in ("a note", "a log line", "a line"):
        assert (message in written(console)) == is_shared
        assert (message in stderr.getvalue()) == (not is_shared)


def test_a_notebook_has_one_output_that_is_replaced(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    outputs: list[list[str]] = []

    class Handle:
        def update(self, shown: NotebookDisplay) -> None:
            outputs[-1].append(shown._repr_html_())

    def display(shown: NotebookDisplay, *, display_id: bool) -> Handle:
        assert display_id
        outputs.append([shown._repr_html_()])
        return Handle()

    module = types.ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    samples = [episode(completion=HOSTILE)]
    with NotebookDisplay("<title>") as view:
        for number in range(1, 101):
            clock[0] += 0.1
            view.update(number, 100, METRICS, samples)
        view.say("a message")
        view.evaluation(100, "held_out", evaluation(9))
    [frames] = outputs
    assert 8 <= len(frames) <= 12
    last = frames[-1]
    assert last.startswith("<pre")
    assert "&lt;title&gt;" in last
    assert "100/100" in last
    assert "90.0% [10.0, 90.0]" in last
    assert "<script>" not in last
    assert "100/100" in repr(view)
    assert capsys.readouterr().out == "a message\n"
