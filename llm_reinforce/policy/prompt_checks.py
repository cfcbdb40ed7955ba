"""Checks of the chat template, the prompts and the end tokens.

The checks find prompts that the policy does not read as the user expects.
"""

import datetime
from collections.abc import Sequence
from dataclasses import replace

from llm_reinforce.errors import InputError
from llm_reinforce.policy.chat_templates import (
    PROBE,
    REPLY,
    ChatSettings,
    check_template_arguments,
    end_of_turn,
    end_of_turn_token,
    prints_date,
)
from llm_reinforce.policy.language_policy import LanguagePolicy, Prompt, TokenIds
from llm_reinforce.problems import Problem

NUM_COMPARED = 1_000  # number of prompts whose tokens are compared with each other
NUM_RENDERED = 8  # number of times that a chat template is rendered, to find out whether it is random
MAX_SHOWN = 80  # maximum number of characters of a prompt in a note


def with_chat_settings(policy: LanguagePolicy, chat: ChatSettings) -> LanguagePolicy:
    """Check the chat template of a policy, and return the policy with the given settings of the template.

    Settings that are None are not changed. If the template prints the current date and no date is set,
    today's date is used. If the template prints no date, a given date is ignored.

    Raises:
        InputError: if the policy uses no chat template but a system prompt or template arguments are given.
            With a chat template: if the template does not use an argument, drops or changes a message, or
            renders a prompt differently each time, or if the date is not valid.
    """
    if not policy.uses_chat_template:
        for name in ("system_prompt", "chat_template_kwargs"):
            if getattr(chat, name) not in (None, {}):
                raise InputError(
                    f"policy.{name} has no effect, because this policy has no chat template or does not use "
                    "its chat template; remove this setting, or move the text to problems.template"
                )
        return policy
    check_template_arguments(policy.tokenizer, chat.chat_template_kwargs or {})
    date = _as_date(chat.chat_template_date) or policy.chat_template_date or datetime.date.today()
    given = {
        name: value
        for name in ("system_prompt", "chat_template_kwargs")
        if (value := getattr(chat, name)) is not None
    }
    has_date = prints_date(policy.tokenizer)
    changed = replace(policy, **given, chat_template_date=date if has_date else None)
    # `render_prompt` raises an error if the template drops the prompt
    if len({changed.render_prompt(PROBE) for _ in range(NUM_RENDERED)}) > 1:
        raise InputError(
            "the chat template of the policy renders the same prompt differently each time, so a run could "
            "not be repeated; remove the random choice from the template, or set "
            "policy.use_chat_template: false"
        )
    for text in () if changed.system_prompt is None else (changed.system_prompt.strip(), REPLY):
        if text not in replace(changed, system_prompt=text).render_prompt(PROBE):
            raise InputError(
                "policy.system_prompt: the chat template of the policy drops or changes the system prompt; "
                "remove this setting, or move the text to problems.template"
            )
    return changed


def _as_date(date: datetime.date | str | None) -> datetime.date | None:
    if not isinstance(date, str):
        return date
    try:
        return datetime.date.fromisoformat(date)
    except ValueError as error:
        raise InputError(
            f"policy.chat_template_date {date!r}: should be a date such as 2026-11-29"
        ) from error


def check_prompts(policy: LanguagePolicy, problems: Sequence[Problem]) -> list[str]:
    """Check that the prompts do not all become the same tokens, and return notes about the prompts.

    Each prompt is also checked when it is encoded; see `LanguagePolicy.encode_prompt`.

    Args:
        policy: the policy.
        problems: problems whose prompts are checked. At most the first 1,000 distinct prompts are compared
            with each other.

    Returns:
        notes of one sentence each. They concern different prompts that become the same tokens, prompts that
        the tokenizer changes, special tokens in prompts, tokens that are removed from prompts, prompts that
        end in open reasoning, and messages that do not end in an end token.

    Raises:
        InputError: if all prompts consist of the same tokens although their texts differ.
    """
    distinct = {problem.prompt: problem.policy_prompt for problem in reversed(problems)}
    prompts = list(dict.fromkeys(problem.prompt for problem in problems))[:NUM_COMPARED]
    if not prompts:
        return []
    given = [distinct[prompt] for prompt in prompts]
    encoded = policy.encode_prompts(given)
    num_distinct = len(set(encoded))
    if num_distinct == 1 < len(prompts):
        raise InputError(
            f"all prompts become the same tokens, {policy.decode(encoded[0])[:200]!r}, although their texts "
            "differ; use a tokenizer that knows the characters of the problems, and check the chat template"
        )
    notes = []
    if num_distinct < len(prompts):
        notes.append(
            f"{len(prompts):,} different prompts become only {num_distinct:,} different sequences of tokens, "
            "because the tokenizer does not distinguish all characters"
        )
    texts = [_texts(prompt) for prompt in given]
    notes += _notes_on_changed_texts(policy, texts, encoded)
    if opened := policy.opened_reasoning(encoded[0]):
        notes.append(
            f"the prompts end in an open reasoning block, {opened!r}; a completion has no answer until it "
            "closes this block"
        )
    if policy.uses_chat_template:
        return [*notes, *_notes_on_special_tokens(policy, texts), *_notes_on_messages(policy)]
    return [*notes, *_notes_on_added_tokens(policy, prompts[0], encoded[0])]


