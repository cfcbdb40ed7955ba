"""Experiment trackers: what they receive, real trackers, failures, and resumed runs."""

import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import accelerate.tracking
import accelerate.utils
import pytest
import torch
from small_runs import KilledError, Killer, Watcher, rows, timeless

from llm_reinforce import InputError, ReinforceTrainer
from llm_reinforce.config import RandomInitConfig, TrainingConfig, load_config
from llm_reinforce.config.training_config import TrackerName
from llm_reinforce.runs import RunDirectory

POLICY = RandomInitConfig(
    alphabet="0123=", num_layers=1, num_heads=2, hidden_size=8, intermediate_size=8, max_length=8
)
PROBLEMS = [{"prompt": f"{digit}=", "answer": str(digit)} for digit in range(4)]
SMALL: dict[str, Any] = {
    "num_updates": 4,
    "problems_per_update": 2,
    "episodes_per_problem": 2,
    "max_new_tokens": 2,
    "num_held_out": 1,
    "checkpoint_every": 2,
    "evaluation": {"every": 1},
}


def sevens(completion: str, problem: Any) -> float:
    return sum(map(ord, completion)) % 7 / 7


def trained(path: Path, *trackers: str, progress: Any = False, resume: bool = False, **settings: Any) -> Any:
    """Train a small run in the directory with these trackers, and return its directory."""
    trainer = ReinforceTrainer(
        POLICY,
        PROBLEMS,
        sevens,
        output_dir=path,
        progress=progress,
        trackers=list(trackers),
        **{**SMALL, **settings},
    )
    if isinstance(progress, Watcher):
        progress.trainer = trainer.loop
    trainer.train(resume=resume, overwrite=path.exists() and not resume)
    return RunDirectory(path)


def killed(path: Path, *trackers: str, at: int, resume: bool = False, **settings: Any) -> None:
    """Train until the process is killed, before update `at` is logged."""
    with pytest.raises(KilledError):
        trained(path, *trackers, progress=Killer(at), resume=resume, **settings)


