"""A causal language model as a policy π(a|s; θ) over tokens."""

import datetime
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from llm_reinforce.console.text import visible
from llm_reinforce.errors import InputError
from llm_reinforce.policy.chat_templates import render_chat
from llm_reinforce.policy.visible_text import VisibleText
from llm_reinforce.verifier import is_reasoning_tag, open_reasoning

TokenIds = tuple[int, ...]

Prompt = str | Sequence[Mapping[str, Any]]
"""A text, or the messages of a chat with `role` and `content`."""

MAX_SHOWN = 200  # maximum number of characters of a prompt in an error message


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
        pad_token_id: token id with which shorter sequences of a batch are padded. The pad token may also be
            an end token, because masks are computed from lengths.
        uses_chat_template: if True, prompts are inserted into the chat template of the tokenizer. A prompt
            that is a text becomes a single message of the user. A prompt that is a chat keeps all its
            messages.
        system_prompt: text of the system message in the chat template, for prompts without a system message.
            None: the default of the template.
        chat_template_kwargs: further arguments of the chat template, such as `{"enable_thinking": False}`.
        chat_template_date: date that the chat template prints as the current date. None: the template does
            not print a date.
    """

    model: nn.Module
    tokenizer: Any
    end_token_ids: TokenIds
    pad_token_id: int
    uses_chat_template: bool = False
    system_prompt: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    chat_template_date: datetime.date | None = None

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.model.parameters()).device

    def encode_prompt(self, prompt: Prompt) -> TokenIds:
        """Return the tokens of the initial state s_0.

        Tokens that the tokenizer appends to every text, such as an end token, are removed. If a text
        begins with the BOS token and the tokenizer adds another BOS token, one of the two is removed.

        Raises:
            InputError: if the prompt has no tokens, ends in an end token, or contains a character that the
                tokenizer cannot encode. `render_prompt` lists further conditions.
        """
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[TokenIds]:
        """Return the tokens of the initial state of each prompt.

        This is much faster than one call of `encode_prompt` per prompt.

        Raises:
            InputError: under the conditions listed for `encode_prompt`, for any of the prompts.
        """
        texts = [self.render_prompt(prompt) for prompt in prompts]
        encoded = self._encode(texts, add_special_tokens=not self.uses_chat_template)
        if not all(encoded):
            raise InputError(
                "a prompt is empty, but the prompt of every problem must contain at least one token; "
                "remove or correct the problem with the empty prompt"
            )
        for text, token_ids in zip(texts, encoded, strict=True):
            self._check_is_open(text, token_ids)
        return [tuple(token_ids) for token_ids in encoded]

    def render_prompt(self, prompt: Prompt) -> str:
        """Return the prompt as text, in the chat template if the policy uses one.

        A text becomes a single message of the user. The messages of a chat are used unchanged. If a
        `system_prompt` is set and there is no system message, the system prompt becomes the first message.

        Raises:
            InputError: if the chat template raises an error, drops a message or changes a message. Without a
                chat template: if the prompt is a chat of several messages.
        """
        chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if not self.uses_chat_template:
            if len(chat) > 1:
                turns = ", ".join(message["role"] for message in chat)
                raise InputError(
                    f"prompt '{visible(chat[-1]['content'], MAX_SHOWN)}' is a chat of several messages "
                    f"({turns}), but the policy uses no chat template; use a policy with a chat "
                    "template, or set prompt_column to a column with prompts as text"
                )
            return str(chat[0]["content"])
        messages = chat
        if self.system_prompt is not None and all(each["role"] != "system" for each in chat):
            messages = [{"role": "system", "content": self.system_prompt}, *chat]
        try:
            text = render_chat(self.tokenizer, messages, self.chat_template_kwargs, self.chat_template_date)
        # some templates do not support system turns, expect a list as content, or contain errors
        except Exception as error:
            turns = " and ".join(dict.fromkeys(message["role"] for message in messages))
            remedy = " or remove policy.system_prompt" * (self.system_prompt is not None)
            raise InputError(
                f"the chat template of the policy does not accept {turns} messages: {error}; set "
                f"policy.use_chat_template: false{remedy}"
            ) from error
        # a template may leave out the reasoning in messages of the assistant
        kept = (each["content"].strip() for each in chat if each["role"] != "assistant")
        if changed := [content for content in kept if content not in text]:
            raise InputError(
                f"prompt '{visible(changed[0], MAX_SHOWN)}': the chat template of the policy drops or "
                f"changes the prompt; the policy would read '{visible(text, MAX_SHOWN)}'. Correct the "
                "template, or set policy.use_chat_template: false"
            )
        return text

    def encode_completion(self, text: str) -> TokenIds:
        """Return the token ids of a completion: the tokens of `text`, followed by the end token.

        Raises:
            InputError: if the text has a character that the tokenizer cannot encode.
        """
        return (*self._encode([text], add_special_tokens=False)[0], self.end_token_ids[0])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, without a final end token.

        All other tokens are visible. Special tokens are part of the text, so that `1<pad>5` is not read as
        15. A token without text, such as an id that the tokenizer does not know, becomes U+FFFD.
        """
        written = list(token_ids)
        if written and written[-1] in self.end_token_ids:
            written.pop()
        return self._visible_text(written)

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """Return the text of each token, including end tokens. A token without text becomes U+FFFD."""
        return [self._visible_text([token_id]) for token_id in token_ids]

    def completion_text(self, prompt: TokenIds, token_ids: Sequence[int]) -> str:
        """Return the text of a completion, without a final end token; see `decode`.

        If the prompt ends in an open reasoning block, such as `<think>`, the text starts with this part of
        the prompt. The verifier and reward functions then know that the completion begins with reasoning.
        """
        return self.opened_reasoning(prompt) + self.decode(token_ids)

    def save(self, directory: str | Path) -> None:
        """Save the model and the tokenizer, so that `load_policy` and transformers can load them.

        If the model has a peft adapter, only the adapter and the tokenizer are saved.
        """
        with without_progress_bars():
            self.model.save_pretrained(str(directory))  # type: ignore[operator]
        self.tokenizer.save_pretrained(str(directory))

    @cached_property
    def _visible_text(self) -> VisibleText:
        return VisibleText(self.tokenizer)

    @cached_property
    def _message_marks(self) -> frozenset[int]:
        """Tokens that may separate the messages of a chat.

        These are all special and added tokens except the BOS token and the tags of reasoning blocks.
        """
        added = self.tokenizer.added_tokens_decoder
        tags = {number for number, token in added.items() if open_reasoning(str(token))}
        return frozenset({*self.tokenizer.all_special_ids, *added} - tags - {self.tokenizer.bos_token_id})

    @cached_property
    def _end_tags(self) -> dict[int, str]:
        """Texts of the end tokens that are special or added tokens, by token id.

        End tokens that are ordinary text, such as a newline, are left out, because prompts may end with them.
        """
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        return {
            number: str(self.tokenizer.convert_ids_to_tokens(number))
            for number in self.end_token_ids
            if number in special
        }

    def opened_reasoning(self, prompt: TokenIds) -> str:
        """Return the end of a prompt, from the tag of an open reasoning block to the last token.

        The result is empty if the prompt does not end in an open reasoning block.
        """
        return self._remembered_reasoning(prompt)

    @cached_property
    def _remembered_reasoning(self) -> Callable[[TokenIds], str]:
        return lru_cache(maxsize=4096)(self._find_opened_reasoning)

    def _find_opened_reasoning(self, prompt: TokenIds) -> str:
        last_mark = max(
            (place for place, token in enumerate(prompt) if token in self._message_marks), default=-1
        )
        opened = open_reasoning(self._visible_text(prompt[last_mark + 1 :]))
        # In the message of the assistant, text may follow the tag. Elsewhere, a tag counts only if the
        # prompt ends with the tag, because a request may mention the tag, as in "begin with <think>".
        in_own_message = self.uses_chat_template and last_mark >= 0
        return opened if in_own_message or is_reasoning_tag(opened.strip()) else ""

    def _check_is_open(self, text: str, token_ids: Sequence[int]) -> None:
        """Check that a prompt does not end in an end token.

        Models are not trained to continue a text after an end token.

        Raises:
            InputError: if the prompt ends in an end token.
        """
        end = self._end_tags.get(token_ids[-1])
        if end is None and self.uses_chat_template:  # a message may end in `<|im_end|>\n`
            end = next((tag for tag in self._end_tags.values() if text.rstrip().endswith(tag)), None)
        if end is not None:
            remedy = (
                "the chat template does not begin a message of the assistant after the prompt; correct the "
                "template, or set policy.use_chat_template: false"
                if self.uses_chat_template
                else "remove the end token from the prompts, or from problems.template"
            )
            raise InputError(f"prompt '{visible(text, MAX_SHOWN)}': ends in the end token {end}; {remedy}")

    def _encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        try:
            encoded = self.tokenizer(
                list(texts),
                add_special_tokens=add_special_tokens,
                return_special_tokens_mask=add_special_tokens,
            )
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
        token_ids: list[list[int]] = encoded["input_ids"]
        if add_special_tokens:
            masks = encoded["special_tokens_mask"]
            token_ids = [_without_end(*pair) for pair in zip(token_ids, masks, strict=True)]
        bos = self.tokenizer.bos_token_id
        return [row[1:] if bos is not None and row[:2] == [bos, bos] else row for row in token_ids]


def _without_end(token_ids: list[int], is_added: Sequence[int]) -> list[int]:
    """Return token ids without the tokens that the tokenizer has appended to a text, such as an end token."""
    length = len(token_ids)
    while length and is_added[length - 1]:
        length -= 1
    return token_ids[:length] or token_ids


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide the progress bars of transformers within the context.

    Otherwise, transformers shows progress bars even for a model of a few kilobytes.
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

    All prompts end in the same column, so the next column can hold a new token of every prompt.
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
