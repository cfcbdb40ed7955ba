"""A server that speaks the part of vLLM's protocol that we use, and samples from a policy of ours."""

import copy
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from llm_reinforce.policy import LanguagePolicy, sample_completions

BASE = "served"


class FakeServer:
    """The state of the server, and its faults.

    Attributes:
        policies: policies by the name of the model or adapter.
        requests: route and body of each request.
        keys: header with the key of each request.
        prefix: path before the routes.
        max_length: maximum number of tokens that the server reports.
        missing: routes that the server lacks.
        answers: texts of answers, by route, that replace the correct ones.
        statuses: statuses of answers by route.
        lost: routes whose next answer is lost, after the request was carried out.
        skips_weights: function that returns True for a weight that a reload does not replace.
        is_hanging: if set, answers are not sent until `release` is set.
    """

    def __init__(self, policy: LanguagePolicy) -> None:
        self.policies = {BASE: replace(policy, model=copy.deepcopy(policy.model))}
        self.requests: list[tuple[str, Any]] = []
        self.keys: list[str | None] = []
        self.prefix, self.max_length = "", 64
        self.lost: set[str] = set()
        self.missing: set[str] = set()
        self.answers: dict[str, str] = {}
        self.statuses: dict[str, int] = {}
        self.skips_weights = lambda name: False
        self.is_hanging, self.release = False, threading.Event()
        self.generator, self.lock = torch.Generator().manual_seed(0), threading.Lock()
        self.url = ""

    def answer(self, path: str, body: Any) -> tuple[int, str]:
        route = path.removeprefix(self.prefix)
        with self.lock:
            self.requests.append((route, body))
            if self.is_hanging:
                self.release.wait(10)
            if self.release.is_set():  # a thread that still computes with torch at the exit would abort it
                return 500, ""
            if route in self.missing or not path.startswith(self.prefix):
                return 404, '{"detail":"Not Found"}'
            if route in self.statuses:
                return self.statuses[route], '{"error": "a fault"}'
            if route in self.answers:
                return 200, self.answers[route]
            if route == "/v1/load_lora_adapter" and body["lora_name"] in self.policies:
                return 400, '{"error": "has already been loaded"}'
            text = self._answer(route, body)
            if route in self.lost:
                self.lost.remove(route)
                return 500, ""
            return 200, text

    def _answer(self, route: str, body: Any) -> str:
        if route == "/v1/models":
            models = [{"id": name, "parent": None if name == BASE else BASE} for name in self.policies]
            models[0]["max_model_len"] = self.max_length
            return json.dumps({"data": models})
        if route == "/collective_rpc":
            self._reload(body["kwargs"]["weights_path"])
        elif route == "/v1/load_lora_adapter":
            base = self.policies[BASE]
            model = PeftModel.from_pretrained(copy.deepcopy(base.model), body["lora_path"]).eval()
            self.policies[body["lora_name"]] = replace(base, model=model)
            return f"Success: LoRA adapter '{body['lora_name']}' added successfully."
        elif route == "/v1/unload_lora_adapter":
            del self.policies[body["lora_name"]]
        elif route == "/v1/completions":
            return json.dumps({"model": body["model"], "choices": self.choices(body)})
        return ""

    def _reload(self, path: str) -> None:
        own = self.policies[BASE]
        new = AutoModelForCausalLM.from_pretrained(path, dtype=next(own.model.parameters()).dtype).eval()
        for name, weight in new.state_dict().items():
            if self.skips_weights(name):
                weight.copy_(own.model.state_dict()[name])
        self.policies[BASE] = replace(own, model=new)

    def choices(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        policy = replace(self.policies[body["model"]], end_token_ids=tuple(body["stop_token_ids"]))
        completions = sample_completions(
            policy,
            [tuple(body["prompt"])],
            num_completions=body["n"],
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"] or 1.0,
            greedy=body["temperature"] == 0,
            generator=self.generator,
        )
        return [
            {
                "index": index,
                "token_ids": list(each.token_ids),
                "prompt_token_ids": body["prompt"],
                "logprobs": {"token_logprobs": list(each.log_probs)},
                "finish_reason": "stop" if each.terminated else "length",
            }
            for index, each in enumerate(completions)
        ]


@contextmanager
def serving(server: FakeServer) -> Iterator[FakeServer]:
    """Serve on a free port of the loopback interface within the context."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(None)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._send(json.loads(content) if content else None)

        def _send(self, body: Any) -> None:
            server.keys.append(self.headers.get("Authorization"))
            status, text = server.answer(self.path, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # the client of a hanging server has left

    with Quiet(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_port}"
        try:
            yield server
        finally:
            server.release.set()
            http.shutdown()
            thread.join()