def expected(run: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    """Return the series that a tracker should have, by name, according to the logs of the run."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows(run):
        for name, value in row.items():
            if name != "update":
                series.setdefault(name, []).append((row["update"], value))
    for row in rows(run, "evaluations.jsonl"):
        low, high = row["interval"]
        name = f"eval/{row['decoding']}/accuracy"
        for each, value in ((name, row["accuracy"]), (f"{name}_low", low), (f"{name}_high", high)):
            series.setdefault(each, []).append((row["update"], value))
    return series


def steps(series: dict[str, list[tuple[int, float]]]) -> dict[str, list[int]]:
    return {name: [step for step, _ in points] for name, points in series.items()}


def check_series(found: dict[str, list[tuple[int, float]]], run: RunDirectory) -> None:
    """Check that a tracker has the series of the run's logs. Times differ if an update was repeated."""
    right = expected(run)
    assert steps(found) == steps(right)
    for name, points in right.items():
        if not name.startswith(("step_time", "wall_time")):  # TensorBoard stores float32
            assert [value for _, value in found[name]] == pytest.approx([v for _, v in points], rel=1e-6), (
                name
            )


class Double(accelerate.tracking.GeneralTracker):
    """Record all calls; raise an error in the method `fails` from step `fails_at`."""

    name, requires_logging_directory = "double", True
    calls: list[tuple[str, Any, Any]] = []  # noqa: RUF012
    fails: str | None = None
    fails_at = 0
    error: BaseException = RuntimeError("the server does not answer")

    def __init__(self, *places: str, **arguments: Any) -> None:
        self.hash = self.id = arguments.get("run_hash") or "chosen by the tracker"
        self._called("__init__", {"run_name": places[0], **arguments})

    def _called(self, method: str, values: Any = None, step: int | None = None) -> None:
        random.seed(0)  # a tracker may use the global random generators
        torch.manual_seed(0)
        type(self).calls.append((method, values, step))
        if method == self.fails and (step is None or step >= self.fails_at):
            type(self).calls.append(("failed", None, step))
            raise self.error

    @property
    def tracker(self) -> Any:
        return self

    def start(self) -> None:
        self._called("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._called("settings", values)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._called("log", values, step)

    def log_table(self, table_name: str, columns: Any, data: Any, step: int) -> None:
        self._called("table", [columns, *data], step)

    def finish(self) -> None:
        self._called("finish")


def new_double(name: str, monkeypatch: pytest.MonkeyPatch) -> type[Double]:
    """Return a tracker that is used under this name."""
    one = type("OneDouble", (Double,), {"calls": [], "name": name})
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, name, one)
    monkeypatch.setattr(accelerate.utils, f"is_{name}_available", lambda: True)
    return one


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> type[Double]:
    """Return a tracker that is used under the name aim."""
    return new_double("aim", monkeypatch)


def series_of(double: type[Double]) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {}
    for method, values, step in double.calls:
        if method == "log":
            for name, value in values.items():
                series.setdefault(name, []).append((step, value))
    return series


# ---------------------------------------------------------------------------------- settings


def test_names_are_those_of_accelerate() -> None:
    names = set(get_args(TrackerName))
    assert names == set(accelerate.tracking.LOGGER_TYPE_TO_CLASS)
    assert all(callable(getattr(accelerate.utils, f"is_{name}_available")) for name in names)


def test_settings_are_the_same_from_yaml_set_and_python(tmp_path: Path) -> None:
    recipe = load_config(
        "quickstart", ["training.trackers=[tensorboard, wandb]", "training.tracker_project=p"]
    )
    assert recipe.training.trackers == TrainingConfig(trackers=["tensorboard", "wandb"]).trackers  # type: ignore[arg-type]
    assert recipe.training.tracker_project == "p"
    (tmp_path / "recipe.yaml").write_text(
        "policy: {name_or_path: x}\nproblems: {train: {data: gsm8k}}\ntraining:\n  trackers: [wnadb]\n"
    )
    with pytest.raises(InputError, match=r"recipe\.yaml:4.*'wnadb'; did you mean 'wandb'"):
        load_config(tmp_path / "recipe.yaml")


def test_a_missing_package_is_refused_before_a_policy_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerate.utils, "is_comet_ml_available", lambda: False)
    with pytest.raises(InputError, match=r"of comet_ml is not installed; run `pip install comet-ml`"):
        ReinforceTrainer("no/such/policy", PROBLEMS, output_dir=tmp_path / "run", trackers=["comet_ml"])


def test_a_run_that_is_not_recorded_has_no_trackers(double: type[Double]) -> None:
    with pytest.raises(InputError, match="set output_dir"):
        ReinforceTrainer(POLICY, PROBLEMS, sevens, trackers=["aim"], **SMALL)


# ------------------------------------------------------------------------ what trackers receive


def test_settings_metrics_evaluations_and_episodes(tmp_path: Path, double: type[Double]) -> None:
    run = trained(tmp_path / "run", "aim", tracker_project="sums", decodings=["greedy", "sampled"])
    assert series_of(double) == expected(run)
    assert {"eval/greedy/accuracy_low", "eval/sampled/accuracy_high"} <= series_of(double).keys()
    methods = [method for method, _, _ in double.calls]
    assert methods[:3] == ["__init__", "start", "settings"]
    assert methods[-1] == "finish"
    assert methods.count("finish") == 1
    assert double.calls[0][1] == {"run_name": "run", "experiment": "sums", "run_hash": None}
    settings = double.calls[2][1]
    assert settings["reinforce.baseline"] == "leave_one_out"
    assert settings["training.num_tokens"] == "null"
    assert all(isinstance(value, int | float | str) for value in settings.values())
    tables = [(step, values) for method, values, step in double.calls if method == "table"]
    assert [step for step, _ in tables] == [1, 2, 3, 4]
    columns, *data = tables[0][1]
    logged = [row for row in rows(run, "episodes.jsonl") if row["update"] == 1]
    assert [dict(zip(columns, row, strict=True))["completion"] for row in data] == [
        row["completion"] for row in logged
    ]
    assert columns[-1] == "rewards/sevens"


