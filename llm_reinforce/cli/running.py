"""One training run: its directory locked and begun, stopped by signals, and whether it may go on there."""

import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from llm_reinforce.cli.common import is_main_process
from llm_reinforce.cli.interruption import ASKING, leave_at_once
from llm_reinforce.config import Config, dump_config, load_config
from llm_reinforce.errors import InputError

if TYPE_CHECKING:
    from llm_reinforce.console.run_display import RunDisplay
    from llm_reinforce.training import TrainingLoop
    from llm_reinforce.runs import RunDirectory, TrainState

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
    """Train as the recipe says, to the end or to a signal, and write the run's directory.

    Raises:
        InputError: the recipe can't be run, or the directory not be written.
        RunStoppedError: the run must not go on; it is saved.
    """
    from llm_reinforce.assemble import trainer_from_recipe
    from llm_reinforce.training.budget import is_over

    trainer = trainer_from_recipe(recipe, display, directory)
    trainer.try_rewards()
    with ExitStack() as stack:
        # not before all that may fail has been loaded: --overwrite removes the old run here
        if is_main_process():
            stack.enter_context(directory.locked())
            directory.prepare(resume=resume, overwrite=overwrite)
            _write_environment(directory, recipe.seed, str(trainer.accelerator.device))
            directory.write_text("recipe.yaml", dump_config(recipe))
        received = stack.enter_context(_stopped_by_signals(trainer, display))
        stack.enter_context(display)
        started = time.monotonic()
        state = trainer.train(resume=resume)
        seconds = time.monotonic() - started
    return Ended(state, is_over(recipe.training, state), received[0] if received else None, seconds)


@contextmanager
def _stopped_by_signals(trainer: "TrainingLoop", display: "RunDisplay") -> Iterator[list[int]]:
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
        trainer.stop_requested = True
        display.stopping("stopping after this update; again to leave at once")

    before = {number: signal.signal(number, stop) for number in ASKING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def differing_settings(file: Path, recipe: Config, *, may_grow: bool) -> list[str]:
    """The settings in which a run's own recipe is not the one given, a line each.

    Args:
        file: the run's `recipe.yaml`.
        may_grow: the number of updates, and a budget of tokens, may be larger now.

    Raises:
        InputError: the file can't be read as a recipe.
    """
    begun = load_config(file)
    may_differ = {"output_dir"}  # the directory is this one, however it is written
    if may_grow:
        may_differ |= {f"training.{name}" for name in _grown(begun, recipe)}
    own, given = _flat(begun.model_dump()), _flat(recipe.model_dump())
    shared = own.keys() & given.keys()
    return [
        f"  {key}: {own.get(key, 'not there')} in the run, {given.get(key, 'not there')} now"
        for key in sorted((own.keys() | given.keys()) - may_differ)
        if key not in shared or own[key] != given[key]
    ]


def _grown(begun: Config, now: Config) -> list[str]:
    """Which of the two limits to a run's length has been raised."""
    grown = ["num_updates"] if begun.training.num_updates < now.training.num_updates else []
    own, given = begun.training.num_tokens, now.training.num_tokens
    if own is not None and (given is None or own < given):
        grown.append("num_tokens")
    return grown


def _flat(values: object, path: str = "") -> dict[str, object]:
    """Nested mappings, and lists of them, as one of dotted keys; an empty one counts as a value."""
    if isinstance(values, list | tuple) and any(isinstance(each, Mapping) for each in values):
        values = {str(place): each for place, each in enumerate(values)}
    if not isinstance(values, Mapping) or not values:
        return {path: values}
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{path}.{key}" if path else key)
    return flat


def _write_environment(directory: "RunDirectory", seed: int, device: str) -> None:
    """Where the run began; a run that goes on adds where it did."""
    from llm_reinforce.runs import environment

    file, here = directory.path / "environment.json", environment(seed, device)
    whole: dict[str, Any] = here
    if file.is_file():
        try:
            whole = json.loads(file.read_text(encoding="utf-8"))
            whole["resumed"] = [*whole.get("resumed", []), here]
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{file}: isn't what a run writes ({error}); remove it to go on") from error
    directory.write_text("environment.json", json.dumps(whole, indent=2) + "\n")
