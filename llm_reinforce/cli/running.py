"""One training run: its directory locked and begun, stopped by signals, and whether it may go on there."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from llm_reinforce.cli.interruption import ASKING, leave_at_once
from llm_reinforce.config import Config

if TYPE_CHECKING:
    from llm_reinforce.console.run_display import RunDisplay
    from llm_reinforce.runs import RunDirectory, TrainState
    from llm_reinforce.training import ReinforceTrainer

SAME_KEYPRESS = 0.5  # seconds: a launcher hands on to its processes what the terminal has sent them already


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run came to its end, or was stopped.

    Attributes:
        is_over: its last update is done.
        signal: the number of the signal that asked it to stop; None where none came.
        seconds: of training, in this session.
    """

    state: "TrainState"
    is_over: bool
    signal: int | None
    seconds: float


def run_training(
    recipe: Config, directory: "RunDirectory", display: "RunDisplay", *, resume: bool, overwrite: bool
) -> Ended:
    from llm_reinforce.training import ReinforceTrainer

    trainer = ReinforceTrainer(config=recipe, progress=display)
    with _stopped_by_signals(trainer, display) as received:
        result = trainer.train(resume=resume, overwrite=overwrite)
    return Ended(result.state, result.is_over, received[0] if received else None, result.seconds)


@contextmanager
def _stopped_by_signals(trainer: "ReinforceTrainer", display: "RunDisplay") -> Iterator[list[int]]:
    """SIGINT and SIGTERM ask the trainer to stop, a second one leaves at once; yields those received."""
    received: list[int] = []
    first_at = 0.0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal first_at
        if received:
            if time.monotonic() - first_at > SAME_KEYPRESS:
                leave_at_once(number)
            return
        received.append(number)
        first_at = time.monotonic()
        trainer.stop()
        display.stopping("stopping after this update; again to leave at once")

    before = {number: signal.signal(number, stop) for number in ASKING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
