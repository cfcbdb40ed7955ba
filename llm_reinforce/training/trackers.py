"""Log a run to experiment trackers such as TensorBoard, with the tracker classes of accelerate.

The trackers only observe a run. A tracker that fails is turned off, and the results of the run do not depend
on the trackers.
"""

import json
import os
import posixpath
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import accelerate.utils
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from llm_reinforce.config import Config, TrainingConfig
from llm_reinforce.console.text import visible
from llm_reinforce.errors import InputError, LeaveAtOnce, texts_without_secrets, without_secrets
from llm_reinforce.evaluation import Evaluation
from llm_reinforce.runs import RunDirectory
from llm_reinforce.training.recording import flattened

FOLDER = "trackers"  # folder in the run's directory
SERIES = f"{FOLDER}/series.json"
TABLE = "episodes"
PACKAGES = {"comet_ml": "comet-ml", "aim": "'aim<4'"}  # packages whose name is not the tracker's
# attributes in which these trackers store the id of the run
OWN_IDS = {"mlflow": "info.run_id", "aim": "hash", "clearml": "id"}
# trackers to which a resumed run does not log its settings again: MLflow refuses to replace them, and
# TensorBoard would show them as a second run
FIXED_SETTINGS = ("mlflow", "tensorboard")
COLUMNS = ("problem", "prompt", "completion", "answer", "extracted", "correct", "reward")

Say = Callable[[str], None]


def check_trackers(training: TrainingConfig) -> None:
    """Check that the packages of all trackers are installed.

    Raises:
        InputError: if a package is missing. The message contains the pip command that installs it.
    """
    missing = [name for name in _names(training) if not getattr(accelerate.utils, f"is_{name}_available")()]
    if missing:
        packages = " ".join(PACKAGES.get(name, name) for name in missing)
        raise InputError(
            f"training.trackers: the package of {' and of '.join(missing)} is not installed; run "
            f"`pip install {packages}`, or remove the tracker from training.trackers"
        )


