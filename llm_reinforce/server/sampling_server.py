"""Transfer the weights of a policy to a vLLM server, check the transfer, and sample on the server."""

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from llm_reinforce.config import ServerConfig
from llm_reinforce.policy import (
    Activations,
    Completion,
    LanguagePolicy,
    OnStep,
    TokenIds,
    token_log_probs,
)
from llm_reinforce.server.http_client import HttpClient, ServerError
from llm_reinforce.server.parallel import in_parallel
from llm_reinforce.server.protocol import (
    COMPLETIONS,
    AnswerError,
    SampledTokens,
    completion_request,
    mean_difference,
    read_completions,
    read_model,
)
from llm_reinforce.server.weight_files import has_adapter, write_adapter, write_all_weights

Value = TypeVar("Value")

NAME = "llm_reinforce-"  # prefix of the names of adapters and directories
MAX_COMPLETIONS = 256  # number of completions requested at the same time if sampling.batch_size is not set
PROBE_TOKENS = 16  # maximum number of tokens of a completion that checks the weights of the server
SERVER_METRICS = ("server/probe_difference", "server/sync_time", "server/num_batches_since_sync")
ROUNDING, ROUNDING_IN_HALF = 1e-3, 0.05  # default tolerances in full and in half precision, in nats
PARTLY = (
    "the server does not have all of the trainer's weights; restart the server with `llm-reinforce serve`, "
    "then resume the run. If the difference is due to rounding, increase sampling.server.tolerance"
)


class Served(NamedTuple):
    """The weights from which a server samples.

    Attributes:
        model: name of the model or adapter on the server.
        version: name of the weights. Each transfer gives the weights a new name.
    """

    model: str
    version: str


