"""The client of a server: requests, answers, transfer of the weights, and its check."""

import copy
import importlib.util
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_server import BASE, FakeServer, serving

from llm_reinforce.config import AdapterConfig, ImportanceConfig, ReinforceConfig, ServerConfig
from llm_reinforce.policy import LanguagePolicy, load_policy, token_log_probs
from llm_reinforce.server import HttpClient, SamplingServer, Served, ServerError, http_client
from llm_reinforce.server.weight_files import write_served_model
from llm_reinforce.training.objective import surrogate_loss

PROMPTS = [(3, 4), (5,), (1, 2, 6)]
SHORT = (PROMPTS[:1], 2)  # a prompt, and the number of sampled tokens, where a test needs no thorough probe


@pytest.fixture(autouse=True)
def _without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "WAITS", (0.0,))


@pytest.fixture
def server(tiny_policy: LanguagePolicy) -> Iterator[FakeServer]:
    with serving(FakeServer(tiny_policy)) as fake:
        yield fake


@pytest.fixture
def client_of(tmp_path: Path) -> Callable[..., SamplingServer]:
    def make(fake: FakeServer, temperature: float = 1.0, **settings: Any) -> SamplingServer:
        config = ServerConfig(url=fake.url, **{"timeout": 60.0, **settings})
        return SamplingServer(config, temperature=temperature, is_half=False, directory=tmp_path / "weights")

    return make