class Trackers:
    """The started trackers of a run. A new object has no trackers.

    Args:
        say: function that shows a note if a tracker fails.
        variables: environment variables that are set while a tracker is called.
        num_updates: number of the latest update that was logged by earlier processes of the run.
        evaluations: number of updates before the latest evaluation that was logged by earlier processes, by
            decoding.
    """

    def __init__(
        self,
        say: Say = lambda sentence: None,
        variables: Mapping[str, str] | None = None,
        num_updates: int = 0,
        evaluations: Mapping[str, int] | None = None,
    ) -> None:
        self._say, self._variables = say, variables or {}
        self._num_updates, self._evaluations = num_updates, evaluations or {}
        self._trackers: dict[str, Any] = {}

    def start(self, name: str, make: Callable[[], Any], settings: Mapping[str, Any] | None) -> str | None:
        """Start a tracker, and log the settings of the run to it.

        Args:
            name: name of the tracker.
            make: function that returns the tracker.
            settings: settings of the run by dotted key. None: the settings are not logged.

        Returns:
            the id that the tracker has given to the run, or "" if the tracker gives no ids. None if the
            tracker failed.
        """
        own_id = ""

        def start() -> None:
            nonlocal own_id
            tracker = self._trackers[name] = make()
            tracker.start()
            if name in OWN_IDS:
                own_id = str(attrgetter(OWN_IDS[name])(tracker.tracker))
            if settings is not None:
                tracker.store_init_configuration(settings)

        self._guarded(name, start)
        return own_id if name in self._trackers else None

    def update(self, metrics: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]]) -> None:
        """Log an update's metrics to all trackers, and a table of its episodes to trackers that have tables.

        Args:
            metrics: a row of `metrics.jsonl`.
            episodes: rows of `episodes.jsonl`.
        """
        step = metrics["update"]
        if not self._trackers or step <= self._num_updates:
            return
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        self._log({name: value for name, value in numbers.items() if name != "update"}, step)
        if not episodes:
            return
        rewards = list(episodes[0]["rewards"])
        columns = [*COLUMNS, *(f"rewards/{name}" for name in rewards)]
        rows = [
            [*(row[column] for column in COLUMNS), *(row["rewards"].get(name) for name in rewards)]
            for row in texts_without_secrets(list(episodes))
        ]
        for name, tracker in list(self._trackers.items()):
            if hasattr(tracker, "log_table"):
                self._guarded(name, partial(tracker.log_table, TABLE, columns=columns, data=rows, step=step))

    def evaluation(self, num_updates: int, evaluation: Evaluation) -> None:
        """Log the accuracy of an evaluation, with its confidence interval.

        Args:
            num_updates: number of updates before the evaluation.
            evaluation: the evaluation.
        """
        if not self._trackers or num_updates <= self._evaluations.get(evaluation.decoding, -1):
            return
        name, (low, high) = f"eval/{evaluation.decoding}/accuracy", evaluation.interval
        self._log({name: evaluation.accuracy, f"{name}_low": low, f"{name}_high": high}, num_updates)

    def finish(self) -> None:
        """Finish all trackers. They write all data that they have not written yet."""
        while self._trackers:
            name, tracker = self._trackers.popitem()
            self._guarded(name, tracker.finish)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        for name, tracker in list(self._trackers.items()):
            named = {_name_in(name, metric, values): value for metric, value in values.items()}
            self._guarded(name, partial(tracker.log, named, step=step))

    def _guarded(self, name: str, call: Callable[[], object]) -> None:
        """Call a function of a tracker. If the function fails, show a note and turn the tracker off."""
        try:
            with _environment(self._variables):
                call()
        except LeaveAtOnce:
            raise
        except (Exception, SystemExit) as error:
            tracker = self._trackers.pop(name, None)
            why = visible(without_secrets(f"{type(error).__name__}: {error}"), 400)
            self._say(f"note: the tracker {name} failed and is turned off, but the run continues: {why}")
            if tracker is not None:  # a run that is left open in a tracker may block the next run
                with suppress(Exception, SystemExit), _environment(self._variables):
                    tracker.finish()


@contextmanager
def tracking(config: Config, directory: RunDirectory, say: Say) -> Iterator[Trackers]:
    """Start the trackers of a recorded run, yield them, and finish them.

    `trackers/series.json` contains the ids of the run in the trackers, so a resumed run continues the same
    series. The file also contains the numbers of the last update and of the last evaluations that were
    logged. A resumed run repeats the updates after its checkpoint, but does not log them again.

    Args:
        config: settings of the run.
        directory: directory of the run, whose lock is held.
        say: function that shows a note if a tracker fails.
    """
    names = _names(config.training)
    if not names:
        yield Trackers()
        return
    series, folder = _series(directory), (directory.path / FOLDER).absolute()
    folder.mkdir(exist_ok=True)
    trackers = Trackers(say, _variables(folder), series["num_updates"], series["evaluations"])
    for name in names:
        before = series["ids"].get(name)
        make = partial(_tracker, name, config, directory, before or series["id"], is_new=before is None)
        knows_settings = before is not None and name in FIXED_SETTINGS
        own_id = trackers.start(name, make, None if knows_settings else _settings(config))
        if own_id is not None:
            series["ids"][name] = own_id or series["id"]
    directory.write_text(SERIES, json.dumps(series, indent=2) + "\n")
    try:
        yield trackers
    finally:
        if not isinstance(sys.exception(), LeaveAtOnce):  # finishing would take too long
            trackers.finish()


def _names(training: TrainingConfig) -> list[str]:
    return list(dict.fromkeys(training.trackers))


