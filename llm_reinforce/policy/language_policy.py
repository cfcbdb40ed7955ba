"""A causal language model as a policy π(a|s; θ) over tokens."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from jinja2 import TemplateError
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from llm_reinforce.errors import InputError

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class LanguagePolicy:
    """A model with its tokenizer and the settings that turn a prompt into an initial state.

    The model is in evaluation mode even during training, because dropout would make the policy that samples
    differ from the policy whose log-probabilities are computed.

    Attributes:
        model: causal language model.
        tokenizer: tokenizer of the model.
        end_token_ids: token ids that end an episode when they are sampled. An end token is an action like any
            other token.
        pad_token_id: token id that fills ragged batches. The pad token may also be an end token, because
            masks are computed from lengths.
        uses_chat_template: if True, a prompt is inserted into the chat template of the tokenizer, as a
            message of the user.
        system_prompt: text of the system message in the chat template. None: the default of the template.
    """

    model: nn.Module
    tokenizer: Any
    end_token_ids: TokenIds
    pad_token_id: int
    uses_chat_template: bool = False
    system_prompt: str | None = None

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.model.parameters()).device

    def encode_prompt(self, prompt: str) -> TokenIds:
        """Return the tokens of the initial state s_0.

        Raises:
            InputError: if the prompt has no tokens or a character that the tokenizer cannot encode, or if the
                chat template raises an error.
        """
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Sequence[str]) -> list[TokenIds]:
        """Return the tokens of the initial state of each prompt.

        This is much faster than one call of `encode_prompt` per prompt.

        Raises:
            InputError: under the conditions listed for `encode_prompt`, for any of the prompts.
        """
        texts = [self._in_chat_template(prompt) if self.uses_chat_template else prompt for prompt in prompts]
        encoded = self._encode(texts, add_special_tokens=not self.uses_chat_template)
        if not all(encoded):
            raise InputError("empty prompt: the prompt of every problem must contain at least one token")
        return [tuple(token_ids) for token_ids in encoded]

    def encode_completion(self, text: str) -> TokenIds:
        """Return the token ids of `text`, followed by the end token, as actions.

        Raises:
            InputError: if the text has a character that the tokenizer cannot encode.
        """
        return (*self._encode([text], add_special_tokens=False)[0], self.end_token_ids[0])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of a completion, given the token ids of its actions. A final end token is omitted.

        Other special tokens are part of the text, so that `1<pad>5` is not read as 15.
        """
        written = list(token_ids)
        if written and written[-1] in self.end_token_ids:
            written.pop()
        text: str = self.tokenizer.decode(written, skip_special_tokens=False)
        return text

    def save(self, directory: str | Path) -> None:
        """Save the model and the tokenizer, so that `load_policy` and transformers can load them.

        If the model is an adapter of peft, only the adapter and the tokenizer are saved.
        """
        with without_progress_bars():
            self.model.save_pretrained(str(directory))  # type: ignore[operator]
        self.tokenizer.save_pretrained(str(directory))

    def _in_chat_template(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:  # some templates do not support system turns
            turns = " and ".join(message["role"] for message in messages)
            raise InputError(
                f"the chat template of the policy does not accept a {turns} turn: {error}; set "
                "policy.use_chat_template: false or remove policy.system_prompt"
            ) from error
        return text

    def _encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        try:
            encoded: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=add_special_tokens)[
                "input_ids"
            ]
        except Exception as error:  # the tokenizers library raises plain Exception
            if len(texts) > 1:  # encode one by one, to find the text that fails
                return [self._encode([text], add_special_tokens=add_special_tokens)[0] for text in texts]
            vocabulary = self.tokenizer.get_vocab()
            missing = sorted({character for character in texts[0] if character not in vocabulary})
            raise InputError(
                f"{texts[0]!r} cannot be encoded by the policy: its alphabet lacks "
                f"{', '.join(map(repr, missing))}; for a policy with random weights, add the characters to "
                "policy.random_init.alphabet"
            ) from error
        return encoded


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide the progress bars of transformers within the context.

    Without this context, transformers shows them even for a model of a few kilobytes.
    """
    was_enabled = transformers_logging.is_progress_bar_enabled()  # type: ignore[no-untyped-call,unused-ignore]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call,unused-ignore]
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call,unused-ignore]


def integers(numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Int[Tensor, "..."]:
    """Convert lists of integers to a tensor.

    The conversion uses NumPy, which is five times as fast as `torch.tensor`.
    """
    return torch.from_numpy(np.asarray(numbers, dtype=np.int64)).to(device)


def pad_right(
    sequences: Sequence[Sequence[int]], value: int, device: torch.device
) -> Int[Tensor, "row column"]:
    """Return sequences of different lengths as one tensor, padded with `value` on the right."""
    width = max((len(sequence) for sequence in sequences), default=0)
    rows = [[*sequence, *[value] * (width - len(sequence))] for sequence in sequences]
    return integers(rows, device).reshape(len(rows), width)


class LeftPadded(NamedTuple):
    """Prompts that are padded on the left, so that the last token of each prompt is in the last column.

    Attributes:
        token_ids: tokens of the prompts.
        mask: 1 for tokens of the prompt, 0 for padding.
        positions: position of each token in its prompt; 0 for padding.
    """

    token_ids: Int[Tensor, "row column"]
    mask: Int[Tensor, "row column"]
    positions: Int[Tensor, "row column"]


def pad_left(prompts: Sequence[TokenIds], value: int, device: torch.device) -> LeftPadded:
    """Return prompts of different lengths as one tensor, padded with `value` on the left.

    Because all prompts end in the same column, new tokens can be appended to all of them in the next column.
    """
    width = max(len(prompt) for prompt in prompts)
    rows = [[value] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    lengths = integers([len(prompt) for prompt in prompts], device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    return LeftPadded(integers(rows, device), mask, (mask.cumsum(1) - 1).clamp(min=0))


def accepted_arguments(model: nn.Module, names: Sequence[str]) -> frozenset[str]:
    """Return the subset of `names` that are parameters of the model's `forward` method.

    If the model is wrapped or has an adapter, the method of the inner model is examined.
    """
    inner: Any = getattr(model, "module", model)
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return frozenset(names) & frozenset(inspect.signature(inner.forward).parameters)