def _texts(prompt: Prompt) -> list[str]:
    """Return the text of a prompt, or the texts of all its messages except those of the assistant."""
    if isinstance(prompt, str):
        return [prompt]
    return [str(message["content"]) for message in prompt if message["role"] != "assistant"]


def _notes_on_changed_texts(
    policy: LanguagePolicy, prompts: Sequence[Sequence[str]], encoded: Sequence[TokenIds]
) -> list[str]:
    """Return a note about prompts that change when they are encoded and decoded, if there are any.

    A tokenizer may read `3²` as `32`, drop a minus sign, or replace an unknown character. Tokenizers change
    white space in many ways, so white space is not compared.
    """
    read = policy.tokenizer.batch_decode(  # three times as fast as `policy.decode`
        [list(token_ids) for token_ids in encoded], clean_up_tokenization_spaces=False
    )
    changed = [
        (text, whole)
        for texts, whole in zip(prompts, read, strict=True)
        for text in texts
        if "".join(text.split()) not in "".join(whole.split())
    ]
    if not changed:
        return []
    text, whole = (repr(each if len(each) <= MAX_SHOWN else each[:MAX_SHOWN] + "…") for each in changed[0])
    count = f"{len(changed):,} of {len(prompts):,}"
    return [f"the tokenizer changes the text of prompts ({count}): it reads {text} as {whole}"]


def _notes_on_special_tokens(policy: LanguagePolicy, prompts: Sequence[Sequence[str]]) -> list[str]:
    """Return a note about texts of the user that contain special tokens, if there are any."""
    special = set(policy.tokenizer.all_special_tokens)
    special |= {str(token) for token in policy.tokenizer.added_tokens_decoder.values() if token.special}
    found = [{token for text in texts for token in special if token and token in text} for texts in prompts]
    if not any(found):
        return []
    token = min(next(filter(None, found)))
    return [
        f"{sum(map(bool, found)):,} of {len(prompts):,} prompts contain special tokens, such as {token}, "
        "although the chat template adds the special tokens; if the template has already been applied to "
        "these prompts, set policy.use_chat_template: false"
    ]


def _notes_on_added_tokens(policy: LanguagePolicy, prompt: str, encoded: TokenIds) -> list[str]:
    """Return a note about tokens that are removed from a plain prompt, if there are any."""
    whole = policy.tokenizer(prompt)["input_ids"]
    if len(whole) == len(encoded):
        return []
    removed = whole[len(encoded) :] if whole[0] != whole[1] else whole[:1]
    tokens = " ".join(map(str, policy.tokenizer.convert_ids_to_tokens(removed)))
    return [f"the tokenizer adds special tokens to each text ({tokens}), which are removed from the prompts"]


def _notes_on_messages(policy: LanguagePolicy) -> list[str]:
    """Return a note about a chat template that does not end messages in an end token."""
    after = end_of_turn(
        policy.tokenizer, policy.system_prompt, policy.chat_template_kwargs, policy.chat_template_date
    )
    if after is None or end_of_turn_token(policy.tokenizer, after) in policy.end_token_ids:
        return []
    ends = " or ".join(map(str, policy.tokenizer.convert_ids_to_tokens(list(policy.end_token_ids))))
    what = f"with {after.split()[0][:40]!r}, which is not an end token" if after else "without a token"
    return [
        f"the chat template ends the messages of the assistant {what}; a completion ends only with {ends}"
    ]


def first_prompt(policy: LanguagePolicy, problems: Sequence[Problem]) -> str:
    """Return the prompt of the first problem as the policy reads it, with special tokens."""
    return policy.decode(policy.encode_prompt(problems[0].policy_prompt))