def _tracker(name: str, config: Config, directory: RunDirectory, own_id: str, *, is_new: bool) -> Any:
    """Return a tracker of accelerate that is not started yet.

    Args:
        name: name of the tracker.
        config: settings of the run.
        directory: directory of the run.
        own_id: id of the run in the tracker. For a new run, it is used only by trackers that let their user
            choose the id.
        is_new: True if the tracker does not know the run yet.
    """
    project = config.training.tracker_project
    run_name = config.training.tracker_run_name or directory.path.absolute().name
    folder = (directory.path / FOLDER).absolute()
    own_folder = str(folder / name)
    new = LOGGER_TYPE_TO_CLASS[name]
    arguments: dict[str, Any] = {}
    match name:
        case "tensorboard":
            # this tracker creates a folder with this name, so unsuitable characters are replaced
            return new(re.sub(r"[^\w.-]+", "_", run_name).lstrip(".") or "run", own_folder)
        case "aim":
            return new(run_name, own_folder, experiment=project, run_hash=None if is_new else own_id)
        case "wandb":
            arguments = {"name": run_name, "id": own_id, "resume": "allow", "dir": str(folder)}
            arguments["settings"] = {"console": "off"}  # the console's output may contain secrets
        case "trackio":
            # runs of all directories share one database, in which a run is found by its name
            arguments = {"name": f"{run_name}-{own_id[:6]}", "resume": "never" if is_new else "allow"}
        case "mlflow":
            arguments = {"run_name": run_name, "run_id": None if is_new else own_id}
        case "comet_ml":
            arguments = {"experiment_key": own_id}
        case "clearml":
            reused = False if is_new else own_id
            arguments = {"project_name": project, "task_name": run_name, "reuse_last_task_id": reused}
            arguments |= {} if is_new else {"continue_last_task": 0}  # offset added to steps
        case "dvclive":
            arguments = {"dir": own_folder, "exp_name": run_name, "resume": not is_new}
        case "swanlab":
            arguments = {"experiment_name": run_name, "logdir": own_folder, "id": own_id[:21]}
            arguments["resume"] = "allow"
    return new(project, **arguments)


def _series(directory: RunDirectory) -> dict[str, Any]:
    """Return the content of `trackers/series.json`, after completing it from the logs of the run.

    The numbers of the last update and of the last evaluation with each decoding mode may be too small in
    the file, because an earlier process may have been killed before it wrote them. The logs contain the
    right numbers.
    """
    series: dict[str, Any] = {"id": uuid.uuid4().hex, "ids": {}, "num_updates": 0, "evaluations": {}}
    with suppress(OSError, ValueError, TypeError):
        series |= json.loads((directory.path / SERIES).read_text(encoding="utf-8"))
    if not series["ids"]:
        return series
    for row in directory.rows("metrics.jsonl"):
        series["num_updates"] = max(series["num_updates"], row["update"])
    evaluations = series["evaluations"]
    for row in directory.rows("evaluations.jsonl"):
        evaluations[row["decoding"]] = max(evaluations.get(row["decoding"], -1), row["update"])
    return series


def _settings(config: Config) -> dict[str, Any]:
    """Return all settings by dotted key. Lists and null become JSON text, because trackers reject them."""
    values = texts_without_secrets(flattened(config.model_dump(mode="json")))
    return {
        key: value if isinstance(value, int | float | str) else json.dumps(value)
        for key, value in values.items()
    }


def _name_in(tracker: str, metric: str, metrics: Iterable[str]) -> str:
    """Return the name of a metric in a tracker, with only the characters that all trackers allow.

    MLflow's file store has a file for each metric, so a metric cannot have the name of a folder of other
    metrics, such as `step_time` beside `step_time/collect`. In MLflow, "/total" is appended to such a name.
    """
    if tracker == "mlflow" and any(other.startswith(f"{metric}/") for other in metrics):
        metric += "/total"
    return posixpath.normpath(re.sub(r"[^\w.\-:/ ]", "_", metric)).lstrip("./") or "_"


def _variables(folder: Path) -> dict[str, str]:
    """Return environment variables that make trackers write to `folder`, except those set by the user."""
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    return {name: value for name, value in variables.items() if name not in os.environ}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the context."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