def moved(policy: LanguagePolicy, size: float = 0.5) -> LanguagePolicy:
    """Return a copy whose weights differ, as after updates."""
    model = copy.deepcopy(policy.model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += (
                    size * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
                )
    return replace(policy, model=model)


def adapted(policy: LanguagePolicy, directory: Path) -> LanguagePolicy:
    policy.save(directory)
    return moved(load_policy(directory, lora=AdapterConfig(rank=2)))


def log_probs_of(
    policy: LanguagePolicy, prompts: list, actions: list, temperature: float = 1.0
) -> torch.Tensor:
    return token_log_probs(
        policy.model, prompts, actions, pad_token_id=policy.pad_token_id, temperature=temperature
    ).log_probs


def test_completions_have_the_log_probs_of_the_policy(
    server: FakeServer, client_of: Callable[..., SamplingServer], tiny_policy: LanguagePolicy
) -> None:
    client = client_of(server, temperature=1.5)
    client.sync(tiny_policy, PROMPTS)
    steps: list[tuple[int, int]] = []
    found = client.sample_completions(
        tiny_policy,
        PROMPTS,
        num_completions=6,
        max_new_tokens=8,
        temperature=1.5,
        batch_size=12,
        on_step=lambda *counts: steps.append(counts),
    )
    assert len(found) == 18
    expected = log_probs_of(
        tiny_policy,
        [prompt for prompt in PROMPTS for _ in range(6)],
        [each.token_ids for each in found],
        temperature=1.5,
    )
    for row, each in enumerate(found):
        length = len(each.token_ids)
        assert each.log_probs == pytest.approx(expected[row, :length].tolist(), abs=1e-5)
        assert each.terminated == (each.token_ids[-1] in tiny_policy.end_token_ids)
        assert each.terminated or length == 8
        assert not set(each.token_ids[:-1]) & set(tiny_policy.end_token_ids)
        assert each.text == tiny_policy.decode(each.token_ids)
        assert each.entropies == ()
    assert any(each.terminated for each in found)
    assert steps[-1] == (18, sum(len(each.token_ids) for each in found))

    body = next(sent for route, sent in reversed(server.requests) if route == "/v1/completions")
    assert body["n"] == 6
    assert body["stop_token_ids"] == list(tiny_policy.end_token_ids)
    wanted = {"temperature": 1.5, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert body.items() >= {**wanted, "ignore_eos": True, "logprobs": 0, "return_token_ids": True}.items()
    assert "seed" not in body
    greedy = client.sample_completions(tiny_policy, PROMPTS, max_new_tokens=4, greedy=True)
    assert greedy == client.sample_completions(tiny_policy, PROMPTS, max_new_tokens=4, greedy=True)


@pytest.mark.parametrize("is_adapted", [False, True])
def test_every_transfer_replaces_all_weights(
    server: FakeServer,
    client_of: Callable[..., SamplingServer],
    tiny_policy: LanguagePolicy,
    tmp_path: Path,
    is_adapted: bool,
) -> None:
    first = adapted(tiny_policy, tmp_path / "base") if is_adapted else tiny_policy
    client = client_of(server)
    for policy in (first, moved(first)):
        assert client.sync(policy, PROMPTS) < 1e-5
        (files,) = (tmp_path / "weights").iterdir()  # older files are deleted
        assert (files / "adapter_config.json").exists() == is_adapted
    routes = [route for route, _ in server.requests]
    assert routes.count("/v1/load_lora_adapter") == (2 if is_adapted else 0)
    assert len(server.policies) == 1 + is_adapted
    assert routes.count("/collective_rpc") == routes.count("/reset_prefix_cache") == (0 if is_adapted else 2)
    salts = [body["cache_salt"] for route, body in server.requests if route == "/v1/completions"]
    assert len(set(salts)) == 2


def test_merged_weights_are_sent_if_the_server_takes_no_adapter(
    server: FakeServer,
    client_of: Callable[..., SamplingServer],
    tiny_policy: LanguagePolicy,
    tmp_path: Path,
) -> None:
    server.missing.add("/v1/load_lora_adapter")
    policy = adapted(tiny_policy, tmp_path / "base")
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    assert client_of(server).sync(policy, *SHORT) < 1e-5
    assert all(torch.equal(weight, before[name]) for name, weight in policy.model.state_dict().items())
    with pytest.raises(ServerError, match=r"load_lora_adapter: the server does not have this route"):
        client_of(server, sync="adapter").sync(policy, *SHORT)


def test_no_adapter_is_added_to_a_model_with_merged_weights(
    server: FakeServer,
    client_of: Callable[..., SamplingServer],
    tiny_policy: LanguagePolicy,
    tmp_path: Path,
) -> None:
    server.missing.add("/v1/load_lora_adapter")
    first = client_of(server, tolerance=100.0)  # the probe must not be needed
    policy = adapted(tiny_policy, tmp_path / "base")
    first.sync(policy, *SHORT)
    server.missing.clear()
    for client in (first, client_of(server, tolerance=100.0)):  # the second one stands for a resumed run
        assert client.sync(moved(policy), *SHORT) < 1e-5
    assert len(server.policies) == 1


def test_adapter_is_loaded_once_if_the_answer_is_lost(
    server: FakeServer,
    client_of: Callable[..., SamplingServer],
    tiny_policy: LanguagePolicy,
    tmp_path: Path,
) -> None:
    server.lost.add("/v1/load_lora_adapter")
    policy = adapted(tiny_policy, tmp_path / "base")
    assert client_of(server, sync="adapter").sync(policy, *SHORT) < 1e-5
    assert len(server.policies) == 2
    # a resumed run unloads the adapters of the earlier process
    assert client_of(server).sync(moved(policy), *SHORT) < 1e-5
    assert len(server.policies) == 2
    assert len([*(tmp_path / "weights").iterdir()]) == 1


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_quantized_weights_are_sent_in_full(
    client_of: Callable[..., SamplingServer], tiny_policy: LanguagePolicy, tmp_path: Path
) -> None:
    tiny_policy.save(tmp_path / "base")
    policy = moved(load_policy(tmp_path / "base", load_in_4bit=True, lora=AdapterConfig(rank=2)))
    write_served_model(policy, tmp_path / "served")
    with serving(FakeServer(load_policy(tmp_path / "served"))) as fake:
        for sync in ("adapter", "disk"):
            assert client_of(fake, sync=sync).sync(policy, *SHORT) < 1e-5


def test_hub_is_not_asked_when_an_adapter_is_written(
    server: FakeServer,
    client_of: Callable[..., SamplingServer],
    tiny_policy: LanguagePolicy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *each: asked.append(each)
    )
    policy = adapted(tiny_policy, tmp_path / "base")
    policy.model.peft_config["default"].base_model_name_or_path = "somebody/model"
    assert client_of(server, sync="adapter").sync(policy, *SHORT) < 1e-5
    assert not asked


def test_weights_are_transferred_if_they_have_changed(
    server: FakeServer, client_of: Callable[..., SamplingServer], tiny_policy: LanguagePolicy
) -> None:
    def num_transfers() -> int:
        return [route for route, _ in server.requests].count("/collective_rpc")

    client = client_of(server, sync_every=2)
    difference = client.sync(tiny_policy, *SHORT)
    first, second = (client.before_batch(tiny_policy, *SHORT) for _ in range(2))
    assert num_transfers() == 1
    assert first["server/probe_difference"] == difference
    assert [first["server/num_batches_since_sync"], second["server/num_batches_since_sync"]] == [0, 1]
    assert client.before_batch(tiny_policy, *SHORT)["server/num_batches_since_sync"] == 0
    assert num_transfers() == 2
    client.expire()
    assert client.before_batch(tiny_policy, *SHORT)["server/num_batches_since_sync"] == 0
    assert num_transfers() == 3


def test_probe_continues_after_end_tokens_within_the_context(
    server: FakeServer, client_of: Callable[..., SamplingServer], tiny_policy: LanguagePolicy
) -> None:
    client = client_of(server)
    client.sync(tiny_policy, PROMPTS, 3)
    probes = [body for route, body in server.requests if route == "/v1/completions"]
    assert {body["max_tokens"] for body in probes} == {3}
    # a policy that is certain to end at once has nearly equal log-probabilities with other weights
    assert all(body["stop_token_ids"] == [] for body in probes)
    found = client.sample_completions(tiny_policy, PROMPTS, num_completions=9, max_new_tokens=8)
    assert any(each.terminated for each in found)


def test_server_is_checked_without_a_change(
    server: FakeServer, client_of: Callable[..., SamplingServer]
) -> None:
    client = client_of(server)
    assert client.check(64) == f"{BASE} at {server.url}, with a context of 64 tokens"
    with pytest.raises(
        ServerError, match=r"at most 64 tokens for a prompt .* may need 65; .*--max-model-len"
    ):
        client.check(65)
    assert {route for route, _ in server.requests} == {"/v1/models"}


def test_files_of_earlier_processes_are_deleted_and_others_are_kept(
    server: FakeServer,
    client_of: Callable[..., SamplingServer],
    tiny_policy: LanguagePolicy,
    tmp_path: Path,
) -> None:
    weights = tmp_path / "weights"
    for name in ("model", "llm_reinforce-0-1.partial", "llm_reinforce-0-1"):
        (weights / name).mkdir(parents=True)
    client_of(server).sync(tiny_policy, *SHORT)
    kept = {each.name for each in weights.iterdir()}
    assert len(kept) == 2
    assert "model" in kept


def test_weights_that_cannot_be_written_are_reported(
    server: FakeServer,
    client_of: Callable[..., SamplingServer],
    tiny_policy: LanguagePolicy,
    tmp_path: Path,
) -> None:
    (tmp_path / "weights").write_text("a file, not a directory")
    with pytest.raises(ServerError, match=r"weights/.*: the weights cannot be written \(.*free space"):
        client_of(server).sync(tiny_policy, PROMPTS)


def test_output_layer_is_a_tensor_of_its_own(
    server: FakeServer,
    client_of: Callable[..., SamplingServer],
    tiny_policy: LanguagePolicy,
    tmp_path: Path,
) -> None:
    model = tiny_policy.model
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert client_of(server).sync(tiny_policy, *SHORT) < 1e-5
    assert model.config.tie_word_embeddings
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    (files,) = (tmp_path / "weights").iterdir()
    assert not json.loads((files / "config.json").read_text())["tie_word_embeddings"]


def test_an_output_layer_that_was_not_replaced_is_noticed(
    server: FakeServer, client_of: Callable[..., SamplingServer], tiny_policy: LanguagePolicy
) -> None:
    client = client_of(server)
    client.sync(tiny_policy, PROMPTS)
    server.skips_weights = lambda name: "lm_head" in name
    with pytest.raises(ServerError, match=r"differ from those of the trainer by [0-9.]+ nats on average"):
        client.sync(moved(tiny_policy), PROMPTS)
    # after a small step, only the tolerance decides
    assert client.probe(moved(tiny_policy, 1e-3), PROMPTS) > 1e-5


CHOICE = {"index": 0, "token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0, -1.0]}}
NONSENSE = {
    "no JSON": ("<html>busy</html>", "not JSON"),
    "no choices": ('{"object": "error"}', "no list of choices"),
    "too few": ({"choices": []}, "has 0 choices, but 1 completions"),
    "no tokens": ({"choices": [CHOICE | {"token_ids": None}]}, "has no token_ids"),
    "no log-probs": ({"choices": [CHOICE | {"logprobs": None}]}, "has no logprobs"),
    "infinite": ({"choices": [CHOICE | {"logprobs": {"token_logprobs": [-1.0, float("-inf")]}}]}, "finite"),
    "a token more": ({"choices": [CHOICE | {"token_ids": [5, 6, 5]}]}, "2 log-probabilities for 3 tokens"),
    "other model": ({"choices": [CHOICE], "model": "other"}, "is from the model 'other', but 'served'"),
    "other prompt": ({"choices": [CHOICE | {"prompt_token_ids": [9]}]}, "another prompt"),
    "cut": ({"choices": [CHOICE]}, "cut off after 2 of 8 tokens"),
    "unknown token": (
        {"choices": [{**CHOICE, "token_ids": [99] * 8, "logprobs": {"token_logprobs": [-1.0] * 8}}]},
        "outside the vocabulary",
    ),
    "after the end": (
        {"choices": [CHOICE | {"token_ids": ["end", 6]}]},
        "continues after an end token",
    ),
}


def test_nonsense_is_rejected(
    server: FakeServer, client_of: Callable[..., SamplingServer], tiny_policy: LanguagePolicy
) -> None:
    client = client_of(server)
    client.sync(tiny_policy, *SHORT)
    for answer, message in NONSENSE.values():
        text = answer if isinstance(answer, str) else json.dumps(answer)
        server.answers["/v1/completions"] = text.replace('"end"', str(tiny_policy.end_token_ids[0]))
        with pytest.raises(ServerError, match=message) as raised:
            client.sample_completions(tiny_policy, PROMPTS[:1], max_new_tokens=8)
        assert server.url in str(raised.value)
        assert raised.value.can_resume


def test_faults_of_the_server_have_messages(
    server: FakeServer,
    client_of: Callable[..., SamplingServer],
    tiny_policy: LanguagePolicy,
    tmp_path: Path,
) -> None:
    client = client_of(server)
    for routes, status, message in (
        ("/collective_rpc", 404, "does not have this route or model .*; start the server with"),
        ("/collective_rpc", 400, r"rejected the request \(status 400, .*a fault"),
        ("/v1/completions", 500, r"2 attempts failed \(status 500, .*a fault"),
    ):
        server.statuses = {routes: status}
        with pytest.raises(ServerError, match=message) as raised:
            client.sync(tiny_policy, *SHORT)
        assert "so this directory has to exist" in str(raised.value) or routes == "/v1/completions"
    server.statuses = {}
    server.is_hanging = True
    num_requests = len(server.requests)
    with pytest.raises(ServerError, match=r"did not answer within 0.2 seconds"):
        client_of(server, timeout=0.2).sync(adapted(tiny_policy, tmp_path / "base"), *SHORT)
    assert len(server.requests) == num_requests + 1  # `disk` is not tried, since it would take as long
    gone = SamplingServer(
        ServerConfig(url="http://127.0.0.1:9"), temperature=1.0, is_half=False, directory=None
    )
    with pytest.raises(ServerError, match=r"2 attempts failed \(no connection: .*llm-reinforce serve"):
        gone.sync(tiny_policy, *SHORT)


def test_sampling_can_be_stopped_while_the_server_computes(
    server: FakeServer,
    client_of: Callable[..., SamplingServer],
    tiny_policy: LanguagePolicy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class StopError(Exception):
        pass

    def stop(*counts: int) -> None:
        raise StopError(counts)

    monkeypatch.setattr("llm_reinforce.server.parallel.WAIT", 0.01)
    client = client_of(server)
    client.sync(tiny_policy, *SHORT)
    server.is_hanging = True
    with pytest.raises(StopError, match=r"\(0, 0\)"):
        client.sample_completions(tiny_policy, PROMPTS, max_new_tokens=4, on_step=stop)


def test_addresses_and_keys(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(url: str) -> Any:
        return HttpClient(ServerConfig(url=url).url, timeout=5.0).get_json("/v1/models")["data"][0]["id"]

    server.prefix = "/vllm"
    assert names(f"{server.url}/vllm/") == BASE
    with pytest.raises(ServerError, match="does not have this route"):
        names(server.url)
    assert server.keys == [None] * 2
    monkeypatch.setenv("VLLM_API_KEY", "key of the server\n")
    names(f"{server.url}/vllm")
    assert server.keys[-1] == "Bearer key of the server"
    monkeypatch.setenv("VLLM_API_KEY", "secret\nkey")
    with pytest.raises(
        ServerError, match=r"^VLLM_API_KEY: the key in this environment variable has"
    ) as raised:
        names(f"{server.url}/vllm")
    assert "secret" not in str(raised.value)
    monkeypatch.delenv("VLLM_API_KEY")
    for status, message in ((307, "redirected the request"), (401, "rejected the key .*; set VLLM_API_KEY")):
        server.statuses["/v1/models"] = status
        with pytest.raises(ServerError, match=message):
            names(f"{server.url}/vllm")

    class Recorded(HTTPConnection):
        def connect(self) -> None:
            seen.append((self.host, self.port))
            raise ConnectionRefusedError

    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(http_client, "HTTPConnection", Recorded)
    with pytest.raises(ServerError, match="no connection"):
        names("http://[::1]")
    assert set(seen) == {("::1", 80)}


def test_time_limit_is_that_of_the_whole_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                time.sleep(0.4)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
                done.wait(10)

        done = threading.Event()
        threading.Thread(target=answer, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(ServerError, match=r"did not answer within 0.6 seconds"):
            HttpClient(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=0.6).get_json("/v1/models")
        assert time.monotonic() - started < 0.9
        done.set()


class Enumerating(FakeServer):
    """A server that returns all completions of at most two tokens, with their log-probabilities."""

    def choices(self, body: Any) -> list[dict[str, Any]]:
        policy = self.policies[BASE]
        (end,) = body["stop_token_ids"]
        size = policy.model.config.vocab_size
        firsts = [token for token in range(size) if token != end]
        actions = [(end,), *itertools.product(firsts, range(size))]
        log_probs = log_probs_of(policy, [tuple(body["prompt"])] * len(actions), actions)
        return [
            {
                "index": index,
                "token_ids": list(tokens),
                "logprobs": {"token_logprobs": log_probs[index, : len(tokens)].tolist()},
            }
            for index, tokens in enumerate(actions)
        ]


@pytest.mark.parametrize("level", ["sequence", "per_decision"])
def test_importance_weights_correct_a_stale_server_exactly(
    exact_policy: Callable[..., LanguagePolicy], client_of: Callable[..., SamplingServer], level: Any
) -> None:
    stale = exact_policy("01")
    policy = moved(stale)
    size = policy.model.config.vocab_size
    with serving(Enumerating(stale)) as fake:
        client = client_of(fake)
        client.served = Served(BASE, "old")  # the server did not get the weights
        found = client.sample_completions(
            policy, [(1,)], num_completions=1 + (size - 1) * size, max_new_tokens=2
        )
    prompts, actions = [(1,)] * len(found), [each.token_ids for each in found]
    lengths = torch.tensor([len(each) for each in actions])
    mask = torch.arange(2) < lengths[:, None]
    behavior = torch.zeros(len(found), 2, dtype=torch.float64)
    for row, each in enumerate(found):
        behavior[row, : len(each.log_probs)] = torch.tensor(each.log_probs, dtype=torch.float64)
    rewards = torch.tensor([sum(each) % 3 for each in actions], dtype=torch.float64)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        policy.model.zero_grad()
        loss.backward()
        return torch.cat([each.grad.flatten() for each in policy.model.parameters()])

    own = log_probs_of(policy, prompts, actions)
    totals = own.masked_fill(~mask, 0.0).sum(dim=1)
    assert float(totals.detach().exp().sum()) == pytest.approx(1.0)
    truth = gradient(-(totals.exp() * rewards).sum())

    def estimated(importance: ImportanceConfig | None) -> torch.Tensor:
        """Return the expectation of the update over the completions that the server samples."""
        chances = behavior.masked_fill(~mask, 0.0).sum(dim=1).exp()
        advantages = (chances * rewards)[:, None].expand(-1, 2).masked_fill(~mask, 0.0)
        settings = ReinforceConfig(baseline="none", importance=importance)
        scores = log_probs_of(policy, prompts, actions)
        return gradient(surrogate_loss(settings, scores, behavior, advantages, mask, 1.0).loss)

    corrected = estimated(ImportanceConfig(level=level, limit=None))
    torch.testing.assert_close(corrected, truth, rtol=1e-9, atol=1e-12)
    assert float((estimated(None) - truth).norm() / truth.norm()) > 0.1