def test_secrets_are_hidden(tmp_path: Path, double: type[Double], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted_secret")
    problems = [{**row, "id": f"planted_secret {row['answer']}"} for row in PROBLEMS]
    trainer = ReinforceTrainer(
        POLICY,
        problems,
        sevens,
        output_dir=tmp_path / "run",
        progress=False,
        trackers=["aim"],
        **{**SMALL, "num_updates": 1, "template": "{prompt}", "tracker_project": "my planted_secret"},
    )
    trainer.train()
    received = [values for method, values, _ in double.calls if method in ("settings", "table")]
    assert "planted_secret" not in json.dumps(received)
    assert "<HF_TOKEN>" in json.dumps(received[0])
    assert "<HF_TOKEN>" in json.dumps(received[1])


# ------------------------------------------------------------------------------- failures

FAILURES = {  # method, first step and error of each double
    "aim": ("__init__", 0, RuntimeError("the server does not answer")),
    "clearml": ("start", 0, SystemExit(1)),
    "comet_ml": ("settings", 0, RuntimeError("the server does not answer")),
    "wandb": ("log", 3, RuntimeError("key planted_secret is wrong")),
    "swanlab": ("table", 2, RuntimeError("the server does not answer")),
    "dvclive": ("finish", 0, RuntimeError("the server does not answer")),
}


def test_failing_trackers_are_turned_off_and_change_no_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted_secret")
    doubles = {}
    for name, (method, step, error) in FAILURES.items():
        doubles[name] = new_double(name, monkeypatch)
        doubles[name].fails, doubles[name].fails_at, doubles[name].error = method, step, error
    watcher, warm_start = Watcher(), {"num_updates": 1, "num_warmup_updates": 0}
    plain = trained(tmp_path / "plain", warm_start=warm_start)
    run = trained(tmp_path / "run", *FAILURES, "tensorboard", progress=watcher, warm_start=warm_start)

    notes = [sentence for sentence in watcher.said if "tracker" in sentence]
    assert len(notes) == len(FAILURES)
    assert "planted_secret" not in "".join(notes)
    for name, (method, _, error) in FAILURES.items():
        start = f"note: the tracker {name} failed and is turned off, but the run continues: "
        assert [note for note in notes if note.startswith(start + type(error).__name__)], name
        made = [each for each, _, _ in doubles[name].calls]
        after = made[made.index("failed") + 1 :]
        assert after == ([] if method in ("__init__", "finish") else ["finish"]), name

    assert steps(tensorboard_series(run))["reward"] == [1, 2, 3, 4], "the other trackers go on"
    assert timeless(rows(plain)) == timeless(rows(run))
    assert rows(plain, "evaluations.jsonl") == rows(run, "evaluations.jsonl")
    weights = [each.policy.joinpath("model.safetensors").read_bytes() for each in (plain, run)]
    assert weights[0] == weights[1]
    assert not (plain.path / "trackers").exists()


# ------------------------------------------------------------------------------- resumed runs


def test_a_resumed_run_continues_its_series(tmp_path: Path, double: type[Double]) -> None:
    killed(tmp_path / "run", "aim", at=4)  # the checkpoint has 2 updates, and 3 are logged
    killed(tmp_path / "run", "aim", at=3, resume=True)
    run = trained(tmp_path / "run", "aim", resume=True)
    check_series(series_of(double), run)
    begun = [values for method, values, _ in double.calls if method == "__init__"]
    assert [each["run_hash"] for each in begun] == [None, "chosen by the tracker", "chosen by the tracker"]
    assert [method for method, _, _ in double.calls].count("finish") == 3


def test_trackers_may_differ_when_a_run_is_resumed(tmp_path: Path, double: type[Double]) -> None:
    killed(tmp_path / "run", at=4)
    run = trained(tmp_path / "run", "aim", resume=True)
    assert steps(series_of(double))["reward"] == [3, 4]
    assert [method for method, _, _ in double.calls].count("settings") == 1
    assert rows(run)[-1]["update"] == 4


def test_an_overwritten_run_starts_a_new_series(tmp_path: Path, double: type[Double]) -> None:
    first = json.loads((trained(tmp_path / "run", "aim").path / "trackers/series.json").read_text())
    second = json.loads((trained(tmp_path / "run", "aim").path / "trackers/series.json").read_text())
    assert first["id"] != second["id"]
    assert steps(series_of(double))["reward"] == [1, 2, 3, 4] * 2


# ------------------------------------------------------------------------------- real trackers


def tensorboard_series(run: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run.path / "trackers" / "tensorboard" / "run"))
    accumulator.Reload()
    return {
        name: [(event.step, event.value) for event in accumulator.Scalars(name)]
        for name in accumulator.Tags()["scalars"]
    }


