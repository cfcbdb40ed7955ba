"""Requests to the route `/v1/completions` of a vLLM server, and checks of the answers."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from llm_reinforce.policy import TokenIds

COMPLETIONS = "/v1/completions"


class SampledTokens(NamedTuple):
    """The tokens of a completion, with their log-probabilities in nats."""

    token_ids: TokenIds
    log_probs: tuple[float, ...]


class ServedModels(NamedTuple):
    """The models of a server.

    Attributes:
        base: name of the model.
        adapters: names of the adapters.
        max_length: maximum number of tokens of a prompt with its completion; None if it is not known.
    """

    base: str
    adapters: tuple[str, ...]
    max_length: int | None


class AnswerError(ValueError):
    """Raised when an answer of the server cannot be used."""


def completion_request(
    model: str,
    prompt: TokenIds,
    *,
    num_completions: int,
    max_new_tokens: int,
    temperature: float,
    end_token_ids: TokenIds,
    version: str,
) -> dict[str, Any]:
    """Return the body of a request for completions of one prompt.

    The request contains every setting that changes the distribution of the tokens. Therefore, the defaults of
    the server and of the model's `generation_config.json` have no effect.

    Args:
        model: name of the model or adapter on the server.
        prompt: token ids of the prompt.
        num_completions: number of completions.
        max_new_tokens: maximum number of tokens of a completion.
        temperature: divisor of the logits. 0: the most likely tokens are taken.
        end_token_ids: token ids that end a completion.
        version: name of the weights. The server does not reuse keys and values that it has cached under
            another name.
    """
    return {
        "model": model,
        "prompt": list(prompt),
        "n": num_completions,
        "max_tokens": max_new_tokens,
        "min_tokens": 0,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": [],
        "stop_token_ids": list(end_token_ids),
        "ignore_eos": True,  # only the tokens in `stop_token_ids` end a completion
        "logprobs": 0,  # log-probabilities of the sampled tokens only
        "return_token_ids": True,
        "skip_special_tokens": False,
        "cache_salt": version,
    }


def read_completions(
    answer: object,
    model: str,
    prompt: TokenIds,
    *,
    num_completions: int,
    max_new_tokens: int,
    end_token_ids: TokenIds,
    vocabulary_size: int,
) -> list[SampledTokens]:
    """Return the completions that an answer of the server contains, in the order of their indices.

    Args:
        answer: JSON value of the answer.
        model: name of the requested model or adapter.
        prompt: token ids of the prompt.
        num_completions: number of requested completions.
        max_new_tokens: maximum number of tokens of a completion.
        end_token_ids: token ids that end a completion.
        vocabulary_size: number of tokens that the policy knows.

    Raises:
        AnswerError: if the answer does not contain the completions that were requested.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise AnswerError("the answer has no list of choices")
    assert isinstance(answer, dict)
    if answer.get("model") not in (None, model):
        raise AnswerError(f"the answer is from the model {answer['model']!r}, but {model!r} was requested")
    if sorted(str(choice.get("index")) for choice in choices) != sorted(map(str, range(num_completions))):
        raise AnswerError(
            f"the answer has {len(choices)} choices, but {num_completions} completions were requested"
        )
    choices.sort(key=lambda choice: int(choice["index"]))
    found = [_read_choice(choice, prompt, max_new_tokens, end_token_ids) for choice in choices]
    if not all(0 <= token < vocabulary_size for each in found for token in each.token_ids):
        raise AnswerError(
            f"the answer has tokens outside the vocabulary of the policy ({vocabulary_size} tokens)"
        )
    return found


def _read_choice(
    choice: dict[str, Any], prompt: TokenIds, max_new_tokens: int, end_token_ids: TokenIds
) -> SampledTokens:
    token_ids = _list_of(int, choice.get("token_ids"), "token_ids (return_token_ids)")
    logged = choice.get("logprobs")
    log_probs = _list_of(
        float, logged.get("token_logprobs") if isinstance(logged, dict) else None, "logprobs"
    )
    if len(log_probs) != len(token_ids):
        raise AnswerError(f"the answer has {len(log_probs)} log-probabilities for {len(token_ids)} tokens")
    # rounding may give small positive values
    if not all(math.isfinite(each) and each <= 1e-3 for each in log_probs):
        raise AnswerError("the answer has log-probabilities that are not finite, or above 0")
    if choice.get("prompt_token_ids") not in (None, list(prompt)):
        raise AnswerError("the answer belongs to another prompt")
    is_ended = bool(token_ids) and token_ids[-1] in end_token_ids
    if any(token in end_token_ids for token in token_ids[:-1]) or len(token_ids) > max_new_tokens:
        raise AnswerError(
            "the answer has a completion that continues after an end token or after max_new_tokens"
        )
    if not is_ended and len(token_ids) < max_new_tokens:
        raise AnswerError(
            f"the answer has a completion that was cut off after {len(token_ids)} of {max_new_tokens} "
            "tokens, without an end token; a prompt with its completion may be longer than the server's "
            "--max-model-len"
        )
    return SampledTokens(tuple(token_ids), tuple(min(0.0, each) for each in log_probs))


def _list_of(kind: type, values: object, name: str) -> list[Any]:
    """Check that a part of the server's answer is a list of numbers, and return the list.

    Args:
        kind: type of the numbers. If it is float, integers are also accepted.
        values: the part of the answer.
        name: name of the part, for the error message.

    Raises:
        AnswerError: if `values` is not a list, or if an entry is not a number of the type `kind`.
    """
    accepted = (int, float) if kind is float else (int,)
    if not isinstance(values, list) or not all(type(each) in accepted for each in values):
        raise AnswerError(f"the answer has no {name}")
    return values


def read_models(answer: object) -> ServedModels:
    """Return the models that a server serves, given the server's answer to `/v1/models`.

    Raises:
        AnswerError: if the server's answer does not name a model.
    """
    listed = answer.get("data") if isinstance(answer, dict) else None
    models = [each for each in listed or () if isinstance(each, dict) and isinstance(each.get("id"), str)]
    base = next((each for each in models if not each.get("parent")), None)
    if base is None:
        raise AnswerError("the server's answer does not name a model")
    max_length = base.get("max_model_len")
    adapters = tuple(each["id"] for each in models if each.get("parent"))
    return ServedModels(base["id"], adapters, max_length if isinstance(max_length, int) else None)


def mean_difference(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the mean absolute difference between two lists of log-probabilities, in nats."""
    return math.fsum(abs(a - b) for a, b in zip(found, expected, strict=True)) / max(1, len(found))
