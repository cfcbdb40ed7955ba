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
from llm_reinforce.durable_files import PARTIAL
from llm_reinforce.errors import InputError
from llm_reinforce.policy import (
    Activations,
    Completion,
    LanguagePolicy,
    OnStep,
    TokenIds,
    token_log_probs,
)
from llm_reinforce.server.http_client import HttpClient, NoAnswerError, ServerError
from llm_reinforce.server.parallel import in_parallel
from llm_reinforce.server.protocol import (
    COMPLETIONS,
    AnswerError,
    SampledTokens,
    ServedModels,
    completion_request,
    mean_difference,
    read_completions,
    read_models,
)
from llm_reinforce.server.weight_files import has_adapter, write_adapter, write_all_weights

Value = TypeVar("Value")

NAME = "llm_reinforce-"  # prefix of the names of adapters and directories
MAX_COMPLETIONS = 256  # number of completions requested at the same time if sampling.batch_size is not set
PROBE_TOKENS = 16  # maximum number of tokens of a completion that checks the weights of the server
SERVER_METRICS = ("server/probe_difference", "server/sync_time", "server/num_batches_since_sync")
ROUNDING, ROUNDING_IN_HALF = 1e-3, 0.05  # default tolerances in full and in half precision, in nats
PARTLY = (
    "the server probably lacks some of the trainer's weights; restart the server with `llm-reinforce serve`, "
    "then resume the run. If the difference is only due to rounding, increase sampling.server.tolerance"
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
        directory: directory of this run to which the weights are written, and from which the server reads
            them. Files of earlier processes of the run are deleted. None: a temporary directory, in
            `settings.directory` if it is set.

    Raises:
        InputError: if the temporary directory cannot be created.
    """

    def __init__(
        self, settings: ServerConfig, *, temperature: float, is_half: bool, directory: Path | None
    ) -> None:
        self.settings, self.temperature = settings, temperature
        self.client = HttpClient(settings.url, settings.timeout)
        self.tolerance = settings.tolerance or (ROUNDING_IN_HALF if is_half else ROUNDING)
        self._temporary = None if directory else _temporary_directory(settings.directory)
        self.directory = (directory or Path(self._temporary.name if self._temporary else "")).absolute()
        # The token makes the names of this process unique. The server may still have adapters, and cached
        # keys and values, of an earlier process of the run.
        self._token, self._num_transfers = uuid.uuid4().hex[:8], 0
        self.served: Served | None = None  # set by `sync`; other processes get it from the main process
        # number of batches since the latest transfer; None: a transfer is needed before the next batch
        self._num_batches: int | None = None
        self._transfer_metrics: Mapping[str, float] = {}
        # an adapter must not be added to a model into which an earlier version of the adapter was merged
        self._has_merged = any(map(_has_whole_weights, self.directory.glob(f"{NAME}*")))

    def check(self, num_tokens: int) -> str:
        """Check the server without changing it, and return one line about its model.

        Args:
            num_tokens: largest number of tokens of a prompt with its completion.

        Raises:
            ServerError: if the server does not answer, or if its context is too short.
        """
        models = self._models()
        if models.max_length is None:
            return f"{models.base} at {self.settings.url}"
        if models.max_length < num_tokens:
            raise ServerError(
                f"{self.settings.url}: the server accepts at most {models.max_length:,} tokens for a prompt "
                f"with its completion, but this run may need {num_tokens:,}; restart the server with a "
                "larger --max-model-len, or reduce sampling.max_new_tokens"
            )
        return f"{models.base} at {self.settings.url}, with a context of {models.max_length:,} tokens"

    def expire(self) -> None:
        """Require a transfer before the next batch, because the policy or the server may have changed."""
        self._num_batches = None

    def before_batch(
        self, policy: LanguagePolicy, prompts: Sequence[TokenIds], num_tokens: int = PROBE_TOKENS
    ) -> Mapping[str, float]:
        """Transfer the weights if a transfer is due before the next batch.

        Args:
            policy: the policy of the trainer.
            prompts: prompts with which the transfer is checked.
            num_tokens: maximum number of tokens of a completion. A transfer is checked with at most
                `PROBE_TOKENS` tokens.

        Returns:
            metrics of the server by name, such as the number of batches since the latest transfer.

        Raises:
            ServerError: if the transfer fails, or does not give the server the weights of the policy.
        """
        if self._num_batches is None or self._num_batches >= self.settings.sync_every:
            self.sync(policy, prompts, num_tokens)
        age = self._num_batches or 0
        self._num_batches = age + 1
        return {**(self._transfer_metrics if age == 0 else {}), "server/num_batches_since_sync": age}

    def sync(
        self, policy: LanguagePolicy, prompts: Sequence[TokenIds], num_tokens: int = PROBE_TOKENS
    ) -> float:
        """Transfer the weights, and compare log-probabilities of the server with those of the trainer.

        With `sync: auto`, all weights are transferred if the transfer of the adapter fails. The model of the
        server then contains the merged adapter, so all later transfers also consist of all weights.

        Args:
            policy: the policy of the trainer.
            prompts: prompts for which log-probabilities are compared.
            num_tokens: maximum number of tokens of a completion. At most `PROBE_TOKENS` tokens are sampled.

        Returns:
            the mean absolute difference between the log-probabilities of server and trainer, in nats.

        Raises:
            ServerError: if the transfer fails, or if the difference exceeds the tolerance.
        """
        self.expire()
        started, faults = time.perf_counter(), []
        for way in self._ways(is_adapted=has_adapter(policy.model)):
            try:
                self._transfer(policy, way)
                difference = self.probe(policy, prompts, num_tokens)
            except NoAnswerError:
                raise
            except ServerError as error:
                faults.append(f"sync {way}: {error}")
                continue
            if difference <= self.tolerance:
                self._num_batches = 0
                self._transfer_metrics = {
                    "server/probe_difference": difference,
                    "server/sync_time": time.perf_counter() - started,
                }
                return difference
            faults.append(
                f"{self.settings.url}: sync {way}: after the transfer, the log-probabilities of the server "
                f"differ from those of the trainer by {difference:.2g} nats on average (tolerance "
                f"{self.tolerance:g}); {PARTLY}"
            )
        raise ServerError("\n".join(faults))

    def _ways(self, *, is_adapted: bool) -> Sequence[str]:
        if self.settings.sync == "auto":
            return ("adapter", "disk") if is_adapted and not self._has_merged else ("disk",)
        if self.settings.sync == "adapter" and not is_adapted:
            raise ServerError(
                "`sampling.server.sync: adapter` needs a policy with a LoRA adapter; set policy.lora, or use "
                "`sync: disk`"
            )
        return (self.settings.sync,)

    def _models(self) -> ServedModels:
        return self._read(read_models, self.client.get_json("/v1/models"), "/v1/models")

    def _transfer(self, policy: LanguagePolicy, way: str) -> None:
        """Write the weights to a new directory, and make the server load them.

        Args:
            policy: the policy of the trainer.
            way: "adapter" to transfer the LoRA adapter, "disk" to transfer all weights.
        """
        self._num_transfers += 1
        models = self._models()
        version = f"{NAME}{self._token}-{self._num_transfers}"
        files = self.directory / version
        try:
            for unfinished in self.directory.glob(f"{NAME}*{PARTIAL}"):
                shutil.rmtree(unfinished, ignore_errors=True)
            (write_adapter if way == "adapter" else write_all_weights)(policy, files)
        except OSError as error:
            raise ServerError(
                f"{files}: the weights cannot be written ({error.strerror or error}); free space, correct "
                "the permissions or choose another sampling.server.directory, then resume the run"
            ) from error
        try:
            if way == "adapter":
                self._load_adapter(version, files)
            else:
                self._has_merged = True
                arguments = {"method": "reload_weights", "kwargs": {"weights_path": str(files)}}
                self.client.request("POST", "/collective_rpc", arguments)
                self.client.request("POST", "/reset_prefix_cache")
        except NoAnswerError:
            raise
        except ServerError as error:
            raise ServerError(
                f"{error}. The server reads the weights from {files}, so this directory has to exist under "
                "this path on the machine of the server"
            ) from error
        self.served = Served(version if way == "adapter" else models.base, version)
        for adapter_name in models.adapters:  # also adapters from earlier processes of the run
            if adapter_name.startswith(NAME):
                with suppress(ServerError):
                    self.client.request("POST", "/v1/unload_lora_adapter", {"lora_name": adapter_name})
        for other in self.directory.glob(f"{NAME}*"):  # also files of earlier processes
            if other != files:
                shutil.rmtree(other, ignore_errors=True)

    def _load_adapter(self, version: str, files: Path) -> None:
        adapter = {"lora_name": version, "lora_path": str(files)}
        try:
            self.client.request("POST", "/v1/load_lora_adapter", adapter)
        except NoAnswerError:
            raise
        except ServerError:
            # if only the answer to the first attempt was lost, the adapter is loaded already, and the server
            # rejects the second attempt
            if version not in self._models().adapters:
                raise

    @torch.no_grad()
    def probe(
        self, policy: LanguagePolicy, prompts: Sequence[TokenIds], num_tokens: int = PROBE_TOKENS
    ) -> float:
        """Return the mean absolute difference between log-probabilities of server and policy, in nats.

        The server samples a short completion of each prompt, and the policy computes the log-probabilities of
        the sampled tokens. Sampling continues after an end token, because a policy may be almost certain of
        all tokens before it. Log-probabilities of such tokens are close to 0 for the old and the new weights,
        so they would not show a failed transfer. The result is also large if the server has additional
        sampling settings, such as top-k.

        Args:
            policy: the policy of the trainer.
            prompts: prompts for which log-probabilities are compared.
            num_tokens: maximum number of tokens of a completion. At most `PROBE_TOKENS` tokens are sampled.

        Raises:
            ServerError: if the server does not answer, or if its answer cannot be used.
        """
        of_prompts = self._sample(
            policy,
            prompts,
            max_new_tokens=min(num_tokens, PROBE_TOKENS),
            temperature=self.temperature,
            end_token_ids=(),
        )
        sampled = [each for (each,) in of_prompts]
        expected = token_log_probs(
            policy.model,
            prompts,
            [each.token_ids for each in sampled],
            pad_token_id=policy.pad_token_id,
            temperature=self.temperature,
        ).log_probs
        own = [
            value
            for row, each in zip(expected.tolist(), sampled, strict=True)
            for value in row[: len(each.token_ids)]
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
        used. The completions have no entropies, and no `activations` are stored. With `greedy`, the
        log-probabilities are those at temperature 1. `on_step` is called after each answer, and once per
        second while the server computes.

        Raises:
            ServerError: if the server does not answer, or if its answer cannot be used.
        """
        of_prompts = self._sample(
            policy,
            prompts,
            num_completions=num_completions,
            max_new_tokens=max_new_tokens,
            temperature=0.0 if greedy else temperature,
            end_token_ids=policy.end_token_ids,
            batch_size=batch_size,
            on_step=on_step,
        )
        return [
            Completion(
                each.token_ids,
                each.log_probs,
                (),
                policy.completion_text(prompt, each.token_ids),
                terminated=each.token_ids[-1] in policy.end_token_ids,
                opened_reasoning=policy.opened_reasoning(prompt),
            )
            for prompt, sampled in zip(prompts, of_prompts, strict=True)
            for each in sampled
        ]

    def _sample(
        self,
        policy: LanguagePolicy,
        prompts: Sequence[TokenIds],
        *,
        num_completions: int = 1,
        max_new_tokens: int,
        temperature: float,
        end_token_ids: TokenIds,
        batch_size: int | None = None,
        on_step: OnStep | None = None,
    ) -> list[list[SampledTokens]]:
        """Return the sampled tokens of each prompt. With temperature 0, the most likely tokens are taken."""
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
                temperature=temperature,
                end_token_ids=end_token_ids,
                version=served.version,
            )
            answer = self.client.post_json(COMPLETIONS, body)
            return self._read(
                lambda value: read_completions(
                    value,
                    served.model,
                    prompt,
                    num_completions=num_completions,
                    max_new_tokens=max_new_tokens,
                    end_token_ids=end_token_ids,
                    vocabulary_size=vocabulary_size,
                ),
                answer,
                COMPLETIONS,
            )

        found: dict[int, list[SampledTokens]] = {}
        num_tokens = 0

        def report() -> None:
            if on_step is not None:
                on_step(len(found) * num_completions, num_tokens)

        at_once = max(1, (batch_size or MAX_COMPLETIONS) // num_completions)
        for index, sampled in in_parallel(request, prompts, at_once, report):
            found[index] = sampled
            num_tokens += sum(len(each.token_ids) for each in sampled)
            report()
        return [found[index] for index in range(len(prompts))]

    def _read(self, read: Callable[[object], Value], answer: object, route: str) -> Value:
        try:
            return read(answer)
        except AnswerError as error:
            raise ServerError(
                f"{self.settings.url}{route}: {error}; check that the server is a vLLM server "
                "that was started by the command of `llm-reinforce serve`, then resume the run"
            ) from error


def _temporary_directory(parent: str | None) -> tempfile.TemporaryDirectory[str]:
    path = None if parent is None else Path(parent).expanduser()
    try:
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="llm_reinforce_server_", dir=path)
    except OSError as error:
        raise InputError(
            f"sampling.server.directory: no directory can be created in {path or tempfile.gettempdir()} "
            f"({error.strerror or error}); choose another directory"
        ) from error


def _has_whole_weights(directory: Path) -> bool:
    """Return True if the directory has all weights of a model, rather than only an adapter."""
    return (directory / "config.json").exists()