def mlflow_series(run: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    import mlflow

    (experiment,) = mlflow.search_experiments(filter_string="name = 'sums'")
    (one,) = mlflow.search_runs([experiment.experiment_id], output_format="list")
    assert one.info.run_name == "run"
    assert one.info.status == "FINISHED"
    assert one.data.params["reinforce.baseline"] == "leave_one_out"
    client = mlflow.MlflowClient()
    series = {
        name: [(each.step, each.value) for each in client.get_metric_history(one.info.run_id, name)]
        for name in one.data.metrics
    }
    return {"step_time": series.pop("step_time/total"), **series}


def trackio_series(run: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {}
    with sqlite3.connect(run.path.parent / "trackio" / "sums.db") as database:
        found = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
        configs = database.execute("SELECT config FROM configs").fetchall()
    assert len({name for name, _, _ in found}) == 1
    assert json.loads(configs[0][0])["reinforce.baseline"] == "leave_one_out"
    for _, step, metrics in found:
        for name, value in json.loads(metrics).items():
            series.setdefault(name, []).append((step, value))
    return series


@pytest.mark.parametrize(
    ("name", "read"),
    [("tensorboard", tensorboard_series), ("trackio", trackio_series), ("mlflow", mlflow_series)],
)
def test_real_tracker_of_a_resumed_run(
    name: str,
    read: Callable[[RunDirectory], dict[str, list[tuple[int, float]]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    pytest.importorskip(name, reason=f"needs the package {name}")
    watcher = Watcher()
    killed(tmp_path / "run", name, at=4, tracker_project="sums")
    run = trained(tmp_path / "run", name, progress=watcher, resume=True, tracker_project="sums")
    assert not [sentence for sentence in watcher.said if "tracker" in sentence]
    check_series(read(run), run)


def test_metrics_with_any_name_are_logged(tmp_path: Path, double: type[Double]) -> None:
    """MLflow refuses other characters, and all metrics of a call with them."""

    def reward(completions: list[str], log_metric: Callable[[str, float], None], **_: Any) -> list[float]:
        log_metric("share > 1/2 (%)", 0.5)
        log_metric("../up", 1.0)
        return [0.0] * len(completions)

    trainer = ReinforceTrainer(
        POLICY,
        PROBLEMS,
        reward,
        output_dir=tmp_path / "run",
        progress=False,
        trackers=["aim"],
        **{**SMALL, "num_updates": 1},
    )
    trainer.train()
    series = series_of(double)
    assert series["share _ 1/2 ___"] == [(1, 0.5)]
    assert series["up"] == [(1, 1.0)]
