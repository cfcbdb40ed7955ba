"""The client of a server: requests, answers, transfer of the weights, and its check."""

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_server import BASE, FakeServer, serving

from llm_reinforce.config import AdapterConfig, ImportanceConfig, ReinforceConfig, ServerConfig
from llm_reinforce.policy import LanguagePolicy, load_policy, token_log_probs
from llm_reinforce.server import SamplingServer, Served, ServerError, http_client
from llm_reinforce.training.objective import surrogate_loss

PROMPTS = [(3, 4), (5,), (1, 2, 6)]


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
    assert client_of(server).sync(policy, PROMPTS) < 1e-5
    assert all(torch.equal(weight, before[name]) for name, weight in policy.model.state_dict().items())
    with pytest.raises(ServerError, match=r"load_lora_adapter: the server does not have this route"):
        client_of(server, sync="adapter").sync(policy, PROMPTS)


def test_output_layer_is_a_tensor_of_its_own(
    server: FakeServer,
    client_of: Callable[..., SamplingServer],
    tiny_policy: LanguagePolicy,
    tmp_path: Path,
) -> None:
    model = tiny_policy.model
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert client_of(server).sync(tiny_policy, PROMPTS) < 1e-5
    assert model.config.tie_word_embeddings
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    (files,) = (tmp_path / "weights").iterdir()
    assert not json.loads((files / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize("kept", ["", "lm_head"], ids=["all", "output layer"])
def test_weights_that_were_not_replaced_are_noticed(
    server: FakeServer, client_of: Callable[..., SamplingServer], tiny_policy: LanguagePolicy, kept: str
) -> None:
    client = client_of(server)
    client.sync(tiny_policy, PROMPTS)
    server.skips_weights = lambda name: kept in name
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
    client.sync(tiny_policy, PROMPTS)
    for answer, message in NONSENSE.values():
        text = answer if isinstance(answer, str) else json.dumps(answer)
        server.answers["/v1/completions"] = text.replace('"end"', str(tiny_policy.end_token_ids[0]))
        with pytest.raises(ServerError, match=message) as raised:
            client.sample_completions(tiny_policy, PROMPTS[:1], max_new_tokens=8)
        assert server.url in str(raised.value)
        assert raised.value.can_resume


def test_faults_of_the_server_have_messages(
    server: FakeServer, client_of: Callable[..., SamplingServer], tiny_policy: LanguagePolicy
) -> None:
    client = client_of(server)
    for routes, status, message in (
        ("/collective_rpc", 404, "does not have this route or model .*; start the server with"),
        ("/collective_rpc", 400, r"rejected the request \(status 400, .*a fault"),
        ("/v1/completions", 500, r"2 attempts failed \(status 500, .*a fault"),
    ):
        server.statuses = {routes: status}
        with pytest.raises(ServerError, match=message):
            client.sync(tiny_policy, PROMPTS)
    server.statuses = {}
    server.is_hanging = True
    with pytest.raises(ServerError, match=r"did not answer within 0.2 seconds"):
        client_of(server, timeout=0.2).sync(tiny_policy, PROMPTS)
    gone = SamplingServer(
        ServerConfig(url="http://127.0.0.1:9"), temperature=1.0, is_half=False, directory=None
    )
    with pytest.raises(ServerError, match=r"2 attempts failed \(no connection: .*llm-reinforce serve"):
        gone.sync(tiny_policy, PROMPTS)


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
