"""π(a|s; θ): a causal language model seen as a policy over tokens."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from jinja2 import TemplateError
from torch import Tensor, nn

from llm_reinforce.errors import InputError

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class LanguagePolicy:
    """A model, its tokenizer, and how a prompt becomes a state.

    The model stays in evaluation mode, in training too: with dropout, what samples and what is scored
    would be two policies.

    Attributes:
        end_token_ids: sampling any of these ends an episode; each is an action like any other.
        pad_token_id: fills ragged batches; may equal an end token, masks come from lengths.
        uses_chat_template: a prompt is put as a user's turn into the tokenizer's chat template.
        system_prompt: the system turn before it; None leaves the template's own.
    """

    model: nn.Module
    tokenizer: Any
    end_token_ids: TokenIds
    pad_token_id: int
    uses_chat_template: bool = False
    system_prompt: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device

    def encode_prompt(self, prompt: str) -> TokenIds:
        """The tokens of the initial state s_0.

        Raises:
            InputError: the prompt has no tokens, or a character that the tokenizer doesn't know, or the chat
                template refuses it.
        """
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Sequence[str]) -> list[TokenIds]:
        """The same of each of several prompts, much faster than one by one.

        Raises:
            InputError: as for one.
        """
        texts = [self._in_chat_template(prompt) if self.uses_chat_template else prompt for prompt in prompts]
        encoded = self._encode(texts, add_special_tokens=not self.uses_chat_template)
        if not all(encoded):
            raise InputError("an empty prompt is no state to act from: a problem's prompt needs text")
        return [tuple(token_ids) for token_ids in encoded]

    def encode_completion(self, text: str) -> TokenIds:
        """The actions that write `text` and end the episode.

        Raises:
            InputError: the text has a character that the tokenizer doesn't know.
        """
        return (*self._encode([text], add_special_tokens=False)[0], self.end_token_ids[0])

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a completion's actions, a final end token left out.

        Any other special token is written out, so that what stands on its two sides is not read as one:
        `1<pad>5` is no 15.
        """
        written = list(token_ids)
        if written and written[-1] in self.end_token_ids:
            written.pop()
        text: str = self.tokenizer.decode(written, skip_special_tokens=False)
        return text

    def save(self, directory: str | Path) -> None:
        """Write model (or adapter) and tokenizer as `from_pretrained` of transformers (peft) reads them."""
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
        except TemplateError as error:  # some know no system turn
            turns = " and ".join(message["role"] for message in messages)
            raise InputError(f"the policy's chat template refuses a {turns} turn: {error}") from error
        return text

    def _encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        try:
            encoded: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=add_special_tokens)[
                "input_ids"
            ]
        except Exception as error:  # the tokenizers library raises plain Exception
            if len(texts) > 1:  # which of them was it?
                return [self._encode([text], add_special_tokens=add_special_tokens)[0] for text in texts]
            known = self.tokenizer.get_vocab()
            foreign = sorted({character for character in texts[0] if character not in known})
            raise InputError(
                f"{texts[0]!r} can't be read or written by the policy: its alphabet lacks "
                f"{', '.join(map(repr, foreign))}; a policy of random weights takes it from "
                "policy.random_init.alphabet"
            ) from error
        return encoded


def integers(numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Int[Tensor, "..."]:
    """A tensor of them; by way of numpy, which reads Python's integers five times as fast."""
    return torch.from_numpy(np.asarray(numbers, dtype=np.int64)).to(device)


def pad_right(
    sequences: Sequence[Sequence[int]], value: int, device: torch.device
) -> Int[Tensor, "row column"]:
    """Ragged rows of token ids as one tensor, filled with `value` on the right."""
    width = max((len(sequence) for sequence in sequences), default=0)
    rows = [[*sequence, *[value] * (width - len(sequence))] for sequence in sequences]
    return integers(rows, device).reshape(len(rows), width)


class LeftPadded(NamedTuple):
    """Prompts that end in one column, so that one next token a row can follow."""

    token_ids: Int[Tensor, "row column"]
    mask: Int[Tensor, "row column"]
    positions: Int[Tensor, "row column"]


def pad_left(prompts: Sequence[TokenIds], value: int, device: torch.device) -> LeftPadded:
    """Prompts filled up on the left, as a cache needs them; `mask` is 1 for their own tokens."""
    width = max(len(prompt) for prompt in prompts)
    rows = [[value] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    lengths = integers([len(prompt) for prompt in prompts], device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    return LeftPadded(integers(rows, device), mask, (mask.cumsum(1) - 1).clamp(min=0))


def accepted_arguments(model: nn.Module, names: Sequence[str]) -> frozenset[str]:
    """Which of these arguments the model's own forward takes, under an adapter or a wrapper as well."""
    inner: Any = getattr(model, "module", model)
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return frozenset(names) & frozenset(inspect.signature(inner.forward).parameters)
