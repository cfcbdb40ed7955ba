"""Rendering of chat templates: extra arguments, a fixed date, and the token that ends a message."""

import datetime
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llm_reinforce.errors import InputError, nearest

PROBE, REPLY = "What is 2731 + 8465?", "The sum is 11196"
"""Trial messages of a user and of an assistant. No chat template contains these texts, so they occur in a
rendered chat only if the template keeps the messages."""

_DATE_FUNCTION = "strftime_now"
_DIRECTIVES = "aAbBcdfGHIjmMpSuUVwWxXyYzZ"
_NUMERIC = "dHIjmMSy"  # date directives for which `-` removes leading zeros
_LIKE_A_TAG = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """Settings of a chat template.

    A setting that is None is left unchanged: a loaded policy keeps its setting, and a new policy gets the
    default.

    Attributes:
        system_prompt: text of the system message.
        chat_template_kwargs: further arguments of the template, such as `{"enable_thinking": False}`.
        chat_template_date: date that the template prints as the current date; a `datetime.date`, or text such
            as "2026-11-29".
    """

    system_prompt: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    chat_template_date: datetime.date | str | None = None


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    arguments: Mapping[str, Any],
    date: datetime.date | None,
    *,
    add_generation_prompt: bool = True,
) -> str:
    """Return the text of a conversation in the chat template of the tokenizer.

    Args:
        tokenizer: tokenizer with a chat template.
        messages: messages of the conversation, with `role` and `content`.
        arguments: further arguments of the template, such as `enable_thinking`.
        date: date that a template prints as the current date; None: today's date.
        add_generation_prompt: end the text with the beginning of a message of the assistant.
    """
    fixed: dict[str, Any] = {}
    if date is not None and _DATE_FUNCTION in (template := default_template(tokenizer)):
        fixed["chat_template"] = _with_fixed_date(template, date)
    text: str = tokenizer.apply_chat_template(
        list(messages),
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **fixed,
        **arguments,
    )
    return text


def prints_date(tokenizer: Any) -> bool:
    """Return True if the chat template of the tokenizer can print the current date."""
    return _DATE_FUNCTION in default_template(tokenizer)


def default_template(tokenizer: Any) -> str:
    """Return the default chat template of the tokenizer.

    Raises:
        InputError: if the tokenizer has only templates with other names.
    """
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise InputError(
            f"policy: the tokenizer has no default chat template among its templates ({error}); set "
            "tokenizer.chat_template to one of its templates, or set policy.use_chat_template: false"
        ) from error


@lru_cache(maxsize=16)
def _with_fixed_date(template: str, date: datetime.date) -> str:
    """Return a copy of the template in which the current time is always midnight of `date`.

    Templates get the current time from the function `strftime_now` of transformers. The copy defines a macro
    of the same name, which replaces this function.
    """
    replacements = {f"%{letter}": date.strftime(f"%{letter}") for letter in _DIRECTIVES}
    replacements |= {f"%-{letter}": date.strftime(f"%{letter}").lstrip("0") or "0" for letter in _NUMERIC}
    replacements["%e"] = f"{date.day:2}"
    filters = "".join(f" | replace({old!r}, {new!r})" for old, new in replacements.items())
    filters = f" | replace('%%', '\\x00'){filters} | replace('\\x00', '%')"
    # `+%}` keeps a newline at the start of the template
    return f"{{%- macro {_DATE_FUNCTION}(format) -%}}{{{{ format{filters} }}}}{{%- endmacro +%}}{template}"


def check_template_arguments(tokenizer: Any, arguments: Mapping[str, Any]) -> None:
    """Check that the chat template of a tokenizer uses all the given arguments.

    Raises:
        InputError: if the template does not mention an argument, or if the toolkit sets the argument itself.
    """
    template = default_template(tokenizer) if arguments else ""
    words = set(re.findall(r"[A-Za-z_]\w*", template))
    parameters = inspect.signature(tokenizer.apply_chat_template).parameters
    own = ({*parameters} - {"tools", "documents"}) | {"messages"}
    for name in arguments:
        if name in own:
            raise InputError(f"policy.chat_template_kwargs.{name}: the toolkit sets this argument; remove it")
        if name not in words:
            raise InputError(
                f"policy.chat_template_kwargs.{name}: the chat template of the policy has no such "
                f"argument{nearest(name, words)}; remove it or correct its name"
            )


def end_of_turn(
    tokenizer: Any,
    system_prompt: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    date: datetime.date | None = None,
) -> str | None:
    """Return the text that the chat template writes after a reply, without white space at the beginning.

    The result is None if the template does not accept a reply of the assistant, or leaves out the text of the
    reply.
    """
    messages = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": REPLY}]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    try:
        text = render_chat(tokenizer, messages, arguments or {}, date, add_generation_prompt=False)
    except Exception:  # a template may raise any exception
        return None
    return text.rpartition(REPLY)[2].lstrip() if REPLY in text else None


def end_of_turn_token(tokenizer: Any, after_reply: str) -> int | None:
    """Return the id of the special token with which the chat template ends a reply, or None.

    A token is special if it is an added token, or a single token in the form of a tag, such as `<|im_end|>`.
    The result is None if `after_reply`, the text that the template writes after a reply, does not begin with
    such a token.
    """
    added: dict[str, int] = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    added |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    starting = [text for text in added if text and after_reply.startswith(text)]
    if starting:
        return added[max(starting, key=len)]
    tag = _LIKE_A_TAG.match(after_reply)
    found: int | None = tokenizer.get_vocab().get(tag[0]) if tag else None
    return found
