"""Displays that are updated in place: in a terminal, and in an output cell of a notebook."""

import io
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderableType, RenderHook
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.text import Text

from llm_reinforce.console.messages import is_live, messages_above_bar
from llm_reinforce.console.run_display import PlainDisplay
from llm_reinforce.console.run_view import RunView
from llm_reinforce.console.text import visible

REFRESHES_PER_SECOND = 4
NOTEBOOK_SECONDS = 1.0  # minimum time between two updates of an output cell
NOTEBOOK_SIZE = 90, 32  # columns and lines of the view in a notebook
NOTEBOOK_FORMAT = (
    '<pre style="white-space:pre;overflow-x:auto;line-height:1.2;margin:0;'
    "font-family:Menlo,'DejaVu Sans Mono',Consolas,monospace\">{code}</pre>"
)


def display_for(
    console: Console, title: str = "", *, num_tokens: int | None = None
) -> "LiveDisplay | NotebookDisplay | PlainDisplay":
    """Return a live view for a terminal or a notebook, and otherwise a display that prints plain lines.

    Args:
        console: console to print to.
        title: heading of the live view.
        num_tokens: number of sampled tokens after which the run ends, or None.
    """
    if console.is_jupyter:
        return NotebookDisplay(title, num_tokens)
    if is_live(console):
        return LiveDisplay(console, title, num_tokens)
    return PlainDisplay(console)


class LiveDisplay(RunView):
    """Live view of a run, refreshed by a thread four times per second. Use it as a context manager."""

    def __init__(self, console: Console, title: str, num_tokens: int | None = None) -> None:
        super().__init__(title, num_tokens)
        self.console = console
        self._frames = _Frames(console)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            is_shared = sys.stderr.isatty()  # False if stderr is a file or a pipe
            live = Live(
                get_renderable=self.render,
                console=self.console,
                refresh_per_second=REFRESHES_PER_SECOND,
                redirect_stderr=is_shared,
            )
            stack.callback(live.stop)
            before = sys.stdout, sys.stderr
            live.start(refresh=True)
            if is_shared:
                stack.enter_context(messages_above_bar(self.console))
            stack.enter_context(_logs_follow(before))
            self.console.push_render_hook(self._frames)
            stack.callback(self.console.pop_render_hook)
            stack.callback(live.refresh)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self.is_finished = True
        self._open.close()

    def say(self, sentence: str) -> None:
        self.console.print(Text(visible(sentence), style="dim"))

    def render(self) -> RenderableType:
        console = self.console
        return self._frames.measured(Group(*self.lines(console.width, console.height, console.encoding), ""))


class NotebookDisplay(RunView):
    """View of a run in an output cell of a notebook. The view is updated at most once per second."""

    def __init__(self, title: str, num_tokens: int | None = None) -> None:
        super().__init__(title, num_tokens)
        self._handle: Any = None
        self._shown_time = 0.0

    def __enter__(self) -> Self:
        from IPython.display import display

        self.is_finished = False
        self._handle, self._shown_time = display(self, display_id=True), time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self.is_finished = True
        self._handle.update(self)
        self._handle = None

    def say(self, sentence: str) -> None:
        print(visible(sentence), flush=True)

    def changed(self) -> None:
        if self._handle is not None and time.monotonic() - self._shown_time >= NOTEBOOK_SECONDS:
            self._shown_time = time.monotonic()
            self._handle.update(self)

    def stopping(self, sentence: str) -> None:
        super().stopping(sentence)
        self.changed()

    def __repr__(self) -> str:
        return "\n".join(line.plain for line in self.lines(*NOTEBOOK_SIZE))

    def _repr_html_(self) -> str:
        width, height = NOTEBOOK_SIZE
        console = Console(
            file=io.StringIO(),
            record=True,
            width=width,
            force_jupyter=False,
            force_terminal=True,
            _environ={},
        )
        console.print(Group(*self.lines(width, height)))
        return console.export_html(inline_styles=True, code_format=NOTEBOOK_FORMAT)


@contextmanager
def _logs_follow(before: tuple[object, object]) -> Iterator[None]:
    """In a `with` block, let handlers of `logging` write to the current `sys.stdout` and `sys.stderr`.

    A handler keeps writing to the stream with which it was created, even after the live view has replaced
    that stream. Without this function, its messages would therefore be written into the live view.

    Args:
        before: `sys.stdout` and `sys.stderr` before the live view replaced them.
    """
    moved = []
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.Logger.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, logging.StreamHandler) and handler.stream in before:
            now = (sys.stdout, sys.stderr)[before.index(handler.stream)]
            moved.append((handler, handler.setStream(now)))
    try:
        yield
    finally:
        for handler, stream in moved:
            if stream is not None:
                handler.setStream(stream)


class _Frames(RenderHook):
    """Render hook that prints each view as one frame, and erases the remains of wrapped lines.

    Before `rich.live.Live` prints the next view, it moves the cursor up by the number of lines of the last
    view. After a terminal has become narrower, these lines occupy more lines of the terminal. This hook
    therefore moves the cursor further up, and erases the additional lines.
    """

    # Terminals that know synchronized output (mode 2026) show a frame only when it is complete. Without
    # automatic wrapping (mode 7), a character that is wider than expected cannot wrap a line of the view.
    BEGIN, END, NO_WRAP, WRAP = "\x1b[?2026h", "\x1b[?2026l", "\x1b[?7l", "\x1b[?7h"

    def __init__(self, console: Console) -> None:
        self._console = console
        self._widths: list[int] = []  # width of each line of the last view, in columns

    def measured(self, view: RenderableType) -> RenderableType:
        """Return the view as a renderable that records the widths of its lines when it is printed."""
        return _Measured(view, self)

    def record(self, lines: Sequence[Sequence[Segment]]) -> None:
        self._widths = [Segment.get_line_length(list(line)) for line in lines]

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        width = max(1, self._console.width)
        num_more = sum(max(0, -(-each // width) - 1) for each in self._widths)
        up_and_erase = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
        # the first renderable moves the cursor to the start of the last view; the last one is the new view
        first, *printed, view = renderables
        erase = Control(*(up_and_erase * num_more))
        return [
            _raw(self.BEGIN),
            first,
            erase,
            *printed,
            _raw(self.NO_WRAP),
            view,
            _raw(self.WRAP + self.END),
        ]


def _raw(sequence: str) -> Control:
    control = Control()
    control.segment = Segment(sequence, None, [(ControlType.CARRIAGE_RETURN,)])
    return control


@dataclass(frozen=True)
class _Measured:
    view: RenderableType
    frames: _Frames

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        lines = console.render_lines(self.view, options, pad=False)
        self.frames.record(lines)
        for line in lines:
            yield from line
            yield Segment.line()