class SamplingServer:
    """A vLLM server that samples from the policy of a run.

    Args:
        settings: settings of the server.
        temperature: sampling temperature of the run. The weights of the server are checked at this
            temperature.
        is_half: True if the policy is computed in half precision. The default tolerance is then larger.
        directory: directory to which the weights are written, and from which the server reads them. None: a
            temporary directory.
    """

    def __init__(
        self, settings: ServerConfig, *, temperature: float, is_half: bool, directory: Path | None
    ) -> None:
        self.settings, self.temperature = settings, temperature
        self.client = HttpClient(settings.url, settings.timeout)
        self.tolerance = settings.tolerance or (ROUNDING_IN_HALF if is_half else ROUNDING)
        self._temporary = None if directory else tempfile.TemporaryDirectory(prefix="llm_reinforce_server_")
        self.directory = (directory or Path(self._temporary.name if self._temporary else "")).absolute()
        # The token makes the names of this process unique. The server may still have adapters, and cached
        # keys and values, of an earlier process of the run.
        self._token, self._num_transfers = uuid.uuid4().hex[:8], 0
        self.served: Served | None = None  # set by `sync`; other processes get it from the main process
        # number of batches since the latest transfer; None: a transfer is needed before the next batch
        self._age: int | None = None

    def before_batch(self, policy: LanguagePolicy, prompts: Sequence[TokenIds]) -> Mapping[str, float]:
        """Transfer the weights if a transfer is due before the next batch.

        Args:
            policy: the policy of the trainer.
            prompts: prompts with which the transfer is checked.

        Returns:
            metrics of the server by name, such as the number of batches since the latest transfer.

        Raises:
            ServerError: if the transfer fails, or if the server then has other weights than the policy.
        """
        if self._age is not None and self._age + 1 < self.settings.sync_every:
            self._age += 1
            return {"server/num_batches_since_sync": self._age}
        started = time.perf_counter()
        difference = self.sync(policy, prompts)
        self._age = 0
        return {
            "server/probe_difference": difference,
            "server/sync_time": time.perf_counter() - started,
            "server/num_batches_since_sync": 0,
        }

    def sync(self, policy: LanguagePolicy, prompts: Sequence[TokenIds]) -> float:
        """Transfer the weights, and compare log-probabilities of the server with those of the trainer.

        With `sync: auto`, all weights are transferred if the transfer of the adapter fails.

        Args:
            policy: the policy of the trainer.
            prompts: prompts for which log-probabilities are compared.

        Returns:
            the mean absolute difference between the log-probabilities of server and trainer, in nats.

        Raises:
            ServerError: if the transfer fails, or if the difference exceeds the tolerance.
        """
        is_adapted = has_adapter(policy.model)
        faults = []
        for way in self._ways(is_adapted=is_adapted):
            try:
                self._transfer(policy, way)
                difference = self.probe(policy, prompts)
            except ServerError as error:
                faults.append(f"sync {way}: {error}")
                continue
            if difference <= self.tolerance:
                return difference
            faults.append(
                f"{self.settings.url}: sync {way}: after the transfer, the log-probabilities of the server "
                f"differ from those of the trainer by {difference:.2g} nats on average (tolerance "
                f"{self.tolerance:g}); {PARTLY}"
            )
        raise ServerError("\n".join(faults))

    def _ways(self, *, is_adapted: bool) -> Sequence[str]:
        if self.settings.sync == "auto":
            return ("adapter", "disk") if is_adapted else ("disk",)
        if self.settings.sync == "adapter" and not is_adapted:
            raise ServerError(
                "sampling.server.sync: adapter needs a policy with a LoRA adapter; set policy.lora, or use "
                "sync: disk"
            )
        return (self.settings.sync,)

    def _transfer(self, policy: LanguagePolicy, way: str) -> None:
        """Write the weights to a new directory, and make the server load them.

        Args:
            policy: the policy of the trainer.
            way: "adapter" to transfer the LoRA adapter, "disk" to transfer all weights.
        """
        self._num_transfers += 1
        base = self._read(read_model, self.client.get_json("/v1/models"), "/v1/models")
        version, old = f"{NAME}{self._token}-{self._num_transfers}", self.served
        files = self.directory / version
        self.directory.mkdir(parents=True, exist_ok=True)
        if way == "adapter":
            write_adapter(policy, files)
            self.client.request(
                "POST", "/v1/load_lora_adapter", {"lora_name": version, "lora_path": str(files)}
            )
            self.served = Served(version, version)
        else:
            write_all_weights(policy, files)
            arguments = {"method": "reload_weights", "kwargs": {"weights_path": str(files)}}
            self.client.request("POST", "/collective_rpc", arguments)
            self.client.request("POST", "/reset_prefix_cache")
            self.served = Served(base, version)
        if old is not None and old.model != base:
            with suppress(ServerError):  # a restarted server does not have the old adapter
                self.client.request("POST", "/v1/unload_lora_adapter", {"lora_name": old.model})
        for other in self.directory.glob(f"{NAME}*"):  # also directories of earlier processes
            if other != files:
                shutil.rmtree(other, ignore_errors=True)

    @torch.no_grad()
    def probe(self, policy: LanguagePolicy, prompts: Sequence[TokenIds]) -> float:
        """Return the mean absolute difference between log-probabilities of server and policy, in nats.

        The server samples a short completion of each prompt, and the policy computes the log-probabilities of
        the sampled tokens. Additional sampling settings of the server, such as top-k, also increase the
        difference.

        Raises:
            ServerError: if the server does not answer, or if its answer cannot be used.
        """
        sampled = self.sample_completions(
            policy, prompts, max_new_tokens=PROBE_TOKENS, temperature=self.temperature
        )
        expected = token_log_probs(
            policy.model,
            prompts,
            [completion.token_ids for completion in sampled],
            pad_token_id=policy.pad_token_id,
            temperature=self.temperature,
        ).log_probs
        own = [
            value
            for row, completion in zip(expected.tolist(), sampled, strict=True)
            for value in row[: len(completion.token_ids)]
        ]
        return mean_difference([value for each in sampled for value in each.log_probs], own)

    def sample_completions(
        self,
        policy: LanguagePolicy,
        prompts: Sequence[TokenIds],
        *,
        num_completions: int = 1,
        max_new_tokens: int,
        temperature: float = 1.0,
        greedy: bool = False,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        activations: Activations | None = None,
        on_step: OnStep | None = None,
    ) -> list[Completion]:
        """Sample completions on the server. Arguments and result are those of `policy.sample_completions`.

        The server computes the recorded log-probabilities and draws the random numbers, so `generator` is not
        used. The completions have no entropies, and no `activations` are stored.

        Raises:
            ServerError: if the server does not answer, or if its answer cannot be used.
        """
        served = self.served
        assert served is not None  # set by `sync`
        embedding: Any = policy.model.get_input_embeddings()  # type: ignore[operator]
        vocabulary_size = int(embedding.num_embeddings)

        def request(prompt: TokenIds) -> list[SampledTokens]:
            body = completion_request(
                served.model,
                prompt,
                num_completions=num_completions,
                max_new_tokens=max_new_tokens,
                temperature=0.0 if greedy else temperature,
                end_token_ids=policy.end_token_ids,
                version=served.version,
            )
            answer = self.client.post_json(COMPLETIONS, body)
            return self._read(
                lambda value: read_completions(
                    value,
                    prompt,
                    num_completions=num_completions,
                    max_new_tokens=max_new_tokens,
                    end_token_ids=policy.end_token_ids,
                    vocabulary_size=vocabulary_size,
                ),
                answer,
                COMPLETIONS,
            )

        found: dict[int, list[SampledTokens]] = {}
        num_tokens = 0
        at_once = max(1, (batch_size or MAX_COMPLETIONS) // num_completions)
        for index, sampled in in_parallel(request, prompts, at_once):
            found[index] = sampled
            num_tokens += sum(len(each.token_ids) for each in sampled)
            if on_step is not None:
                on_step(len(found) * num_completions, num_tokens)
        return [
            _completion(policy, prompt, sampled)
            for index, prompt in enumerate(prompts)
            for sampled in found[index]
        ]

    def _read(self, read: Callable[[object], Value], answer: object, route: str) -> Value:
        try:
            return read(answer)
        except AnswerError as error:
            raise ServerError(
                f"{self.settings.url}: the answer to {route} {error}; check that the server is a vLLM that "
                "was started with the command of `llm-reinforce serve`, then resume the run"
            ) from error


def _completion(policy: LanguagePolicy, prompt: TokenIds, sampled: SampledTokens) -> Completion:
    return Completion(
        sampled.token_ids,
        sampled.log_probs,
        (),
        policy.completion_text(prompt, sampled.token_ids),
        terminated=sampled.token_ids[-1] in policy.end_token_ids,
        opened_reasoning=policy.opened_reasoning(prompt),
    )
